"""Activated LoRA: the base up to the last invocation in the prompt, the adapter from there on.

The oracle is peft in float32; 5e-4, absolute. What lies before the invocation is the base's to the bit, so its pages of
the prefix cache are shared with the base.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from exlora import Engine
from support import adapter_specs, tiny
from support.compare import bits, gap

TOLERANCE = 5e-4
NAMES = ["activated", "activated-rslora", "activated-patterns", "activated-head"]
PLAIN = [token for token in tiny.PROMPT if token not in adapter_specs.INVOCATION]

# Where the invocation begins, the last one first where it occurs more than once.
PROMPTS = {
    "never": (PLAIN, None),
    "broken": ([*PLAIN[:9], *adapter_specs.INVOCATION[:2], *PLAIN[9:]], None),
    "once": ([*PLAIN[:9], *adapter_specs.INVOCATION, *PLAIN[9:]], 9),
    "twice": ([*PLAIN[:9], *adapter_specs.INVOCATION, *PLAIN[9:15], *adapter_specs.INVOCATION, *PLAIN[15:]], 18),
    "at-the-start": ([*adapter_specs.INVOCATION, *PLAIN], 0),
    "at-the-end": ([*PLAIN, *adapter_specs.INVOCATION], len(PLAIN)),
    "alone": (adapter_specs.INVOCATION, 0),
    "cut-off-after-the-first": (
        [*PLAIN[:9], *adapter_specs.INVOCATION, *PLAIN[9:15], *adapter_specs.INVOCATION[:2]],
        9,
    ),
}
BASES = ["llama", "qwen2"]


@pytest.mark.parametrize("where", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", BASES)
def test_the_adapter_acts_where_it_acts_in_peft(base, name, where, engines, collection):
    engine, folder = engines.engine(base, True, name)
    tokens, _ = PROMPTS[where]
    oracle = tiny.logits(collection.by_peft(folder, base, name), tokens)
    assert gap(engine.logits(tokens, adapter=name), oracle) < TOLERANCE


@pytest.mark.parametrize("where", PROMPTS)
@pytest.mark.parametrize("base", BASES)
def test_positions_before_the_invocation_are_bit_identical_to_the_base(base, where, engines):
    engine, _ = engines.engine(base, True, "activated")
    tokens, start = PROMPTS[where]
    ours, plain = engine.logits(tokens, adapter="activated"), engine.logits(tokens)
    assert np.array_equal(ours[:start], plain[:start])
    if start is not None:
        assert np.abs(ours[start:] - plain[start:]).max() > 0.1


@pytest.mark.parametrize("where", PROMPTS)
@pytest.mark.parametrize("base", BASES)
def test_generation_continues_as_peft_continues(base, where, engines, collection):
    engine, folder = engines.engine(base, False, "activated")
    tokens, _ = PROMPTS[where]
    [out] = engine.generate([tokens], adapters=["activated"], max_new_tokens=8, temperature=0.0)
    theirs = collection.by_peft(folder, base, "activated").generate(
        input_ids=torch.tensor([tokens]),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(theirs.logits).topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 2 * TOLERANCE, "the ids are not decided; draw another adapter"
    assert list(out.token_ids) == theirs.sequences[0, len(tokens) :].tolist()


def test_an_invocation_that_is_generated_activates_nothing(engines, collection, tmp_path):
    """peft looks for it in the prompt alone."""
    base = "llama"
    engine, _ = engines.engine(base, False)
    [plain] = engine.generate([PLAIN], max_new_tokens=8, temperature=0.0, logprobs=2)
    said = list(plain.token_ids)
    invocation = next([token] for token in said[:-1] if token not in PLAIN)
    folder = tmp_path / "adapter"
    shutil.copytree(collection.adapter(base, "activated"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": invocation}))
    engine.load_adapter("invoked-by-what-it-says", folder)
    settings = {"max_new_tokens": 8, "temperature": 0.0, "logprobs": 2}
    [ours] = engine.generate([PLAIN], adapters=["invoked-by-what-it-says"], **settings)
    assert bits(ours) == bits(plain)
    # The same tokens as part of a new prompt do invoke it.
    again = [*PLAIN, *said]
    moved = engine.logits(again, adapter="invoked-by-what-it-says") - engine.logits(again)
    assert np.abs(moved[-1]).max() > 0.1


@pytest.mark.parametrize("base", BASES)
def test_a_row_shares_the_pages_of_the_base_before_its_invocation(base, collection):
    names = {"activated": collection.adapter(base, "activated"), "plain": collection.adapter(base, "uninitialized")}
    caching = Engine(collection.dense(base), adapters=names, kv_dtype="f32")
    fresh = Engine(collection.dense(base), adapters=names, kv_dtype="f32", prefix_cache=False)
    prefix = (PLAIN * 5)[:150]
    tokens = [*prefix, *adapter_specs.INVOCATION, *PLAIN[:20]]
    settings = {"max_new_tokens": 4, "temperature": 0.0, "logprobs": 2}
    caching.generate([prefix], **settings)
    [ours] = caching.generate([tokens], adapters=["activated"], **settings)
    assert 0 < ours.usage.cached_tokens <= len(prefix)
    [theirs] = fresh.generate([tokens], adapters=["activated"], **settings)
    assert bits(ours) == bits(theirs)
    [other] = caching.generate([tokens], adapters=["plain"], **settings)
    assert other.usage.cached_tokens == 0
    # And the other way round: the base finds what the activated row computed before its invocation, not after.
    [base_again] = caching.generate([tokens], **settings)
    assert ours.usage.cached_tokens <= base_again.usage.cached_tokens <= len(prefix)
    assert bits(base_again) == bits(fresh.generate([tokens], **settings)[0])


def test_rows_invoked_at_different_places_share_a_batch(engines):
    engine, _ = engines.engine("qwen2", True, "activated", "dora")
    prompts = [tokens for tokens, _ in PROMPTS.values()]
    settings = {"max_new_tokens": 4, "temperature": 0.0, "logprobs": 2}
    rows = ["activated"] * len(prompts) + ["dora", None]
    prompts += [adapter_specs.PROMPT, adapter_specs.PROMPT]
    together = engine.generate(prompts, adapters=rows, **settings)
    for prompt, row, out in zip(prompts, rows, together, strict=True):
        [alone] = engine.generate([prompt], adapters=[row], **settings)
        assert bits(alone) == bits(out)


def test_a_weight_scales_an_activated_delta(engines, collection):
    engine, folder = engines.engine("qwen2", True, "activated")
    tokens, _ = PROMPTS["twice"]
    for weight in (0.5, -0.3, 0.0, 2.0):
        model = collection.by_hand(folder, [(collection.read("qwen2", "activated"), weight)])
        assert gap(engine.logits(tokens, adapter={"activated": weight}), tiny.logits(model, tokens)) < TOLERANCE
