"""Request weights and mixtures of every kind of adapter: what they mean, and which have no meaning.

A weight scales an adapter's delta as peft's `set_scale` does. Where an adapter replaces something (whole weights,
biases, token rows) only weight 1 is defined. A mixture is its adapters in order; the oracle is peft with a list of
active adapters, or the files folded by hand where weights differ from 1. The bound is 5e-4, absolute.
"""

import pytest
from exlora import ExloraError
from support import adapter_specs, tiny
from support.compare import gap

TOLERANCE = 5e-4

SCALABLE = [(spec.bases[0], name) for name, spec in adapter_specs.SPECS.items() if spec.scalable]
REPLACING = [(spec.bases[0], name) for name, spec in adapter_specs.SPECS.items() if not spec.scalable]

# Adapters that replace the same part of the model.
CLASHES = [
    ("saved-head", "saved-both"),
    ("saved-embedding", "saved-both"),
    ("saved-final-norm", "saved-every-norm"),
    ("bias-all", "bias-lora-only"),
    ("tokens", "tokens-dora"),
    ("truncated", "truncated-rslora-patterns"),
]


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(SCALABLE))
def test_a_weight_scales_the_delta_and_nothing_else(base, name, engines, collection):
    """Weight 0 is not the base where a magnitude or a truncated weight remains."""
    adapter = collection.read(base, name)
    for weight in (0.5, -0.3, 0.0, 2.0):
        model = collection.by_hand(collection.dense(base), [(adapter, weight)])
        ours = engines.logits(base, False, name, weight)
        assert gap(ours, tiny.logits(model, adapter_specs.prompt(name))) < TOLERANCE, weight


@pytest.mark.parametrize(("base", "name"), REPLACING, ids=adapter_specs.ids(REPLACING))
def test_an_adapter_that_replaces_parts_of_the_base_takes_only_weight_one(base, name, engines, collection):
    for weight in (0.5, 0.0, -1.0):
        with pytest.raises(ExloraError) as caught:
            engines.logits(base, False, name, weight)
        assert caught.value.code == "adapter_weight_invalid"
    oracle = collection.oracle(collection.dense(base), base, name)
    assert gap(engines.logits(base, False, name, 1.0), oracle) < TOLERANCE


@pytest.mark.parametrize("mixture", adapter_specs.MIXTURES, ids="+".join)
@pytest.mark.parametrize(("base", "packed"), [("llama-biases", False), ("qwen2", True)], ids=["dense", "packed"])
def test_a_mixture_equals_peft_with_the_list_of_its_adapters(base, packed, mixture, engines, collection):
    engine, folder = engines.engine(base, packed, *mixture)
    ours = engine.logits(adapter_specs.PROMPT, adapter=dict.fromkeys(mixture, 1.0))
    assert gap(ours, tiny.logits(collection.list_by_peft(folder, base, mixture), adapter_specs.PROMPT)) < TOLERANCE


@pytest.mark.parametrize(
    "mixture",
    [
        {"dora": 0.5, "dora-rslora": -0.75},
        {"dora-rslora": -0.75, "dora": 0.5},
        {"lora-bias-rslora": 0.5, "dora": 1.5},
        {"embedding": -0.5, "embedding-dora": 0.5},
        {"embedding-dora": 0.5, "embedding": -0.5},
        {"saved-head": 1.0, "dora": 0.25},
        {"saved-final-norm": 1.0, "dora": 0.25, "lora-bias": 0.5},
        {"uninitialized": 0.5, "tokens": 1.0},
        {"saved-embedding": 1.0, "saved-head": 1.0, "fused-dora": 0.5},
        {"activated": 0.5, "uninitialized": 0.75},
        {"activated": 1.0, "activated-rslora": -0.5},
        {"block-diagonal": 0.5, "pooled": 1.5, "dora": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_a_weighted_mixture_equals_its_adapters_merged_in_order(base, mixture, engines, collection):
    engine, folder = engines.engine(base, False, *mixture)
    ours = engine.logits(adapter_specs.PROMPT, adapter=mixture)
    adapters = [(collection.read(base, name), weight) for name, weight in mixture.items()]
    assert gap(ours, tiny.logits(collection.by_hand(folder, adapters), adapter_specs.PROMPT)) < TOLERANCE


@pytest.mark.parametrize("pair", CLASHES, ids="+".join)
def test_adapters_that_replace_the_same_part_are_refused_in_one_mixture_and_work_apart(pair, engines, collection):
    base = "qwen2"
    engine, folder = engines.engine(base, False, *pair)
    for mixture in (pair, pair[::-1]):
        with pytest.raises(ExloraError) as caught:
            engine.logits(adapter_specs.PROMPT, adapter=dict.fromkeys(mixture, 1.0))
        assert caught.value.code == "adapter_mixture_invalid"
    for name in pair:
        ours = engine.logits(adapter_specs.PROMPT, adapter=name)
        assert gap(ours, collection.oracle(folder, base, name)) < TOLERANCE


def test_rows_that_replace_the_same_part_differently_share_a_batch(engines):
    base, names = "qwen2", ["saved-head", "saved-both", None, "grown-saved", "tokens"]
    engine, _ = engines.engine(base, True, *(name for name in names if name))
    settings = {"max_new_tokens": 4, "temperature": 0.0, "logprobs": 2}
    together = engine.generate([adapter_specs.PROMPT] * 5, adapters=names, **settings)
    for name, out in zip(names, together, strict=True):
        [alone] = engine.generate([adapter_specs.PROMPT], adapters=[name], **settings)
        assert list(alone.logprobs) == list(out.logprobs)
