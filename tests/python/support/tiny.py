"""Tiny random decoders in Hugging Face's layout: every architecture and option, computed in milliseconds.

All weights come from a seed and are drawn here, not by transformers: its own initialization leaves biases at zero and
norms at one, where a reader that ignores them would pass. The sizes are awkward on purpose: `INTERMEDIATE` is no
multiple of 128, so a GPTQ group may end short, and grouped-query attention always has two query heads a key head.
"""

import functools
import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

transformers.utils.logging.disable_progress_bar()
# Models this small run several times faster on one thread.
torch.set_num_threads(1)

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCAB, POSITIONS = 64, 2, 4, 2, 192, 96, 256

# The original context of the scaled rotary embeddings. `PROMPT` is longer, so a factor that acts only there is seen.
ROPE_ORIGINAL = 16


@dataclass(frozen=True)
class Spec:
    """One tiny model: an architecture and the fields of its config.json besides the sizes."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float16
    # Whether config.json spells rotary scaling as before transformers 5: `rope_theta` beside `rope_scaling.type`.
    legacy_rope: bool = False
    # Largest shard in bytes; None for a single file.
    shard_bytes: int | None = None


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


_LINEAR = _rope("linear", factor=2.5)
_LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=ROPE_ORIGINAL,
)
_YARN = _rope("yarn", factor=POSITIONS / ROPE_ORIGINAL, original_max_position_embeddings=ROPE_ORIGINAL)
_YARN_OPTIONS = _rope(
    "yarn",
    factor=POSITIONS / ROPE_ORIGINAL,
    original_max_position_embeddings=ROPE_ORIGINAL,
    beta_fast=16.0,
    beta_slow=2.0,
    attention_factor=1.5,
)

SPECS = {
    "llama": Spec("Llama"),
    "llama-bfloat16": Spec("Llama", dtype=torch.bfloat16),
    "llama-float32": Spec("Llama", dtype=torch.float32),
    "llama-tied": Spec("Llama", {"tie_word_embeddings": True}),
    "llama-biases": Spec("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-linear": Spec("Llama", _LINEAR),
    "llama-rope-linear-legacy": Spec("Llama", _LINEAR, legacy_rope=True),
    "llama-rope-llama3": Spec("Llama", _LLAMA3),
    "llama-rope-llama3-legacy": Spec("Llama", _LLAMA3, legacy_rope=True),
    "llama-rope-yarn": Spec("Llama", _YARN),
    "llama-rope-yarn-options": Spec("Llama", _YARN_OPTIONS),
    "llama-theta": Spec("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama-head-dim": Spec("Llama", {"head_dim": 32}),
    "llama-sharded": Spec("Llama", shard_bytes=100_000),
    "mistral": Spec("Mistral", {"sliding_window": None}),
    "mistral-window": Spec("Mistral", {"sliding_window": 8}),
    "mistral-head-dim": Spec("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": Spec("Qwen2", {"use_sliding_window": False}),
    "qwen2-tied": Spec("Qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen2-window": Spec("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": Spec("Qwen3", {"head_dim": 32}),
    "qwen3-tied": Spec("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}

# One of each architecture, for the more expensive tests.
ARCHITECTURES = ("llama", "mistral-window", "qwen2", "qwen3")

PROMPT = [(7 + 31 * i + i * i // 3) % VOCAB for i in range(40)]


def write(name: str, parent: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes the named model into a folder of its own below `parent`, unless it exists, and returns that folder."""
    folder = parent / f"{name}-{seed}"
    if folder.exists():
        return folder
    spec = SPECS[name]
    model = build(spec, seed)
    model.save_pretrained(folder, **({"max_shard_size": spec.shard_bytes} if spec.shard_bytes else {}))
    if spec.legacy_rope:
        _spell_rope_as_before(folder / "config.json")
    return folder


def build(spec: Spec, seed: int) -> torch.nn.Module:
    """The model of a spec with every parameter drawn from `seed`, rounded to the dtype it is stored in."""
    config = getattr(transformers, f"{spec.architecture}Config")(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCAB,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **{"tie_word_embeddings": False, **spec.options},
    )
    model = getattr(transformers, f"{spec.architecture}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    # Drawn like a head, which it also is, a tied embedding keeps the logits as small as everywhere else.
    embedding = HIDDEN**-0.5 if config.tie_word_embeddings else 0.4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * (embedding if "embed" in name else 1.2 * parameter.shape[1] ** -0.5))
    return model.to(spec.dtype).eval()


def load(folder: pathlib.Path) -> torch.nn.Module:
    """The oracle: transformers in float32 with eager attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@functools.lru_cache(maxsize=128)
def loaded(folder: pathlib.Path) -> torch.nn.Module:
    """The oracle of a folder that does not change, loaded once; not to be modified."""
    return load(folder)


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: list[int]) -> Any:
    """float32 [tokens, vocab] of one prompt, as numpy."""
    return model(input_ids=torch.tensor([tokens])).logits[0].float().numpy()


def _spell_rope_as_before(path: pathlib.Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {("type" if kind == "linear" else "rope_type"): kind, **rope}
    path.write_text(json.dumps(config, indent=2))
