"""Tokens that move to other columns of exllamav2's caches: `copy_states` and `roll_left`.

The oracle of a whole prompt that moves is transformers, which computes it at its new positions: attention sees only
differences of positions, so in every layer keys and values are those. Elsewhere it is the rotation's definition.
"""

import numpy as np
import pytest
import torch
import transformers
from exlora import ExLlamaV2Cache, ExLlamaV2Lora, ExloraError
from support import families, tiny
from test_cache_states import CACHES, IDS, assert_holds, load, logits_of

# Rotations of every kind: of all channels or some, of halves or pairs, by layer, with a factor, none.
QUICK = ["cohere2", "gemma3", "glm4", "ministral3", "olmo3", "phi3-longrope", "smollm3"]
# Queries change with their position there, and with them all that later layers compute.
BY_POSITION = {"ministral3"}


@pytest.fixture(scope="module")
def model(collection):
    return load(collection.dense("llama"))


@torch.no_grad()
def computed(model, tokens, first):
    """Keys and values by layer, [tokens, kv_heads, head_dim], of tokens at positions from `first` on."""
    cache = transformers.DynamicCache()
    positions = torch.arange(first, first + len(tokens))[None]
    model(input_ids=torch.tensor([tokens]), position_ids=positions, past_key_values=cache, use_cache=True)
    return [[part[0].transpose(0, 1).numpy() for part in (layer.keys, layer.values)] for layer in cache.layers]


def turned(keys, by, theta=10000.0):
    """Keys [..., head_dim] rotated over `by` positions, all channels, by halves."""
    keys = keys.astype(np.float64)
    half = keys.shape[-1] // 2
    angles = by * theta ** (-2 * np.arange(half) / keys.shape[-1])
    first, second = keys[..., :half], keys[..., half:]
    parts = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(parts, axis=-1)


def states(cache, row=0):
    """Keys and values by layer, each [columns, kv_heads, head_dim]."""
    of_layers = zip(cache.key_states, cache.value_states, strict=True)
    return [[np.asarray(part)[row].copy() for part in parts] for parts in of_layers]


@pytest.mark.parametrize("name", families.some(QUICK))
def test_a_prompt_that_moves_is_as_computed_there(name, models):
    folder = families.write(name, models)
    model, oracle = load(folder, "f32"), tiny.load(folder)
    tokens, count = families.PROMPT, len(families.PROMPT)
    cache, target = (ExLlamaV2Cache(model, max_seq_len=64) for _ in range(2))
    model.forward(np.array([tokens]), cache, preprocess_only=True)
    model.forward(np.array([tokens[:9][::-1]]), target, preprocess_only=True)
    before = states(target)
    cache.copy_states(target, 0, count, 9, count, 0, 1, 0, 1)
    layers = 1 if name in BY_POSITION else families.LAYERS
    for first in (9, 0):
        expected = computed(oracle, tokens, first)
        for found, parts in zip(states(target)[:layers], expected, strict=False):
            for part in (0, 1):
                assert_holds(found[part][first : first + count], parts[part], "f32", part)
        if first:
            for found, parts in zip(states(target), before, strict=True):
                assert all(np.array_equal(found[part][:9], parts[part][:9]) for part in (0, 1))
            # And back, to columns that overlap.
            target.copy_states(target, 9, count, 0, count, 0, 1, 0, 1)
    target.current_seq_len = count
    following = [logits_of(model, [[7]], one) for one in (cache, target)]
    assert np.abs(following[0] - following[1]).max() < 1e-3 * np.abs(following[0]).max()


@pytest.mark.parametrize("kv_dtype", CACHES)
@pytest.mark.parametrize(("from_column", "to_column"), [(1, 0), (12, 5), (5, 12)])
def test_keys_are_rotated_on_and_values_keep_their_bits(collection, kv_dtype, from_column, to_column):
    cache_class, float_type, _ = CACHES[kv_dtype]
    model = load(collection.dense("llama"), float_type)
    cache = cache_class(model, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True)
    before, count = states(cache), IDS.shape[1] - from_column
    cache.copy_states(cache, from_column, count, to_column, count, 0, 1, 0, 1)
    end = to_column + count
    for (keys, values), (old_keys, old_values) in zip(states(cache), before, strict=True):
        moved = turned(old_keys[from_column : from_column + count], to_column - from_column)
        assert_holds(keys[to_column:end], moved, kv_dtype, 0)
        assert np.array_equal(values[to_column:end], old_values[from_column : from_column + count])
        assert np.array_equal(keys[:to_column], old_keys[:to_column])
        assert not keys[end:].any()
        assert not values[end:].any()


def test_a_cache_that_rolls_drops_its_first_column_and_goes_on(model):
    ids, mask = np.array([[0, 0, *tiny.PROMPT[:10]], tiny.PROMPT[:12]]), np.ones((2, 12), dtype=bool)
    mask[0, :2] = False
    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=12)
    model.forward(ids, cache, preprocess_only=True, input_mask=mask)
    before = [states(cache, row) for row in (0, 1)]
    for rolled in (1, 2, 3):
        cache.roll_left()
        assert (cache.current_seq_len, cache.padding) == (12 - rolled, [max(0, 2 - rolled), 0])
        for row, dropped in ((0, max(0, rolled - 2)), (1, rolled)):
            for (keys, values), (old_keys, old_values) in zip(states(cache, row), before[row], strict=True):
                assert np.array_equal(values[: 12 - rolled], old_values[rolled:])
                assert not values[12 - rolled :].any()
                if not dropped:
                    assert np.array_equal(keys[: 12 - rolled], old_keys[rolled:])
                else:
                    expected = turned(old_keys[rolled:], -dropped)
                    assert np.abs(keys[: 12 - rolled] - expected).max() < 2**-9 * np.abs(expected).max()
    # There is room for three more, and a clone goes on alike.
    clone = cache.clone()
    for column in range(3):
        found, expected = (logits_of(model, [[5 + column], [9]], one) for one in (cache, clone))
        assert np.isfinite(found).all()
        assert np.array_equal(found, expected)
    with pytest.raises(ExloraError, match="fit"):
        model.forward(np.array([[1], [1]]), cache)


def test_the_first_layer_of_a_rolled_cache_is_that_of_the_remaining_tokens(collection):
    model = load(collection.dense("llama"), "f32")
    rolled, fresh = (ExLlamaV2Cache(model, max_seq_len=64) for _ in range(2))
    model.forward(IDS, rolled, preprocess_only=True)
    for _ in range(4):
        rolled.roll_left()
    model.forward(IDS[:, 4:], fresh, preprocess_only=True)
    assert rolled.current_seq_len == fresh.current_seq_len == IDS.shape[1] - 4
    for found, expected in zip(states(rolled)[0], states(fresh)[0], strict=True):
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    # Later layers still hold what was seen of the tokens that were dropped.
    assert np.abs(states(rolled)[1][1] - states(fresh)[1][1]).max() > 1e-3


def test_a_cache_rolls_until_it_is_empty_and_begins_again(model):
    cache = ExLlamaV2Cache(model, max_seq_len=64)
    cache.roll_left()
    assert (cache.current_seq_len, cache.footprint()) == (0, [0])
    model.forward(IDS[:, :2], cache, preprocess_only=True)
    for left in (1, 0, 0):
        cache.roll_left()
        assert cache.current_seq_len == left
    assert not any(np.asarray(part).any() for part in cache.all_tensors())
    assert np.array_equal(logits_of(model, IDS, cache), logits_of(model, IDS))


def test_a_middle_that_is_cut_out_leaves_the_rest_in_all_layers_of_a_layer_map(model, collection):
    lora = ExLlamaV2Lora.from_directory(model, str(collection.adapter("llama", "replicated")))
    cache = ExLlamaV2Cache(model, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True, loras=lora)
    before = states(cache)
    cache.copy_states(cache, 20, 20, 8, 20, 0, 1, 0, 1)
    cache.current_seq_len = 28
    assert len(before) == 2 * tiny.LAYERS
    for (keys, values), (old_keys, old_values) in zip(states(cache), before, strict=True):
        assert_holds(keys[8:28], turned(old_keys[20:40], -12), "f16", 0)
        assert np.array_equal(values[8:28], old_values[20:40])
        assert np.array_equal(keys[:8], old_keys[:8])
    assert np.isfinite(logits_of(model, [[7]], cache, loras=lora)).all()


def test_rows_with_other_padding_get_the_tokens_at_their_own_positions(model):
    ids, mask = np.array([[0, 0, 0, *tiny.PROMPT[:9]], tiny.PROMPT[:12]]), np.ones((2, 12), dtype=bool)
    mask[0, :3] = False
    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    model.forward(ids, cache, preprocess_only=True, input_mask=mask)
    clone, before = cache.clone(), [states(cache, row) for row in (0, 1)]
    # Columns 5 to 7 of the padded row are at positions 2 to 4, and at 5 to 7 of the other one.
    cache.copy_states(cache, 5, 3, 5, 3, 0, 1, 1, 1)
    for (keys, values), (old_keys, old_values) in zip(states(cache, 1), before[0], strict=True):
        assert_holds(keys[5:8], turned(old_keys[5:8], 3), "f16", 0)
        assert np.array_equal(values[5:8], old_values[5:8])
    assert cache.padding == [3, 0]
    # With its padding, further to the right: the row begins there, at the same positions.
    clone.copy_states(clone, 1, 11, 2, 11, 0, 1, 0, 1)
    assert clone.padding == [4, 0]
    for (keys, values), (old_keys, old_values) in zip(states(clone), before[0], strict=True):
        assert np.array_equal(keys[4:13], old_keys[3:12])
        assert np.array_equal(values[4:13], old_values[3:12])
    with pytest.raises(ExloraError, match="padding") as caught:
        clone.copy_states(clone, 1, 11, 2, 11, 0, 1, 1, 1)
    assert caught.value.code == "request_invalid"


def test_a_gap_before_the_columns_is_refused_and_nothing_is_copied(model):
    cache, target = ExLlamaV2Cache(model, max_seq_len=64), ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    model.forward(IDS, cache, preprocess_only=True)
    cache.copy_states(target, 0, 20, 0, 20, 0, 1, 1, 1)
    before = states(target, 1)
    for to_column, rows in ((21, (1, 1)), (20, (0, 2))):
        with pytest.raises(ExloraError, match="not computed in the target") as caught:
            cache.copy_states(target, 3, 5, to_column, 5, 0, 1, *rows)
        assert caught.value.code == "request_invalid"
    with pytest.raises(ExloraError, match="fit"):
        cache.copy_states(target, 0, 40, 30, 40, 0, 1, 1, 1)
    for found, expected in zip(states(target, 1), before, strict=True):
        assert all(np.array_equal(*parts) for parts in zip(found, expected, strict=True))
    cache.copy_states(target, 3, 5, 20, 5, 0, 1, 1, 1)
    assert np.array_equal(states(target, 1)[0][1][20:25], states(cache)[0][1][3:8])
