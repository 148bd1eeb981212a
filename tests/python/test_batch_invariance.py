"""Batch invariance: a row's bits depend neither on the rest of the batch nor on position, cache or chunking."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
from exlora import Engine
from support import adapters, tiny
from support.compare import bits

SETTINGS = {"max_new_tokens": 24, "logprobs": 3}
DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 0}

# (tokens of the prompt, mixture, sampling): lengths from one token to several pages, every kind of mixture, two seeds.
ROWS = [
    (1, None, {}),
    (300, {"jargon": 1.0}, {}),
    (37, {"jargon": 0.5, "sqlite": 0.5}, {}),
    (64, {"sqlite": 1.0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}),
    (65, {"sqlite": 0.5, "jargon": 0.5}, {}),
    (128, None, {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.1, "seed": 8}),
    (9, {"jargon": -0.75}, {}),
    (180, {"sqlite": 0.25, "jargon": 2.0}, {}),
]


@pytest.fixture(
    scope="module", params=["quill-4m", "quill-4m-gptq-4bit-g32-asym-actorder", "quill-4m-gptq-8bit-g128-sym"]
)
def model(request, fixtures):
    return fixtures / request.param


@pytest.fixture(scope="module")
def folders(fixtures):
    return {
        "jargon": fixtures / "adapters" / "jargon-lora-r8",
        "sqlite": fixtures / "adapters" / "sqlite-rslora-r16",
    }


@pytest.fixture(scope="module")
def engine(model, folders):
    """Without a prefix cache, so that every run computes everything, and with capacity for all rows at once."""
    return Engine(model, adapters=folders, prefix_cache=False, kv_tokens=8192)


@pytest.fixture(scope="module")
def alone(engine):
    """Each row computed with nothing else in the engine."""
    return [run(engine, [row])[0] for row in range(len(ROWS))]


def prompt(row):
    count, _, _ = ROWS[row]
    return [3 + (row * 977 + 131 * i + i * i) % 2000 for i in range(count)]


def run(engine, rows):
    """The rows in one batch, in that order; results as bits."""
    sampling = {key: [ROWS[row][2].get(key, default) for row in rows] for key, default in DEFAULTS.items()}
    outs = engine.generate(
        [prompt(row) for row in rows], adapters=[ROWS[row][1] for row in rows], **SETTINGS, **sampling
    )
    return [bits(out) for out in outs]


def shuffled(seed):
    order = list(range(len(ROWS)))
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("order", [list(range(8)), list(reversed(range(8))), shuffled(1), shuffled(2)], ids=str)
def test_a_row_among_seven_others_in_any_order_is_the_row_alone(order, engine, alone):
    assert run(engine, order) == [alone[row] for row in order]


def test_a_row_beside_copies_of_itself_is_the_row_alone(engine, alone):
    assert run(engine, [2] * 6 + [5] * 6) == [alone[2]] * 6 + [alone[5]] * 6


def test_rows_that_join_while_others_decode_are_the_rows_alone(engine, alone):
    """One more stream begins every third round, so that prefill of new rows shares steps with decode of old ones."""
    streams, texts = {}, dict.fromkeys(range(len(ROWS)), "")
    for turn in itertools.count():
        if turn % 3 == 0 and turn // 3 < len(ROWS):
            row = turn // 3
            sampling = {**DEFAULTS, **ROWS[row][2]}
            streams[row] = engine.stream(prompt(row), adapter=ROWS[row][1], **SETTINGS, **sampling)
        for row in list(streams):
            chunk = next(streams[row], None)
            if chunk is None:
                del streams[row]
            else:
                texts[row] += chunk.text
        if not streams and turn // 3 >= len(ROWS):
            break
    assert list(texts.values()) == [text for text, *_ in alone]


@pytest.mark.parametrize("limits", [{"kv_tokens": 512}, {"max_batch_size": 3}], ids=str)
def test_rows_that_wait_for_capacity_are_the_rows_alone(limits, model, folders, alone):
    crowded = Engine(model, adapters=folders, prefix_cache=False, **limits)
    assert run(crowded, list(range(8))) == alone


@pytest.mark.parametrize("chunk", [1, 16, 48])
def test_a_chunked_prompt_is_the_prompt_in_one_chunk(chunk, model, folders, alone, engine):
    chunked = Engine(model, adapters=folders, prefix_cache=False, prefill_chunk=chunk)
    assert run(chunked, list(range(8))) == alone
    mixture = ROWS[1][1]
    assert np.array_equal(chunked.logits(prompt(1), adapter=mixture), engine.logits(prompt(1), adapter=mixture))


def test_a_cached_prefix_changes_only_the_time(model, folders, alone):
    caching = Engine(model, adapters=folders, prefix_cache=True)
    row = 1
    count, mixture, _ = ROWS[row]
    first, again = (
        caching.generate([prompt(row)], adapters=[mixture], **SETTINGS, temperature=0.0)[0] for _ in range(2)
    )
    assert first.usage.cached_tokens == 0
    assert 0 < again.usage.cached_tokens < count
    assert bits(first) == bits(again) == alone[row]


def test_a_cached_prefix_is_never_shared_between_mixtures(model, folders):
    """Keys and values depend on the adapters that computed them: each mixture finds its own prefix or none."""
    caching = Engine(model, adapters=folders, prefix_cache=True, kv_tokens=8192)
    fresh = Engine(model, adapters=folders, prefix_cache=False)
    mixtures = [None, "jargon", {"jargon": 0.5}, {"sqlite": 1.0}, {"jargon": 0.5, "sqlite": 0.5}, None, "jargon"]
    for seen, mixture in enumerate(mixtures):
        ours, theirs = (
            one.generate([prompt(1)], adapters=[mixture], **SETTINGS, temperature=0.0)[0] for one in (caching, fresh)
        )
        assert bits(ours) == bits(theirs), mixture
        assert (ours.usage.cached_tokens > 0) == (mixture in mixtures[:seen]), mixture


def activated(adapter, layer_replication):
    """A copy of an adapter of a model of two layers that waits for its invocation and runs other layers."""
    folder = adapter.with_name(f"{adapter.name}-activated-{len(layer_replication)}")
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"alora_invocation_tokens": [7, 8], "layer_replication": layer_replication}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layer_replication", [[[1, 2], [0, 1]], [[0, 1], [0, 1]]], ids=["swapped", "repeated"])
@pytest.mark.parametrize("order", [["it", None, "it", None], [None, "it", None, "it"]], ids=str)
def test_an_adapter_that_runs_other_layers_shares_no_prefix_with_the_base(order, layer_replication, tmp_path):
    """Also before it is invoked: then it adds nothing, but what it computes is not the base."""
    base = tiny.write("llama", tmp_path)
    adapter = activated(adapters.write("plain", base), layer_replication)
    caching, fresh = (Engine(base, adapters={"it": adapter}, prefix_cache=cache) for cache in (True, False))
    tokens = list(range(9, 89))
    expected = {
        name: bits(fresh.generate([tokens], adapters=[name], temperature=0.0, **SETTINGS)[0]) for name in (None, "it")
    }
    assert expected[None] != expected["it"]
    for seen, name in enumerate(order):
        [out] = caching.generate([tokens], adapters=[name], temperature=0.0, **SETTINGS)
        assert bits(out) == expected[name]
        assert (out.usage.cached_tokens > 0) == (seen >= 2)


def test_a_replaced_adapter_finds_no_prefix_of_its_predecessor(model, folders):
    caching = Engine(model, adapters={"it": folders["jargon"]}, prefix_cache=True)
    caching.generate([prompt(1)], adapters=["it"], **SETTINGS, temperature=0.0)
    caching.load_adapter("it", folders["sqlite"])
    [ours] = caching.generate([prompt(1)], adapters=["it"], **SETTINGS, temperature=0.0)
    fresh = Engine(model, adapters={"it": folders["sqlite"]}, prefix_cache=False)
    assert bits(ours) == bits(fresh.generate([prompt(1)], adapters=["it"], **SETTINGS, temperature=0.0)[0])


def test_a_base_row_beside_adapters_equals_an_engine_without_adapters(model, engine, alone):
    bare = Engine(model, prefix_cache=False)
    for row in (0, 5):
        assert run(bare, [row]) == [alone[row]]
    assert np.array_equal(bare.logits(prompt(1)), engine.logits(prompt(1)))
    assert np.array_equal(bare.logits(prompt(1)), engine.logits(prompt(1), adapter={}))


def test_the_number_of_threads_changes_no_bit(model, folders, alone):
    assert run(Engine(model, adapters=folders, prefix_cache=False, threads=1), list(range(8))) == alone


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_architecture_is_batch_invariant(name, tmp_path_factory):
    """Windows, biases and q/k norms too: eight rows together and each alone, chunked and not."""
    base = tiny.write(name, tmp_path_factory.mktemp("models"))
    folders = {"a": adapters.write("plain", base), "b": adapters.write("rslora", base, seed=1)}
    mixtures = [None, "a", "b", {"a": 0.5, "b": 0.5}, {"b": 0.5, "a": 0.5}, None, {"a": 0.1}, "b"]
    prompts = [tiny.PROMPT[: 40 - 5 * row] for row in range(8)]
    together = Engine(base, adapters=folders, prefix_cache=False).generate(
        prompts, adapters=mixtures, temperature=0.0, **SETTINGS
    )
    chunked = Engine(base, adapters=folders, prefix_cache=False, prefill_chunk=7)
    for row in range(8):
        [out] = chunked.generate([prompts[row]], adapters=[mixtures[row]], temperature=0.0, **SETTINGS)
        assert bits(out) == bits(together[row]), row
