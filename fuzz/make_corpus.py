"""Writes fuzz/corpus/adapter_dir: one small folder for each kind of adapter, valid or hostile.

A seed is what `fuzz_targets/adapter_dir.rs` reads: byte 2, the config's length in two bytes, the config, the weights.
"""

import json
import pathlib
import struct
from math import prod

CORPUS = pathlib.Path(__file__).parent / "corpus" / "adapter_dir"

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


def main():
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


if __name__ == "__main__":
    main()
