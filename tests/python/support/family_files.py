"""Other files with the same model in them: split projections, multimodal folders, and adapters for either.

A multimodal folder is made by transformers and holds a text model of `families.py` beside random weights of a vision
tower. Its tensors, and those of adapters trained on it, have one of three prefixes, depending on the class and the
version that wrote them.
"""

import json
import pathlib
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from support import collection, families, manual_merge
from support.adapter_specs import Spec
from support.families import HEADS, KV_HEADS, Members, Tensors

# Fused projection -> its parts, as split files name them.
PARTS = manual_merge.FUSED


# Families, and those of their fused projections that quantizers write in parts; parameters of tests.
SPLIT_CASES = [
    ("phi3", ("gate_up_proj",)),
    ("phi3", ("qkv_proj", "gate_up_proj")),
    ("glm4", ("gate_up_proj",)),
    pytest.param("glm", ("gate_up_proj",), marks=pytest.mark.slow),
    pytest.param("phi3-longrope", ("qkv_proj", "gate_up_proj"), marks=pytest.mark.slow),
]


def part_sizes(fused: str, rows: int) -> list[int]:
    """Output features of the parts of a fused projection with as many of them together."""
    if fused == "gate_up_proj":
        return [rows // 2] * 2
    head_dim = rows // (HEADS + 2 * KV_HEADS)
    return [HEADS * head_dim, KV_HEADS * head_dim, KV_HEADS * head_dim]


def split(tensors: Tensors, *fused_names: str) -> Tensors:
    """The tensors with fused projections cut into their parts, also those of adapters."""
    out = dict(tensors)
    for key in tensors:
        for fused in fused_names:
            if f".{fused}." in key:
                whole, is_shared = out.pop(key), "lora_A" in key
                pieces = [whole] * 3 if is_shared else whole.split(part_sizes(fused, whole.shape[0]))
                for part, piece in zip(PARTS[fused], pieces, strict=False):
                    out[key.replace(f".{fused}.", f".{part}.")] = piece
    return out


def split_folder(name: str, parts: tuple[str, ...], models: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The model of a family with some projections in parts."""
    fused = families.write(name, models)
    return families.copy(fused, folder, families.config(name), split(families.tensors(fused), *parts))


def fuse(tensors: Tensors, *fused_names: str) -> Tensors:
    """The tensors with parts joined into fused projections: the inverse of `split`."""
    out = dict(tensors)
    for fused in fused_names:
        first, *rest = PARTS[fused]
        for key in [key for key in out if f".{first}." in key]:
            parts = [out.pop(key.replace(f".{first}.", f".{part}.")) for part in (first, *rest)]
            out[key.replace(f".{first}.", f".{fused}.")] = torch.cat(parts)
    return out


@torch.no_grad()
def add_to_fused(model: torch.nn.Module, deltas: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Adds deltas of modules to a model, where a part of a fused projection is some rows of it."""
    modules = dict(model.named_modules())
    fused_of = {part: fused for fused, parts in PARTS.items() for part in parts}
    for path, delta in deltas.items():
        if path in modules:
            modules[path].weight += delta
            continue
        parent, _, leaf = path.rpartition(".")
        fused = fused_of[leaf]
        weight = modules[f"{parent}.{fused}"].weight
        weight.split(part_sizes(fused, weight.shape[0]))[PARTS[fused].index(leaf)].add_(delta)
    return model


def write_split_adapter(fused: pathlib.Path, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """An adapter as `fused`, but with the names of split projections, and an A of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    tensors = split(load_file(fused / "adapter_model.safetensors"), *PARTS)
    for key, tensor in tensors.items():
        if "lora_A" in key:
            tensors[key] = torch.randn(tensor.shape, generator=generator) * tensor.shape[1] ** -0.5
    config = json.loads((fused / "adapter_config.json").read_text())
    return _write_adapter(folder, tensors, {**config, "target_modules": targets_of(tensors)})


def write_adapter_with_prefix(
    plain: pathlib.Path, folder: pathlib.Path, prefix: str, more: Tensors | None = None
) -> pathlib.Path:
    """An adapter as `plain`, with `prefix` in place of `model.` before the layers, and further tensors."""
    tensors = {
        key.replace("base_model.model.model.", f"base_model.model.{prefix}", 1): tensor
        for key, tensor in load_file(plain / "adapter_model.safetensors").items()
    }
    return _write_adapter(folder, tensors | (more or {}), json.loads((plain / "adapter_config.json").read_text()))


def targets_of(tensors: Tensors) -> list[str]:
    """The names of the modules that an adapter's tensors change."""
    return sorted({key.partition(".lora_")[0].rpartition(".")[2] for key in tensors})


def _write_adapter(folder: pathlib.Path, tensors: Tensors, config: Members) -> pathlib.Path:
    folder.mkdir(parents=True)
    contiguous = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


_VISION: Members = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Multimodal model -> its text model, and the members of its config.json beside that.
WRAPPERS: dict[str, tuple[str, Members]] = {
    "gemma3": (
        "gemma3",
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
        },
    ),
    "mistral3": (
        "mistral",
        {
            "model_type": "mistral3",
            "architectures": ["Mistral3ForConditionalGeneration"],
            "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16},
            "tie_word_embeddings": False,
        },
    ),
    "mistral3-ministral3": (
        "ministral3",
        {
            "model_type": "mistral3",
            "architectures": ["Mistral3ForConditionalGeneration"],
            "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16},
            "tie_word_embeddings": False,
        },
    ),
}
# As parameters of a test that is slow for all but the first.
ONE_WRAPPER = families.first_of_each(((name,) for name in WRAPPERS), kind=lambda _: None)
# Spelling -> what precedes `layers`, `embed_tokens` and `norm`; the head; the vision tower.
SPELLINGS = {
    "before transformers 4.52": ("language_model.model.", "language_model.lm_head.", ""),
    "since transformers 4.52": ("model.language_model.", "lm_head.", "model."),
}
# What an adapter has there, by the class that it was trained with.
ADAPTER_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


def wrapper_config(name: str) -> Members:
    """The config.json of a multimodal model."""
    text_name, members = WRAPPERS[name]
    text = families.config(text_name)
    del text["architectures"]
    return {**members, "text_config": text, "dtype": "float32"}


def wrap(name: str, text: pathlib.Path, folder: pathlib.Path, spelling: str) -> pathlib.Path:
    """A multimodal folder with the weights of the text model in `text`, which may be packed."""
    layers, head, vision = SPELLINGS[spelling]
    tensors = {}
    for key, tensor in families.tensors(text).items():
        is_head = key.startswith("lm_head.")
        tensors[head + key.removeprefix("lm_head.") if is_head else layers + key.removeprefix("model.")] = tensor
    config = wrapper_config(name)
    if packing := families.read_config(text).get("quantization_config"):
        config["quantization_config"] = packing
    for key, tensor in vision_tensors(config, folder.with_name(f"{folder.name}-config")).items():
        tensors[vision + key] = tensor
    return families.copy(text, folder, config, tensors)


def vision_tensors(config: Members, folder: pathlib.Path) -> Tensors:
    """Random weights of everything in a multimodal model that is not its text model, below its `model.`."""
    folder.mkdir()
    families.write_config(folder, {key: value for key, value in config.items() if key != "quantization_config"})
    model: Any = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(folder))
    state = {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}
    return {key: tensor for key, tensor in state.items() if not key.startswith(("language_model.", "lm_head."))}


def write_multimodal_adapter(
    model: torch.nn.Module, folder: pathlib.Path, seed: int, targets: str = "all-linear"
) -> pathlib.Path:
    """An adapter that peft writes for a multimodal model, by default of all linears, the vision tower's too."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        collection.draw(wrapped, Spec(), seed)
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def read_adapter(folder: pathlib.Path) -> Tensors:
    """The tensors of an adapter."""
    return load_file(folder / "adapter_model.safetensors")


def load_adapter(model: torch.nn.Module, folder: pathlib.Path) -> torch.nn.Module:
    """peft on a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()
