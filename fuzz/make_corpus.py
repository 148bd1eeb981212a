"""Writes the seeds of five fuzz targets: small files of each kind, valid or hostile.

- adapter_dir: byte 2, the config's length in two bytes, the config, the weights.
- adapter_upload: the same without the first byte, for the model of `fuzz_targets/adapter_upload.rs`.
- tokenizer_json: a tokenizer.json of each kind of model and component.
- model_config: a config.json with each kind of rope and window.
- grammar: the kind (JSON schema, regex, Lark, GBNF, choices), a seed, and a grammar.
"""

import base64
import json
import pathlib
import struct
from math import prod

CORPORA = pathlib.Path(__file__).parent / "corpus"
CORPUS = CORPORA / "adapter_dir"

IN, OUT, VOCAB = 2, 3, 4
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
EMBED, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
PAIR = {f"{Q_PROJ}.lora_A.weight": [1, IN], f"{Q_PROJ}.lora_B.weight": [OUT, 1]}
CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def weights(shapes, fill=b"\x00\x3c", dtype="F16"):
    """A safetensors file whose tensors all hold one value (1 in float16)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * len(fill)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + fill * (end // len(fill))


def seed(name, config, file):
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (CORPUS / name).write_bytes(b"\x02" + struct.pack("<H", len(text)) + text + file)


def both(name, shapes=None, fields=None, **form):
    """A seed of the plain adapter with further tensors and fields."""
    seed(name, {**CONFIG, **(fields or {})}, weights({**PAIR, **(shapes or {})}, **form))


def adapter_dirs():
    CORPUS.mkdir(parents=True, exist_ok=True)
    both("plain")
    both("bfloat16", fill=b"\x80\x3f", dtype="BF16")
    both("float32", fill=b"\x00\x00\x80\x3f", dtype="F32")
    both("default_name", {f"{Q_PROJ.replace('.0.', '.1.')}.lora_A.default.weight": [1, IN]})
    both(
        "rslora_patterns", fields={"use_rslora": True, "rank_pattern": {"q_proj": 1}, "alpha_pattern": {"^model.*": 3}}
    )
    both("regex_targets", fields={"target_modules": r"^(?!.*visual).*\.(q|v)_proj$", "exclude_modules": r".*\.9\..*"})
    both("layer_filter", fields={"layers_to_transform": [0, 1], "layers_pattern": ["layers", "h"]})
    both("dora", {f"{Q_PROJ}.lora_magnitude_vector": [OUT]}, {"use_dora": True})
    both("lora_bias", {f"{Q_PROJ}.lora_B.bias": [OUT]}, {"lora_bias": True})
    both("bias_all", {f"{Q_PROJ}.base_layer.bias": [OUT], f"{HEAD}.bias": [VOCAB]}, {"bias": "all"})
    both("saved_modules", {f"{HEAD}.weight": [VOCAB, IN]}, {"modules_to_save": ["lm_head"]})
    both("saved_by_name", {f"{HEAD}.modules_to_save.default.weight": [VOCAB, IN]}, {"modules_to_save": ["lm_head"]})
    both("embedding", {f"{EMBED}.lora_embedding_A": [1, VOCAB], f"{EMBED}.lora_embedding_B": [IN, 1]})
    both("tokens", {f"{EMBED}.token_adapter.trainable_tokens_delta": [2, IN]}, {"trainable_token_indices": [1, 3]})
    both("tokens_by_module", fields={"trainable_token_indices": {"embed_tokens": [4294967296, -1]}})
    both("tied", fields={"ensure_weight_tying": True})
    both("replicated_layers", fields={"layer_replication": [[0, 2], [1, 2]]})
    both("parameters", {f"{Q_PROJ}.base_layer.lora_A.weight": [1, IN]}, {"target_parameters": ["experts.gate_up_proj"]})
    both("activated", fields={"alora_invocation_tokens": [5, 6]})
    both("block_diagonal", fields={"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}})
    both("qalora", fields={"use_qalora": True, "qalora_group_size": 2})
    both("pissa", fields={"init_lora_weights": "pissa_niter_4"})
    both("not_finite", fill=b"\x00\x7e")
    both("not_gathered", {name: [0] for name in PAIR})
    both("no_bytes", {name: [0, 1] for name in PAIR})
    both("integers", fill=b"\x01\x00\x00\x00", dtype="I32")
    both("wrong_rank", fields={"r": 1048576})
    both("huge_alpha", fields={"lora_alpha": 1e308, "alpha_pattern": {"q_proj": -1e308}})
    both("backtracks", fields={"target_modules": r"(?:(?=(.*))(?:.|.)*)*Z\1"})
    both("unknown_switch", fields={"use_tomorrows_variant": {"a": [True]}})
    both("two_names", {f"{Q_PROJ}.lora_A.mine.weight": [1, IN]})
    both("foreign", {"lora_unet_mid.lora_down.weight": [1, IN], "model.layers.0.q_proj.lora_a": [IN, 1]})
    right = weights(PAIR)
    seed("cut_short", CONFIG, right[:-3])
    seed("other_type", {"peft_type": "ADALORA"}, right)
    seed("mlx", {"fine_tune_type": "lora", "lora_parameters": {"rank": 1, "scale": 20.0}}, right)
    seed("byte_order_mark", b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(), right)
    seed("name_twice", json.dumps(CONFIG).encode()[:-1] + b', "r": 2}', right)
    seed("deep", b'{"peft_type": "LORA", "eva_config": ' + b"[" * 200 + b"]" * 200 + b"}", right)


def uploads():
    """Adapters that load, one for each way in which a backend prepares them."""
    folder = CORPORA / "adapter_upload"
    folder.mkdir(parents=True, exist_ok=True)
    width, vocab = 4, 5
    pair = {f"{Q_PROJ}.lora_A.weight": [2, width], f"{Q_PROJ}.lora_B.weight": [width, 2]}

    def upload(name, shapes=None, **fields):
        config = json.dumps({**CONFIG, "r": 2, **fields}).encode()
        file = weights({**pair, **(shapes or {})}, fill=b"\x00\x30")
        (folder / name).write_bytes(struct.pack("<H", len(config)) + config + file)

    upload("plain")
    upload("dora", {f"{Q_PROJ}.lora_magnitude_vector": [width]}, use_dora=True)
    upload("lora_bias", {f"{Q_PROJ}.lora_B.bias": [width]}, lora_bias=True)
    upload("bias_all", {f"{Q_PROJ}.base_layer.bias": [width]}, bias="all")
    upload("saved_head", {f"{HEAD}.weight": [vocab, width]}, modules_to_save=["lm_head"])
    upload("saved_norm", {"base_model.model.model.norm.weight": [width]}, modules_to_save=["norm"])
    embedding = {f"{EMBED}.lora_embedding_A": [2, vocab], f"{EMBED}.lora_embedding_B": [width, 2]}
    upload("embedding", embedding, target_modules=["q_proj", "embed_tokens"])
    tokens = {f"{EMBED}.token_adapter.trainable_tokens_delta": [2, width]}
    upload("tokens", tokens, trainable_token_indices=[1, 3])
    upload("activated", alora_invocation_tokens=[2, 3])
    upload("replicated_layers", layer_replication=[[0, 2], [0, 2]])
    upload("block_diagonal", use_bdlora={"nblocks": 2, "target_modules_bd_a": ["q_proj"]})
    upload("qalora", {f"{Q_PROJ}.lora_A.weight": [2, width // 2]}, use_qalora=True, qalora_group_size=2)
    upload("kasa", {f"{Q_PROJ}.lora_diag": [2]}, kasa_config={})


def tokenizers():
    """A tokenizer.json of each kind of model, with the components of public ones."""
    folder = CORPORA / "tokenizer_json"
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = {
        token: i for i, token in enumerate(["<unk>", "a", "b", "ab", "\u0120", "\u2581", "\u2581a", "##b", "<0xC3>"])
    }
    bpe = {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": alphabet,
        "merges": ["a b", ["\u2581", "a"]],
    }
    added = {
        "id": 9,
        "content": "<s>",
        "single_word": False,
        "lstrip": True,
        "rstrip": True,
        "normalized": False,
        "special": True,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    gpt4 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": gpt4}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [9], "tokens": ["<s>"]}},
    }
    llama_decoders = [
        {"type": "Replace", "pattern": {"Regex": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]

    def tokenizer(name, model=bpe, **members):
        text = json.dumps({"version": "1.0", "added_tokens": [added], "model": model, **members})
        (folder / name).write_bytes(text.encode() + b"\0a b ab\0 <s>b<s> ")

    tokenizer("gpt2", pre_tokenizer=byte_level, decoder=byte_level, post_processor=byte_level)
    steps = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    processors = {"type": "Sequence", "processors": [byte_level, template]}
    tokenizer("llama3", pre_tokenizer=steps, decoder=byte_level, post_processor=processors)
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}
    tokenizer(
        "llama2", normalizer=prepend, post_processor=template, decoder={"type": "Sequence", "decoders": llama_decoders}
    )
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    charsmap = struct.pack("<I", 1024) + struct.pack("<256I", *([0] * 256)) + b"x\0"
    precompiled = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    unigram = {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[token, -i / 2] for token, i in alphabet.items()],
        "byte_fallback": True,
    }
    tokenizer(
        "t5", unigram, normalizer=precompiled, pre_tokenizer=metaspace, decoder=metaspace, post_processor=template
    )
    wordpiece = {
        "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": alphabet,
    }  # fmt: skip
    bert = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    tokenizer(
        "bert", wordpiece, normalizer=bert, pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        post_processor={"type": "BertProcessing", "sep": ["<s>", 9], "cls": ["<s>", 9]},
    )  # fmt: skip
    every = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents"]
    normalizers = [{"type": kind} for kind in every] + [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        byte_level,
    ]
    kinds = ["Whitespace", "WhitespaceSplit", "UnicodeScripts"]
    pre_tokenizers = [{"type": kind} for kind in kinds] + [
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "CharDelimiterSplit", "delimiter": "b"},
        {"type": "FixedLength", "length": 2},
    ]
    tokenizer(
        "others", {"type": "WordLevel", "unk_token": "<unk>", "vocab": alphabet},
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer={"type": "Sequence", "pretokenizers": pre_tokenizers},
        decoder={"type": "Sequence", "decoders": [
            {"type": "CTC", "pad_token": "b", "word_delimiter_token": "|", "cleanup": True},
            {"type": "BPEDecoder", "suffix": "a"},
        ]},
    )  # fmt: skip


def model_configs():
    """A config.json for each kind of rope, window and spelling."""
    folder = CORPORA / "model_config"
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 10000.0, "eos_token_id": [1, 2], "bos_token_id": 0, "head_dim": 16,
    }  # fmt: skip

    def config(name, **fields):
        (folder / name).write_text(json.dumps({**plain, **fields}))

    config("plain")
    config("linear", rope_scaling={"type": "linear", "factor": 2.0})
    config("dynamic", rope_scaling={"rope_type": "dynamic", "type": "dynamic", "factor": 2.0})
    config("yarn", rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config("llama3", rope_scaling={"rope_type": "llama3", "factor": 8.0, **llama3})
    config("window", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=32)
    layer_types = ["sliding_attention", "full_attention"]
    config("layer_types", model_type="qwen2", use_sliding_window=True, sliding_window=32, layer_types=layer_types)
    config("huge", num_hidden_layers=10**9, head_dim=2**62, sliding_window=-1)


def grammars():
    folder = CORPORA / "grammar"
    folder.mkdir(parents=True, exist_ok=True)

    def grammar(name, kind, text, draw=3):
        (folder / name).write_bytes(bytes([kind, draw]) + text.encode())

    person = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", None]}}}
    grammar("schema", 0, json.dumps({**person, "required": ["a"], "additionalProperties": False}))
    grammar("schema_array", 0, json.dumps({"type": "array", "items": {"type": "string", "maxLength": 3}}))
    grammar("regex", 1, r"^[a-c]{2,4}(-\d+)?$")
    grammar("regex_nested", 1, "((a{1,9}){1,9}|[^\\n]*)+")
    grammar("lark", 2, 'start: sum\nsum: term ("+" term)*\nterm: NUMBER | "(" sum ")"\nNUMBER: /[1-9][0-9]?/\n')
    grammar("gbnf", 3, 'root ::= item{1,3} # one to three\nitem ::= [a-c] "-"? | "\\x41" .\n')
    grammar("gbnf_recursive", 3, 'root ::= "[" (root ("," root)*)? "]" | [0-9]+ ws\nws ::= [ \\t\\n]*\n')
    grammar("choices", 4, "yes\0no\0é")


def main():
    grammars()
    adapter_dirs()
    uploads()
    tokenizers()
    model_configs()


if __name__ == "__main__":
    main()
