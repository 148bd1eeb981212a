"""Quantized KV caches beside adapters that change more than a low-rank product: DoRA, and aLoRA along a prompt."""

import numpy as np
import pytest
from exlora import Engine
from support import adapter_specs
from support.compare import distance

KV_DTYPES = ["q8", "q6", "q4"]
ADAPTERS = ["dora", "activated", "embedding-dora"]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_rounded_caches_move_logits_under_adapters_no_more_than_the_bases(kv_dtype, collection):
    """Twice at most, by the noise of random models, and a third of what the adapter does."""
    folder = collection.dense("llama")
    adapters = {name: collection.adapter("llama", name) for name in ADAPTERS}
    exact, engine = (Engine(folder, kv_dtype=dtype, adapters=adapters) for dtype in ("f32", kv_dtype))
    base = exact.logits(adapter_specs.PROMPT)
    most = 2 * distance(engine.logits(adapter_specs.PROMPT), base)
    for name in ADAPTERS:
        expected = exact.logits(adapter_specs.PROMPT, adapter=name)
        error = distance(engine.logits(adapter_specs.PROMPT, adapter=name), expected)
        assert 0 < error < min(most, distance(base, expected) / 3)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_rows_have_the_same_bits_alone_in_a_batch_and_from_the_prefix_cache(kv_dtype, collection):
    names = [*ADAPTERS, None, {"dora": 0.5, "activated": 0.25}]
    adapters = {name: collection.adapter("llama", name) for name in ADAPTERS}
    options = {"kv_dtype": kv_dtype, "adapters": adapters}
    plain = Engine(collection.dense("llama"), prefix_cache=False, **options)
    cached = Engine(collection.dense("llama"), **options)
    # Longer than a page, with the invocation in it twice.
    prompt = [*adapter_specs.PROMPT, *adapter_specs.PROMPT]
    settings = {"max_new_tokens": 6, "stop_at_eos": False, "return_logits": True}
    alone = [plain.generate([prompt], adapters=[name], **settings)[0] for name in names]
    runs = [engine.generate([prompt] * len(names), adapters=names, **settings) for engine in (plain, cached, cached)]
    for found in runs:
        for one, other in zip(alone, found, strict=True):
            assert one.token_ids == other.token_ids
            assert np.array_equal(one.logits, other.logits)
    assert all(one.usage.cached_tokens >= 32 for one in runs[2])
