"""Faithful: every feature PEFT's LoRA has, and every pair of them PEFT allows, computed as PEFT computes it.

Each adapter was written by peft from a seed (`support/adapter_specs.py`). The oracle is peft in float32 on the base,
or on the weights a packed base means; where peft cannot run an adapter, its files folded by hand into a plain
transformers model, which `test_oracles.py` holds against peft everywhere else. Logits of the tiny models are of the
order of 1 to 10; the bound is 5e-4, absolute, at every position. Caches hold float32.
"""

import numpy as np
import pytest
from exlora import Engine
from support import adapter_specs, gptq, tiny
from support.compare import bits, gap, log_softmax

TOLERANCE = 5e-4
STEPS = 6

# Rows beside the one under test: the base, and adapters that each use another kind of operation.
BESIDE = {
    base: [None, name, "uninitialized"]
    for base, name in {"llama": "dora", "qwen2": "embedding-dora", "llama-biases": "lora-bias"}.items()
}


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(adapter_specs.CASES))
def test_a_feature_equals_peft(base, name, engines, collection):
    ours = engines.logits(base, False, name)
    assert gap(ours, collection.oracle(collection.dense(base), base, name)) < TOLERANCE


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(adapter_specs.CASES))
def test_a_feature_on_a_packed_base_equals_peft_on_the_dequantized_weights(base, name, engines, collection):
    ours = engines.logits(base, True, name)
    assert gap(ours, collection.oracle(collection.packed(base)[1], base, name)) < TOLERANCE


@pytest.mark.parametrize("name", ["saved-head", "grown-saved", "head-copied", "both-ends-copied-dora", "dora-head"])
@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_a_packed_head_is_replaced_and_adapted_like_a_dense_one(base, name, collection):
    """A copy of the unpacked head in the file (`base_layer.weight`) takes the packed one's place."""
    packed = collection.root / f"{base}-packed-head"
    meant = gptq.quantize(collection.dense(base), packed, gptq.Scheme(sym=False, lm_head=True))
    engine = Engine(packed, adapters={"it": collection.adapter(base, name)}, kv_dtype="f32")
    assert (
        gap(engine.logits(adapter_specs.prompt(name), adapter="it"), collection.oracle(meant, base, name)) < TOLERANCE
    )


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(adapter_specs.CASES))
def test_decoding_token_by_token_equals_one_forward_pass_of_the_oracle(base, name, engines, collection):
    """Prefill and decode of one adapter agree with one forward over the whole text."""
    engine, folder = engines.engine(base, True, name)
    prompt = adapter_specs.prompt(name)
    [out] = engine.generate([prompt], adapters=[name], max_new_tokens=STEPS, temperature=0.0, logprobs=1)
    tokens = list(out.token_ids)
    assert len(tokens) == STEPS
    model = collection.by_hand(folder, [(collection.read(base, name), 1.0)])
    oracle = tiny.logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    theirs = log_softmax(oracle)[np.arange(STEPS), tokens]
    assert np.abs(np.asarray(out.logprobs) - theirs).max() < 2 * TOLERANCE


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(adapter_specs.CASES))
def test_a_row_in_a_batch_is_bit_identical_to_the_row_alone(base, name, packed, engines):
    beside = BESIDE.get(base, [None, None])
    engine, _ = engines.engine(base, packed, name, *(other for other in beside if other))
    settings = {"max_new_tokens": STEPS, "temperature": 0.0, "logprobs": 3}
    rows = [*beside, name, None, name]
    prompts = [adapter_specs.PROMPT[: 30 - 3 * place] for place in range(len(beside))]
    prompts += [adapter_specs.prompt(name), adapter_specs.PROMPT[5:], adapter_specs.prompt(name)[:17]]
    together = engine.generate(prompts, adapters=rows, **settings)
    for prompt, row, out in zip(prompts, rows, together, strict=True):
        [alone] = engine.generate([prompt], adapters=[row], **settings)
        assert bits(alone) == bits(out), row


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("base", ["llama-biases", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_every_pair_of_features_equals_peft(base, packed, engines, collection):
    names = collection.pairs(base)
    assert len(names) >= 40
    _, folder = engines.engine(base, packed)
    worst = {name: gap(engines.logits(base, packed, name), collection.oracle(folder, base, name)) for name in names}
    assert max(worst.values()) < TOLERANCE, max(worst, key=worst.get)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_rows_of_all_features_in_one_batch_are_bit_identical_to_each_alone(base, packed, engines):
    names = [name for at, name in adapter_specs.CASES if at == base]
    engine, _ = engines.engine(base, packed, *names)
    settings = {"max_new_tokens": 3, "temperature": 0.0, "logprobs": 2}
    prompts = [adapter_specs.prompt(name)[-20:] for name in names]
    together = engine.generate(prompts, adapters=names, **settings)
    for prompt, name, out in zip(prompts, names, together, strict=True):
        [alone] = engine.generate([prompt], adapters=[name], **settings)
        assert bits(alone) == bits(out), name
