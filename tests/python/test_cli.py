"""The command as the package installs it: on a terminal, where lines are edited, and its JSON beside Python's."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from exlora import Engine

COMMAND = [sys.executable, "-m", "exlora"]
# Escape sequences of the line editor and the progress bar.
ESCAPES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\r")


class Terminal:
    """A command on a terminal of its own, which types and reads as a user does."""

    def __init__(self, args, **env):
        self.raw = b""
        self.seen = 0
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(COMMAND[0], [*COMMAND, *map(str, args)], {**os.environ, "TERM": "xterm", **env})

    def type(self, text):
        os.write(self.fd, text.encode())

    @property
    def output(self):
        """All that was written, as text."""
        return ESCAPES.sub("", self.raw.decode(errors="replace"))

    def wait_for(self, text, seconds=30):
        """Reads until a text appears after the one waited for before; returns what came between."""
        end = time.monotonic() + seconds
        while (found := self.output.find(text, self.seen)) < 0:
            assert time.monotonic() < end, f"no {text!r} in {self.output[self.seen :]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                assert self.read(), f"it ended before {text!r}: {self.output!r}"
        between, self.seen = self.output[self.seen : found], found + len(text)
        return between

    def read(self):
        """Reads what is there, or waits for it; whether there was anything."""
        try:
            part = os.read(self.fd, 4096)
        except OSError:  # The other end was closed.
            return False
        self.raw += part
        return bool(part)

    def finish(self):
        """Reads to the end and returns the exit status."""
        while self.read():
            pass
        return self._wait()

    def kill(self):
        """Ends the command if it runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()

    def _wait(self):
        os.close(self.fd)
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def chat(quill, fixtures, tmp_path):
    """Starts a chat with an adapter, and its history in a folder of the test."""
    terminals = []

    def start(*args):
        adapter = f"sqlite={fixtures / 'adapters' / 'sqlite-rslora-r16'}"
        args = ["chat", "-m", quill, "--adapter", adapter, *args]
        terminals.append(Terminal(args, XDG_STATE_HOME=str(tmp_path)))
        terminals[-1].wait_for("/help lists the commands")
        terminals[-1].wait_for("> ")
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.kill()


def test_lines_are_edited_and_come_back_from_the_history(chat, tmp_path):
    terminal = chat("--max-new-tokens", "4")
    # Typed with a mistake, corrected by the arrow and the backspace keys.
    terminal.type("/adaapter\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x7f\r")
    terminal.wait_for("answering with base")
    terminal.type("\x1b[A sqlite\r")
    terminal.wait_for("answering with sqlite")
    terminal.type("one\\\rtwo\r")
    terminal.wait_for("[cut after 4 tokens")
    terminal.type(f"/save {tmp_path / 'chat.json'}\r")
    terminal.wait_for("saved to")
    # Before the line is edited, the terminal itself takes Ctrl-D.
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.finish() == 0
    assert json.loads((tmp_path / "chat.json").read_text())[0] == {"role": "user", "content": "one\ntwo"}
    history = tmp_path / "exlora" / "chat_history"
    assert (history.stat().st_mode & 0o777, history.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    terminal = chat()
    # From the saved file's line over both lines of the message.
    terminal.type("\x1b[A" * 4 + "\r")
    terminal.wait_for("answering with sqlite")
    terminal.type("/exit\r")
    assert terminal.finish() == 0
    before = history.read_text()
    terminal = chat("--no-history")
    terminal.type("\x1b[A/adapters\r")
    terminal.wait_for("sqlite: rank 16")
    terminal.type("/exit\r")
    assert (terminal.finish(), history.read_text()) == (0, before)


def test_commands_adapters_and_settings_are_completed(chat):
    terminal = chat("--no-history")
    terminal.type("/unl\tsq\t")
    terminal.wait_for("/unload sqlite")
    terminal.type("\x15/set repetition-p\t1.5\r/set\r")
    terminal.wait_for("repetition-penalty=1.5")
    terminal.type("/adapter sqlite*0.5+sq\t\r")
    terminal.wait_for("answering with sqlite*0.5 + sqlite")
    terminal.type("/adap\t\t")
    terminal.wait_for("/adapters")


def test_ctrl_c_stops_an_answer_and_keeps_the_talk(chat):
    terminal = chat("--no-history", "--device", "reference", "--max-new-tokens", "1000", "--stop-at-eos", "false")
    terminal.type("Hello\r")
    terminal.wait_for("Hello\n")
    while not terminal.output[terminal.seen :].strip():
        assert terminal.read()
    terminal.type("\x03")
    answer = terminal.wait_for("[stopped]")
    assert 0 < len(answer.strip()) < 3000
    terminal.wait_for("> ")
    terminal.type("/set max-new-tokens=2\r")
    terminal.wait_for("max-new-tokens=2\n")
    terminal.wait_for("> ")
    terminal.type("And then?\r")
    terminal.wait_for("[cut after 2 tokens")
    terminal.type("/stats\r")
    terminal.wait_for("turns          2")
    # At the prompt it clears the line, and the second time it leaves.
    terminal.wait_for("> ")
    terminal.type("half a line\x03")
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for("> ")
    terminal.type("/adapters\r")
    terminal.wait_for("sqlite: rank 16")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for("> ")
    terminal.type("\x03")
    assert terminal.finish() == 0


def test_lines_typed_ahead_are_the_next_messages(chat, tmp_path):
    terminal = chat("--no-history", "--device", "reference", "--max-new-tokens", "60", "--stop-at-eos", "false")
    # The first three arrive together, the others while the second answer is written.
    terminal.type("one\rtwo\rthree\r")
    terminal.wait_for("[cut after 60 tokens")
    terminal.wait_for("> two")
    while not terminal.output[terminal.seen :].strip():
        assert terminal.read()
    terminal.type("four\rfi")
    for _ in range(3):
        terminal.wait_for("[cut after 60 tokens")
    terminal.wait_for("> fi")
    terminal.type(f"ve\r/save {tmp_path / 'chat.json'}\r/exit\r")
    assert terminal.finish() == 0
    messages = json.loads((tmp_path / "chat.json").read_text())
    questions = [message["content"] for message in messages if message["role"] == "user"]
    assert questions == ["one", "two", "three", "four", "five"]


def test_an_error_does_not_end_a_chat_on_a_terminal(chat):
    terminal = chat("--no-history", "--max-new-tokens", "4", "--kv-tokens", "256")
    for line, message in [
        ("/adaptor x", "did you mean '/adapter'"),
        ("/load x=no/such/folder", "[adapter_config_not_found]"),
        ("word " * 250, "[prompt_too_long]"),
    ]:
        terminal.type(line + "\r")
        terminal.wait_for(message)
    terminal.type("Hello\r")
    terminal.wait_for("[cut after 4 tokens")


def test_json_of_the_command_is_what_python_returns(quill, fixtures, tmp_path):
    folders = {name: str(fixtures / "adapters" / name) for name in ["jargon-lora-r8", "sqlite-rslora-r16"]}
    engine = Engine(str(quill), adapters=folders, prefix_cache=False)
    requests = [
        {"prompt": "The king", "max_new_tokens": 5, "logprobs": 2},
        {"prompt": "The king", "max_new_tokens": 5, "adapter": "jargon-lora-r8", "stop": " "},
        {"prompt": "The king", "max_new_tokens": 5, "adapter": {"jargon-lora-r8": 0.3, "sqlite-rslora-r16": 1.0}},
        {"prompt": "The king", "max_new_tokens": 5, "temperature": 1.5, "seed": 7},
        {"prompt": [{"role": "user", "content": "Hello"}], "max_new_tokens": 5},
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    adapters = [arg for name, path in folders.items() for arg in ("--adapter", f"{name}={path}")]
    args = ["generate", "-m", quill, *adapters, "--requests", tmp_path / "requests.jsonl", "--ordered", "--json"]
    run = subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    for index, (request, line) in enumerate(zip(requests, lines, strict=True)):
        prompt = request.pop("prompt")
        expected = engine.generate(prompt, **request).to_dict()
        # The command prints a float32 with as few digits as tell it apart.
        for key in ["logprobs", "top_logprobs"]:
            of_line, of_python = line.pop(key), expected.pop(key)
            assert (of_line is None) == (of_python is None)
            if of_line is not None:
                np.testing.assert_array_equal(np.float32(of_line), np.float32(of_python))
        assert line.pop("index") == index
        assert line == expected
        assert list(line) == list(expected)
