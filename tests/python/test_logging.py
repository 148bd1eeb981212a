"""The crate's log events are records of Python's `logging`."""

import logging
import os
import subprocess
import sys

import pytest
from exlora import Engine
from support.threads import run_together

PROMPT = "The table"


def preempting(folder):
    """An engine that logs at `DEBUG` in nearly every batch: its cache holds one sequence."""
    return Engine(folder, kv_tokens=96)


def preempt(engine):
    engine.generate([PROMPT] * 3, max_new_tokens=70, stop_at_eos=False)


def test_events_are_records_with_logger_level_place_and_fields(quill, caplog):
    caplog.set_level(logging.DEBUG, logger="exlora")
    engine = preempting(quill)
    [device, loaded] = [record for record in caplog.records if record.name == "exlora.model"]
    assert {device.levelno, loaded.levelno} == {logging.INFO}
    assert device.getMessage().startswith('device "auto" is the CPU')
    assert loaded.getMessage().startswith(f"model loaded model={quill}")
    assert loaded.pathname.endswith("model/mod.rs")
    assert loaded.lineno > 1
    caplog.clear()
    preempt(engine)
    assert {(record.name, record.levelname) for record in caplog.records} == {("exlora.engine.scheduler", "DEBUG")}


def test_a_warning_is_shown_without_any_setup(quill, tmp_path):
    """As by any library: `logging` prints what no handler takes."""
    code = "import sys, exlora; exlora.Engine(sys.argv[1]).generate('a', max_new_tokens=1)"
    (tmp_path / "model").mkdir()
    for file in quill.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    (tmp_path / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert "it does not name model.safetensors" in done.stderr
    assert "INFO" not in done.stderr


@pytest.mark.parametrize(
    ("value", "shown", "hidden"),
    [
        ("info", ["INFO exlora.model: model loaded"], ["DEBUG"]),
        ("exlora::backend=debug,nonsense", ["DEBUG exlora.backend.cpu"], ["model loaded"]),
        ("off", [], ["exlora"]),
    ],
)
def test_the_environment_variable_sets_levels_and_shows_records(quill, value, shown, hidden):
    code = "import sys, exlora; exlora.Engine(sys.argv[1])"
    environment = {**os.environ, "EXLORA_LOG": value}
    done = subprocess.run(
        [sys.executable, "-c", code, quill], env=environment, capture_output=True, text=True, check=True
    )
    assert all(text in done.stderr for text in shown), done.stderr
    assert not any(text in done.stderr for text in hidden), done.stderr


class Reentrant(logging.Handler):
    """Calls the engine for each record, as a handler that uploads statistics might."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine
        self.records = []

    def emit(self, record):
        self.records.append(record)
        self.engine.stats()
        self.engine.adapters()
        self.engine.generate([5, 6], max_new_tokens=1)


def test_a_handler_may_call_the_engine_while_threads_step(quill):
    """Nobody waits for the interpreter's lock while holding a lock that a handler needs."""
    engine = preempting(quill)
    handler = Reentrant(engine)
    logger = logging.getLogger("exlora.engine")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        run_together(*[lambda: preempt(engine) for _ in range(4)])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert handler.records


def test_a_handler_that_raises_harms_no_request(quill, monkeypatch):
    engine = preempting(quill)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Raising(logging.Filter):
        def filter(self, record):
            raise RuntimeError("a bad filter")

    logger = logging.getLogger("exlora.engine.scheduler")
    wrong = Raising()
    logger.addFilter(wrong)
    logger.setLevel(logging.DEBUG)
    try:
        preempt(engine)
    finally:
        logger.removeFilter(wrong)
        logger.setLevel(logging.NOTSET)
    assert {str(raised.exc_value) for raised in unraisable} == {"a bad filter"}
