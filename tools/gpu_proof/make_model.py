"""Writes a random Llama with 4-bit GPTQ weights and a LoRA adapter, from a seed: speed does not depend on values.

  make_model.py OUT [--shape 8b|tiny] [--layers N] [--rank 16] [--seed 0]

Needs numpy. OUT/model and OUT/adapter are what `exlora bench` takes. Tensors are cut from a pool of random numbers, so
that gigabytes take seconds.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#               hidden inter layers heads kv_heads vocab
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128256),  # Llama 3 8B
    "tiny": (128, 256, 2, 4, 2, 256),
}
GROUP = 128
POOL_BYTES = 64 << 20

Tensor = tuple[str, str, tuple[int, ...], bytes | memoryview]


class Pool:
    """Random bytes and random float16 numbers of deviation 1, handed out in turn."""

    def __init__(self, seed: int, size: int):
        rng = np.random.default_rng(seed)
        self.codes = memoryview(rng.bytes(size))
        self.normals = rng.standard_normal(size // 4, dtype=np.float32)
        self.offset = 0

    def take_codes(self, count: int) -> bytes:
        """That many bytes."""
        self.offset = (self.offset + 4099 * 4) % (len(self.codes) // 2)
        whole, part = divmod(count, len(self.codes) - self.offset)
        run = bytes(self.codes[self.offset :])
        return run * whole + run[:part]

    def take_floats(self, count: int, scale: float) -> bytes:
        """That many float16 numbers."""
        self.offset = (self.offset + 4099 * 4) % (len(self.codes) // 2)
        start = self.offset // 4
        run = (self.normals[start : start + count] * np.float32(scale)).astype(np.float16).tobytes()
        whole, part = divmod(2 * count, len(run))
        return run * whole + run[:part]


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear of a layer."""
    hidden, inter, _, heads, kv_heads, _ = SHAPES[shape]
    kv = hidden // heads * kv_heads
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }


def model_tensors(shape: str, pool: Pool) -> Iterator[Tensor]:
    """Every tensor of the checkpoint."""
    hidden, _, layers, _, _, vocab = SHAPES[shape]
    ones = np.ones(hidden, dtype=np.float16).tobytes()
    yield "model.embed_tokens.weight", "F16", (vocab, hidden), pool.take_floats(vocab * hidden, 1.0)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, (outputs, inputs) in linears(shape).items():
            groups = inputs // GROUP
            codes = inputs * outputs // 2
            yield f"{at}{name}.qweight", "I32", (inputs // 8, outputs), pool.take_codes(codes)
            # Zero points of 8, stored as 7.
            yield f"{at}{name}.qzeros", "I32", (groups, outputs // 8), b"\x77" * (groups * outputs // 2)
            # Codes deviate by 4.6 from their zero point.
            scales = np.full(groups * outputs, inputs**-0.5 / 4.6, dtype=np.float16)
            yield f"{at}{name}.scales", "F16", (groups, outputs), scales.tobytes()
            order = (np.arange(inputs, dtype=np.int32) // GROUP).tobytes()
            yield f"{at}{name}.g_idx", "I32", (inputs,), order
        yield f"{at}input_layernorm.weight", "F16", (hidden,), ones
        yield f"{at}post_attention_layernorm.weight", "F16", (hidden,), ones
    yield "model.norm.weight", "F16", (hidden,), ones
    yield "lm_head.weight", "F16", (vocab, hidden), pool.take_floats(vocab * hidden, hidden**-0.5)


def adapter_tensors(shape: str, rank: int, pool: Pool) -> Iterator[Tensor]:
    """Every tensor of the adapter."""
    for layer in range(SHAPES[shape][2]):
        for name, (outputs, inputs) in linears(shape).items():
            at = f"base_model.model.model.layers.{layer}.{name}."
            yield f"{at}lora_A.weight", "F16", (rank, inputs), pool.take_floats(rank * inputs, 0.5 * inputs**-0.5)
            yield f"{at}lora_B.weight", "F16", (outputs, rank), pool.take_floats(outputs * rank, 0.5 * rank**-0.5)


def write_safetensors(path: Path, tensors: list[Tensor]) -> None:
    """The format: length of the header, header as JSON, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, data in tensors:
            file.write(data)


def write_model(folder: Path, shape: str, pool: Pool) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True)
    hidden, inter, layers, heads, kv_heads, vocab = SHAPES[shape]
    quantization = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "quantization_config": quantization,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(folder / "model.safetensors", list(model_tensors(shape, pool)))


def write_adapter(folder: Path, shape: str, rank: int, pool: Pool) -> None:
    """adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [name.split(".")[-1] for name in linears(shape)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(folder / "adapter_model.safetensors", list(adapter_tensors(shape, rank, pool)))


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, help="fewer or more layers, to profile a few of them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.layers is not None:
        hidden, inter, _, *heads_and_vocab = SHAPES[options.shape]
        SHAPES[options.shape] = (hidden, inter, options.layers, *heads_and_vocab)
    pool = Pool(options.seed, POOL_BYTES if options.shape == "8b" else 1 << 20)
    write_model(options.out / "model", options.shape, pool)
    write_adapter(options.out / "adapter", options.shape, options.rank, pool)


if __name__ == "__main__":
    main()
