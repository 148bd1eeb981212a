"""`AsyncEngine`: tasks share an engine, and what they give up is given back."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from exlora import AsyncEngine, AsyncStream, Completion, Engine, ExloraError, Request

ROOT = Path(__file__).parents[2]
PROMPT = "The table"
MIXTURES = [None, "sql", "wit", {"sql": 0.3, "wit": 0.7}]
ENDLESS = {"max_new_tokens": 900, "stop_at_eos": False}


@pytest.fixture(scope="module")
def folders(fixtures):
    return {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def plain(folder, folders):
    return Engine(folder, adapters=folders, prefix_cache=False)


def run(main, seconds=60):
    """Runs a coroutine function in a loop of its own; no thread and no warning is left."""
    before = set(threading.enumerate())
    result = asyncio.run(asyncio.wait_for(main(), seconds))
    assert set(threading.enumerate()) <= before
    return result


def is_idle(engine):
    stats = engine.stats()
    return (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0) and (
        stats["kv_pages_free"] == stats["kv_pages_total"]
    )


def test_awaited_results_are_those_of_the_blocking_engine(plain):
    async def main():
        engine = AsyncEngine(plain)
        one = await engine.generate(PROMPT, "sql", max_new_tokens=12)
        several = await engine.generate([PROMPT] * 4, MIXTURES, max_new_tokens=12)
        samples = await engine.generate([PROMPT, "Once"], n=3, temperature=0.9, seed=[1, 2], max_new_tokens=8)
        assert (await engine.logits(PROMPT, "wit")).tobytes() == plain.logits(PROMPT, "wit").tobytes()
        return one, several, samples

    one, several, samples = run(main)
    assert isinstance(one, Completion)
    assert one.text == plain.generate(PROMPT, "sql", max_new_tokens=12).text
    assert [out.text for out in several] == [
        out.text for out in plain.generate([PROMPT] * 4, MIXTURES, max_new_tokens=12)
    ]
    expected = plain.generate([PROMPT, "Once"], n=3, temperature=0.9, seed=[1, 2], max_new_tokens=8)
    assert [[out.text for out in line] for line in samples] == [[out.text for out in line] for line in expected]
    assert [[out.sample for out in line] for line in samples] == [[0, 1, 2]] * 2


def test_tasks_share_steps(plain):
    async def main():
        engine = AsyncEngine(plain)
        before = engine.stats()["steps"]
        await asyncio.gather(*[engine.generate(PROMPT, a, max_new_tokens=20, stop_at_eos=False) for a in MIXTURES * 2])
        return engine.stats()["steps"] - before

    assert run(main) < 2 * 20  # alone, eight requests take 160


def test_a_stream_has_the_chunks_of_the_text(plain):
    async def main():
        engine = AsyncEngine(plain)
        stream = engine.stream(PROMPT, "sql", max_new_tokens=12)
        assert isinstance(stream, AsyncStream)
        assert stream.seed is None
        text = "".join([chunk.text async for chunk in stream])
        assert stream.seed is not None
        assert [chunk async for chunk in stream] == []
        return text

    assert run(main) == plain.generate(PROMPT, "sql", max_new_tokens=12).text


@pytest.mark.parametrize("kind", ["generate", "stream", "as_completed"])
def test_cancelling_a_task_frees_what_its_request_held(plain, kind):
    async def wait_for_all(engine):
        if kind == "generate":
            await engine.generate([PROMPT] * 3, "sql", **ENDLESS)
        elif kind == "stream":
            async for _ in engine.stream(PROMPT, "sql", **ENDLESS):
                pass
        else:
            async for _ in engine.as_completed([PROMPT] * 3, "sql", **ENDLESS):
                pass

    async def main():
        engine = AsyncEngine(plain)
        task = asyncio.create_task(wait_for_all(engine))
        while not engine.stats()["rows_running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        alive = await engine.generate(PROMPT, max_new_tokens=2)
        while not is_idle(engine):
            await asyncio.sleep(0.001)
        return alive

    assert run(main).text == plain.generate(PROMPT, max_new_tokens=2).text


def test_a_time_limit_ends_a_request(plain):
    async def main():
        engine = AsyncEngine(plain)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.generate(PROMPT, **ENDLESS), timeout=0.02)
        while not is_idle(engine):
            await asyncio.sleep(0.001)

    run(main)


def test_a_request_fails_alone(plain):
    async def main():
        engine = AsyncEngine(plain)
        bad = engine.generate(Request(PROMPT, {"sql": 3e38}, max_new_tokens=4))
        refused = engine.generate(PROMPT, "missing")
        streamed = engine.stream(PROMPT, "missing")
        good = engine.generate(PROMPT, max_new_tokens=6)
        found = await asyncio.gather(bad, refused, anext(streamed), good, return_exceptions=True)
        mixed = await engine.generate([PROMPT, "", PROMPT], max_new_tokens=2, return_errors=True)
        steps = engine.stats()["steps"]
        with pytest.raises(ExloraError) as caught:
            await engine.generate([PROMPT, ""], max_new_tokens=2)
        assert engine.stats()["steps"] == steps, "none is run if one is refused"
        return found, mixed, caught.value

    (bad, refused, streamed, good), mixed, caught = run(main)
    assert [error.code for error in (bad, refused, streamed)] == ["logits_not_finite"] + ["adapter_not_found"] * 2
    assert good.text == plain.generate(PROMPT, max_new_tokens=6).text
    assert [type(result) for result in mixed[::2]] == [Completion] * 2
    assert (mixed[1].code, caught.code, caught.request_index) == ("prompt_empty", "prompt_empty", 1)


def test_adapters_come_and_go_while_requests_run(folder, folders, plain):
    async def main():
        async with await AsyncEngine.load(folder, prefix_cache=False) as engine:
            running = asyncio.create_task(engine.generate(PROMPT, max_new_tokens=60, stop_at_eos=False))
            texts = []
            for turn in range(4):
                info = await engine.load_adapter("guest", folders[("sql", "wit")[turn % 2]])
                texts.append((await engine.generate(PROMPT, info.name, max_new_tokens=8)).text)
            await engine.unload_adapter("guest")
            assert engine.adapters() == []
            return texts, await running

    texts, long = run(main)
    sql, wit = (plain.generate(PROMPT, name, max_new_tokens=8).text for name in ("sql", "wit"))
    assert texts == [sql, wit, sql, wit]
    assert long.text == plain.generate(PROMPT, max_new_tokens=60, stop_at_eos=False).text


def test_closing_ends_requests_with_an_error(folder):
    async def main():
        engine = await AsyncEngine.load(folder)
        stream = engine.stream(PROMPT, **ENDLESS)
        await anext(stream)
        tasks = [asyncio.create_task(engine.generate(PROMPT, **ENDLESS)), asyncio.create_task(anext(stream))]
        await asyncio.sleep(0.01)
        await engine.close()
        await engine.close()
        found = await asyncio.gather(*tasks, anext(stream), return_exceptions=True)
        with pytest.raises(ExloraError) as caught:
            await engine.generate(PROMPT)
        assert "closed" in repr(engine)
        return [*found, caught.value]

    # A chunk may have been ready for the first reader of the stream.
    generated, *streamed, later = run(main)
    assert {generated.code, streamed[-1].code, later.code} == {"model_not_loaded"}


def test_one_engine_serves_several_loops_and_threads(plain):
    expected = [plain.generate(PROMPT, a, max_new_tokens=16).text for a in MIXTURES]
    engine, found = AsyncEngine(plain), {}

    async def texts():
        return [
            out.text for out in await asyncio.gather(*[engine.generate(PROMPT, a, max_new_tokens=16) for a in MIXTURES])
        ]

    threads = [threading.Thread(target=lambda i=i: found.update({i: asyncio.run(texts())})) for i in range(3)]
    for thread in threads:
        thread.start()
    assert [plain.generate(PROMPT, a, max_new_tokens=16).text for a in MIXTURES] == expected
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(3), expected)
    asyncio.run(engine.close())
    assert plain.generate(PROMPT, max_new_tokens=2).token_ids, "it is not the async engine's to close"


def test_options_are_for_folders_only(plain):
    with pytest.raises(TypeError, match="options"):
        AsyncEngine(plain, threads=1)


def test_the_asyncio_example_runs():
    command = [sys.executable, "-W", "error", "examples/asyncio_generate.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "The truth is not in the world"
    assert lines[2] == "The truth is not a single table"
    assert lines[4] == "adapter_not_found"
    assert lines[5].startswith("A bug is")


@pytest.fixture
def app(monkeypatch):
    """The FastAPI example."""
    pytest.importorskip("fastapi")
    spec = importlib.util.spec_from_file_location("fastapi_server", ROOT / "examples/fastapi_server.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.chdir(ROOT)
    spec.loader.exec_module(module)
    return module.app


async def call(app, method, path, body=None, leave_after=None):
    """Calls an ASGI application: the status and the lines of its answer. Leaves after some of these."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "query_string": b"",
        "asgi": {"version": "3.0"},
    }
    incoming = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()})
    status, text = None, b""

    async def send(message):
        nonlocal status, text
        status = message.get("status", status)
        text += message.get("body", b"")
        if leave_after is not None and text.count(b"\n") >= leave_after:
            incoming.put_nowait({"type": "http.disconnect"})

    await app(scope, incoming.get, send)
    return status, [json.loads(line) for line in text.splitlines()]


def test_the_fastapi_example_serves_mixed_requests(app, plain):
    async def main():
        async with app.router.lifespan_context(app):
            bodies = [{"prompt": PROMPT, "adapter": a, "max_new_tokens": 12} for a in (None, "sqlite", {"jargon": 0.5})]
            answers = await asyncio.gather(
                *[call(app, "POST", "/generate", body) for body in bodies],
                *[call(app, "POST", "/stream", body) for body in bodies],
                call(app, "POST", "/stream", {"prompt": PROMPT, **ENDLESS}, leave_after=2),
            )
            engine = app.state.engine
            while (engine.stats()["rows_running"], engine.stats()["leases"]) != (0, 0):
                await asyncio.sleep(0.001)
            path = "tests/fixtures/adapters/devil-dora-r8"
            managed = [
                await call(app, "PUT", "/adapters/devil", {"path": path}),
                await call(app, "GET", "/adapters"),
                await call(app, "DELETE", "/adapters/devil"),
                await call(app, "POST", "/generate", {"prompt": PROMPT, "adapter": "devil"}),
                await call(app, "POST", "/stream", {"prompt": ""}),
                await call(app, "POST", "/generate", {"prompt": PROMPT, "temprature": 1}),
            ]
            return answers, managed

    answers, managed = asyncio.run(asyncio.wait_for(main(), 60))
    expected = [plain.generate(PROMPT, a, max_new_tokens=12).text for a in (None, "sql", {"wit": 0.5})]
    assert [lines[0]["text"] for _, lines in answers[:3]] == expected
    assert ["".join(line["text"] for line in lines) for _, lines in answers[3:6]] == expected
    assert [status for status, _ in managed] == [200, 200, 200, 404, 400, 400]
    assert [adapter["name"] for adapter in managed[1][1][0]] == ["devil", "jargon", "sqlite"]
    assert managed[3][1][0]["error"] == "adapter_not_found"
