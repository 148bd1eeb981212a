"""A tiny random decoder of each model family, whose config.json is spelled as the family's published ones.

The options of a family are chosen so that every datum of its description shows in the logits: windows shorter than the
prompt, softcaps that bend, factors other than 1, head widths that differ from `hidden_size / heads` where the family
allows it. `changes` names the data that config.json decides, each with other members of it for the same weights;
`ignored` are members that the family does not read, though another does.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from support import tiny

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB, POSITIONS = 64, 96, 4, 4, 2, 96, 256
PROMPT = [(7 + 31 * i + i * i // 3) % VOCAB for i in range(22)]
# Longer than a page of the KV cache.
LONG_PROMPT = [(5 + 17 * i + i * i // 5) % VOCAB for i in range(100)]

Members = dict[str, Any]
Tensors = dict[str, torch.Tensor]

_SIZES: Members = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    """The config.json of one family beside its sizes, and what tests change of it."""

    model_type: str
    architecture: str
    options: Members
    # Datum -> members that change it, and nothing else.
    changes: dict[str, Members]
    # Members of other families, which change nothing here.
    ignored: Members = field(default_factory=dict)
    # Norm weights are stored less one.
    has_norm_offset: bool = False


_LONGROPE: Members = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * k for k in range(6)],
    "long_factor": [2.0 + k for k in range(6)],
}
_YARN: Members = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_LINEAR: Members = {"rope_type": "linear", "factor": 8.0}
_OLMO3_YARN: Members = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.2,
}

FAMILIES = {
    "mistral": Family(
        "mistral",
        "MistralForCausalLM",
        {"head_dim": 32, "sliding_window": 6, "rope_theta": 10000.0},
        {"window": {"sliding_window": 9}, "rope base": {"rope_theta": 500.0}, "norm epsilon": {"rms_norm_eps": 0.02}},
    ),
    "ministral": Family(
        "ministral",
        "MinistralForCausalLM",
        {"head_dim": 32, "sliding_window": 6, "layer_types": [SLIDING, FULL] * 2, "rope_theta": 10000.0},
        {
            "window": {"sliding_window": 9},
            "kinds of layers": {"layer_types": [FULL, SLIDING] * 2},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"rms_norm_eps": 0.02},
        },
    ),
    "ministral3": Family(
        "ministral3",
        "Ministral3ForCausalLM",
        {"head_dim": 32, "rope_parameters": _YARN},
        {
            "query temperature": {"rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.3}},
            "rope factor": {"rope_parameters": {**_YARN, "factor": 8.0}},
            "original positions": {"rope_parameters": {**_YARN, "original_max_position_embeddings": 16}},
            "rope base": {"rope_parameters": {**_YARN, "rope_theta": 500.0}},
        },
    ),
    "smollm3": Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        {},
        {
            "layers without rope": {"no_rope_layers": [1, 0, 1, 1]},
            "interval of layers without rope": {"no_rope_layer_interval": 2},
            "window of layers without rope": {"use_sliding_window": True, "sliding_window": 6},
            "rope base": {"rope_theta": 500.0},
        },
        ignored={"sliding_window": 6},
    ),
    "gemma": Family(
        "gemma",
        "GemmaForCausalLM",
        {"head_dim": 32, "hidden_act": "gelu_pytorch_tanh"},
        {"rope base": {"rope_theta": 500.0}, "norm epsilon": {"rms_norm_eps": 0.02}},
        ignored={"sliding_window": 6, "query_pre_attn_scalar": 7, "final_logit_softcapping": 5.0},
        has_norm_offset=True,
    ),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "head_dim": 32,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        {
            "scale": {"query_pre_attn_scalar": 144},
            "cap of scores": {"attn_logit_softcapping": None},
            "another cap of scores": {"attn_logit_softcapping": 1.0},
            "cap of logits": {"final_logit_softcapping": None},
            "another cap of logits": {"final_logit_softcapping": 3.0},
            "window": {"sliding_window": 9},
            "kinds of layers": {"layer_types": [FULL, SLIDING] * 2},
            "activation": {"hidden_activation": "silu"},
            "rope base": {"rope_theta": 500.0},
        },
        ignored={"hidden_act": "silu", "sliding_window_pattern": 3},
        has_norm_offset=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "head_dim": 32,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "sliding_window_pattern": 2,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 1000.0,
            "rope_scaling": _LINEAR,
        },
        {
            "scale": {"query_pre_attn_scalar": 144},
            "cap of logits": {"final_logit_softcapping": 3.0},
            "window": {"sliding_window": 9},
            "pattern of layers": {"sliding_window_pattern": 3},
            "kinds of layers": {"layer_types": [FULL, SLIDING] * 2},
            "activation": {"hidden_activation": "silu"},
            "global rope base": {"rope_theta": 500.0},
            "local rope base": {"rope_local_base_freq": 50.0},
            "global rope factor": {"rope_scaling": {**_LINEAR, "factor": 2.0}},
        },
        ignored={"hidden_act": "silu", "attn_logit_softcapping": 1.0},
        has_norm_offset=True,
    ),
    "granite": Family(
        "granite",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "logits_scaling": 4.0,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 10000.0,
        },
        {
            "embedding multiplier": {"embedding_multiplier": 1.0},
            "residual multiplier": {"residual_multiplier": 0.5},
            "attention multiplier": {"attention_multiplier": 0.25},
            "logits scaling": {"logits_scaling": 1.0},
            "rope base": {"rope_theta": 500.0},
        },
    ),
    "cohere": Family(
        "cohere",
        "CohereForCausalLM",
        {"use_qk_norm": True, "logit_scale": 0.25, "rope_theta": 10000.0},
        {
            "logit scale": {"logit_scale": 0.0625},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"layer_norm_eps": 0.02},
        },
        ignored={"rms_norm_eps": 0.02},
    ),
    "cohere2": Family(
        "cohere2",
        "Cohere2ForCausalLM",
        {"sliding_window": 6, "sliding_window_pattern": 2, "logit_scale": 0.25},
        {
            "logit scale": {"logit_scale": 0.0625},
            "window": {"sliding_window": 9},
            "pattern of layers": {"sliding_window_pattern": 4},
            "kinds of layers, and where rope is": {"layer_types": [FULL, SLIDING] * 2},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"layer_norm_eps": 0.02},
        },
        ignored={"use_qk_norm": True},
    ),
    "glm": Family(
        "glm",
        "GlmForCausalLM",
        {"head_dim": 32},
        {
            "turned part": {"partial_rotary_factor": 0.25},
            "whole turned": {"partial_rotary_factor": 1.0},
            "rope base": {"rope_theta": 500.0},
        },
    ),
    "glm4": Family(
        "glm4",
        "Glm4ForCausalLM",
        {"head_dim": 32, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5},
        {
            "turned part": {"partial_rotary_factor": 0.25},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"rms_norm_eps": 0.02},
        },
    ),
    "olmo2": Family(
        "olmo2",
        "Olmo2ForCausalLM",
        {"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
        {"rope base": {"rope_theta": 500.0}, "norm epsilon": {"rms_norm_eps": 0.02}},
        ignored={"sliding_window": 6},
    ),
    "olmo3": Family(
        "olmo3",
        "Olmo3ForCausalLM",
        {"sliding_window": 6, "rope_theta": 10000.0, "rope_scaling": _OLMO3_YARN},
        {
            "window": {"sliding_window": 9},
            "kinds of layers": {"layer_types": [FULL, SLIDING] * 2},
            "rope factor of full layers": {"rope_scaling": {**_OLMO3_YARN, "factor": 2.0}},
            "attention factor of full layers": {"rope_scaling": {**_OLMO3_YARN, "attention_factor": 1.6}},
            "rope base": {"rope_theta": 500.0},
        },
    ),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        {"sliding_window": 9, "rope_theta": 10000.0},
        {
            "window": {"sliding_window": 6},
            "turned part": {"partial_rotary_factor": 0.5},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"rms_norm_eps": 0.02},
        },
    ),
    "phi3-longrope": Family(
        "phi3",
        "Phi3ForCausalLM",
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 128,
            "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0,
            "rope_scaling": _LONGROPE,
        },
        {
            "short factors": {"rope_scaling": {**_LONGROPE, "short_factor": [1.5] * 6}},
            "attention factor": {"max_position_embeddings": 256},
            "rope base": {"rope_theta": 500.0},
        },
        ignored={"rope_scaling": {**_LONGROPE, "long_factor": [9.0] * 6}},
    ),
    "starcoder2": Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {"sliding_window": 6, "rope_theta": 10000.0, "norm_epsilon": 1e-5},
        {
            "window": {"sliding_window": 9},
            "activation": {"hidden_act": "silu"},
            "rope base": {"rope_theta": 500.0},
            "norm epsilon": {"norm_epsilon": 0.02},
        },
        ignored={"rms_norm_eps": 0.02, "layer_norm_eps": 0.02},
    ),
}

# Family -> options that other tensors belong to, each a model of its own.
_VARIANTS: dict[str, dict[str, Members]] = {
    "mistral": {"no-window": {"sliding_window": None}},
    "smollm3": {"biases": {"attention_bias": True, "mlp_bias": True}, "untied": {"tie_word_embeddings": False}},
    "gemma": {"biases": {"attention_bias": True}, "untied": {"tie_word_embeddings": False}},
    "gemma2": {"biases": {"attention_bias": True}, "untied": {"tie_word_embeddings": False}},
    "gemma3": {"biases": {"attention_bias": True}, "one-key-head": {"num_key_value_heads": 1}},
    "granite": {"no-biases": {"attention_bias": False, "mlp_bias": False}, "tied": {"tie_word_embeddings": True}},
    "cohere": {
        "no-head-norms": {"use_qk_norm": False},
        "biases": {"attention_bias": True},
        "untied": {"tie_word_embeddings": False},
    },
    "cohere2": {"biases": {"attention_bias": True}, "wide-heads": {"head_dim": 32}},
    "glm": {"no-biases": {"attention_bias": False}},
    "glm4": {"no-biases": {"attention_bias": False}, "tied": {"tie_word_embeddings": True}},
    "olmo2": {
        "biases": {"attention_bias": True},
        "one-key-head": {"num_key_value_heads": 1},
        "a-key-head-for-each": {"num_key_value_heads": 4},
    },
    "olmo3": {"a-key-head-for-each": {"num_key_value_heads": 4}},
    "phi3": {"one-key-head": {"num_key_value_heads": 1}, "partial": {"partial_rotary_factor": 0.75}},
    "starcoder2": {"no-biases": {"use_bias": False}, "untied": {"tie_word_embeddings": False}},
}
VARIANTS = {
    f"{name}-{variant}": dataclasses.replace(
        FAMILIES[name], options={**FAMILIES[name].options, **members}, changes={}, ignored={}
    )
    for name, variants in _VARIANTS.items()
    for variant, members in variants.items()
}


def family(name: str) -> Family:
    """A family or a variant of one."""
    return FAMILIES[name] if name in FAMILIES else VARIANTS[name]


def some(quick: Iterable[str]) -> list[Any]:
    """All families as parameters of a test, those that are not in `quick` as slow ones."""
    chosen = set(quick)
    assert chosen <= FAMILIES.keys()
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def first_of_each(cases: Iterable[Any], kind: Callable[[Any], Any] = lambda case: case[1]) -> list[Any]:
    """Pairs of a family and a datum as parameters of a test, all but the first of each kind as slow ones."""
    seen: set[Any] = set()
    marked = []
    for case in cases:
        marked.append(pytest.param(*case, marks=[pytest.mark.slow] if kind(case) in seen else []))
        seen.add(kind(case))
    return marked


def config(name: str, **changes: Any) -> Members:
    """The config.json of a family, with some members changed."""
    its = family(name)
    heads = {"model_type": its.model_type, "architectures": [its.architecture], "dtype": "float32"}
    return {**heads, **_SIZES, **its.options, **changes}


def write(name: str, parent: pathlib.Path) -> pathlib.Path:
    """Writes a family's model into a folder of its own below `parent`, unless it exists, and returns that folder."""
    folder = parent / name
    return folder if folder.exists() else build(name, folder, config(name))


def build(name: str, folder: pathlib.Path, members: Members) -> pathlib.Path:
    """Writes the model of this config.json, with the weights of a family, into `folder` and returns that."""
    folder.mkdir(parents=True)
    write_config(folder, members)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert type(model).__name__ == family(name).architecture
    draw(model, name)
    model.save_pretrained(folder)
    write_config(folder, members)  # transformers has written its own spelling
    return folder


@torch.no_grad()
def draw(model: torch.nn.Module, name: str) -> None:
    """Draws all weights of a family's model from its name; norms, biases and whatever else begins as 1 or 0 too."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if key.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "norm" in key:
            parameter.copy_((0.0 if family(name).has_norm_offset else 1.0) + 0.3 * noise)
        else:
            parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)


def changed(folder: pathlib.Path, into: pathlib.Path, members: Members) -> pathlib.Path:
    """A folder with the same weights and a config.json with other members."""
    return copy(folder, into, {**read_config(folder), **members})


def copy(folder: pathlib.Path, into: pathlib.Path, members: Members, tensors: Tensors | None = None) -> pathlib.Path:
    """A folder with this config.json, and these weights or those of `folder`."""
    into.mkdir(parents=True)
    if tensors is None:
        (into / "model.safetensors").hardlink_to(folder / "model.safetensors")
    else:
        contiguous = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(contiguous, into / "model.safetensors", {"format": "pt"})
    write_config(into, members)
    return into


def tensors(folder: pathlib.Path) -> Tensors:
    """The weights of a folder, which are in one file."""
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def read_config(folder: pathlib.Path) -> Members:
    """The config.json of a folder."""
    return json.loads((folder / "config.json").read_text())


def write_config(folder: pathlib.Path, members: Members) -> None:
    """Writes config.json."""
    (folder / "config.json").write_text(json.dumps(members, indent=2))


def logits(folder: pathlib.Path, tokens: list[int] = PROMPT) -> Any:
    """transformers' logits [tokens, vocab], float32 with eager attention."""
    return tiny.logits(tiny.loaded(folder), tokens)
