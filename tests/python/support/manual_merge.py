"""What an adapter's files mean, worked out without peft: weights of a plain transformers model, folded by hand.

A linear is `y = W x + b`. One adapter with request weight `f` changes it, in the order of the request, to

    LoRA        W += f s B A                        b += f s c              (c is B's own bias)
    DoRA        W  = (m / n) (W + f s B A)          b  = b0 + (m / n) (b - b0)      n = row norms of W0 + f s B A

where `W0`, `b0` are the base's. An embedding is the same along its columns. What replaces (whole weights, biases, token
rows) comes first. An activated adapter acts only from its invocation on, so its delta is added by a hook instead.
"""

import copy
import json
import pathlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|lora_diag"
    r"|lora_velora\w*|lora_monteclora\w*|token_adapter|base_layer|modules_to_save|original_module|weight$|bias$)"
    r"(?P<rest>\..*)?$"
)


@dataclass
class Adapter:
    """The files of one adapter: its config, and per module its tensors by kind, in float32."""

    config: dict[str, Any]
    modules: dict[str, dict[str, torch.Tensor]]


def read(folder: pathlib.Path) -> Adapter:
    """Reads an adapter's two files."""
    config = json.loads((folder / "adapter_config.json").read_text())
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        while prefix := next((p for p in _WRAPPERS if key.startswith(p)), None):
            key = key.removeprefix(prefix)
        match = _PART.fullmatch(key)
        assert match, key
        part, rest = match["part"], match["rest"] or ""
        kind = "bias" if rest.endswith(".bias") else "weight"
        if part in ("modules_to_save", "original_module"):
            continue  # peft writes these beside `.weight` where the vocabulary was resized; that one is the trained
        if part == "token_adapter":
            what = "rows" if rest == ".trainable_tokens_delta" else kind
        else:
            what = {"lora_B": "B" if kind == "weight" else "c", "base_layer": kind}.get(part, part)
        modules.setdefault(match["module"], {})[what.removeprefix("lora_")] = tensor.float()
    return Adapter(config, modules)


@dataclass
class Origin:
    """A module's weight and bias before the deltas; no delta is added in place."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@torch.no_grad()
def fold(base: torch.nn.Module, mixture: list[tuple[Adapter, float]]) -> torch.nn.Module:
    """A copy of a plain model that computes what the base does under the adapters, in that order."""
    model = copy.deepcopy(base)
    for adapter, _ in mixture:
        replicate(model, adapter.config.get("layer_replication"))
    untie(model, [adapter for adapter, _ in mixture])
    for adapter, _ in mixture:
        replace(model, adapter)
    origins: dict[str, Origin] = {}
    for adapter, weight in mixture:
        for path, tensors in adapter.modules.items():
            for name, parts in split(model, path, tensors):
                module = model.get_submodule(name)
                origin = origins.setdefault(name, Origin(module.weight, getattr(module, "bias", None)))
                apply(model, module, origin, parts, adapter.config, path, weight)
    return model


def replicate(model: torch.nn.Module, ranges: list[list[int]] | None) -> None:
    """The layers of the ranges one after another, each a module of its own."""
    if ranges:
        layers = [copy.deepcopy(model.model.layers[i]) for start, end in ranges for i in range(start, end)]
        for place, layer in enumerate(layers):
            layer.self_attn.layer_idx = place
        model.model.layers = torch.nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        if kinds := getattr(model.config, "layer_types", None):
            model.config.layer_types = [kinds[i] for start, end in ranges for i in range(start, end)]


def untie(model: torch.nn.Module, adapters: list[Adapter]) -> None:
    """Gives a tied head a weight of its own.

    Trained token rows still reach it through the tie, as does a weight that the file has under either name and that
    `modules_to_save` gives to neither.
    """
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    if not tied:
        return
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.config.tie_word_embeddings = False
    for adapter in adapters:
        ends = adapter.modules.setdefault("model.embed_tokens", {}), adapter.modules.setdefault("lm_head", {})
        if not adapter.config.get("modules_to_save"):
            for end, other in (ends, ends[::-1]):
                if "weight" in end:
                    other.setdefault("weight", end["weight"])
        if "rows" in ends[0] and "rows" not in ends[1]:
            ends[1]["rows"] = ends[0]["rows"]


def replace(model: torch.nn.Module, adapter: Adapter) -> None:
    """Replaces whole weights, biases and token rows of the base."""
    for path, tensors in adapter.modules.items():
        module = model.get_submodule(path) if not path.endswith(tuple(FUSED)) else None
        for kind in ("weight", "bias"):
            if kind in tensors:
                setattr(module, kind, torch.nn.Parameter(tensors[kind].clone()))
        if "rows" in tensors:
            indices = adapter.config["trainable_token_indices"]
            if isinstance(indices, dict):
                indices = indices.get(path.rpartition(".")[2], next(iter(indices.values())))
            module.weight[indices] = tensors["rows"]


def split(
    model: torch.nn.Module, path: str, tensors: dict[str, torch.Tensor]
) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """The modules a path names with their own tensors: itself, or the parts of a fused projection."""
    parent, _, leaf = path.rpartition(".")
    if leaf not in FUSED:
        return [(path, tensors)]
    names = [f"{parent}.{part}" for part in FUSED[leaf]]
    sizes = [model.get_submodule(name).out_features for name in names]
    cut = {what: [t] * len(names) if what == "A" else t.split(sizes) for what, t in tensors.items()}
    return [(name, {what: pieces[i] for what, pieces in cut.items()}) for i, name in enumerate(names)]


def apply(
    model: torch.nn.Module,
    module: torch.nn.Module,
    origin: Origin,
    parts: dict[str, torch.Tensor],
    config: dict[str, Any],
    path: str,
    weight: float,
) -> None:
    """One adapter's delta on one module of the model."""
    if "embedding_A" in parts:
        delta, rank = (parts["embedding_B"] @ parts["embedding_A"]).T, parts["embedding_A"].shape[0]  # [vocab, hidden]
    elif "A" in parts:
        delta, rank = low_rank(parts, config, path, origin)
    else:
        return
    if config.get("kasa_config"):
        u, s, v = torch.linalg.svd(origin.weight, full_matrices=False)
        module.weight = torch.nn.Parameter((u[:, :-rank] * s[:-rank]) @ v[:-rank])
    scale = weight * scaling(config, path, rank)
    if config.get("alora_invocation_tokens"):
        from_invocation(model, module, config["alora_invocation_tokens"], scale * delta, parts.get("c"), scale)
        return
    new, bias = module.weight + scale * delta, getattr(module, "bias", None)
    if "c" in parts:
        bias = (0 if bias is None else bias) + scale * parts["c"]
    if "magnitude_vector" in parts:
        norm = (origin.weight + scale * delta).norm(dim=0 if "embedding_A" in parts else 1, keepdim=True)
        ratio = parts["magnitude_vector"].view_as(norm) / norm
        new = ratio * new
        if bias is not None:
            first = 0 if origin.bias is None else origin.bias
            bias = first + ratio.flatten() * (bias - first)
    module.weight = torch.nn.Parameter(new)
    if bias is not None:
        module.bias = torch.nn.Parameter(bias)


def low_rank(
    parts: dict[str, torch.Tensor], config: dict[str, Any], path: str, origin: Origin
) -> tuple[torch.Tensor, int]:
    """`B A` `[out, in]` before scaling, and its rank."""
    a, b = parts["A"], parts["B"]
    rank = pattern(config.get("rank_pattern"), path, config["r"])
    if config.get("use_bdlora"):
        blocks = config["use_bdlora"]["nblocks"]
        if a.shape[1] < origin.weight.shape[1]:
            a = torch.block_diag(*a.chunk(blocks))
        if b.shape[1] < rank:
            b = torch.block_diag(*b.chunk(blocks))
    if config.get("use_qalora"):
        # Pooling takes the mean of each group and multiplies by the number of groups.
        group = config["qalora_group_size"]
        a = a.repeat_interleave(group, dim=1) * (a.shape[1] / group)
    if "diag" in parts:
        b = b * parts["diag"]
    assert (b.shape[0], a.shape[1]) == origin.weight.shape, path
    assert b.shape[1] == a.shape[0] == rank, path
    return b @ a, rank


def scaling(config: dict[str, Any], path: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r), of the first pattern in file order that covers a dotted suffix of the path."""
    alpha = pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (rank**0.5 if config["use_rslora"] else rank)


def pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern, in file order, that covers a whole dotted suffix of the module's path."""
    return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", path)), default)


def from_invocation(
    model: torch.nn.Module,
    module: torch.nn.Module,
    invocation: list[int],
    delta: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> None:
    """Adds the delta to the module's output from the last occurrence of the invocation on."""
    state: dict[str, int | None] = {"start": None}

    def find(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        tokens, size = kwargs["input_ids"][0].tolist(), len(invocation)
        starts = [i for i in range(len(tokens) - size + 1) if tokens[i : i + size] == invocation]
        state["start"] = starts[-1] if starts else None  # nowhere: all of the slice below

    def add(_module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
        extra = args[0] @ delta.T + (0 if bias is None else scale * bias)
        extra[:, : state["start"]] = 0
        return y + extra

    model.register_forward_pre_hook(find, with_kwargs=True)
    module.register_forward_hook(add)
