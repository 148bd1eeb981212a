"""Packs a dense model folder into EXL2, and writes its dequantized copies.

A module's groups of inputs have widths of their own, in descending order, and its inputs an order of their own, drawn
from the seed. Packing is that of `gptq.py`, one bit string a column in each group. `unit = f16(scale_max / 256)`,
`scale = f16((field + 1)^2 * unit)`, and `w[n, order[k]] = f16(scale[g, n] * (code[k, n] - 2^(bits-1)))`. Columns are
padded to a multiple of 32, with the fields and codes that exllamav2 writes there. The head is always quantized, also if
the model's is tied to its embedding; embedding, norms and biases are float16. Rounding is to nearest: this writes a
format, it does not quantize well.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import torch

from support import families
from support.gptq import pack_codes, write_folder

WIDTHS = (8, 6, 5, 4, 3, 2)
# Inputs of a group, and columns, come in multiples of it.
BLOCK = 32


class Copies(NamedTuple):
    """Folders of the dequantized model in float32."""

    # Every weight rounded to float16, as the format says and the reference device computes.
    rounded: pathlib.Path
    # Products of codes and scales, as kernels compute that scale the sum over a group.
    exact: pathlib.Path


class Module(NamedTuple):
    """The stored tensors of one linear `[out, in]`, and the float32 `[out, in]` that they encode."""

    parts: dict[str, np.ndarray]
    rounded: np.ndarray
    exact: np.ndarray


def quantize(dense: pathlib.Path, out: pathlib.Path, seed: int = 0) -> Copies:
    """Writes the packed model into `out` and returns its copies, folders beside it."""
    rng = np.random.default_rng(seed)
    tensors, config = families.tensors(dense), families.read_config(dense)
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    packed, rounded, exact = {}, {}, {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and module.endswith(("_proj", ".c_fc", "lm_head")):
            linear = pack_linear(tensor.float().numpy(), rng)
            packed |= {f"{module}.{part}": torch.from_numpy(value) for part, value in linear.parts.items()}
            rounded[name], exact[name] = torch.from_numpy(linear.rounded), torch.from_numpy(linear.exact)
            continue
        half = tensor.half()
        rounded[name] = exact[name] = half.float()
        is_padded = part == "bias" and "norm" not in module
        packed[name] = torch.nn.functional.pad(half, (0, -len(half) % BLOCK)) if is_padded else half
    packing = {"quant_method": "exl2", "version": "0.3.2", "bits": 4.5, "head_bits": 6, "calibration": {"rows": 1}}
    write_folder(out, packed, {**config, "dtype": "float16", "quantization_config": packing}, "output.safetensors")
    copies = Copies(*(out.with_name(f"{out.name}-{kind}") for kind in Copies._fields))
    for folder, meant in zip(copies, (rounded, exact), strict=True):
        write_folder(folder, meant, {**config, "tie_word_embeddings": False})
    return copies


def pack_linear(weight: np.ndarray, rng: np.random.Generator) -> Module:
    """Packs one linear `[out, in]`."""
    outputs, inputs = weight.shape
    order = rng.permutation(inputs)
    columns = np.zeros((inputs, -(-outputs // BLOCK) * BLOCK), np.float32)
    columns[:, :outputs] = weight.T[order]
    words, groups, fields, maxima, rounded, exact = [], [], [], [], [], []
    first = 0
    for bits, size in draw_groups(inputs, rng):
        half = 2 ** (bits - 1)
        members = columns[first : first + size]
        wanted = np.abs(members).max(axis=0) / half
        maximum = np.float16(wanted.max())
        unit = np.float16(np.float32(maximum) / 256)
        field = np.clip(np.ceil(np.sqrt(wanted / np.float32(unit))) - 1, 0, 15).astype(np.int64)
        field[outputs:] = 15
        scale = ((field + 1) ** 2 * np.float32(unit)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(members / scale) + half, 0, 2 * half - 1).astype(np.int64)
        product = (codes - half).astype(np.float32) * scale
        groups += [bits, sum(map(len, words))]
        words.append(pack_codes(codes, bits))
        fields.append(field)
        maxima.append(maximum)
        exact.append(product)
        rounded.append(product.astype(np.float16).astype(np.float32))
        first += size
    stored = np.argsort(order)
    parts = {
        "q_weight": np.concatenate(words),
        "q_groups": np.array(groups, np.int16),
        "q_scale": np.ascontiguousarray(pack_codes(np.array(fields).T, 4).T),
        "q_scale_max": np.array(maxima, np.float16),
        "q_invperm": stored.astype(np.int32),
    }
    return Module(parts, *(_in_models_order(weights, stored, outputs) for weights in (rounded, exact)))


def draw_groups(inputs: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Width and inputs of each group: several widths wherever there are several blocks of inputs."""
    sizes, left = [1], inputs // BLOCK - 1
    while left > 0:
        sizes.append(int(rng.integers(1, min(left, 4) + 1)))
        left -= sizes[-1]
    widths = sorted(rng.choice(WIDTHS, len(sizes), replace=len(sizes) > len(WIDTHS)), reverse=True)
    return [(int(bits), size * BLOCK) for bits, size in zip(widths, sizes, strict=True)]


def _in_models_order(groups: list[np.ndarray], stored: np.ndarray, outputs: int) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate(groups)[stored, :outputs].T)
