"""Packs a dense model folder into GPTQ, and writes its dequantized copy: exactly the same weights in float32.

Packing is one bit string, lowest bit first: code `i` of a column occupies its bits `[i*bits, i*bits + bits)`, cut into
32-bit words. That covers 2, 3, 4 and 8 bits alike, 3-bit codes that straddle words included. `qweight` runs along the
input, `qzeros` along the output; format 1 ("gptq") stores each zero point less one, format 2 ("gptq_v2") as it is.
`w[k, n] = scales[g, n] * (q[k, n] - zero[g, n])` with `g = g_idx[k]`. Rounding is to nearest: this writes a format, it
does not quantize well. A format-1 zero point is never 0, for readers disagree on what the stored -1 then means.
"""

import dataclasses
import json
import pathlib
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized; the fields are those of `quantization_config`."""

    bits: int = 4
    group_size: int = 32
    sym: bool = True
    desc_act: bool = False
    format: int = 1
    lm_head: bool = False
    # Regular expression -> overrides, in order; one that begins with "-:" leaves the module dense.
    dynamic: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Whether the config is in quantize_config.json instead of config.json.
    separate_config: bool = False
    # Whether g_idx is written where it adds nothing (`i // group_size`).
    trivial_g_idx: bool = True

    def of(self, module: str) -> "Scheme | None":
        """The scheme of one module after `dynamic`; None leaves it dense."""
        for pattern, overrides in self.dynamic.items():
            if pattern.startswith("-:"):
                if re.match(pattern[2:], module):
                    return None
            elif re.match(pattern.removeprefix("+:"), module):
                return dataclasses.replace(self, **overrides)
        return self

    def config(self) -> dict[str, Any]:
        """The `quantization_config`."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.sym,
            "desc_act": self.desc_act,
            "checkpoint_format": {1: "gptq", 2: "gptq_v2"}[self.format],
            "pack_dtype": "int32",
            "lm_head": self.lm_head,
            **({"dynamic": self.dynamic} if self.dynamic else {}),
        }


def quantize(
    dense: pathlib.Path, out: pathlib.Path, scheme: Scheme, seed: int = 0, prefix: str = "model."
) -> pathlib.Path:
    """Writes the packed model into `out` and returns the folder of its dequantized copy, `out` with `-dequantized`.

    `prefix` stands in place of `model.` in the names that the patterns of `dynamic` see.
    """
    dequantized_folder = out.with_name(out.name + "-dequantized")
    if dequantized_folder.exists():
        return dequantized_folder
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(dense.glob("*.safetensors")):
        tensors.update(load_file(file))
    packed, dequantized = {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        wanted = name.endswith(("_proj.weight", ".c_fc.weight")) or (scheme.lm_head and name == "lm_head.weight")
        chosen = scheme.of(re.sub(r"^model\.", prefix, module)) if wanted else None
        if chosen is None:
            packed[name] = dequantized[name] = tensor
            continue
        parts, weight = pack_linear(tensor.float().numpy(), chosen, rng)
        packed |= {f"{module}.{part}": torch.from_numpy(value) for part, value in parts.items()}
        dequantized[name] = torch.from_numpy(weight)
    config = json.loads((dense / "config.json").read_text())
    write_folder(dequantized_folder, dequantized, config)
    if scheme.separate_config:
        write_folder(out, packed, config)
        (out / "quantize_config.json").write_text(json.dumps(scheme.config(), indent=2))
    else:
        write_folder(out, packed, {**config, "quantization_config": scheme.config()})
    return dequantized_folder


def pack_linear(
    weight: np.ndarray, scheme: Scheme, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The stored tensors of one linear `[out, in]`, and the float32 `[out, in]` that they encode."""
    outputs, inputs = weight.shape
    size = inputs if scheme.group_size == -1 else scheme.group_size
    g_idx = np.arange(inputs) // size
    if scheme.desc_act:
        g_idx = g_idx[rng.permutation(inputs)]
    top = 2**scheme.bits - 1
    groups = g_idx.max() + 1
    scales = np.zeros((groups, outputs), np.float16)
    zeros = np.zeros((groups, outputs), np.int64)
    for group in range(groups):
        members = weight[:, g_idx == group]
        if scheme.sym:
            reach = np.abs(members).max(axis=1)
            scales[group] = 2 * reach / top
            zeros[group] = 2 ** (scheme.bits - 1)
        else:
            low, high = np.minimum(members.min(axis=1), 0), np.maximum(members.max(axis=1), 0)
            scales[group] = (high - low) / top
            zeros[group] = np.clip(np.rint(-low / scales[group].astype(np.float32)), 2 - scheme.format, top)
    scale, zero = scales.astype(np.float32)[g_idx], zeros[g_idx]  # [in, out]
    codes = np.clip(np.rint(weight.T / scale) + zero, 0, top).astype(np.int64)
    parts = {
        "qweight": pack_codes(codes, scheme.bits),
        "qzeros": np.ascontiguousarray(pack_codes((zeros - (2 - scheme.format)).T, scheme.bits).T),
        "scales": scales,
    }
    if scheme.desc_act or scheme.trivial_g_idx:
        parts["g_idx"] = g_idx.astype(np.int32)
    return parts, np.ascontiguousarray((scale * (codes - zero).astype(np.float32)).T)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes `[n, columns]` as int32 `[n * bits / 32, columns]`."""
    count, columns = codes.shape
    string = (codes[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    words = string.reshape(count * bits // 32, 32, columns).astype(np.uint64)
    return (words << np.arange(32, dtype=np.uint64)[None, :, None]).sum(axis=1).astype(np.uint32).view(np.int32)


def write_folder(
    folder: pathlib.Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], file: str = "model.safetensors"
) -> None:
    """Writes a model folder: all tensors in one file, and config.json."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
