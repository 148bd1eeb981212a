"""Variants of config.json, drawn from a seed, and what transformers makes of them.

Each variant begins as the config of a tiny model of one family. Some of its members are then respelled, left out, or
set to something unusual or wrong: one alone, or several together. The oracle builds the model and runs it, because some
configs that transformers' config classes accept cannot be computed.
"""

import json
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)

# Families whose layers have no attention windows; those in which all layers have the same; those with rope parameters
# for each type of layer.
FULL_FAMILIES = ("llama", "granite", "gemma", "glm", "glm4", "olmo2", "cohere")
UNIFORM_FAMILIES = ("mistral", "ministral3", "phi3", "starcoder2")
TYPED_ROPE_FAMILIES = ("gemma3_text", "olmo3")
FAMILIES = (
    *FULL_FAMILIES,
    *UNIFORM_FAMILIES,
    *TYPED_ROPE_FAMILIES,
    *("qwen2", "qwen3", "ministral", "gemma2", "cohere2", "smollm3"),
)
HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, POSITIONS = 32, 3, 4, 2, 64, 64
# Longer than the windows and than the original contexts of the scaled rotary embeddings.
PROMPT = [(7 + 31 * i + i * i // 3) % VOCAB for i in range(24)]

ABSENT = object()
SLIDING, FULL = "sliding_attention", "full_attention"

# Values that a model may have, and unusual or wrong ones. Sizes stay small, since the oracle allocates them.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "hidden_size": ([32, 64], [30, 32.0, "32", None, True, 0, -32]),
    "intermediate_size": ([48, 40], [48.0, None, 0]),
    "num_hidden_layers": ([1, 2, 4], [0, -1, 2.0, None]),
    "num_attention_heads": ([4, 8], [3, 5, 0, None, True, 4.0]),
    "num_key_value_heads": ([1, 2, 4, None, ABSENT], [3, 8, 0, -2, 2.0, True]),
    "head_dim": ([8, 16, None, ABSENT], [0, 1, 5, 7, -8, 8.0, "8"]),
    "vocab_size": ([64, 80], [64.0, None, 0]),
    "max_position_embeddings": ([64, 256, ABSENT], [0, 64.0, None, "64"]),
    "rms_norm_eps": ([1e-5, 1e-6, ABSENT], [0.0, 1, -1.0, None, "1e-5", True]),
    "hidden_act": (["silu", "swish", "gelu", "gelu_pytorch_tanh", ABSENT], ["relu", "SiLU", "nobodys", None, 1]),
    "tie_word_embeddings": ([True, False, ABSENT], [None, 1, "true"]),
    "attention_bias": ([True, False, ABSENT], [None, 1]),
    "mlp_bias": ([True, False, ABSENT], [None, 0]),
    "use_sliding_window": ([True, False, ABSENT], [None, 1]),
    "sliding_window": ([4, 8, None, ABSENT, 100], [0, -1, 4.0, "4", True]),
    "max_window_layers": ([0, 1, 2, ABSENT], [-3, 100, None, 1.0]),
    "layer_types": (
        [None, ABSENT, [FULL] * LAYERS, [SLIDING] * LAYERS, [SLIDING, FULL, SLIDING], [FULL, FULL, SLIDING]],
        [
            ["attention", SLIDING, FULL],
            [FULL] * 2,
            [],
            ["nobodys"] * LAYERS,
            ["linear_attention", FULL, FULL],
            ["chunked_attention", FULL, FULL],
            FULL,
            3,
            [1, 2, 3],
        ],
    ),
    "eos_token_id": ([2, [3, 1], [], None, ABSENT], [-1, 99, 2.0, "2", True, [2, None]]),
    "bos_token_id": ([1, None, ABSENT], [-1, [1], 1.0, "1"]),
    "pad_token_id": ([0, 63, None, ABSENT], [-1, 64, -65, [0], 0.0]),
    "dtype": (["float32", "float16", None, ABSENT], ["nobodys", "auto"]),
    "torch_dtype": (["float32", "bfloat16", None, ABSENT], ["nobodys", "auto", 5]),
    "model_type": (["llama", "mistral", "qwen2", "qwen3"], ["nobodys", None, 1, ABSENT]),
    "architectures": ([None, [], ABSENT, ["LlamaForCausalLM"], ["Qwen2ForCausalLM"]], [["MambaForCausalLM"], "x", 1]),
    "use_cache": ([True, False], [None, 0]),
    "attention_dropout": ([0.0, 0], [None, "0"]),
    "initializer_range": ([0.02], [1, None]),
    "pretraining_tp": ([1, 2, None], [1.0, "1"]),
    "text_config": ([None], [{"hidden_size": 16}]),
    "quantization_config": ([None], []),
    "original_max_position_embeddings": ([16, 32], [None, "16"]),
    "partial_rotary_factor": ([1.0, None], [0.5, 0.96, 1, "1"]),
    "rope_theta": ([10000.0, 500, 1e6], [None, 0, -5.0, 1.0, "10000", True]),
    "somebodys_own_key": ([None, {"a": [1]}, "text"], []),
}

# Members that only some families read.
OWN_VALUES: dict[tuple[str, ...], dict[str, tuple[list[Any], list[Any]]]] = {
    ("gemma2", "gemma3_text"): {
        "hidden_activation": (["gelu_pytorch_tanh", "silu", "gelu", ABSENT], [None, 1, "relu"]),
        "query_pre_attn_scalar": ([16, 8, ABSENT], [0, -1, 16.0, None]),
        "attn_logit_softcapping": ([2.0, None, ABSENT], [1, "2.0"]),
        "final_logit_softcapping": ([5.0, None, ABSENT], [1, True]),
    },
    ("gemma", "gemma2", "gemma3_text"): {"use_bidirectional_attention": ([None, False, ABSENT], [True])},
    ("gemma3_text", "cohere2"): {"sliding_window_pattern": ([2, 3, ABSENT], [0, None, "2"])},
    ("gemma3_text",): {"rope_local_base_freq": ([1000.0, 500, ABSENT], [None, "500"])},
    ("granite",): {
        "embedding_multiplier": ([3.0, 2, ABSENT], [None, "1", True]),
        "residual_multiplier": ([0.22, 1, ABSENT], [None]),
        "attention_multiplier": ([0.1, 1, ABSENT], [None]),
        "logits_scaling": ([4.0, 2, ABSENT], [None, 0]),
    },
    ("cohere", "cohere2"): {
        "logit_scale": ([0.25, ABSENT], [None, 1]),
        "layer_norm_eps": ([1e-5, 1e-6, ABSENT], [None, 1]),
    },
    ("cohere",): {"use_qk_norm": ([True, False, None, ABSENT], [1, "true"])},
    ("starcoder2",): {
        "norm_epsilon": ([1e-5, 1e-6, ABSENT], [None, 1]),
        "use_bias": ([True, False, ABSENT], [None, 1]),
    },
    ("phi3", "starcoder2"): {
        "resid_pdrop": ([0.0, 0], []),
        "residual_dropout": ([0.0, 0], []),
        "embedding_dropout": ([0.0], []),
    },
    ("smollm3",): {
        "no_rope_layers": ([None, ABSENT, [1, 0, 1], [0, 0, 1, 1]], [[1], [1.0, 1, 1], "x", [True, False, True]]),
        "no_rope_layer_interval": ([2, 3, ABSENT], [0, None]),
    },
}

# The parameters of each kind of rotary embedding.
ROPE_PARAMETERS: dict[str, dict[str, list[Any]]] = {
    "default": {"factor": [ABSENT, 4.0]},
    "linear": {"factor": [2.0, 4, 2.5]},
    "dynamic": {"factor": [2.0, 4]},
    "proportional": {"factor": [ABSENT, 2.0], "partial_rotary_factor": [ABSENT, 0.5, 1.0]},
    "llama3": {"factor": [8.0, 4], "low_freq_factor": [1.0, 1], "high_freq_factor": [4.0, 2]},
    "yarn": {
        "factor": [4.0, 2, None],
        "attention_factor": [ABSENT, ABSENT, None, 1.5, 1],
        "beta_fast": [ABSENT, 32, 16.0, None, 0],
        "beta_slow": [ABSENT, 1, 2.0],
        "mscale": [ABSENT, ABSENT, 0.7, 0, None],
        "mscale_all_dim": [ABSENT, 0.5, 1.0],
        "truncate": [ABSENT, True, False, None],
    },
    "longrope": {
        "factor": [2.0, None, ABSENT],
        "short_factor": [[1.0, 1.5, 2, 2.5], [1.0] * 4, [1.0] * 2],
        "long_factor": [[2.0] * 4, [2.0] * 4, [1.0] * 4],
        "attention_factor": [ABSENT, ABSENT, None, 1.5],
    },
    "nobodys": {"factor": [2.0]},
}
ODD_PARAMETER = [None, "2", 0, -1.0, True, ABSENT, [2.0], 0.5]


def variant(seed: int) -> str:
    """The text of a config.json."""
    draw = random.Random(seed)
    family = draw.choice(FAMILIES)
    config = base(family)
    own = {name: values for members, all_ in OWN_VALUES.items() if family in members for name, values in all_.items()}
    names = draw.sample(sorted(VALUES), draw.choice([0, 1, 1, 1, 2, 3]))
    names += draw.sample(sorted(own), min(len(own), draw.choice([0, 1, 2])))
    for name in names:
        usual, odd = own.get(name) or VALUES[name]
        value = draw.choice(odd if odd and draw.random() < 0.35 else usual)
        _set(config, name, value)
    if draw.random() < 0.5:
        _draw_rope(draw, config, family)
    if isinstance(config.get("layer_types"), list) and draw.random() < 0.8:
        config["num_hidden_layers"] = LAYERS
        if draw.random() < 0.7:
            config["head_dim"] = 8
    return _text(draw, config)


def base(family: str) -> dict[str, Any]:
    """The config.json of a tiny model."""
    names = {"gemma3_text": "Gemma3", "smollm3": "SmolLM3"}
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{names.get(family, family.capitalize())}ForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    if family in ("qwen3", "ministral", "ministral3", "gemma", "gemma2", "gemma3_text", "glm", "glm4"):
        config["head_dim"] = 8
    if family in ("ministral3", "glm", "glm4", "phi3", "smollm3"):
        # The default is outside of so small a vocabulary.
        config["pad_token_id"] = 0
    if family in ("ministral", "gemma2", "gemma3_text", "olmo3", "cohere2"):
        config["sliding_window"] = 6
    return config


def _set(config: dict[str, Any], name: str, value: Any) -> None:
    if value is ABSENT:
        config.pop(name, None)
    else:
        config[name] = value


def _draw_rope(draw: random.Random, config: dict[str, Any], family: str) -> None:
    kind = draw.choice([*ROPE_PARAMETERS, "linear", "yarn", "llama3"])
    if family == "phi3" and draw.random() < 0.8:
        kind = draw.choice(["default", "longrope", "longrope", "yarn"])
    rope: dict[str, Any] = {}
    for name, values in ROPE_PARAMETERS[kind].items():
        _set(rope, name, draw.choice(values))
    if draw.random() < 0.2 and rope:
        _set(rope, draw.choice(sorted(rope)), draw.choice(ODD_PARAMETER))
    spelling = draw.choice(["rope_type", "rope_type", "type", "type", "both", "different", "none", "null"])
    if spelling in ("rope_type", "both", "different"):
        rope["rope_type"] = kind
    if spelling in ("type", "both"):
        rope["type"] = kind
    if spelling == "different":
        rope["type"] = "mrope"
    if spelling == "null":
        rope["rope_type"] = None
    if draw.random() < 0.6:
        rope["original_max_position_embeddings"] = draw.choice([16, 16, 32, 64, 24.0])
    if draw.random() < 0.15:
        config["original_max_position_embeddings"] = draw.choice([16, 32])
    for place in (config, rope):
        if draw.random() < 0.5:
            _set(place, "rope_theta", draw.choice([ABSENT, 10000.0, 500, 1e6]))
        if draw.random() < 0.1:
            _set(place, "partial_rotary_factor", draw.choice([1.0, 0.5, 0.96, None, 1]))
    if draw.random() < 0.05:
        rope["mrope_section"] = [1, 1, 2]
    if family == "ministral3" and draw.random() < 0.8:
        rope["llama_4_scaling_beta"] = draw.choice([0.1, 0.5, 1])
    if draw.random() < (0.5 if family in TYPED_ROPE_FAMILIES else 0.05):
        rope = {FULL: rope}
        if draw.random() < 0.5:
            rope[SLIDING] = draw.choice([None, {}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}])
        if draw.random() < 0.2:
            rope["truncate"] = False
    where = draw.choice(["rope_scaling", "rope_scaling", "rope_parameters", "rope_parameters", "both", "odd"])
    if where in ("rope_scaling", "both"):
        config["rope_scaling"] = rope
    if where == "rope_parameters":
        config["rope_parameters"] = rope
    if where == "both":
        config["rope_parameters"] = draw.choice([{"rope_type": "linear", "factor": 8.0}, {}, None])
    if where == "odd":
        name = draw.choice(["rope_scaling", "rope_parameters"])
        config[name] = draw.choice([None, {}, False, 0, "linear", ["linear"], 2.0])


def _text(draw: random.Random, config: dict[str, Any]) -> str:
    """JSON as files have it; some with equal names, of which the last counts, or numbers that only Python reads."""
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in config.items()]
    draw.shuffle(members)
    if draw.random() < 0.1:
        name = draw.choice(sorted(config))
        members.insert(0, f"{json.dumps(name)}: {json.dumps(draw.choice([None, 3, 'first', {}]))}")
    if draw.random() < 0.1:
        members.insert(0, '"unknown": ' + draw.choice(["NaN", "[-Infinity, 1e999]", '{"a": Infinity}']))
    return "{" + ", ".join(members) + "}"


@dataclass(frozen=True)
class Description:
    """What a config means."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    sliding_windows: tuple[int | None, ...]
    layer_rope_inv_freq: tuple[tuple[float, ...] | None, ...]
    rope_attention_factor: float | None

    def differences(self, other: "Description") -> list[str]:
        """The members that differ, floats by more than rounding."""
        differing = []
        for name, value in vars(self).items():
            theirs = getattr(other, name)
            if name in ("layer_rope_inv_freq", "rope_attention_factor", "norm_eps"):
                is_equal = _is_close(value, theirs)
            else:
                is_equal = value == theirs
            if not is_equal:
                differing.append(f"{name}: {value} and {theirs}")
        return differing


def _is_close(ours: Any, theirs: Any) -> bool:
    """Whether two numbers, or tuples of them with None among them, are equal but for rounding."""
    if ours is None or theirs is None:
        return ours is theirs
    if isinstance(ours, tuple | list):
        return len(ours) == len(theirs) and all(map(_is_close, ours, theirs))
    return bool(np.isclose(ours, theirs, rtol=2e-6, atol=0))


class Refused(Exception):
    """transformers cannot make a model of a config, or cannot run it."""


def build(folder: Any) -> torch.nn.Module:
    """The model with random weights that `AutoModelForCausalLM` makes of a folder's config.json.

    Raises `Refused` if there is none, or if it does not compute finite logits.
    """
    try:
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        ).eval()
        finite = torch.isfinite(_last_logits(model)).all()
        if not model.model.layers:
            raise ValueError("there are no layers")
    except Exception as error:
        # Whatever goes wrong in there: the types range from KeyError to RuntimeError.
        raise Refused(f"{type(error).__name__}: {error}") from error
    if not finite:
        raise Refused("the logits are not finite")
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """float32 [tokens, vocab] of `PROMPT`."""
    ids = torch.tensor([PROMPT]) % model.config.vocab_size
    return model(input_ids=ids, use_cache=False).logits[0]


@torch.no_grad()
def _last_logits(model: torch.nn.Module) -> torch.Tensor:
    """Those of the last token, which follows the others in the cache.

    A family without windows is run without: it ignores `sliding_window`, but its cache does not, and may contradict it.
    """
    if model.config.model_type in FULL_FAMILIES:
        return logits(model)[-1:]
    ids = torch.tensor([PROMPT]) % model.config.vocab_size
    cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    return model(input_ids=ids[:, -1:], use_cache=True, past_key_values=cache).logits[0]


def describe(model: Any) -> Description:
    """What transformers made of a config, read from the model's modules where they hold it."""
    config = model.config
    layers = list(model.model.layers)
    attention, mlp = layers[0].self_attn, layers[0].mlp
    eos = config.eos_token_id
    eos_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    # Phi stores q, k and v as one, which has no bias.
    is_fused = hasattr(attention, "qkv_proj")
    query = config.num_attention_heads * attention.head_dim if is_fused else attention.q_proj.out_features
    key = (attention.qkv_proj.out_features - query) // 2 if is_fused else attention.k_proj.out_features
    down = mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj
    norm = model.model.norm
    return Description(
        architecture=type(model).__name__,
        hidden_size=attention.o_proj.out_features,
        intermediate_size=down.in_features,
        num_hidden_layers=len(layers),
        num_attention_heads=query // attention.head_dim,
        num_key_value_heads=key // attention.head_dim,
        head_dim=attention.head_dim,
        vocab_size=model.lm_head.out_features,
        max_seq_len=_max_model_len(config),
        norm_eps=norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps,
        tie_word_embeddings=model.lm_head.weight is model.model.embed_tokens.weight,
        qkv_bias=not is_fused and attention.q_proj.bias is not None,
        o_bias=attention.o_proj.bias is not None,
        mlp_bias=down.bias is not None,
        eos_token_ids=tuple(token for token in eos_ids if token >= 0),
        bos_token_id=_id(config.bos_token_id),
        pad_token_id=_id(config.pad_token_id),
        sliding_windows=tuple(_window(config, layer.self_attn) for layer in layers),
        layer_rope_inv_freq=tuple(_frequencies(model, layer) for layer in range(len(layers))),
        rope_attention_factor=_attention_factor(model),
    )


def _is_rotated(attention: Any) -> bool:
    if attention.config.model_type == "cohere2":
        return attention.sliding_window is not None
    return bool(getattr(attention, "use_rope", True))


def _frequencies(model: Any, layer: int) -> tuple[float, ...] | None:
    if not _is_rotated(model.model.layers[layer].self_attn):
        return None
    is_typed = model.config.model_type in TYPED_ROPE_FAMILIES
    prefix = f"{model.config.layer_types[layer]}_" if is_typed else ""
    return tuple(getattr(model.model.rotary_emb, f"{prefix}original_inv_freq").tolist())


def _attention_factor(model: Any) -> float | None:
    """That of the layers that see farthest, if they are rotated."""
    config, rotary = model.config, model.model.rotary_emb
    if config.model_type in TYPED_ROPE_FAMILIES:
        kind = FULL if FULL in config.layer_types else SLIDING
        return float(getattr(rotary, f"{kind}_attention_scaling"))
    is_any_rotated = any(_is_rotated(layer.self_attn) for layer in model.model.layers)
    return float(rotary.attention_scaling) if is_any_rotated else None


def _id(token: int | None) -> int | None:
    return None if token is None or token < 0 else token


def _window(config: Any, attention: Any) -> int | None:
    # A Llama ignores the member; a Mistral keeps it in its config, others in their layers.
    if config.model_type in FULL_FAMILIES:
        return None
    return config.sliding_window if config.model_type in UNIFORM_FAMILIES else attention.sliding_window


def _max_model_len(config: Any) -> int:
    """The length that vLLM derives, except that its dynamic scaling is not transformers'."""
    rope, length = config.rope_parameters, config.max_position_embeddings
    if config.model_type in TYPED_ROPE_FAMILIES:
        # The rotation of layers with a window beside others is that of short sequences.
        local = rope["sliding_attention"] if len(set(config.layer_types)) > 1 else {}
        return min(length, _longrope_limit(local)) if local.get("rope_type") == "longrope" else length
    if rope["rope_type"] in ("default", "llama3", "dynamic", "longrope"):
        return length
    if rope["rope_type"] == "yarn":
        # As the model computes it: the outer member first.
        original = getattr(config, "original_max_position_embeddings", rope["original_max_position_embeddings"])
        return max(1, int(length if rope["factor"] is None else original * rope["factor"]))
    return max(1, int(length * rope.get("factor", 1.0)))


def is_longrope(config: Any) -> bool:
    """Whether a rotation of the model depends on the length of the sequence in that way."""
    rope = config.rope_parameters
    used = [rope[kind] for kind in set(config.layer_types)] if config.model_type in TYPED_ROPE_FAMILIES else [rope]
    return any(rope["rope_type"] == "longrope" for rope in used)


def _longrope_limit(rope: dict[str, Any]) -> int:
    """The length beyond which its frequencies are others, for all positions."""
    same = np.array_equal(np.float32(rope["short_factor"]), np.float32(rope["long_factor"]))
    return sys.maxsize if same else int(rope["original_max_position_embeddings"])
