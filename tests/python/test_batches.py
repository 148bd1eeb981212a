"""Batches in Python: each request has its result or its error, results as they complete, samples, seeds, progress."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from exlora import AdapterNotFoundError, AsCompleted, Completion, Engine, ExloraError, InvalidError, Request
from support.threads import run_together

PROMPT = "The table"
SAMPLED = {"max_new_tokens": 12, "temperature": 1.0, "stop_at_eos": False}
#: Its logits overflow in the first step.
OVERFLOW = {"sql": 1e38}


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=adapters, max_batch_size=4)


def is_idle(engine):
    stats = engine.stats()
    return (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0)


def codes(results):
    return [result.code if isinstance(result, ExloraError) else type(result).__name__ for result in results]


# Each request has its result or its error.


def test_with_return_errors_each_request_has_its_result_or_its_error(engine):
    prompts = [PROMPT, PROMPT, "", PROMPT, None, PROMPT]
    adapters = [None, "nobody", None, OVERFLOW, None, "wit"]
    results = engine.generate(prompts, adapters=adapters, max_new_tokens=6, return_errors=True)
    assert codes(results) == [
        "Completion",
        "adapter_not_found",
        "prompt_empty",
        "logits_not_finite",
        "TypeError",
        "Completion",
    ]
    assert isinstance(results[1], AdapterNotFoundError)
    for i in (0, 5):
        assert results[i].text == engine.generate(PROMPT, adapters[i], max_new_tokens=6).text
    assert is_idle(engine)


def test_with_return_errors_one_prompt_has_its_error_too(engine):
    assert codes([engine.generate("", return_errors=True)]) == ["prompt_empty"]
    assert codes([engine.generate(b"bytes", return_errors=True)]) == ["TypeError"]
    assert isinstance(engine.generate(PROMPT, max_new_tokens=1, return_errors=True), Completion)


def test_an_error_of_a_batch_names_its_request_and_carries_the_results_of_the_others(engine):
    adapters = [None, OVERFLOW, "wit"]
    with pytest.raises(InvalidError, match=r"^request 1: .*logits_not_finite") as caught:
        engine.generate([PROMPT] * 3, adapters=adapters, max_new_tokens=6)
    error = caught.value
    assert error.request_index == 1
    assert codes(error.results) == ["Completion", "logits_not_finite", "Completion"]
    assert error.results[2].text == engine.generate(PROMPT, "wit", max_new_tokens=6).text


@pytest.mark.parametrize(
    ("prompts", "adapters", "kind"),
    [(["a", "b", ""], None, InvalidError), (["a"] * 3, [None, None, "nobody"], AdapterNotFoundError)],
    ids=str,
)
def test_a_refused_request_is_named_and_none_is_run(engine, prompts, adapters, kind):
    before = engine.stats()["tokens_generated"]
    with pytest.raises(kind, match=r"^request 2: ") as caught:
        engine.generate(prompts, adapters=adapters)
    assert (caught.value.request_index, caught.value.results) == (2, None)
    assert engine.stats()["tokens_generated"] == before


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", {"role": "user"}, [1.5]], ids=repr)
def test_a_prompt_of_a_wrong_type_is_named(engine, wrong):
    with pytest.raises(TypeError, match=r"^request 1: "):
        engine.generate([PROMPT, wrong, PROMPT])


def test_the_error_of_a_single_request_does_not_count_requests(engine):
    with pytest.raises(InvalidError) as caught:
        engine.generate(PROMPT, OVERFLOW)
    assert "request" not in str(caught.value)
    assert caught.value.request_index == 0


def test_prompts_may_be_any_iterable(engine):
    texts = ["The king", "The queen", "The file"]
    expected = engine.generate(texts, max_new_tokens=4)
    for prompts in (tuple(texts), iter(texts), (text for text in texts), dict.fromkeys(texts).keys()):
        assert engine.generate(prompts, max_new_tokens=4) == expected
    each = engine.generate((text for text in texts), max_new_tokens=[1, 2, 3], stop_at_eos=False)
    assert [len(out.token_ids) for out in each] == [1, 2, 3]
    with pytest.raises(TypeError, match="no order"):
        engine.generate({"a", "b"})


# Results as they complete.


def test_results_come_as_they_complete(engine):
    lengths = [30, 5, 20, 10, 1, 15, 8, 25]
    expected = engine.generate([PROMPT] * 8, max_new_tokens=lengths, stop_at_eos=False)
    results = engine.as_completed([PROMPT] * 8, max_new_tokens=lengths, stop_at_eos=False)
    assert isinstance(results, AsCompleted)
    pairs = list(results)
    assert pairs[0][0] == 1
    assert sorted(index for index, _ in pairs) == list(range(8))
    assert all(completion == expected[index] for index, completion in pairs)
    assert list(results) == []


def test_as_completed_takes_prompts_only_as_results_are_asked_for(engine):
    taken = 0

    def prompts():
        nonlocal taken
        for i in range(60):
            taken += 1
            yield None if i % 7 == 3 else Request(PROMPT, max_new_tokens=2)

    results = engine.as_completed(prompts(), return_errors=True)
    assert taken == 0
    for returned, _ in enumerate(results, 1):
        assert taken <= returned + 2 * 4
    assert (returned, taken) == (60, 60)


def test_an_error_among_results_harms_no_other(engine):
    adapters = [None, "nobody", OVERFLOW, "wit"]
    pairs = dict(engine.as_completed([PROMPT] * 4, adapters, max_new_tokens=4, return_errors=True))
    assert codes(pairs[i] for i in range(4)) == ["Completion", "adapter_not_found", "logits_not_finite", "Completion"]
    results = engine.as_completed([PROMPT] * 4, adapters, max_new_tokens=4)
    found, raised = [], []
    while True:
        try:
            found.append(next(results)[0])
        except StopIteration:
            break
        except ExloraError as error:
            raised.append(error.request_index)
    assert (sorted(found), sorted(raised)) == ([0, 3], [1, 2])


def test_an_exception_of_the_prompts_iterator_reaches_the_caller(engine):
    def prompts():
        yield PROMPT
        raise LookupError("the data base is gone")

    with pytest.raises(LookupError, match="data base"):
        list(engine.as_completed(prompts(), max_new_tokens=2))


@pytest.mark.parametrize("leave", ["close", "with", "forget"])
def test_leaving_as_completed_ends_its_requests(engine, leave):
    results = engine.as_completed([PROMPT] * 20, "sql", max_new_tokens=[1] + [500] * 19, stop_at_eos=False)
    next(results)
    assert not is_idle(engine)
    if leave == "close":
        results.close()
        assert list(results) == []
    elif leave == "with":
        with results:
            pass
    else:
        del results
    assert is_idle(engine)


def test_lists_need_prompts_that_can_be_counted(engine):
    with pytest.raises(InvalidError, match="max_new_tokens is a list, but the number of prompts is not known"):
        engine.as_completed(iter([PROMPT]), max_new_tokens=[1])
    with pytest.raises(InvalidError, match="another length"):
        engine.as_completed([PROMPT], max_new_tokens=[1, 2])


def test_threads_may_share_the_results(engine):
    results = engine.as_completed((PROMPT for _ in range(30)), max_new_tokens=3)
    found = [[] for _ in range(3)]
    run_together(*[lambda mine=mine: mine.extend(index for index, _ in results) for mine in found])
    assert sorted(index for mine in found for index in mine) == list(range(30))


# Tasks.


def test_tasks_stream_together_and_share_the_threads_work(engine, monkeypatch):
    prompts = [f"The {word}" for word in ("king", "queen", "hacker", "table")] * 8
    expected = engine.generate(prompts, max_new_tokens=8)
    to_thread = asyncio.to_thread
    calls = []
    monkeypatch.setattr(asyncio, "to_thread", lambda *work: calls.append(work) or to_thread(*work))

    async def text(prompt):
        return "".join([chunk.text async for chunk in engine.stream(prompt, max_new_tokens=8)])

    async def all_texts():
        return await asyncio.gather(*[text(prompt) for prompt in prompts])

    for _ in range(2):  # each with a loop of its own
        calls.clear()
        assert asyncio.run(all_texts()) == [out.text for out in expected]
        # One for each step, not for each of the 256 chunks: four requests run at once.
        assert len(calls) <= 100
    assert is_idle(engine)


def test_a_stream_made_outside_a_loop_can_be_awaited_in_one(engine):
    stream = engine.stream(PROMPT, max_new_tokens=4)
    first = next(stream).text

    async def rest():
        return [chunk.text async for chunk in stream]

    assert first + "".join(asyncio.run(rest())) == engine.generate(PROMPT, max_new_tokens=4).text


def test_as_completed_is_an_async_iterator(engine):
    expected = engine.generate([PROMPT] * 12, max_new_tokens=list(range(1, 13)))

    async def collect():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        results = engine.as_completed([PROMPT] * 12, max_new_tokens=list(range(1, 13)), return_errors=True)
        pairs = [pair async for pair in results]
        ticking.cancel()
        return pairs, ticks

    pairs, ticks = asyncio.run(collect())
    assert sorted(index for index, _ in pairs) == list(range(12))
    assert all(completion == expected[index] for index, completion in pairs)
    assert ticks > 12, "the loop is not blocked"


def test_cancelling_a_waiting_task_loses_nothing(engine):
    async def run():
        async with engine.as_completed([PROMPT] * 6, max_new_tokens=60, stop_at_eos=False) as results:
            waiting = asyncio.create_task(anext(results))
            await asyncio.sleep(0.01)
            waiting.cancel()
            return [index async for index, _ in results], waiting

    found, waiting = asyncio.run(run())
    assert waiting.cancelled() or waiting.done()
    kept = [] if waiting.cancelled() else [waiting.result()[0]]
    assert sorted(found + kept) == list(range(6))
    assert is_idle(engine)


def test_an_error_in_a_task_is_that_tasks(engine):
    async def run(adapter):
        return [chunk async for chunk in engine.stream(PROMPT, adapter, max_new_tokens=4)][-1]

    async def all_of_them():
        return await asyncio.gather(run(None), run(OVERFLOW), run("wit"), return_exceptions=True)

    assert codes(asyncio.run(all_of_them())) == ["Chunk", "logits_not_finite", "Chunk"]


# Samples and seeds.


def test_without_a_seed_each_request_draws_its_own_and_reports_it(engine):
    drawn = engine.generate([PROMPT] * 4, **SAMPLED) + [engine.generate(PROMPT, **SAMPLED) for _ in range(4)]
    assert len({out.text for out in drawn}) == 8
    assert engine.generate([PROMPT] * 8, seed=[out.seed for out in drawn], **SAMPLED) == drawn
    stream = engine.stream(PROMPT, **SAMPLED)
    chunks = list(stream)
    assert chunks[-1].seed == stream.seed
    assert chunks[0].seed is None
    assert engine.generate(PROMPT, seed=stream.seed, **SAMPLED).token_ids == [i for c in chunks for i in c.token_ids]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_is_used_and_reported(engine, seed):
    first, again = (engine.generate(PROMPT, seed=seed, **SAMPLED) for _ in range(2))
    assert first == again
    assert first.seed == seed % 2**64
    assert engine.generate(PROMPT, seed=first.seed, **SAMPLED) == first


def test_n_gives_a_list_of_samples_for_each_prompt(engine):
    samples = engine.generate(PROMPT, n=4, seed=5, **SAMPLED)
    assert [out.sample for out in samples] == [0, 1, 2, 3]
    assert len({out.text for out in samples}) == 4
    assert samples == engine.generate(PROMPT, n=4, seed=5, **SAMPLED)
    assert samples[0] == engine.generate(PROMPT, seed=5, **SAMPLED)
    for out in samples:
        assert engine.generate(PROMPT, seed=out.seed, **SAMPLED).text == out.text
    assert engine.generate(PROMPT, n=1, seed=5, **SAMPLED) == samples[:1]
    lists = engine.generate([PROMPT, "The king"], n=[2, 3], seed=[5, None], **SAMPLED)
    assert [len(samples) for samples in lists] == [2, 3]
    assert lists[0] == samples[:2]


def test_as_completed_yields_each_sample(engine):
    pairs = list(engine.as_completed([PROMPT, ""], n=3, seed=5, return_errors=True, **SAMPLED))
    assert sorted((index, out.sample) for index, out in pairs if index == 0) == [(0, 0), (0, 1), (0, 2)]
    assert codes(out for index, out in pairs if index == 1) == ["prompt_empty"] * 3


@pytest.mark.parametrize("n", [0, -1, 10**12, 2**63, 2**70])
def test_an_impossible_number_of_samples_is_refused(engine, n):
    with pytest.raises(InvalidError):
        engine.generate(PROMPT, n=n)
    with pytest.raises(InvalidError):
        list(engine.as_completed([PROMPT], n=n))


# Progress.


def test_progress_counts_requests_and_its_exception_ends_the_batch(engine):
    seen = []
    engine.generate([PROMPT] * 10, max_new_tokens=3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {10}

    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        engine.generate([PROMPT] * 10, "sql", max_new_tokens=3, progress=stop)
    assert is_idle(engine)


def test_the_example_prints_results_and_the_error_of_one_request():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "examples/as_completed.py"], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["index"] for line in lines) == sorted([0, 1, 2, 3] * 3)
    assert {line["index"] for line in lines if "error" in line} == {2}
    assert len({line["seed"] for line in lines if "seed" in line}) == 9
    assert done.stderr.strip().endswith(": the same text")
