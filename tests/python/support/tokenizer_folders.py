"""Small tokenizer folders of every kind, with their tokens declared in every file that AutoTokenizer reads."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("<unk>", "<s>", "</s>", "<|end|>")

TEXTS = (
    "",
    "the king of the cats",
    " the  king",
    "The King's 2nd cat, isn't it? No!",
    "a\nb\n\nc\t d\r\n",
    "   three   spaces   ",
    "naïve café e\u0301 ﬁ Ⅳ ½",
    "国王和猫。こんにちは 한국어",
    "القطة والملك، שלום",
    "राजा और बिल्ली क्ष",
    "👩‍👩‍👧 🇩🇪 👍🏽 ❤️",
    "zero\u200bwidth \x00\x07 \x1b[1m del\x7f",
    "▁the ▁ <0x0A> Ġ ##s",
    "<s>the king</s>",
    "the <|end|> king<|end|>cat",
    "a<tool>b <tool> c",
    "x <answer>y Answer answer<answer>",
    "cat.hello , cat ! n't 's",
)

_WORDS = ("the", "king", "of", "cat", "cats", "hello", "and", "is", "it", "2nd", "国王", "قط", "राजा", "é")


def _merges(words: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for word in words:
        head = word[0]
        vocab.setdefault(head, len(vocab))
        for c in word[1:]:
            vocab.setdefault(c, len(vocab))
            if head + c not in vocab:
                vocab[head + c] = len(vocab)
                merges.append((head, c))
            head += c
    return merges


def _byte_level(pre: Any = None, **bpe: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [spell.pre_tokenize_str(text)[0][0] for word in _WORDS for text in (word, " " + word)]
    tokenizer = Tokenizer(models.BPE(merges=_merges(words, vocab), vocab=vocab, **bpe))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_llama3() -> Tokenizer:
    pattern = Regex(
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer = _byte_level(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ignore_merges=True,
    )
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", bos)]
    )
    return tokenizer


def _sentencepiece() -> Tokenizer:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyzTKN.,!?'"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _merges([text for word in _WORDS for text in (word, "▁" + word)], vocab)
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def _llama2() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", bos)
    return tokenizer


def _metaspace(scheme: str, split: bool, by_metaspace: bool) -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split)
    steps = [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme=scheme)]
    if not by_metaspace:
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _unigram() -> Tokenizer:
    pieces = [
        *SPECIAL,
        "▁",
        *(f"{space}{word}" for word in _WORDS for space in ("▁", "")),
        *"abcdefghijklmnopqrstuvwxyz.,",
    ]
    scores = [(piece, 0.0 if i < len(SPECIAL) else -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    return tokenizer


def _wordpiece(cleanup: bool) -> Tokenizer:
    pieces = [*SPECIAL, *_WORDS, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"abcdefghijklmnopqrstuvwxyz.,!?'"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=cleanup)
    ends = [("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ends)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": _byte_level,
    "byte_level_llama3": _byte_level_llama3,
    "llama2": _llama2,
    "metaspace_first": lambda: _metaspace("first", False, True),
    "metaspace_always": lambda: _metaspace("always", True, True),
    "metaspace_never": lambda: _metaspace("never", False, False),
    "unigram": _unigram,
    "wordpiece": lambda: _wordpiece(True),
    "wordpiece_raw": lambda: _wordpiece(False),
}


def flags(content: str, **changes: bool) -> dict[str, Any]:
    """A serialized `AddedToken`."""
    defaults = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **defaults, "special": True, **changes}


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# Files beside tokenizer.json: tokenizer_config.json, special_tokens_map.json, added_tokens.json. The argument
# is the first id beyond the vocabulary.
DECLARATIONS: dict[str, Callable[[int], tuple[dict[str, Any], dict[str, Any] | None, dict[str, int] | None]]] = {
    "nothing": lambda first: ({}, None, None),
    "named": lambda first: (NAMED, None, None),
    "named_beyond_the_vocabulary": lambda first: ({**NAMED, "pad_token": "<pad>", "mask_token": "[M]"}, None, None),
    "eos_is_no_token_of_its_own": lambda first: ({"eos_token": "<|end|>"}, None, None),
    "added_tokens_decoder": lambda first: (
        {**NAMED, "added_tokens_decoder": {"0": flags("<unk>"), "3": flags("<|end|>"), str(first): flags("<tool>")}},
        None,
        None,
    ),
    "added_tokens_decoder_without_the_eos": lambda first: (
        {
            "eos_token": "<|end|>",
            "added_tokens_decoder": {str(first + 1): flags("<tool>"), str(first): flags("<answer>")},
        },
        None,
        None,
    ),
    "added_tokens_decoder_of_ordinary_tokens": lambda first: (
        {
            **NAMED,
            "added_tokens_decoder": {
                str(first): flags("<tool>", special=False, normalized=True),
                str(first + 1): flags("<answer>", special=False, lstrip=True),
                str(first + 2): flags("answer", special=False, single_word=True, rstrip=True),
            },
        },
        {"eos_token": "<|end|>"},
        {"<ignored>": first},
    ),
    "flags_of_special_tokens": lambda first: (
        {
            **NAMED,
            "added_tokens_decoder": {
                "2": flags("</s>", lstrip=True),
                "3": flags("<|end|>", rstrip=True, lstrip=True),
                str(first): flags("<tool>", rstrip=True),
                str(first + 1): flags("<answer>", single_word=True),
            },
        },
        None,
        None,
    ),
    "extra_list": lambda first: ({**NAMED, "extra_special_tokens": ["<tool>", "<answer>", "<|end|>"]}, None, None),
    "extra_names": lambda first: (
        {**NAMED, "extra_special_tokens": {"tool_token": "<tool>", "answer": "<answer>"}},
        None,
        None,
    ),
    "additional": lambda first: ({**NAMED, "additional_special_tokens": ["<answer>", "<tool>"]}, None, None),
    "additional_and_extra": lambda first: (
        {"additional_special_tokens": ["<answer>"], "extra_special_tokens": ["<tool>"]}, None, None,
    ),
    "additional_and_empty_extra": lambda first: (
        {"additional_special_tokens": ["<answer>"], "extra_special_tokens": []}, None, None,
    ),
    "names_of_its_own": lambda first: ({**NAMED, "image_token": "<tool>", "boi_token": "<answer>"}, None, None),
    "serialized_named": lambda first: (
        {"eos_token": {"__type": "AddedToken", **flags("<tool>", lstrip=True)}, "bos_token": None}, None, None,
    ),
    "special_tokens_map": lambda first: (
        {"eos_token": "</s>"},
        {"eos_token": flags("<|end|>", lstrip=True), "pad_token": "<tool>", "additional_special_tokens": ["<answer>"]},
        None,
    ),
    "special_tokens_map_and_extra": lambda first: (
        {"extra_special_tokens": ["<tool>"]}, {"extra_special_tokens": ["<answer>", "<tool>"]}, None,
    ),
    "added_tokens_json": lambda first: (NAMED, None, {"<tool>": first, "<answer>": first + 1}),
    "added_tokens_json_with_special": lambda first: (
        {**NAMED, "additional_special_tokens": ["<answer>"]}, None, {"<answer>": first + 1, "<tool>": first},
    ),
    "split_special_tokens": lambda first: ({**NAMED, "split_special_tokens": True}, None, None),
    "clean_up": lambda first: ({**NAMED, "clean_up_tokenization_spaces": True}, None, None),
    "clean_up_even_bpe": lambda first: (
        {
            **NAMED,
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        },
        None,
        None,
    ),
    "bos_and_eos_flags": lambda first: ({**NAMED, "add_bos_token": True, "add_eos_token": True}, None, None),
    "no_bos_flag": lambda first: ({**NAMED, "add_bos_token": False}, None, None),
    "prefix_space": lambda first: ({**NAMED, "add_prefix_space": True}, None, None),
}  # fmt: skip

# Which added tokens tokenizer.json itself has, and whether they are special there.
IN_TOKENIZER_JSON: dict[str, list[AddedToken]] = {
    "special": [AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    "ordinary": [AddedToken(token, special=False, normalized=False) for token in SPECIAL],
    "none": [],
}


def write_folder(
    folder: pathlib.Path,
    kind: str,
    declaration: str = "named",
    in_file: str = "special",
    model_type: str | None = None,
    **config: Any,
) -> pathlib.Path:
    """Writes a tokenizer folder; `config` are further fields of tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens(IN_TOKENIZER_JSON[in_file])
    tokenizer.save(str(folder / "tokenizer.json"))
    declared, special_tokens_map, added_tokens = DECLARATIONS[declaration](tokenizer.get_vocab_size())
    _write(folder / "tokenizer_config.json", {**declared, **config})
    if special_tokens_map is not None:
        _write(folder / "special_tokens_map.json", special_tokens_map)
    if added_tokens is not None:
        _write(folder / "added_tokens.json", added_tokens)
    if model_type is not None:
        _write(folder / "config.json", {"model_type": model_type})
    return folder


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
