"""Per row: a mixture is the weighted sum of its adapters' deltas, independent of the rest of the batch.

The oracle is transformers in float32 with `W + sum of weight * scale * B A` merged by hand; tolerance 2e-4 of the
largest logit.
"""

import numpy as np
import peft
import pytest
from exlora import Engine
from support import adapters, gptq, tiny
from support.compare import distance, log_softmax

TOLERANCE = 2e-4
THIRDS = {"a": 0.3, "b": 0.7}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def served(models):
    """A tiny Llama with two adapters of different ranks and scalings, and the oracle of their mixtures."""
    return serve(tiny.write("llama", models), tiny.write("llama", models))


def serve(model, twin):
    folders = {"a": adapters.write("patterns", twin), "b": adapters.write("rslora", twin, seed=1)}
    engine = Engine(model, adapters=folders, kv_dtype="f32")

    def oracle(mixture):
        return adapters.load_sum(twin, [(folders[name], weight) for name, weight in mixture.items()])

    return engine, oracle


def computes_mixture(engine, oracle, mixture):
    ours = engine.logits(tiny.PROMPT, adapter=mixture)
    return distance(ours, tiny.logits(oracle(mixture), tiny.PROMPT)) < TOLERANCE


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_mixture_is_the_weighted_sum_of_deltas_on_every_architecture(name, models):
    folder = tiny.write(name, models)
    assert computes_mixture(*serve(folder, folder), THIRDS)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_mixture_is_the_weighted_sum_of_deltas_on_every_packed_width(bits, models):
    packed = models / f"{bits}bit"
    twin = gptq.quantize(tiny.write("llama", models), packed, gptq.Scheme(bits=bits, sym=False, desc_act=True))
    assert computes_mixture(*serve(packed, twin), THIRDS)


@pytest.mark.parametrize(
    "mixture",
    [{"b": 0.7, "a": 0.3}, {"a": 0.0, "b": 1.0}, {"a": 0.0}, {"a": -0.5}, {"a": 1.5, "b": -1.0}, {"a": 3.0}, {}],
    ids=str,
)
def test_order_zero_and_negative_weights_follow_the_formula(mixture, served):
    assert computes_mixture(*served, mixture)


def test_a_weight_equals_pefts_rescaled_adapter(models):
    base = tiny.write("llama", models)
    folder = adapters.write("rslora", base)
    model = adapters.load_peft(base, folder)
    with peft.helpers.rescale_adapter_scale(model, 0.5):
        theirs = tiny.logits(model, tiny.PROMPT)
    ours = Engine(base, adapters={"it": folder}, kv_dtype="f32").logits(tiny.PROMPT, adapter={"it": 0.5})
    assert distance(ours, theirs) < TOLERANCE


def test_each_row_of_a_batch_follows_its_own_mixture_while_it_decodes(served):
    engine, oracle = served
    mixtures = [None, "a", THIRDS, "b", {"b": 0.5, "a": -0.25}, None, {"a": 0.5}]
    prompts = [tiny.PROMPT[: 5 + 3 * row] for row in range(len(mixtures))]
    outs = engine.generate(prompts, adapters=mixtures, max_new_tokens=12, temperature=0.0, logprobs=1)
    for prompt, mixture, out in zip(prompts, mixtures, outs, strict=True):
        model = oracle({mixture: 1.0} if isinstance(mixture, str) else mixture or {})
        logits = tiny.logits(model, [*prompt, *out.token_ids])[len(prompt) - 1 : -1]
        theirs = log_softmax(logits)[np.arange(12), out.token_ids]
        assert np.abs(np.asarray(out.logprobs) - theirs).max() < 2 * TOLERANCE * np.abs(logits).max(), mixture
