"""Writes the adapters of `adapter_specs.py` with peft itself, from a seed, and computes their oracles.

Every part an adapter has is drawn so that leaving it out moves the logits: factors, biases, magnitudes, replaced
weights and token rows.
"""

import copy
import json
import pathlib
import warnings
import zlib
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file

from support import gptq, manual_merge, tiny
from support.adapter_specs import PAIRS, Spec, prompt, spec


def base_model(folder: pathlib.Path, growth: int = 0) -> torch.nn.Module:
    """A copy of the model of a dense folder, its vocabulary longer by `growth` rows from a fixed seed."""
    model = copy.deepcopy(tiny.loaded(folder))
    if growth:
        torch.manual_seed(growth)
        model.resize_token_embeddings(tiny.VOCAB + growth, mean_resizing=False)
    return model


def write(spec: Spec, folder: pathlib.Path, dense: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes an adapter for the model in `dense` into `folder` and returns the folder of its files."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base_model(dense, spec.growth), config(spec), adapter_name=spec.adapter_name)
        draw(model, spec, seed)
        model.create_or_update_model_card = lambda _folder: None  # a third of the time, and no test reads it
        model.save_pretrained(folder, save_embedding_layers=spec.save_embeddings)
    out = folder if spec.adapter_name == "default" else folder / spec.adapter_name
    if spec.edit:
        path = out / "adapter_config.json"
        tensors, fields = spec.edit(load_file(out / "adapter_model.safetensors"), json.loads(path.read_text()))
        save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
        path.write_text(json.dumps(fields, indent=2))
    return out


def config(spec: Spec) -> peft.LoraConfig:
    """peft's config of a spec."""
    options = {"task_type": "CAUSAL_LM", **copy.deepcopy(spec.options)}
    for key, kind in _NESTED.items():
        if isinstance(options.get(key), dict):
            options[key] = kind(**options[key])
    targets = list(spec.targets) if isinstance(spec.targets, tuple) else spec.targets
    return peft.LoraConfig(r=spec.r, lora_alpha=spec.lora_alpha, target_modules=targets, **options)


_NESTED = {
    "use_bdlora": peft.tuners.lora.BdLoraConfig,
    "kasa_config": peft.tuners.lora.config.KasaConfig,
    "velora_config": peft.tuners.lora.config.VeloraConfig,
    "monteclora_config": peft.tuners.lora.config.MontecloraConfig,
}


@torch.no_grad()
def draw(model: torch.nn.Module, spec: Spec, seed: int) -> None:
    """Draws every trained tensor of a fresh adapter, and rounds what peft stores of it to the spec's dtype."""
    generator = torch.Generator().manual_seed(1000 + seed)
    biased = spec.options.get("bias", "none") != "none"
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_embedding_A" in name or "lora_diag" in name:
            parameter.copy_(noise)
        elif "lora_embedding_B" in name:
            parameter.copy_(0.15 * noise * parameter.shape[1] ** -0.5)
        elif "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.2 * noise.clamp(-1.5, 1.5))
        elif "lora_B" in name and name.endswith(".bias"):
            parameter.copy_(0.3 * noise)
        elif ".lora_A." in name or ".lora_B." in name:
            # A keeps x's size; B makes the delta about a third of the base's own output, whatever rank and scale.
            width = parameter.shape[1] if ".lora_A." in name else 9 * parameter.shape[1]
            parameter.copy_(noise * width**-0.5)
        elif "trainable_tokens_delta" in name:
            parameter.copy_(0.4 * noise)
        elif (
            "modules_to_save" in name
            or (biased and parameter.requires_grad and name.endswith("bias"))
            or (spec.stray_copies and name.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")))
        ):
            parameter.add_(0.3 * noise * parameter.std())
        else:
            continue
        parameter.data = parameter.data.to(spec.dtype)


def load(spec: Spec, adapter: pathlib.Path, dense: pathlib.Path) -> torch.nn.Module:
    """The oracle: peft in float32 on a base of the adapter's own vocabulary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base_model(dense, spec.growth), adapter).eval()


class Collection:
    """The adapters of both tables in one folder, each written, and each oracle computed, on first use."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self._adapters: dict[tuple[str, str], pathlib.Path] = {}
        self._models: dict[tuple[pathlib.Path, str, str], torch.nn.Module] = {}
        self._logits: dict[tuple[pathlib.Path, str, str], Any] = {}

    def dense(self, base: str) -> pathlib.Path:
        """The folder of a tiny base."""
        return tiny.write(base, self.root)

    def packed(self, base: str) -> tuple[pathlib.Path, pathlib.Path]:
        """The folder of a base's GPTQ copy, and that of the dense model with the copy's weights."""
        folder = self.root / f"{base}-gptq-4bit"
        return folder, gptq.quantize(self.dense(base), folder, gptq.Scheme(sym=False, desc_act=True))

    def adapter(self, base: str, name: str) -> pathlib.Path:
        """The folder of an adapter for a base and its packed copy; raises what peft raises."""
        if (base, name) not in self._adapters:
            folder = self.root / f"{base}-{name}"
            seed = zlib.crc32(folder.name.encode())
            self._adapters[base, name] = write(spec(name), folder, self.dense(base), seed)
        return self._adapters[base, name]

    def read(self, base: str, name: str) -> manual_merge.Adapter:
        """An adapter's files as the manual merge reads them."""
        return manual_merge.read(self.adapter(base, name))

    def by_hand(self, folder: pathlib.Path, mixture: list[tuple[manual_merge.Adapter, float]]) -> torch.nn.Module:
        """The dense model in `folder` with a mixture folded in by hand."""
        return manual_merge.fold(tiny.loaded(folder), mixture)

    def by_peft(self, folder: pathlib.Path, base: str, name: str) -> torch.nn.Module:
        """peft on the dense model in `folder`, with the adapter of `name` for `base`; not to be modified."""
        key = (folder, base, name)
        if key not in self._models:
            self._models[key] = load(spec(name), self.adapter(base, name), folder)
        return self._models[key]

    def list_by_peft(self, folder: pathlib.Path, base: str, names: tuple[str, ...]) -> torch.nn.Module:
        """peft with several adapters active, in that order."""
        first, *rest = names
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.loaded(folder)), self.adapter(base, first), first)
            for name in rest:
                model.load_adapter(self.adapter(base, name), name)
            model.base_model.set_adapter(list(names))
        return model.eval()

    def oracle(self, folder: pathlib.Path, base: str, name: str) -> Any:
        """The logits of `prompt(name)` by peft, or by the manual merge where peft cannot."""
        key = (folder, base, name)
        if key not in self._logits:
            if spec(name).peft:
                model = self.by_peft(folder, base, name)
            else:
                model = self.by_hand(folder, [(self.read(base, name), 1.0)])
            self._logits[key] = tiny.logits(model, prompt(name))
        return self._logits[key]

    def pairs(self, base: str) -> list[str]:
        """The pairs of features that peft builds for a base."""
        names = []
        for name in PAIRS:
            try:
                self.adapter(base, name)
            except (TypeError, ValueError):
                continue
            names.append(name)
        return names
