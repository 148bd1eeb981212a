"""exllamav2's modules of a model: their names. exlora computes a step as a whole, so that none runs by itself."""

from __future__ import annotations

from typing import Any

import exlora._exlora as _exlora
from exlora._unsupported import refuse

__all__ = ["ExLlamaV2Module", "Intervention", "modules_of"]


class ExLlamaV2Module:
    """One part of a model. `key` is its name in the checkpoint; its weights and its computation are not accessible."""

    def __init__(self, model: _exlora.ExLlamaV2Base, key: str, layer_idx: int | None = None) -> None:
        self.model = model
        self.key = key
        self.layer_idx = layer_idx
        self.device_idx = -1
        self.submodules: list[ExLlamaV2Module] = []

    def device(self) -> str:
        """Where its weights are, in torch's words."""
        return "cpu" if self.device_idx == -1 else f"cuda:{self.device_idx}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported."""
        refuse("ExLlamaV2Module", forward=self.key)

    def load(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: a model is loaded as a whole."""
        refuse("ExLlamaV2Module", load=self.key)

    def unload(self) -> None:
        """Not supported: a model is unloaded as a whole."""
        refuse("ExLlamaV2Module", unload=self.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r})"


class Intervention:
    """Hooks around a module are not supported: making one raises `setting_unsupported`."""

    def __init__(self, inner: ExLlamaV2Module, pre_forward: Any = None, post_forward: Any = None) -> None:
        refuse("exlora", intervention=inner)


def modules_of(model: _exlora.ExLlamaV2Base, layers: int) -> list[ExLlamaV2Module]:
    """The modules of a decoder, in the order in which they act."""
    modules = [ExLlamaV2Module(model, "model.embed_tokens")]
    for layer in range(layers):
        key = f"model.layers.{layer}"
        modules += [ExLlamaV2Module(model, f"{key}.{part}", layer) for part in ("self_attn", "mlp")]
    return [*modules, ExLlamaV2Module(model, "model.norm"), ExLlamaV2Module(model, "lm_head")]
