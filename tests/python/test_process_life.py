"""Forking, and the end of the interpreter, while threads are inside the engine."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str, *args: object) -> str:
    """Runs Python code in a process of its own and returns what it printed; a hang or a crash fails."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


IN_CHILD = """
import os, signal, sys
def in_child(work):
    if (child := os.fork()) == 0:
        signal.alarm(30)
        try:
            print(work(), flush=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
"""


def test_a_child_forked_from_an_idle_engine_goes_on(quill):
    out = run(
        IN_CHILD
        + textwrap.dedent("""
        import exlora
        engine = exlora.Engine(sys.argv[1], threads=2)
        before = engine.generate([5, 6, 7], max_new_tokens=4, temperature=0.0).token_ids
        in_child(lambda: engine.generate([5, 6, 7], max_new_tokens=4, temperature=0.0).token_ids == before)
        """),
        quill,
    )
    assert out == "True\n"


def test_a_forked_child_does_not_wait_for_its_parents_server(quill):
    out = run(
        IN_CHILD
        + textwrap.dedent("""
        import urllib.request, exlora
        with exlora.Server(exlora.Engine(sys.argv[1], threads=1), port=0) as server:
            in_child(lambda: (server.stop(), server.wait()))
            print(urllib.request.urlopen(server.url + "/health").status)
        """),
        quill,
    )
    assert out == "(None, True)\n200\n"


def test_a_child_forked_during_steps_gets_an_error_instead_of_waiting_for_ever(quill):
    out = run(
        IN_CHILD
        + textwrap.dedent("""
        import threading, time, exlora
        engine = exlora.Engine(sys.argv[1], threads=1, kv_tokens=4096)
        stop = False
        def busy():
            while not stop:
                engine.generate([list(range(5, 105))] * 8, max_new_tokens=8)
        threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.3)
        def use():
            try:
                engine.generate([5, 6, 7], max_new_tokens=2)
                return "ok"
            except exlora.ExloraError as error:
                return error.code
        for _ in range(5):
            in_child(use)
            time.sleep(0.01)
        stop = True
        """),
        quill,
    )
    outcomes = out.split()
    assert len(outcomes) == 5
    assert set(outcomes) <= {"ok", "forked_while_in_use"}
    assert "forked_while_in_use" in outcomes


@pytest.mark.parametrize("what", ["loading with a callback", "generating"])
def test_daemon_threads_inside_the_engine_do_not_disturb_the_end_of_the_interpreter(quill, what):
    code = """
    import sys, threading, time, exlora
    model, what = sys.argv[1:]
    engine = exlora.Engine(model, threads=1)
    def load():
        while True:
            exlora.Engine(model, threads=1, progress=lambda done, total: None)
    def generate():
        while True:
            engine.generate([5, 6, 7], max_new_tokens=8)
    work = load if what.startswith("loading") else generate
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    """
    for _ in range(3):
        run(code, quill, what)
