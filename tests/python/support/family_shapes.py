"""Sizes and parameters of a family's model, drawn from a seed: whatever its kernels may not take for granted."""

import random
from typing import Any

from support.families import FULL, SLIDING, Members

# Families whose `head_dim` is a member of its own, and not `hidden_size / num_attention_heads`.
_FREE_HEAD_DIM = {"mistral", "ministral", "ministral3", "gemma", "gemma2", "gemma3", "glm", "glm4"}
_KINDS_OF_LAYERS = {"ministral", "gemma2", "gemma3", "cohere2", "olmo3"}
_WINDOWS = {"mistral", "phi3", "starcoder2", *_KINDS_OF_LAYERS}

# Members that are drawn independently of all others.
_FACTORS: dict[str, dict[str, list[Any]]] = {
    "smollm3": {"no_rope_layer_interval": [1, 2, 3]},
    "gemma2": {
        "query_pre_attn_scalar": [7, 16, 256],
        "attn_logit_softcapping": [None, 0.5, 50.0],
        "final_logit_softcapping": [None, 2.0, 30.0],
    },
    "gemma3": {"query_pre_attn_scalar": [7, 16, 256], "rope_local_base_freq": [100.0, 10000.0]},
    "granite": {
        "embedding_multiplier": [1.0, 12.0],
        "residual_multiplier": [1.0, 0.22, 1.5],
        "attention_multiplier": [0.0078125, 0.3],
        "logits_scaling": [1.0, 8.0],
    },
    "cohere": {"logit_scale": [0.0625, 1.0], "use_qk_norm": [True, False]},
    "cohere2": {"logit_scale": [0.0625, 1.0]},
    "glm": {"partial_rotary_factor": [0.5, 0.25, 1.0]},
    "glm4": {"partial_rotary_factor": [0.5, 0.25, 1.0]},
    "phi3": {"partial_rotary_factor": [0.5, 1.0]},
    "starcoder2": {"use_bias": [True, False], "hidden_act": ["gelu_pytorch_tanh", "gelu", "silu"]},
}


def draw_members(name: str, draw: random.Random) -> Members:
    """Members of config.json that replace those of the table; all heads have a multiple of 8 channels."""
    layers, heads = draw.choice([1, 2, 5]), draw.choice([1, 2, 3, 4, 8])
    head_dim = draw.choice([8, 16, 24, 32])
    if name == "phi3-longrope":
        head_dim = 16  # as many channels turn as its factors are for
    members: Members = {
        "hidden_size": heads * head_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([n for n in (1, 2, 3, 4, 8) if heads % n == 0]),
        "intermediate_size": draw.choice([16, 40, 96, 120]),
        "vocab_size": draw.choice([50, 96, 131]),
        "tie_word_embeddings": draw.choice([True, False]),
    }
    if name in _FREE_HEAD_DIM:
        members["head_dim"] = draw.choice([8, 16, 24, 40])
    if name in _WINDOWS:
        members["sliding_window"] = draw.choice([1, 2, 5, 17, 64])
    if name in _KINDS_OF_LAYERS:
        members["layer_types"] = [draw.choice([SLIDING, FULL]) for _ in range(layers)]
    return members | {member: draw.choice(values) for member, values in _FACTORS.get(name, {}).items()}
