"""Adapters of every PEFT feature and of every pair of features.

This is the table of them; `collection.py` writes them. What peft cannot write (fused projections, QA-LoRA off
GPTQ, foreign key spellings) is made from what it can write, by an edit of the tensors and the config.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from support import manual_merge, tiny
from support.adapters import ALL_LINEAR

Tensors, Config = dict[str, torch.Tensor], dict[str, Any]

INVOCATION = [11, 5, 60]
# Rows added to a resized vocabulary.
GROWTH = 5
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Spec:
    """One adapter: fields of peft's `LoraConfig`, changes to the base before, and to the files after."""

    options: Config = field(default_factory=dict)
    targets: tuple[str, ...] | str | None = ALL_LINEAR
    r: int = 4
    lora_alpha: float = 8
    bases: tuple[str, ...] = ("llama", "qwen2")
    # Rows added to the vocabulary before peft wraps the model.
    growth: int = 0
    save_embeddings: bool | str = "auto"
    # Whether the copies of untrained weights in the file (`base_layer.weight`) are changed too.
    stray_copies: bool = False
    dtype: torch.dtype = torch.float32
    adapter_name: str = "default"
    # Whether peft computes it; otherwise the manual merge is the only oracle.
    peft: bool = True
    # Whether a request weight other than 1 is defined: not where something is replaced.
    scalable: bool = True
    edit: Callable[[Tensors, Config], tuple[Tensors, Config]] | None = None


def _replacing(**fields: Any) -> Spec:
    return Spec(scalable=False, **fields)


def _rename(change: Callable[[str], str]) -> Callable[[Tensors, Config], tuple[Tensors, Config]]:
    return lambda tensors, config: ({change(key): value for key, value in tensors.items()}, config)


def _fuse(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """q, k, v and gate, up as one linear each: the first's A, and the B of each on top of the next's."""
    fused = dict(tensors)
    for joint, (first, *rest) in manual_merge.FUSED.items():
        for key in [key for key in tensors if f".{first}." in key]:
            parts = [fused.pop(key.replace(first, part)) for part in (first, *rest)]
            fused[key.replace(first, joint)] = parts[0] if "lora_A" in key else torch.cat(parts)
    return fused, {**config, "target_modules": [*manual_merge.FUSED, "o_proj", "down_proj"]}


def _pool(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """QA-LoRA: A keeps one column per group of 16 inputs, here each group's first."""
    pooled = {k: v[:, ::16].contiguous() if ".lora_A." in k else v for k, v in tensors.items()}
    return pooled, {**config, "use_qalora": True, "qalora_group_size": 16}


def _mix_dtypes(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    kinds = itertools.cycle((torch.float32, torch.bfloat16, torch.float16))
    return {key: value.to(kind) for (key, value), kind in zip(tensors.items(), kinds, strict=False)}, config


_PATTERNS = {
    "rank_pattern": {r"layers.1.mlp.down_proj": 7, "v_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 5},
    "alpha_pattern": {r"layers.0.*_proj": 3, "v_proj": 24},
}
_DORA = {"use_dora": True}
_BIASED = ("llama-biases", "qwen2")
_TIED = ("llama-tied", "qwen2-tied")
_WITH_EMBEDDING = (*ALL_LINEAR, "embed_tokens")
_BD = {
    "target_modules_bd_a": ["o_proj", "down_proj"],
    "target_modules_bd_b": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    "nblocks": 2,
}

SPECS = {
    # DoRA and the scaling of its delta.
    "dora": Spec(_DORA),
    "dora-rslora": Spec({**_DORA, "use_rslora": True}, r=9),
    "dora-patterns": Spec({**_DORA, **_PATTERNS}),
    "dora-negative-alpha": Spec(_DORA, lora_alpha=-8),
    "dora-one-target": Spec(_DORA, targets=("k_proj",)),
    "dora-head": Spec(_DORA, targets=(*ALL_LINEAR, "lm_head"), save_embeddings=False),
    "dora-torchtune-magnitudes": Spec(
        _DORA, edit=_rename(lambda key: key.replace("magnitude_vector", "magnitude_vector.weight"))
    ),
    # Biases: the delta's own, and the base's.
    "lora-bias": Spec({"lora_bias": True}, bases=("llama", *_BIASED)),
    "lora-bias-rslora": Spec({"lora_bias": True, "use_rslora": True}, bases=("llama", *_BIASED)),
    "bias-all": _replacing(options={"bias": "all"}, bases=_BIASED),
    "bias-all-few-targets": _replacing(options={"bias": "all"}, targets=("q_proj", "o_proj"), bases=_BIASED),
    "bias-lora-only": _replacing(options={"bias": "lora_only"}, bases=_BIASED),
    "bias-lora-only-few-targets": _replacing(options={"bias": "lora_only"}, targets=("k_proj",), bases=_BIASED),
    "bias-all-dora": _replacing(options={"bias": "all", **_DORA}, bases=_BIASED),
    "bias-lora-only-dora": _replacing(options={"bias": "lora_only", **_DORA}, bases=_BIASED),
    # Whole weights in place of the base's.
    "saved-head": _replacing(options={"modules_to_save": ["lm_head"]}),
    "saved-embedding": _replacing(options={"modules_to_save": ["embed_tokens"]}),
    "saved-both": _replacing(options={"modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved-both-dora": _replacing(options={"modules_to_save": ["embed_tokens", "lm_head"], **_DORA}),
    "saved-final-norm": _replacing(options={"modules_to_save": ["model.norm"]}),
    "saved-every-norm": _replacing(options={"modules_to_save": ["norm"]}),
    "saved-input-norms": _replacing(options={"modules_to_save": ["input_layernorm"]}),
    "saved-query-key-norms": _replacing(options={"modules_to_save": ["q_norm", "k_norm"]}, bases=("qwen3",)),
    "saved-linear": _replacing(options={"modules_to_save": ["o_proj"]}, targets=("q_proj", "v_proj")),
    "saved-block": _replacing(options={"modules_to_save": ["mlp"]}, targets=("q_proj", "v_proj")),
    "saved-target": _replacing(options={"modules_to_save": ["o_proj"]}),
    "saved-linear-bias-all": _replacing(
        options={"modules_to_save": ["o_proj"], "bias": "all"}, targets=("q_proj",), bases=("llama-biases",)
    ),
    "saved-linear-dora": _replacing(
        options={"modules_to_save": ["o_proj"], **_DORA}, targets=("q_proj", "v_proj"), bases=(*_BIASED,)
    ),
    # More rows than the base has.
    "grown-saved": _replacing(options={"modules_to_save": ["embed_tokens", "lm_head"]}, growth=GROWTH),
    "grown-copied": _replacing(growth=GROWTH),
    "grown-copied-dora": _replacing(options=_DORA, growth=GROWTH),
    "grown-targeted": _replacing(targets=(*_WITH_EMBEDDING, "lm_head"), growth=GROWTH),
    "grown-saved-head": _replacing(options={"modules_to_save": ["lm_head"]}, growth=GROWTH),
    "grown-tokens": _replacing(options={"trainable_token_indices": [97, 99, 3]}, growth=GROWTH),
    "grown-tied-saved": _replacing(
        options={"modules_to_save": ["embed_tokens", "lm_head"]}, growth=GROWTH, bases=_TIED
    ),
    "grown-tied": _replacing(growth=GROWTH, bases=_TIED),
    # peft writes the weight that both ends share under the name of the targeted one alone, and the rows under both.
    "grown-tied-embedding": _replacing(targets=_WITH_EMBEDDING, growth=GROWTH, bases=_TIED),
    "grown-tied-head": _replacing(targets=(*ALL_LINEAR, "lm_head"), growth=GROWTH, bases=_TIED),
    "grown-tied-tokens": _replacing(options={"trainable_token_indices": [97, 99, 3]}, growth=GROWTH, bases=_TIED),
    # LoRA on the two ends.
    "embedding": Spec(targets=_WITH_EMBEDDING, save_embeddings=False),
    "embedding-copied": Spec(targets=_WITH_EMBEDDING, save_embeddings=True),
    "embedding-copy-changed": _replacing(targets=_WITH_EMBEDDING, save_embeddings=True, stray_copies=True),
    "embedding-rslora-patterns": Spec(
        {"use_rslora": True, "rank_pattern": {"embed_tokens": 6}}, targets=_WITH_EMBEDDING, save_embeddings=False
    ),
    "embedding-dora": Spec(_DORA, targets=_WITH_EMBEDDING, save_embeddings=False),
    "embedding-only": Spec(targets=("embed_tokens",), save_embeddings=False),
    "head": Spec(targets=(*ALL_LINEAR, "lm_head"), save_embeddings=False),
    "head-copied": Spec(targets=(*ALL_LINEAR, "lm_head"), save_embeddings=True),
    "head-copy-changed": _replacing(targets=(*ALL_LINEAR, "lm_head"), save_embeddings=True, stray_copies=True),
    "both-ends": Spec(targets=(*_WITH_EMBEDDING, "lm_head"), save_embeddings=False),
    "both-ends-copied-dora": Spec(_DORA, targets=(*_WITH_EMBEDDING, "lm_head"), save_embeddings=True),
    "tied-embedding": Spec(targets=_WITH_EMBEDDING, bases=_TIED, save_embeddings=False),
    "tied-embedding-dora": Spec(_DORA, targets=_WITH_EMBEDDING, bases=_TIED, save_embeddings=False),
    "tied-embedding-copy-changed": _replacing(
        targets=_WITH_EMBEDDING, bases=_TIED, save_embeddings=True, stray_copies=True
    ),
    "tied-head": Spec(targets=(*ALL_LINEAR, "lm_head"), bases=_TIED, save_embeddings=False),
    "tied-saved-embedding": _replacing(options={"modules_to_save": ["embed_tokens"]}, bases=_TIED),
    "tied-saved-head": _replacing(options={"modules_to_save": ["lm_head"]}, bases=_TIED),
    "tying-embedding": Spec({"ensure_weight_tying": True}, targets=_WITH_EMBEDDING, bases=_TIED, save_embeddings=False),
    "tying-embedding-dora": Spec(
        {"ensure_weight_tying": True, **_DORA}, targets=_WITH_EMBEDDING, bases=_TIED, save_embeddings=False
    ),
    "tying-head-copied": Spec({"ensure_weight_tying": True}, targets=(*ALL_LINEAR, "lm_head"), bases=_TIED),
    "tying-saved-embedding": _replacing(
        options={"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}, bases=_TIED
    ),
    "tying-tokens": _replacing(
        options={"ensure_weight_tying": True, "trainable_token_indices": [3, 80, 14]}, bases=_TIED
    ),
    # Single rows of the embedding.
    "tokens": _replacing(options={"trainable_token_indices": [7, 3, 69]}, bases=("llama", "qwen2", *_TIED)),
    "tokens-elsewhere": _replacing(options={"trainable_token_indices": [14, 80]}),
    "tokens-by-name": _replacing(options={"trainable_token_indices": {"embed_tokens": [60, 38]}}),
    "tokens-of-both-ends": _replacing(
        options={"trainable_token_indices": {"embed_tokens": [60, 38], "lm_head": [1, 2]}}
    ),
    "tokens-alone": _replacing(options={"trainable_token_indices": [7, 3, 69]}, targets=("q_proj",), r=1),
    "tokens-beside-head": _replacing(
        options={"trainable_token_indices": [7, 3]}, targets=(*ALL_LINEAR, "lm_head"), save_embeddings=False
    ),
    "tokens-of-tied-ends": _replacing(
        options={"trainable_token_indices": {"embed_tokens": [60, 38], "lm_head": [1, 2]}}, bases=_TIED
    ),
    "tokens-dora": _replacing(options={"trainable_token_indices": [7, 3, 69], **_DORA}),
    # Activated LoRA.
    "activated": Spec({"alora_invocation_tokens": INVOCATION}),
    "activated-rslora": Spec({"alora_invocation_tokens": INVOCATION, "use_rslora": True}),
    "activated-patterns": Spec({"alora_invocation_tokens": INVOCATION, **_PATTERNS}),
    "activated-lora-bias": Spec({"alora_invocation_tokens": INVOCATION, "lora_bias": True}, bases=_BIASED),
    "activated-head": Spec(
        {"alora_invocation_tokens": INVOCATION}, targets=(*ALL_LINEAR, "lm_head"), save_embeddings=False
    ),
    "activated-saved": _replacing(options={"alora_invocation_tokens": INVOCATION, "modules_to_save": ["lm_head"]}),
    "activated-tokens": _replacing(options={"alora_invocation_tokens": INVOCATION, "trainable_token_indices": [7]}),
    "activated-bias-all": _replacing(
        options={"alora_invocation_tokens": INVOCATION, "bias": "all"}, bases=("llama-biases", "qwen2")
    ),
    "activated-by-nothing": Spec({"alora_invocation_tokens": []}),
    # Other layer maps.
    # peft builds it on Qwen2 but cannot run it there.
    "replicated": Spec({"layer_replication": [[0, 2], [0, 2]]}, bases=("llama",)),
    "replicated-window-kinds": Spec({"layer_replication": [[0, 2], [0, 1]]}, bases=("qwen2-window",), peft=False),
    "replicated-saved": _replacing(
        options={"layer_replication": [[0, 2], [0, 2]], "modules_to_save": ["input_layernorm", "lm_head"]},
        bases=("llama",),
    ),
    "replicated-bias": _replacing(
        options={"layer_replication": [[0, 2], [1, 2]], "bias": "all"}, bases=("llama-biases",)
    ),
    "replicated-out-of-order": Spec({"layer_replication": [[1, 2], [0, 2], [0, 1]]}, bases=("llama",)),
    "replicated-dora": Spec({"layer_replication": [[0, 1], [0, 2]], **_DORA}, bases=("llama",)),
    # Which modules.
    "one-layer": Spec({"layers_to_transform": 1}),
    "one-layer-of-a-pattern": Spec({"layers_to_transform": [0], "layers_pattern": "layers"}),
    "excluded": Spec({"exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]}),
    "excluded-by-regex": Spec({"exclude_modules": r".*layers\.1\..*(q|k)_proj"}),
    "all-linear": Spec(targets="all-linear"),
    "regex": Spec(targets=r"^(?!.*layers\.0\.mlp).*(?:q|o|up|down)_proj"),
    "peft-default-targets": Spec(targets=None),
    # Other forms of a low-rank delta.
    "block-diagonal": Spec({"use_bdlora": _BD}),
    "block-diagonal-rslora": Spec({"use_bdlora": {**_BD, "nblocks": 4}, "use_rslora": True}, r=8),
    "block-diagonal-partly": Spec({"use_bdlora": {**_BD, "target_modules_bd_a": [], "match_strict": False}}),
    "block-diagonal-lora-bias": Spec({"use_bdlora": _BD, "lora_bias": True}, bases=_BIASED),
    "truncated": Spec({"kasa_config": {}}),
    "truncated-rslora-patterns": Spec({"kasa_config": {}, "use_rslora": True, **_PATTERNS}),
    "pooled": Spec(edit=_pool, peft=False),
    "velora": Spec({"velora_config": {"num_groups": 4}}),
    "monteclora": Spec({"monteclora_config": {}}),
    "gaussian": Spec({"init_lora_weights": "gaussian"}),
    "orthogonal": Spec({"init_lora_weights": "orthogonal"}),
    "eva": Spec({"init_lora_weights": "eva"}),
    "mica": Spec({"init_lora_weights": "mica"}),
    "uninitialized": Spec({"init_lora_weights": False}),
    "fused": Spec(edit=_fuse, peft=False),
    "fused-dora": Spec(_DORA, edit=_fuse, peft=False),
    "fused-lora-bias": Spec({"lora_bias": True}, edit=_fuse, peft=False, bases=_BIASED),
    # How it is stored.
    "float16": Spec(_DORA, dtype=torch.float16),
    "bfloat16": Spec({"lora_bias": True}, dtype=torch.bfloat16, bases=_BIASED),
    "mixed-dtypes": Spec(_DORA, edit=_mix_dtypes),
    "mixed-dtypes-saved": _replacing(options={"modules_to_save": ["embed_tokens", "lm_head"]}, edit=_mix_dtypes),
    "no-task": Spec({"task_type": None}),
    "compiled": Spec(_DORA, edit=_rename(lambda k: k.replace(PREFIX, PREFIX + "_orig_mod.")), peft=False),
    "parallel": Spec(_DORA, edit=_rename(lambda k: k.replace(PREFIX, PREFIX + "module.")), peft=False),
    "sharded": Spec(edit=_rename(lambda k: k.replace(PREFIX, PREFIX + "_fsdp_wrapped_module.")), peft=False),
    "without-prefix": Spec(edit=_rename(lambda k: k.removeprefix(PREFIX)), peft=False),
    "leftover-name": Spec(
        edit=_rename(lambda k: k.replace("lora_A", "lora_A.mine").replace("lora_B", "lora_B.mine")), peft=False
    ),
    "sub-directory": Spec(adapter_name="mine"),
}

# Features to combine in pairs: fields of the config, and further target modules.
_PARTS: dict[str, tuple[Config, tuple[str, ...]]] = {
    "dora": (_DORA, ()),
    "rslora": ({"use_rslora": True}, ()),
    "lora-bias": ({"lora_bias": True}, ()),
    "bias-all": ({"bias": "all"}, ()),
    "saved-head": ({"modules_to_save": ["lm_head"]}, ()),
    "embedding": ({}, ("embed_tokens",)),
    "tokens": ({"trainable_token_indices": [7, 3, 69]}, ()),
    "patterns": (_PATTERNS, ()),
    "activated": ({"alora_invocation_tokens": INVOCATION}, ()),
    "head": ({}, ("lm_head",)),
}
_REPLACING = {"bias-all", "saved-head", "tokens"}

# Every two features in one adapter; peft refuses some of them, which shows only on trying.
PAIRS = {
    f"{a}+{b}": Spec(
        {**_PARTS[a][0], **_PARTS[b][0]},
        targets=(*ALL_LINEAR, *_PARTS[a][1], *_PARTS[b][1]),
        bases=_BIASED,
        save_embeddings=False,
        scalable=not _REPLACING & {a, b},
    )
    for a, b in itertools.combinations(_PARTS, 2)
}

# Lists of adapters that peft computes together; with DoRA their order counts.
MIXTURES = [
    ("dora", "uninitialized"),
    ("uninitialized", "dora"),
    ("dora", "dora-rslora"),
    ("dora-rslora", "dora"),
    ("dora-patterns", "lora-bias", "dora-one-target"),
    ("lora-bias", "dora"),
    ("dora", "embedding-dora"),
    ("embedding", "embedding-dora"),
    ("embedding-dora", "embedding"),
    ("head", "dora-head"),
    ("saved-head", "dora"),
    ("dora", "saved-head", "saved-embedding"),
    ("bias-all", "uninitialized"),
    ("bias-all-dora", "dora"),
    ("dora", "bias-all-dora"),
]

CASES = [(base, name) for name, spec in SPECS.items() for base in spec.bases]

# The invocation twice, so that the last has to be found, and every trained row of `SPECS`.
PROMPT = [*tiny.PROMPT[:12], *INVOCATION, 3, 69, 80, 14, *tiny.PROMPT[12:20], *INVOCATION, *tiny.PROMPT[20:30], 1, 2]


def grid(cases: list[tuple[str, str]]) -> list[Any]:
    """Parameters of a test over (base, name): each name on one base in turn, on its other bases in the slow tests."""
    names = list(dict.fromkeys(name for _, name in cases))
    bases = {name: [base for base, other in cases if other == name] for name in names}
    fast = {(bases[name][at % len(bases[name])], name) for at, name in enumerate(names)}
    marks = {case: () if case in fast else pytest.mark.slow for case in cases}
    return [pytest.param(*case, id="-".join(case), marks=marks[case]) for case in cases]


def ids(cases: list[tuple[str, str]]) -> list[str]:
    """The test ids of some cases."""
    return ["-".join(case) for case in cases]


def spec(name: str) -> Spec:
    """The spec of a name, from either table."""
    return SPECS[name] if name in SPECS else PAIRS[name]


def prompt(name: str) -> list[int]:
    """The prompt for an adapter, which includes the rows that it adds."""
    return [*PROMPT, *range(tiny.VOCAB, tiny.VOCAB + spec(name).growth)]
