"""README.md is executed: its commands, its Python, and the output it shows. Links and the tables of docs/ are checked.

A block is run unless its info string contains `no-run`. In a `console` block, lines that begin with `$ ` are run by
bash at the root of the repository, and the lines below one are its expected output; in a `console server` block, the
first command goes on while the others run, on another port than 8000. A `python` block is run as a script, and a `text`
block right after it is its expected output. In expected output `...` matches anything, for speeds and paths.
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    language: str
    line: int
    text: str
    output: str | None
    is_server: bool

    @property
    def name(self):
        return f"{self.language}-line-{self.line}"


def blocks():
    fence = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [match for match in fence.finditer(README) if "no-run" not in match[2]]
    for block, following in zip(found, [*found[1:], None], strict=True):
        adjacent = following and following[1] == "text" and not README[block.end() : following.start()].strip()
        line = README.count("\n", 0, block.start()) + 1
        yield Block(block[1], line, block[3], following[3] if adjacent else None, "server" in block[2].split())


def of(language, *, is_server=False):
    found = [block for block in blocks() if (block.language, block.is_server) == (language, is_server)]
    return [pytest.param(block, id=block.name) for block in found]


def commands(text):
    """The commands of a console, each with what it prints."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


#: Commands find the one of this interpreter, and ask no proxy for what this machine serves.
ENVIRONMENT = os.environ | {
    "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "no_proxy": "localhost,127.0.0.1",
}

BASH = ["bash", "-euo", "pipefail", "-c"]


def execute(arguments):
    done = subprocess.run(
        arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def matches(expected, printed):
    pattern = ".*?".join(re.escape(piece) for piece in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@pytest.mark.parametrize("block", of("python"))
def test_python_in_the_readme_prints_what_it_shows(block):
    printed = execute([sys.executable, "-W", "error", "-c", block.text])
    assert block.output is None or matches(block.output, printed), printed


@pytest.mark.parametrize("block", of("console"))
def test_commands_in_the_readme_print_what_it_shows(block):
    for command, expected in commands(block.text):
        printed = execute([*BASH, command])
        assert not expected.strip() or matches(expected, printed), printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("block", of("console", is_server=True))
def test_a_server_in_the_readme_answers_what_it_shows(block):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    [(start, ready), *others] = commands(block.text.replace(":8000", f":{port}"))
    arguments = [*BASH, f"exec {start} --port {port}"]
    with subprocess.Popen(arguments, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            printed = server.stdout.readline()
            assert matches(ready, printed), printed
            for command, expected in others:
                printed = execute([*BASH, command])
                assert matches(expected, printed), printed
        finally:
            server.terminate()
            assert server.wait(timeout=60) == 0


@pytest.mark.parametrize("block", of("rust"))
def test_rust_in_the_readme_is_part_of_the_compiled_example(block):
    assert block.text.strip() in (ROOT / "examples" / "batch.rs").read_text()


def test_the_readme_has_no_block_of_an_unknown_language():
    known = {"python", "console", "rust", "text"}
    assert {block.language for block in blocks()} <= known


def test_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) <= targets


@pytest.mark.parametrize("document", ["README.md", "docs/errors.md", "docs/peft.md"])
def test_relative_links_lead_to_files_and_headings(document):
    text = (ROOT / document).read_text()
    headings = {
        re.sub("[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall("^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target


def test_generated_tables_are_up_to_date():
    assert execute([sys.executable, "tools/docs_tables.py", "--check"]) == ""
