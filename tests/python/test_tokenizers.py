"""Ids and texts are those of transformers' AutoTokenizer on the same folder."""

import itertools
import json
import random
import shutil

import exlora
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizer_folders import DECLARATIONS, IN_TOKENIZER_JSON, KINDS, TEXTS, write_folder
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

transformers.utils.logging.set_verbosity_error()

CLASSES = (
    "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
    "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizerFast", "GemmaTokenizer",
    "NoSuchTokenizer",
)  # fmt: skip
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", None)


def compare(folder, texts=TEXTS, seed=0):
    """Encodes and decodes with both."""
    oracle, tokenizer = transformers.AutoTokenizer.from_pretrained(folder), exlora.Tokenizer(str(folder))
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(tokenizer, name) for name in names] == [getattr(oracle, name) for name in names]
    assert tokenizer.vocab_size == len(oracle)
    id_lists = []
    for text in texts:
        for special in (True, False):
            ids = oracle(text, add_special_tokens=special).input_ids
            assert tokenizer.encode(text, add_special_tokens=special) == ids, (text, special)
        for split in (True, False):
            expected = oracle(text, add_special_tokens=False, split_special_tokens=split).input_ids
            assert tokenizer.encode(text, False, parse_special_tokens=not split) == expected, (text, split)
        id_lists.append(ids)
    chosen = random.Random(seed)
    id_lists += [[chosen.randrange(tokenizer.vocab_size + 2) for _ in range(12)] for _ in range(8)]
    for ids in id_lists:
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip), (
                ids,
                skip,
            )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_every_file_are_read(tmp_path, kind):
    for declaration in DECLARATIONS:
        compare(write_folder(tmp_path / declaration, kind, declaration))


@pytest.mark.parametrize("in_file", IN_TOKENIZER_JSON)
def test_flags_of_every_file_are_combined(tmp_path, in_file):
    for kind, declaration in itertools.product(("byte_level", "llama2"), DECLARATIONS):
        compare(write_folder(tmp_path / f"{kind}-{declaration}", kind, declaration, in_file))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_tokenizer_class_decides_what_of_the_file_counts(tmp_path, model_type):
    for kind, name in itertools.product(("byte_level_llama3", "llama2"), CLASSES):
        folder = write_folder(tmp_path / f"{kind}-{name}", kind, "named", model_type=model_type, tokenizer_class=name)
        compare(folder)
    for kind in ("byte_level", "metaspace_first"):
        compare(write_folder(tmp_path / kind, kind, "nothing", model_type=model_type))


@pytest.mark.parametrize(
    "name", ["LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"]
)
def test_classes_have_settings_and_default_tokens(tmp_path, name):
    settings = [{}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": True}, {"unk_token": "<s>"}]
    for i, config in enumerate(settings):
        for declaration in ("nothing", "added_tokens_decoder", "extra_list", "added_tokens_json"):
            folder = tmp_path / f"{i}-{declaration}"
            compare(write_folder(folder, "llama2", declaration, "ordinary", tokenizer_class=name, **config))


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["llama2", "byte_level_llama3", "metaspace_first"])
def test_the_bos_of_code_llama_does_not_depend_on_the_post_processor(tmp_path, kind, model_type):
    bos_and_eos = TemplateProcessing("<s> $A </s>", "<s> $A </s> <s> $B </s>", [("<s>", 1), ("</s>", 2)])
    for i, (post_processor, bos) in enumerate(itertools.product((None, bos_and_eos), ({}, {"bos_token": None}))):
        folder = write_folder(
            tmp_path / str(i), kind, "named", model_type=model_type, tokenizer_class="CodeLlamaTokenizer", **bos
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = post_processor
        tokenizer.save(str(folder / "tokenizer.json"))
        compare(folder)


def test_code_llama_fills_in(tmp_path):
    config = {"tokenizer_class": "CodeLlamaTokenizer"}
    for name, more in (
        ("default", {}),
        ("no_prefix_space", {"add_prefix_space": False}),
        ("null", {"bos_token": None}),
    ):
        folder = write_folder(tmp_path / name, "llama2", "named", **config, **more)
        tokenizer = exlora.Tokenizer(str(folder))
        for text in ("the <FILL_ME> cat", "the<FILL_ME>", "<FILL_ME>cat", "<FILL_ME>", " is <FILL_ME>\n  it", "cat"):
            for special in (True, False):
                # One prompt with a gap changes how transformers' tokenizer reads the texts after it.
                oracle = transformers.AutoTokenizer.from_pretrained(folder)
                ids = oracle(text, add_special_tokens=special).input_ids
                assert tokenizer.encode(text, add_special_tokens=special) == ids, (text, special)
        with pytest.raises(exlora.ExloraError, match="one gap") as caught:
            tokenizer.encode("the<FILL_ME>cat<FILL_ME>")
        assert caught.value.code == "request_invalid"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_of_files_classes_and_models(tmp_path, kind):
    for cell in itertools.product(DECLARATIONS, IN_TOKENIZER_JSON, (None, *CLASSES), ("llama", "qwen2", "qwen3")):
        declaration, in_file, name, model_type = cell
        if kind in ("unigram", "wordpiece", "wordpiece_raw") and (model_type != "llama" or name is not None):
            continue  # transformers rebuilds these as BPE without merges, or fails
        config = {} if name is None else {"tokenizer_class": name}
        folder = write_folder(tmp_path / "folder", kind, declaration, in_file, model_type, **config)
        compare(folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: write_folder(root / kind, kind, "added_tokens_decoder") for kind in KINDS}


@pytest.fixture(scope="module")
def pairs(folders):
    return {
        kind: (transformers.AutoTokenizer.from_pretrained(folder), exlora.Tokenizer(str(folder)))
        for kind, folder in folders.items()
    }


@pytest.mark.property
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.one_of(st.text(), st.sampled_from(TEXTS)), max_size=4).map("".join),
    st.lists(st.integers(0, 400)),
)
def test_any_text_and_any_ids(pairs, kind, text, ids):
    oracle, tokenizer = pairs[kind]
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.encode(text) == oracle(text).input_ids
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_is_what_the_whole_text_has_beyond_the_prompt(folders, kind, quill, tmp_path):
    """Tokens are drawn at random; all of an ordinary model's text is in the vocabulary of the bundled model's size."""
    model = tmp_path / "model"
    shutil.copytree(quill, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders[kind] / name, model / name)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "TokenizersBackend"}))
    oracle = transformers.AutoTokenizer.from_pretrained(model)
    engine = exlora.Engine(str(model), threads=1, kv_tokens=1024)
    vocab = engine.tokenizer.vocab_size
    # Bytes that spell no whole character are left out: a run of them has another text as a whole than while it grows.
    forbidden = [i for i in range(vocab) if (oracle.convert_ids_to_tokens(i) or "").startswith(("<0x8", "<0x9", "<0xA",
                 "<0xB", "<0xC", "<0xD", "<0xE", "<0xF"))]  # fmt: skip
    bias = {i: -float("inf") for i in [*forbidden, *range(vocab, 2048)]}
    for seed, prompt in enumerate(("the king", "the", "cat. ", "a<|end|>", "国王")):
        head = oracle(prompt).input_ids
        for skip in (True, False):
            settings = {
                "max_new_tokens": 24, "temperature": 5.0, "seed": seed, "stop_at_eos": False, "logit_bias": bias,
                "skip_special_tokens": skip,
            }  # fmt: skip
            chunks = list(engine.stream(prompt, **settings))
            ids = [i for chunk in chunks for i in chunk.token_ids]
            before, whole = (oracle.decode(part, skip_special_tokens=skip) for part in (head, head + ids))
            common = len(before) if whole.startswith(before) else next(
                i for i, (a, b) in enumerate(itertools.zip_longest(before, whole)) if a != b
            )  # fmt: skip
            assert "".join(chunk.text for chunk in chunks) == whole[common:], (prompt, ids)


def test_pieces_are_what_tokens_add_within_a_text(folders):
    for kind in ("llama2", "metaspace_first", "byte_level"):
        tokenizer = exlora.Tokenizer(str(folders[kind]))
        (word,) = [i for i in range(tokenizer.vocab_size) if tokenizer.token_of(i) in ("▁king", "Ġking")]
        assert tokenizer.piece(word) == " king"


# Stops. Tokens are forced by a bias, so that what is chosen does not depend on the model.


@pytest.fixture(scope="module")
def engine(quill):
    with exlora.Engine(str(quill), threads=1, kv_tokens=1024) as engine:
        yield engine


def only(*ids, **more):
    return {"logit_bias": dict.fromkeys(ids, 10000.0), "stop_at_eos": False, **more}


def test_a_stop_string_may_be_a_special_token(engine):
    end = engine.tokenizer.id_of("<|im_end|>")
    for skip in (True, False):
        out = engine.generate("The king", max_new_tokens=6, stop="<|im_end|>", skip_special_tokens=skip, **only(end))
        assert (out.finish_reason, out.token_ids, out.text, out.stop_match) == ("stop", [end], "", "<|im_end|>")


def test_a_stop_string_may_mix_special_tokens_and_text(engine):
    end, word = engine.tokenizer.id_of("<|im_end|>"), engine.tokenizer.encode("a")[0]
    for stop, last in (("a<|im_end|>a", [word, end, word]), ("<|im_end|><|im_end|>", [end, end])):
        out = engine.generate("x", max_new_tokens=200, temperature=9.0, seed=3, stop=stop, **only(end, word))
        assert (out.finish_reason, out.stop_match) == ("stop", stop)
        assert out.token_ids[-len(last) :] == last
        spelled = "".join("<|im_end|>" if i == end else "a" for i in out.token_ids)
        assert spelled.index(stop) == len(spelled) - len(stop)
        assert out.text == spelled[: -len(stop)].replace("<|im_end|>", "")
        streamed = engine.stream("x", max_new_tokens=200, temperature=9.0, seed=3, stop=stop, **only(end, word))
        assert "".join(chunk.text for chunk in streamed) == out.text


def test_a_stop_string_ends_with_the_byte_token_that_completes_it(folders, quill, tmp_path):
    for kind in ("llama2", "metaspace_first"):
        model = tmp_path / kind
        shutil.copytree(quill, model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folders[kind] / name, model / name)
        engine = exlora.Engine(str(model), threads=1, kv_tokens=512)
        line = engine.tokenizer.id_of("<0x0A>")
        for stop, tokens in (("\n", 1), ("\n\n", 2)):
            out = engine.generate("the king", max_new_tokens=6, stop=stop, **only(line))
            assert (out.finish_reason, len(out.token_ids), out.text) == ("stop", tokens, "")
        chunks = [chunk.text for chunk in engine.stream("the king", max_new_tokens=3, **only(line))]
        assert chunks == ["\n"] * 3


def test_nothing_ends_a_text_before_min_new_tokens(engine):
    end, word = engine.tokenizer.id_of("<|im_end|>"), engine.tokenizer.encode("a")[0]
    out = engine.generate("x", max_new_tokens=9, min_new_tokens=3, stop="a", **only(word))
    assert (out.finish_reason, out.token_ids, out.text) == ("stop", [word] * 4, "aaa")
    out = engine.generate("x", max_new_tokens=9, min_new_tokens=3, stop="aa", **only(word))
    assert (len(out.token_ids), out.text) == (4, "aa")
    out = engine.generate("x", max_new_tokens=2, min_new_tokens=3, stop="a", **only(word))
    assert (out.finish_reason, out.text) == ("length", "aa")
    for stop in (end, "<|im_end|>"):
        out = engine.generate("x", max_new_tokens=9, min_new_tokens=3, stop=[stop], **only(end, logprobs=1))
        assert out.finish_reason == "stop"
        assert out.token_ids.index(end) == 3


def test_a_request_in_which_every_token_is_forbidden_fails(engine, quill):
    vocab = json.loads((quill / "config.json").read_text())["vocab_size"]
    forbidden = {i: -float("inf") for i in range(vocab)}
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5}):
        with pytest.raises(exlora.ExloraError, match="forbidden") as caught:
            engine.generate("The king", max_new_tokens=3, logit_bias=forbidden, **settings)
        assert caught.value.code == "sampling_invalid"
    stops = list(range(vocab))
    with pytest.raises(exlora.ExloraError, match="forbidden"):
        engine.generate("The king", max_new_tokens=3, min_new_tokens=1, stop=stops)
