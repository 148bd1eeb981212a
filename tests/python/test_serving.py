"""Threads and asyncio: many callers share one engine, and what need not wait for a step does not."""

import asyncio
import importlib.util
import json
import shutil
import threading
from pathlib import Path

import pytest
from exlora import Engine, ExloraError, Request
from support.threads import run_together

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = "The table"


@pytest.fixture(scope="module")
def folders(fixtures):
    return {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}


@pytest.fixture(scope="module")
def engine(fixtures, folders):
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=folders)


def is_idle(engine):
    stats = engine.stats()
    return (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0)


def test_many_threads_generate_stream_load_and_count_at_once(engine, folders):
    """Every thread does something else with the same engine: each result is as if it had been alone."""
    mixtures = [None, "sql", "wit", {"sql": 0.3, "wit": 0.7}]
    requests = [Request(f"{PROMPT} {i}", mixtures[i % 4], max_new_tokens=12) for i in range(8)]
    expected = [out.text for out in engine.generate(requests)]
    resident = engine.stats()["adapters_resident"]

    def generate(i):
        for _ in range(4):
            assert engine.generate(requests[i]).text == expected[i]

    def stream(i):
        for _ in range(4):
            assert "".join(chunk.text for chunk in engine.stream(requests[i])) == expected[i]

    def abandon():
        for _ in range(8):
            with engine.stream(PROMPT, adapter="sql", max_new_tokens=200, stop_at_eos=False) as chunks:
                next(chunks)

    def load():
        for turn in range(8):
            engine.load_adapter("guest", folders[("sql", "wit")[turn % 2]])
            assert engine.generate(PROMPT, adapter="guest", max_new_tokens=1).adapter == "guest"
        engine.unload_adapter("guest")

    def count():
        for _ in range(200):
            assert engine.stats()["kv_pages_total"] > 0
            assert {"sql", "wit"} <= {info.name for info in engine.adapters()}

    def tokenize():
        for i in range(200):
            assert engine.tokenizer.decode(engine.tokenizer.encode(f"table {i}", parse_special_tokens=bool(i % 2)))

    tasks = [lambda i=i: generate(i) for i in range(8)] + [lambda i=i: stream(i) for i in range(8)]
    run_together(*tasks, abandon, abandon, load, count, count, tokenize)
    assert is_idle(engine)
    assert engine.stats()["adapters_resident"] == resident


def test_two_threads_share_one_stream_without_losing_a_chunk(engine):
    whole = engine.generate(PROMPT, max_new_tokens=40, stop_at_eos=False)
    stream = engine.stream(PROMPT, max_new_tokens=40, stop_at_eos=False)
    found = []
    run_together(*[lambda: found.extend(i for chunk in stream for i in chunk.token_ids)] * 2)
    assert sorted(found) == sorted(whole.token_ids)


def test_counters_are_read_while_a_step_runs(quill, folders):
    """A long step on the slow reference device. If reading waited for the step, there would be one read during it."""
    engine = Engine(quill, adapters=folders, device="reference", prefill_chunk=1024)
    prompt = list(range(3, 603))
    done = threading.Event()

    def compute():
        engine.generate(prompt, adapter="sql", max_new_tokens=1, stop_at_eos=False)
        done.set()

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    reads = 0
    while not done.is_set():
        stats, names = engine.stats(), [info.name for info in engine.adapters()]
        is_computing = stats["leases"] == 1 and stats["tokens_generated"] == 0 and not done.is_set()
        reads += is_computing
        assert names == ["sql", "wit"]
    thread.join()
    assert reads > 500
    assert engine.stats()["tokens_generated"] == 1


def test_one_stream_that_fails_leaves_the_others_as_they_are(fixtures, tmp_path):
    """A decoder gives up on one token: whoever computes the step, only the request with that token fails."""
    folder = shutil.copytree(fixtures / "quill-4m", tmp_path / "model")
    folder.chmod(0o755)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    costly = {"Regex": "f(?:" + ".?" * 80 + ")*Z"}
    tokenizer["decoder"] = {"type": "Replace", "pattern": costly, "content": "x"}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    engine = Engine(folder, prefix_cache=False)
    pieces = {i: engine.tokenizer.token_of(i) or "" for i in range(2048)}
    bad = max((i for i, piece in pieces.items() if piece.startswith(("f", "\u0120f"))), key=lambda i: len(pieces[i]))
    good = next(i for i, piece in pieces.items() if piece == "the")
    settings = {"max_new_tokens": 6, "stop_at_eos": False}
    alone = engine.generate([5, 6, 7], logit_bias={good: 100.0}, **settings)
    innocents = [engine.stream([5, 6, 7], logit_bias={good: 100.0}, **settings) for _ in range(2)]
    culprit = engine.stream([5, 6, 8], logit_bias={bad: 100.0}, **settings)
    for innocent in innocents:
        assert "".join(chunk.text for chunk in innocent) == alone.text
    with pytest.raises(ExloraError) as failed:
        list(culprit)
    assert failed.value.code == "tokenizer_invalid"
    assert is_idle(engine)
    assert engine.stats()["kv_pages_free"] == engine.stats()["kv_pages_total"]


def test_a_mixture_has_at_most_64_adapters(engine):
    assert engine.generate(PROMPT, adapter=[("sql", 0.01)] * 64, max_new_tokens=1).token_ids
    for count in (65, 100_000):
        with pytest.raises(ExloraError) as refused:
            engine.generate(PROMPT, adapter=[("sql", 0.01)] * count, max_new_tokens=1)
        assert refused.value.code == "adapter_mixture_invalid"
        assert str(count) in str(refused.value)


def test_streams_are_async_iterators(engine):
    async def text(adapter):
        async with engine.stream(PROMPT, adapter=adapter, max_new_tokens=16) as stream:
            return "".join([chunk.text async for chunk in stream])

    async def run():
        return await asyncio.gather(*[text(adapter) for adapter in ("sql", "wit", None) for _ in range(4)])

    expected = [
        engine.generate(PROMPT, adapter=a, max_new_tokens=16).text for a in ("sql", "wit", None) for _ in range(4)
    ]
    assert asyncio.run(run()) == expected
    assert is_idle(engine)


def test_a_cancelled_task_ends_its_request(engine):
    async def run():
        started = asyncio.Event()

        async def consume():
            async with engine.stream(PROMPT, adapter="sql", max_new_tokens=900, stop_at_eos=False) as stream:
                async for _ in stream:
                    started.set()

        task = asyncio.create_task(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert is_idle(engine)


@pytest.fixture
def server():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("asyncio_server", EXAMPLES / "asyncio_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_asyncio_example_serves_mixed_requests(server, engine):
    bodies = [
        {"prompt": PROMPT, "adapter": adapter, "max_new_tokens": 12}
        for adapter in (None, "sql", {"sql": 0.5, "wit": 0.5})
    ]
    wrong = [{"prompt": PROMPT, "adapter": "nope"}, {"prompt": PROMPT, "temprature": 1}, ["no object"]]

    async def post(port, body):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps(body).encode()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        head, _, lines = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.split()[1], [json.loads(line) for line in lines.splitlines()]

    async def leave(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps({"prompt": PROMPT, "max_new_tokens": 900, "stop_at_eos": False}).encode()
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        await reader.readuntil(b"\n{")
        writer.transport.abort()

    async def run():
        async with await server.serve(engine, port=0) as running:
            port = running.sockets[0].getsockname()[1]
            answers = await asyncio.gather(*[post(port, body) for body in bodies + wrong], leave(port))
            while not is_idle(engine):
                await asyncio.sleep(0.01)
            return answers[:-1]

    answers = asyncio.run(asyncio.wait_for(run(), timeout=60))
    for body, (status, lines) in zip(bodies, answers, strict=False):
        assert status == b"200"
        assert "".join(line["text"] for line in lines) == engine.generate(Request(**body)).text
        assert lines[-1]["finish_reason"] == "length"
    assert [(status, lines[0]["error"]) for status, lines in answers[3:]] == [
        (b"400", "adapter_not_found"),
        (b"400", "request_invalid"),
        (b"400", "request_invalid"),
    ]


def test_an_error_of_a_stream_reaches_the_awaiting_task(engine):
    async def run():
        async with engine.stream(Request(PROMPT, {"sql": 3e38}, max_new_tokens=4)) as stream:
            async for _ in stream:
                pass

    with pytest.raises(ExloraError) as caught:
        asyncio.run(run())
    assert caught.value.code == "logits_not_finite"
