"""Stored logits and greedy texts of a small real model, plain, in three GPTQ copies and as EXL2, under real adapters.

`reference.json` was computed by transformers and peft in float32 on the dequantized weights. The rule for texts: the
ids are equal, or at the first difference the two candidates' logits here stand closer than twice the tolerance, and the
item's smallest stored margin allows that. With a float32 cache every item whose margin exceeds 1e-3 must be equal
outright.
"""

import json

import numpy as np
import pytest
from exlora import Engine
from safetensors.numpy import load_file
from support.compare import distance

MODELS = (
    "quill-4m",
    "quill-4m-gptq-4bit-g128-sym",
    "quill-4m-gptq-4bit-g32-asym-actorder",
    "quill-4m-gptq-8bit-g128-sym",
)
# Its weights are rounded products, which the fast kernels do not round: within the tolerance of an f16 cache only.
EXL2 = "quill-4m-exl2-mixed"
ADAPTERS = ("devil-dora-r8", "jargon-lora-r8", "sqlite-rslora-r16")
TOLERANCE = {"f16": 2e-3, "f32": 1e-4}


@pytest.fixture(scope="module")
def reference(fixtures):
    return json.loads((fixtures / "reference" / "reference.json").read_text())


@pytest.fixture(scope="module")
def stored_logits(fixtures):
    return load_file(fixtures / "reference" / "logits.safetensors")


@pytest.fixture(
    scope="module", params=[*((model, kv) for model in MODELS for kv in TOLERANCE), (EXL2, "f16")], ids="-".join
)
def case(request, fixtures, reference):
    """An engine with the three adapters, its tolerance, and all items of its model."""
    model, kv_dtype = request.param
    folders = {name: fixtures / "adapters" / name for name in ADAPTERS}
    engine = Engine(fixtures / model, adapters=folders, kv_dtype=kv_dtype, kv_tokens=8192)
    items = [item for item in reference["items"] if item["model"] == model]
    assert len(items) == 6 + 3 * 2 * 6
    return engine, TOLERANCE[kv_dtype], items


def mixture(item):
    return item["adapter"] and {item["adapter"]: item["lora_scaling"]}


def test_logits_at_the_end_of_the_prompt_equal_the_stored_ones(case, reference, stored_logits):
    engine, tolerance, items = case
    worst = {}
    for item in items:
        if item["logits_key"] is not None:
            ours = engine.logits(reference["prompts"][item["prompt"]]["ids"], adapter=mixture(item))
            worst[item["logits_key"]] = distance(ours[-1], stored_logits[item["logits_key"]])
    assert len(worst) >= 24
    assert max(worst.values()) < tolerance, max(worst, key=worst.get)


def test_text_is_encoded_as_stored(case, reference):
    engine, _, _ = case
    for prompt in reference["prompts"].values():
        assert list(engine.tokenizer.encode(prompt["text"])) == prompt["ids"]


def test_one_batch_of_all_items_continues_each_as_stored(case, reference):
    engine, tolerance, items = case
    outs = engine.generate(
        [reference["prompts"][item["prompt"]]["text"] for item in items],
        adapters=[mixture(item) for item in items],
        max_new_tokens=reference["max_new_tokens"],
        temperature=0.0,
    )
    for item, out in zip(items, outs, strict=True):
        ours, theirs = list(out.token_ids), item["ids"]
        if ours == theirs:
            assert out.finish_reason == ("stop" if theirs[-1] in reference["stop_ids"] else "length")
            continue
        assert item["min_margin"] <= (1e-3 if tolerance == TOLERANCE["f32"] else 2 * tolerance * 15), item
        step = next(i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        prompt = reference["prompts"][item["prompt"]]["ids"]
        logits = np.asarray(engine.logits([*prompt, *theirs[:step]], adapter=mixture(item)))[-1]
        assert abs(logits[ours[step]] - logits[theirs[step]]) < 2 * tolerance * np.abs(logits).max(), item
