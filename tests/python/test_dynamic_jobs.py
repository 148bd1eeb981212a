"""Jobs of exllamav2's dynamic generator: when they start, what they report, banned strings."""

import threading

import numpy as np
import pytest
from exlora import (
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Config,
    ExLlamaV2Tokenizer,
)
from exlora.generator import (
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)

PROMPT = "Emma was very much"
GREEDY = ExLlamaV2Sampler.Settings.greedy()


@pytest.fixture(scope="module")
def parts(fixtures):
    config = ExLlamaV2Config(fixtures / "quill-4m-gptq-4bit-g128-sym")
    model = ExLlamaV2(config)
    model.load()
    return model, ExLlamaV2Cache(model, max_seq_len=1024), ExLlamaV2Tokenizer(config)


def results_of(generator):
    while generator.num_remaining_jobs():
        yield from generator.iterate()


def test_a_job_starts_when_it_runs(parts):
    generator = ExLlamaV2DynamicGenerator(*parts, max_batch_size=1)
    assert (generator.max_batch_size, generator.max_total_tokens) == (1, 1024)
    ids = parts[2].encode(PROMPT)
    jobs = [ExLlamaV2DynamicJob(ids, 4, gen_settings=GREEDY, stop_conditions=[3, "x"]) for _ in range(3)]
    assert (jobs[0].stop_tokens, jobs[0].stop_strings, jobs[0].min_new_tokens) == ({3}, {"x"}, 0)
    generator.enqueue(jobs)
    assert generator.pending_jobs == jobs
    seen, waited = [], []
    for result in results_of(generator):
        if result["stage"] == "started" or result["eos"]:
            seen.append((result["job"], result["eos"]))
        if result["eos"]:
            waited.append(result["time_enqueued"])
            last = result
    assert seen == [(job, eos) for job in jobs for eos in (False, True)]
    assert waited == sorted(waited), "each waits for those before it"
    assert jobs[2].cached_tokens == last["cached_tokens"]


def test_jobs_enqueued_while_another_thread_iterates_are_not_lost(parts):
    generator = ExLlamaV2DynamicGenerator(*parts)
    ids = parts[2].encode(PROMPT)
    jobs = [ExLlamaV2DynamicJob(ids, 2, gen_settings=GREEDY, stop_conditions=[]) for _ in range(40)]
    finished = set()

    def iterate():
        while len(finished) < len(jobs):
            finished.update(result["job"] for result in generator.iterate() if result["eos"])

    thread = threading.Thread(target=iterate)
    thread.start()
    for job in jobs:
        generator.enqueue(job)
    thread.join(timeout=60)
    assert finished == set(jobs)


def test_banned_text_is_reported_and_does_not_appear(parts):
    _, _, tokenizer = parts
    generator = ExLlamaV2DynamicGenerator(*parts)
    free = generator.generate(PROMPT, 30, gen_settings=GREEDY, completion_only=True)
    banned = [free[8:20].upper(), free[40:46]]
    job = ExLlamaV2DynamicJob(
        tokenizer.encode(PROMPT), 30, gen_settings=GREEDY, banned_strings=banned, stop_conditions=[]
    )
    generator.enqueue(job)
    results = list(results_of(generator))
    text = "".join(result.get("text", "") for result in results)
    assert text == job.full_completion == results[-1]["full_completion"]
    assert not any(string.lower() in text.lower() for string in banned)
    suppressed = [result for result in results if "suppressed_text" in result]
    assert banned[0].lower() in suppressed[0]["suppressed_text"].lower()
    assert suppressed[0]["suppressed_tokens"].ndim == 2
    ids = np.concatenate([np.asarray(result["token_ids"])[0] for result in results if "token_ids" in result])
    assert len(ids) == results[-1]["new_tokens"] == 30
    whole = generator.generate(PROMPT, 30, gen_settings=GREEDY, completion_only=True, banned_strings=banned)
    assert whole == text

    streaming = ExLlamaV2StreamingGenerator(*parts)
    streaming.begin_stream_ex(tokenizer.encode(PROMPT), GREEDY, banned_strings=banned)
    streamed = ""
    while len(streamed) < len(text) - 12:
        streamed += streaming.stream_ex()["chunk"]
    assert text.startswith(streamed)
