"""Real PEFT adapters from a seed, and the two oracles for them: peft itself, and the sum of deltas added by hand.

peft computes one adapter (and refuses weights per row); the sum of deltas reads the files again, without peft, and says
what a mixture means: `W + sum of weight * scale * B A`.
"""

import json
import pathlib
import re
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from support import tiny

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Spec:
    """An adapter: the fields of peft's `LoraConfig`, and the dtype its factors are stored in."""

    r: int = 4
    lora_alpha: float = 8
    target_modules: tuple[str, ...] | str = ALL_LINEAR
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


SPECS = {
    "plain": Spec(),
    "other": Spec(r=6, lora_alpha=9),
    "rank-one": Spec(r=1, lora_alpha=1),
    # A rank above every width of the tiny models, and no multiple of 16.
    "rank-wide": Spec(r=77, lora_alpha=11),
    "rslora": Spec(r=9, lora_alpha=6, options={"use_rslora": True}),
    "patterns": Spec(
        options={
            "rank_pattern": {r"layers.1.mlp.down_proj": 7, "v_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 5},
            "alpha_pattern": {r"layers.0.*_proj": 3, "v_proj": 24},
        }
    ),
    "rslora-patterns": Spec(
        options={"use_rslora": True, "rank_pattern": {"o_proj": 9}, "alpha_pattern": {"down_proj": 2.5}}
    ),
    "two-targets": Spec(target_modules=("q_proj", "v_proj")),
    "mlp-only": Spec(target_modules=("gate_proj", "up_proj", "down_proj")),
    "one-layer": Spec(options={"layers_to_transform": [1], "layers_pattern": "layers"}),
    "regex": Spec(target_modules=r".*layers\.(0\.self_attn\.(k|o)_proj|1\.mlp\.(?!gate).*_proj)"),
    "excluded": Spec(options={"exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]}),
    "with-head": Spec(target_modules=(*ALL_LINEAR, "lm_head")),
    "negative-alpha": Spec(lora_alpha=-8),
    "float16": Spec(dtype=torch.float16),
    "bfloat16": Spec(dtype=torch.bfloat16),
}


def write(name: str, base: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes the named adapter for a dense model folder into a folder beside it and returns that."""
    spec = SPECS[name]
    folder = base.with_name(f"{base.name}-adapter-{name}-{seed}")
    if folder.exists():
        return folder
    targets = spec.target_modules if isinstance(spec.target_modules, str) else list(spec.target_modules)
    config = peft.LoraConfig(
        r=spec.r, lora_alpha=spec.lora_alpha, target_modules=targets, task_type="CAUSAL_LM", **spec.options
    )
    model = peft.get_peft_model(tiny.load(base), config)
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                noise = torch.randn(parameter.shape, generator=generator)
                # A keeps x's size; B makes the delta about a third of the base's own output, whatever rank and scale.
                width = parameter.shape[1] if "lora_A" in key else 9 * parameter.shape[1]
                parameter.copy_(noise * width**-0.5)
                parameter.data = parameter.data.to(spec.dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def load_peft(base: pathlib.Path, adapter: pathlib.Path) -> torch.nn.Module:
    """transformers and peft in float32."""
    return peft.PeftModel.from_pretrained(tiny.load(base), adapter).eval()


def load_sum(base: pathlib.Path, mixture: list[tuple[pathlib.Path, float]]) -> torch.nn.Module:
    """transformers in float32 with every delta of the mixture added to the weights by hand; peft has no part in it."""
    model = tiny.load(base)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for folder, weight in mixture:
            for module, delta in deltas(folder).items():
                modules[module].weight += weight * delta
    return model


def deltas(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """`scale * B A` of every module of an adapter, float32 `[out, in]`, from its files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    out = {}
    for key in tensors:
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
        rank = _pattern(config["rank_pattern"], module, config["r"])
        assert a.shape[0] == b.shape[1] == rank, module
        alpha = _pattern(config["alpha_pattern"], module, config["lora_alpha"])
        out[module] = alpha / (rank**0.5 if config["use_rslora"] else rank) * (b @ a)
    return out


def _pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern, in file order, that covers a whole dotted suffix of the module's path."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)
