"""What a family's modeling code decides and no member of config.json: each such datum dropped from transformers' model.

A tiny model whose logits stay where they are without a datum cannot tell whether exlora has it.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from support.families import HEADS, KV_HEADS

# Drops a datum from a model; what is patched outside the model is undone by the `pytest.MonkeyPatch`.
Drop = Callable[[Any, Any], None]


def _norm_offset(model: Any, _patch: Any) -> None:
    """Norms multiply by the stored weight, not by one more."""
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight -= 1


def _embedding_factor(model: Any, _patch: Any) -> None:
    model.model.embed_tokens.embed_scale.fill_(1)


def _without(*names: str) -> Drop:
    """The layers' modules of these names return what they are given."""

    def drop(model: Any, _patch: Any) -> None:
        for layer in model.model.layers:
            for name in names:
                parent, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, torch.nn.Identity())

    return drop


def _activation(act: torch.nn.Module) -> Drop:
    def drop(model: Any, _patch: Any) -> None:
        for layer in model.model.layers:
            setattr(layer.mlp, "act" if hasattr(layer.mlp, "act") else "act_fn", act)

    return drop


def _mean(model: Any, _patch: Any) -> None:
    """LayerNorms are RMS norms."""

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * norm.weight
        return y if getattr(norm, "bias", None) is None else y + norm.bias

    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.forward = functools.partial(forward, module)


def _biases(*names: str) -> Drop:
    """The biases of modules with these names are zero."""

    def drop(model: Any, _patch: Any) -> None:
        dropped = [p for name, p in model.named_parameters() if name.endswith(tuple(f"{n}.bias" for n in names))]
        assert dropped
        for bias in dropped:
            bias.zero_()

    return drop


def _pairs(model: Any, patch: Any) -> None:
    """Rope turns the halves of a head against each other, not neighboring channels."""

    def rotate_half(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)

    patch.setattr(sys.modules[type(model).__module__], "rotate_half", rotate_half)


def _parallel(model: Any, _patch: Any) -> None:
    """The MLP reads the norm of what attention has been added to."""
    for layer in model.model.layers:
        seen: dict[str, torch.Tensor] = {}
        norm = layer.input_layernorm
        norm_forward = norm.forward

        def keep_input(_module: Any, args: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["x"] = args[0]

        def keep_output(_module: Any, _args: Any, output: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["attention"] = output[0]

        def replace_input(
            _module: Any, _args: Any, seen: dict[str, torch.Tensor] = seen, forward: Any = norm_forward
        ) -> Any:
            return (forward(seen["x"] + seen["attention"]),)

        norm.register_forward_pre_hook(keep_input)
        layer.self_attn.register_forward_hook(keep_output)
        layer.mlp.register_forward_pre_hook(replace_input)


def _head_weights(model: Any, _patch: Any) -> None:
    """All heads share one weight of the q/k norm."""
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            norm.weight.copy_(norm.weight.mean(0, keepdim=True).expand_as(norm.weight))


def _norm_over_all_heads(model: Any, _patch: Any) -> None:
    """Each head of q and k is normed by itself."""

    def forward(norm: Any, heads: int, x: torch.Tensor) -> torch.Tensor:
        y = x.view(*x.shape[:-1], heads, -1)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return y.view(x.shape) * norm.weight

    for layer in model.model.layers:
        for norm, heads in ((layer.self_attn.q_norm, HEADS), (layer.self_attn.k_norm, KV_HEADS)):
            norm.forward = functools.partial(forward, norm, heads)


def _order_of_gate_and_up(model: Any, _patch: Any) -> None:
    for layer in model.model.layers:
        weight = layer.mlp.gate_up_proj.weight
        weight.copy_(torch.cat(weight.chunk(2)[::-1]))


_GEMMA: dict[str, Drop] = {
    "norm offset": _norm_offset,
    "embedding factor": _embedding_factor,
    "approximation of gelu": _activation(torch.nn.GELU()),
}
_POST_NORMS: dict[str, Drop] = {
    "norm behind attention": _without("post_attention_layernorm"),
    "norm behind the MLP": _without("post_feedforward_layernorm"),
}
_COHERE: dict[str, Drop] = {"mean": _mean, "pairs of channels": _pairs, "parallel block": _parallel}
_FUSED: dict[str, Drop] = {"order of gate and up": _order_of_gate_and_up}
_GLM: dict[str, Drop] = {
    **_FUSED,
    "pairs of channels": _pairs,
    "biases of q, k, v": _biases("q_proj", "k_proj", "v_proj"),
}
_OLMO: dict[str, Drop] = {**_POST_NORMS, "norm over all heads": _norm_over_all_heads}

DROPS: dict[str, dict[str, Drop]] = {
    "gemma": {**_GEMMA, "activation": _activation(torch.nn.SiLU())},
    "gemma2": {**_GEMMA, **_POST_NORMS, "norm before the MLP": _without("pre_feedforward_layernorm")},
    "gemma3": {**_GEMMA, **_POST_NORMS, "norms of q and k": _without("self_attn.q_norm", "self_attn.k_norm")},
    "granite": {
        "biases of attention": _biases("q_proj", "k_proj", "v_proj", "o_proj"),
        "biases of the MLP": _biases("gate_proj", "up_proj", "down_proj"),
    },
    "cohere": {**_COHERE, "weights of each head's norm": _head_weights},
    "cohere2": _COHERE,
    "glm": _GLM,
    "glm4": {
        **_GLM,
        "norm behind attention": _without("post_self_attn_layernorm"),
        "norm behind the MLP": _without("post_mlp_layernorm"),
    },
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "phi3": _FUSED,
    "starcoder2": {
        "mean": _mean,
        "biases of norms": _biases("norm"),
        "biases of attention": _biases("q_proj", "k_proj", "v_proj", "o_proj"),
        "biases of the MLP": _biases("c_fc", "c_proj"),
        "approximation of gelu": _activation(torch.nn.GELU()),
    },
}
CASES = [(name, datum) for name, drops in DROPS.items() for datum in drops]
