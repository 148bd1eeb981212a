"""Adapters are loaded and unloaded while requests run: nothing leaks, and requests keep their adapter versions."""

import threading

import pytest
from exlora import Engine, ExloraError
from support import adapters, tiny
from support.threads import run_together

PROMPTS = [f"The {word} is" for word in ("king", "queen", "hacker", "table", "index", "daemon", "love", "war")]


@pytest.fixture
def folders(fixtures):
    return [fixtures / "adapters" / "jargon-lora-r8", fixtures / "adapters" / "sqlite-rslora-r16"]


@pytest.fixture
def engine(fixtures, folders):
    model = fixtures / "quill-4m-gptq-4bit-g128-sym"
    return Engine(model, adapters={"jargon": folders[0], "sqlite": folders[1]})


def texts_of(engine, adapter, tokens=32):
    return [out.text for out in engine.generate(PROMPTS, adapters=adapter, max_new_tokens=tokens, temperature=0.0)]


def test_a_running_stream_keeps_the_adapter_version_it_started_with(engine, folders):
    [expected] = [
        out.text for out in engine.generate(PROMPTS[:1], adapters="jargon", max_new_tokens=40, temperature=0.0)
    ]
    stream = engine.stream(PROMPTS[0], adapter="jargon", max_new_tokens=40, temperature=0.0)
    text = next(stream).text
    before = {info.name: info.generation for info in engine.adapters()}
    engine.load_adapter("jargon", folders[1])
    after = {info.name: info.generation for info in engine.adapters()}
    assert after["jargon"] > before["jargon"]
    assert after["sqlite"] == before["sqlite"]
    engine.unload_adapter("jargon")
    text += "".join(chunk.text for chunk in stream)
    assert text == expected
    with pytest.raises(ExloraError, match="adapter_not_found"):
        engine.generate(PROMPTS[:1], adapters="jargon")


def test_a_replaced_version_is_freed_with_its_last_request(engine, folders):
    before = engine.stats()
    stream = engine.stream(PROMPTS[0], adapter={"jargon": 0.5, "sqlite": 0.5}, max_new_tokens=16, temperature=0.0)
    next(stream)
    assert engine.stats()["leases"] == 2
    engine.load_adapter("jargon", folders[0])
    during = engine.stats()
    assert during["adapters_resident"] == before["adapters_resident"] + 1
    assert during["adapters_bytes"] > before["adapters_bytes"]
    for _ in stream:
        pass
    assert resident(engine) == (before["adapters_resident"], before["adapters_bytes"], 0)


def test_an_abandoned_stream_releases_its_leases(engine):
    before = resident(engine)
    stream = engine.stream(PROMPTS[0], adapter="jargon", max_new_tokens=1000, temperature=0.0)
    next(stream)
    del stream
    engine.generate(PROMPTS[:1], max_new_tokens=1)
    assert resident(engine) == before
    assert engine.stats()["rows_running"] == 0


def test_adapters_load_replace_and_unload_while_sixteen_jobs_stream(engine, folders):
    """Sixteen streams, while one thread loads and unloads another name and one loads broken adapters."""
    expected = {name: texts_of(engine, name) for name in ("jargon", "sqlite")}
    engine.load_adapter("guest", folders[0])
    engine.unload_adapter("guest")
    before = resident(engine)
    done = threading.Event()
    got = {}

    def stream(index):
        name = ("jargon", "sqlite")[index // 8]
        chunks = engine.stream(PROMPTS[index % 8], adapter=name, max_new_tokens=32, temperature=0.0)
        got[index] = "".join(chunk.text for chunk in chunks)

    def churn():
        turn = 0
        while not done.is_set() or turn < 4:
            engine.load_adapter("guest", folders[turn % 2])
            engine.load_adapter("guest", folders[(turn + 1) % 2])
            engine.unload_adapter("guest")
            turn += 1

    def break_things():
        turn = 0
        while not done.is_set() or turn < 4:
            with pytest.raises(ExloraError):
                engine.load_adapter("jargon", folders[0].parent)
            with pytest.raises(ExloraError):
                engine.unload_adapter("never-loaded")
            turn += 1

    def stream_all():
        try:
            run_together(*[lambda index=index: stream(index) for index in range(16)])
        finally:
            done.set()

    run_together(stream_all, churn, break_things)
    assert [got[index] for index in range(16)] == expected["jargon"] + expected["sqlite"]
    assert resident(engine) == before
    assert engine.stats()["rows_running"] == engine.stats()["rows_waiting"] == 0


def test_a_name_replaced_under_load_is_always_one_version_or_the_other(engine, folders):
    """A request that names `it` gets all its tokens from the adapter that had the name when it was accepted."""
    engine.load_adapter("it", folders[0])
    allowed = [set(pair) for pair in zip(texts_of(engine, "jargon"), texts_of(engine, "sqlite"), strict=True)]
    done = threading.Event()

    def replace():
        turn = 0
        while not done.is_set():
            turn += 1
            engine.load_adapter("it", folders[turn % 2])

    def ask():
        try:
            for _ in range(4):
                for text, either in zip(texts_of(engine, "it"), allowed, strict=True):
                    assert text in either
        finally:
            done.set()

    run_together(replace, ask)
    engine.unload_adapter("it")
    assert {info.name for info in engine.adapters()} == {"jargon", "sqlite"}


def test_an_adapter_occupies_what_its_own_rank_needs(tmp_path):
    """Ranks 1, 9 and 77 together: none is padded to the largest; ranks may be rounded up to a multiple of sixteen."""
    base = tiny.write("llama", tmp_path)
    ranks = {"rank-one": 1, "rslora": 9, "rank-wide": 77}
    widths = {  # inputs plus outputs of the seven linears of a layer
        "attention": 2 * 2 * tiny.HIDDEN + 2 * (tiny.HIDDEN + tiny.HIDDEN * tiny.KV_HEADS // tiny.HEADS),
        "mlp": 3 * (tiny.HIDDEN + tiny.INTERMEDIATE),
    }
    engine = Engine(base)
    for name, rank in ranks.items():
        alone = Engine(base).load_adapter(name, adapters.write(name, base)).bytes
        assert engine.load_adapter(name, adapters.write(name, base)).bytes == alone
        rounded = -(-rank // 16) * 16
        assert alone <= 1.25 * 4 * rounded * tiny.LAYERS * sum(widths.values()), name
    assert engine.stats()["adapters_bytes"] == sum(info.bytes for info in engine.adapters())


def resident(engine):
    stats = engine.stats()
    return stats["adapters_resident"], stats["adapters_bytes"], stats["leases"]
