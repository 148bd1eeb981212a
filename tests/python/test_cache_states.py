"""The keys and values of exllamav2's caches, read and copied.

The oracle of what is read is transformers' cache in float32 (peft's under an adapter), within what rounding to the
cache's type may do by its definition. Copies are compared with caches that computed the same tokens, bit by bit.
"""

import sys
import threading

import numpy as np
import pytest
import torch
from exlora import (
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_8bit,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExloraError,
)
from support import adapter_specs, tiny

IDS = np.array([tiny.PROMPT])
# Each with its type of float caches, and the bits of codes of keys and of values.
CACHES = {
    "f32": (ExLlamaV2Cache, "f32", None),
    "f16": (ExLlamaV2Cache, "f16", None),
    "q8": (ExLlamaV2Cache_Q8, "f16", (8, 8)),
    "q6": (ExLlamaV2Cache_Q6, "f16", (8, 4)),
    "q4": (ExLlamaV2Cache_Q4, "f16", (4, 4)),
}


def load(folder, kv_dtype="f16"):
    config = ExLlamaV2Config(str(folder))
    config.kv_dtype = kv_dtype
    model = ExLlamaV2(config)
    model.load()
    return model


@pytest.fixture(scope="module")
def model(collection):
    return load(collection.dense("llama"))


@pytest.fixture
def cache(model):
    """A cache with the prompt, and room for more."""
    cache = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True)
    return cache


def logits_of(model, ids, cache=None, **keywords):
    return np.asarray(model.forward(np.atleast_2d(ids), cache, **keywords))


@torch.no_grad()
def oracle(model, tokens):
    """Keys and values of each layer, [tokens, kv_heads, head_dim], by transformers."""
    layers = model(input_ids=torch.tensor([tokens]), use_cache=True).past_key_values.layers
    return [[part[0].transpose(0, 1).numpy() for part in (layer.keys, layer.values)] for layer in layers]


def assert_holds(found, expected, kv_dtype, part):
    """That each group of a head's channels is off by what its type's rounding allows, and by float32's own noise."""
    bits = CACHES[kv_dtype][2]
    noise = 1e-4 * np.abs(expected).max()
    if bits is None:
        step = {"f32": 0.0, "f16": 2.0**-11}[kv_dtype]
        assert (np.abs(found - expected) <= step * np.abs(expected) + noise).all()
        return
    width = 32 if expected.shape[-1] % 32 == 0 else 16
    hadamard = np.ones((1, 1))
    while len(hadamard) < width:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    found, expected = (states.reshape(-1, width).astype(np.float64) for states in (found, expected))
    # Each channel of the rotated group is off by half a step, of which there are 2^bits - 1 between its extremes.
    largest = np.abs(expected @ hadamard).max(axis=1) * width**-0.5
    bound = 1.01 * largest / (2 ** bits[part] - 1) * width**0.5 + noise * width**0.5
    error = np.linalg.norm(found - expected, axis=1)
    assert (error <= bound).all()
    # It is that type, and no better one.
    assert np.median(error) > 0.2 * np.median(largest / (2 ** bits[part] - 1))


@pytest.mark.parametrize("kv_dtype", CACHES)
@pytest.mark.parametrize("base", ["llama", "qwen3"])
def test_states_are_those_of_transformers(base, kv_dtype, collection):
    cache_class, float_type, _ = CACHES[kv_dtype]
    model = load(collection.dense(base), float_type)
    cache = cache_class(model, batch_size=2, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True)
    expected = oracle(tiny.load(collection.dense(base)), tiny.PROMPT)
    assert len(cache.key_states) == len(cache.value_states) == tiny.LAYERS == len(expected)
    for layer, parts in enumerate(expected):
        for part, states in enumerate((cache.key_states, cache.value_states)):
            found = np.asarray(states[layer])
            assert (found.dtype, found.shape) == (np.float32, (2, 64, tiny.KV_HEADS, parts[part].shape[-1]))
            if layer == 0 or kv_dtype == "f32":
                # What a layer rounds changes what later layers compute.
                assert_holds(found[0, : len(tiny.PROMPT)], parts[part], kv_dtype, part)
            assert not found[0, len(tiny.PROMPT) :].any()
            assert not found[1].any()


@pytest.mark.parametrize("name", ["dora", "activated"])
def test_states_under_an_adapter_are_those_of_peft(name, collection):
    model = load(collection.dense("llama"), "f32")
    lora = ExLlamaV2Lora.from_directory(model, str(collection.adapter("llama", name)))
    tokens = adapter_specs.PROMPT
    caches = [ExLlamaV2Cache(model, max_seq_len=64) for _ in range(2)]
    for cache, loras in zip(caches, (lora, None), strict=True):
        model.forward(np.array([tokens]), cache, preprocess_only=True, loras=loras)
    adapted, plain = caches
    last = len(tokens)
    expected = oracle(collection.by_peft(collection.dense("llama"), "llama", name), tokens)
    for layer, (keys, values) in enumerate(expected):
        assert_holds(np.asarray(adapted.key_states[layer])[0, :last], keys, "f32", 0)
        assert_holds(np.asarray(adapted.value_states[layer])[0, :last], values, "f32", 1)
        assert np.abs(np.asarray(plain.value_states[layer])[0, :last] - values).max() > 1e-2


def test_a_layer_map_adds_layers(model, collection):
    lora = ExLlamaV2Lora.from_directory(model, str(collection.adapter("llama", "replicated")))
    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True, loras=lora)
    assert len(cache.key_states) == 2 * tiny.LAYERS == len(cache.all_tensors()) / 2
    assert all(np.asarray(states).any() for states in cache.key_states)
    copy = cache.clone()
    for one, other in zip(cache.all_tensors(), copy.all_tensors(), strict=True):
        assert np.array_equal(one, other)
    following = [logits_of(model, [[7]], one, loras=lora) for one in (cache, copy)]
    assert np.array_equal(*following)
    short = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(IDS, short, preprocess_only=True)
    with pytest.raises(ExloraError, match="fewer layers") as caught:
        model.forward([[7]], short, loras=lora)
    assert caught.value.code == "request_invalid"


def test_states_are_copies_in_exllamav2s_shapes(model, cache, monkeypatch):
    length = IDS.shape[1]
    keys, values = cache.get_kv_state(1, 1, 10, 5)
    assert isinstance(keys, torch.Tensor)
    for found, states in ((keys, cache.key_states), (values, cache.value_states)):
        assert found.shape == (1, 64, tiny.KV_HEADS, tiny.HIDDEN // tiny.HEADS)
        assert torch.equal(found[:, 10:15], states[1][:, 10:15])
        assert not found[:, :10].any()
        assert not found[:, 15:].any()
    tensors = cache.all_tensors()
    assert len(tensors) == 2 * tiny.LAYERS
    assert torch.equal(tensors[1], cache.key_states[-1])
    assert torch.equal(tensors[2], cache.value_states[0])
    assert len(cache.key_states[:]) == tiny.LAYERS
    with pytest.raises(IndexError):
        cache.key_states[tiny.LAYERS]
    # Writing to a tensor changes a copy; an array cannot be written.
    expected = logits_of(model, [[7]], cache)
    cache.key_states[0].zero_()
    cache.current_seq_len = length
    assert np.array_equal(logits_of(model, [[7]], cache), expected)
    monkeypatch.delitem(sys.modules, "torch")
    array = cache.key_states[0]
    assert isinstance(array, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_an_empty_cache_has_zeros_and_allocates_nothing(model):
    cache = ExLlamaV2Cache(model, max_seq_len=64, lazy=True)
    assert len(cache.all_tensors()) == 2 * tiny.LAYERS
    assert not any(np.asarray(states).any() for states in cache.all_tensors())
    assert cache.clone().current_seq_len == 0
    assert cache.footprint() == [0]


@pytest.mark.parametrize(
    "cache_class", [ExLlamaV2Cache, ExLlamaV2Cache_Q8, ExLlamaV2Cache_Q6, ExLlamaV2Cache_Q4, ExLlamaV2Cache_8bit]
)
def test_a_clone_continues_with_the_same_bits_and_each_goes_its_way(model, cache_class):
    original = cache_class(model, max_seq_len=64)
    model.forward(IDS, original, preprocess_only=True)
    clone = original.clone()
    assert (type(clone), clone.current_seq_len, clone.max_seq_len) == (cache_class, IDS.shape[1], 64)
    tails = np.array([[3, 5, 8, 13]]), np.array([[2, 4, 6, 8]])
    expected = [
        logits_of(model, np.concatenate([IDS, tail], axis=1), cache_class(model, max_seq_len=64)) for tail in tails
    ]
    found = [[], []]
    for column in range(4):
        for caches, tail, logits in zip((original, clone), tails, found, strict=True):
            logits.append(logits_of(model, tail[:, column : column + 1], caches))
    for logits, whole in zip(found, expected, strict=True):
        assert np.array_equal(np.concatenate(logits, axis=1), whole[:, -4:])
    larger = cache_class(model, max_seq_len=128, copy_from=clone)
    assert (larger.current_seq_len, larger.max_seq_len) == (IDS.shape[1] + 4, 128)
    assert np.array_equal(logits_of(model, [[9]], larger), logits_of(model, [[9]], clone))


def test_a_clone_of_an_activated_adapter_is_activated(model, collection):
    lora = ExLlamaV2Lora.from_directory(model, str(collection.adapter("llama", "activated")))
    ids = np.array([adapter_specs.PROMPT])
    cache = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(ids[:, :-4], cache, preprocess_only=True, loras=lora)
    clone = cache.clone()
    cache.reset()
    found = logits_of(model, ids[:, -4:], clone, loras=lora)
    assert np.array_equal(found, logits_of(model, ids, ExLlamaV2Cache(model, max_seq_len=64), loras=lora)[:, -4:])


def test_a_row_is_copied_to_many_rows(model, cache):
    length = IDS.shape[1]
    batch = ExLlamaV2Cache(model, batch_size=4, max_seq_len=64)
    cache.copy_states(batch, 0, length, 0, length, 0, 1, 1, 3)
    batch.current_seq_len = length
    for row in range(1, 4):
        assert np.array_equal(batch.key_states[1][row], cache.key_states[1][0])
    assert not np.asarray(batch.key_states[1][0]).any()
    # Rows of the same cache: the first one too, which a batch computes with the others.
    batch.copy_states(batch, 0, length, 0, length, 3, 1, 0, 4)
    tails = np.array([[3, 5], [2, 4], [9, 8], [1, 7]])
    found = logits_of(model, tails, batch)
    for row, tail in enumerate(tails):
        assert np.array_equal(found[row], logits_of(model, [[*tiny.PROMPT, *tail]])[0, -2:])


def test_columns_are_copied_behind_the_same_tokens(model, cache):
    other = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(IDS[:, :20], other, preprocess_only=True)
    cache.copy_states(other, 20, 10, 20, 10, 0, 1, 0, 1)
    other.current_seq_len = 30
    found = logits_of(model, IDS[:, 30:], other)
    assert np.array_equal(found, logits_of(model, IDS)[:, 30:])
    cache.copy_states(other, 20, 0, 20, 0, 0, 1, 0, 1)
    assert np.array_equal(logits_of(model, [[7]], other), logits_of(model, [[*tiny.PROMPT, 7]])[:, -1:])


def test_padding_is_copied_with_its_row(model):
    ids, mask = np.array([[0, 0, 0, *tiny.PROMPT[:9]], tiny.PROMPT[:12]]), np.ones((2, 12), dtype=bool)
    mask[0, :3] = False
    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    model.forward(ids, cache, preprocess_only=True, input_mask=mask)
    assert not np.asarray(cache.key_states[0])[0, :3].any()
    alone = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(ids[:1, 3:], alone, preprocess_only=True)
    assert np.array_equal(cache.value_states[1][0, 3:12], alone.value_states[1][0, :9])
    clone = cache.clone()
    target = ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    clone.copy_states(target, 0, 12, 0, 12, 0, 1, 0, 2)
    target.current_seq_len = 12
    expected = logits_of(model, [[*tiny.PROMPT[:9], 7]])[0, -1]
    assert np.array_equal(logits_of(model, [[7], [7]], clone)[0, 0], expected)
    assert all(np.array_equal(row, expected) for row in logits_of(model, [[7], [7]], target)[:, 0])


@pytest.mark.parametrize(
    ("columns", "rows", "code"),
    [
        ((0, 9, 1, 9), (0, 1, 0, 1), "request_invalid"),
        ((0, 9, 0, 8), (0, 1, 0, 1), "request_invalid"),
        ((0, 9, 0, 9), (0, 2, 0, 1), "request_invalid"),
        ((0, 9, 0, 9), (0, 1, 0, 0), "request_invalid"),
        ((0, 9, 0, 9), (0, 1, 1, 2), "request_invalid"),
        ((0, 9, 0, 9), (-1, 1, 0, 1), "request_invalid"),
        ((0, 9, 0, 9), (1, 1, 0, 1), "request_invalid"),
        ((-1, 9, -1, 9), (0, 1, 0, 1), "request_invalid"),
        ((0, -1, 0, -1), (0, 1, 0, 1), "request_invalid"),
        ((0, 41, 0, 41), (0, 1, 0, 1), "request_invalid"),
        ((0, 65, 0, 65), (0, 1, 0, 1), "request_invalid"),
    ],
)
def test_columns_and_rows_that_do_not_fit_are_refused(model, cache, columns, rows, code):
    target = ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    before = np.asarray(cache.key_states[0])
    with pytest.raises(ExloraError) as caught:
        cache.copy_states(target, *columns, *rows)
    assert caught.value.code == code
    assert np.array_equal(cache.key_states[0], before)


def test_copies_between_caches_that_differ_are_refused(model, cache, collection):
    length = IDS.shape[1]
    other_model = load(collection.dense("llama"))
    for target, word in [
        (ExLlamaV2Cache_Q8(model, max_seq_len=64), "types"),
        (ExLlamaV2Cache(other_model, max_seq_len=64), "models"),
        (ExLlamaV2Cache(model, max_seq_len=length - 1), "fit"),
    ]:
        with pytest.raises(ExloraError, match=word) as caught:
            cache.copy_states(target, 0, length, 0, length, 0, 1, 0, 1)
        assert caught.value.code == "request_invalid"
    for keywords, word in [({"max_seq_len": 39}, "fit"), ({"batch_size": 2, "max_seq_len": 64}, "sequences")]:
        with pytest.raises(ExloraError, match=word) as caught:
            ExLlamaV2Cache(model, copy_from=cache, **keywords)
        assert caught.value.code == "request_invalid"
    with pytest.raises(ExloraError, match="page_size"):
        cache.get_kv_state(0, 1, 0, 1, page_size=256)
    with pytest.raises(ExloraError, match="layer"):
        cache.get_kv_state(9, 1, 0, 1)


def test_two_threads_copy_to_each_others_caches(model, cache):
    """Neither waits for the other, and each finds what it had."""
    other, length = cache.clone(), IDS.shape[1]
    errors = []

    def copy(source, target):
        try:
            for _ in range(200):
                source.copy_states(target, 0, length, 0, length, 0, 1, 0, 1)
        except ExloraError as error:
            errors.append(error)

    threads = [threading.Thread(target=copy, args=pair) for pair in ((cache, other), (other, cache))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert np.array_equal(logits_of(model, [[7]], cache), logits_of(model, [[7]], other))
