"""The committed stubs are what the built module generates, and true to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = Path("exlora/_exlora.pyi")


# The module is built if `make develop` was not run.
@pytest.mark.timeout(900)
def test_the_stubs_are_the_generated_ones(tmp_path):
    maturin = shutil.which("maturin", path=Path(sys.executable).parent)
    if maturin is None or shutil.which("cargo") is None:
        pytest.skip("needs maturin and cargo")
    made = subprocess.run(
        [maturin, "generate-stubs", "--quiet", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / STUBS).read_text() == (ROOT / "python" / STUBS).read_text(), "run `make stubs`"


def test_the_stubs_fit_the_module():
    pytest.importorskip("mypy")
    found = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "exlora._exlora"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


TYPED = """
from typing_extensions import assert_type

from exlora import AsCompleted, AsyncEngine, Chunk, Completion, Engine, Request, SamplingParams, Stream

engine = Engine("model")
assert_type(engine.generate("text"), Completion)
assert_type(engine.generate([1, 2, 3]), Completion)
assert_type(engine.generate([{"role": "user", "content": "Hi"}]), Completion)
assert_type(engine.generate(Request("text"), None), Completion)
assert_type(engine.generate(["a", "b"], adapters=["sql", {"sql": 0.5}], temperature=[0.0, 1.0]), list[Completion])
assert_type(engine.generate([[1, 2], [3]], sampling=SamplingParams(seed=1)), list[Completion])
assert_type(engine.generate([Request("a"), Request([1])]), list[Completion])
assert_type(engine.stream("text", adapter={"sql": 0.5}, stop=["\\n", 5]), Stream)
engine.generate(["a", "b"], stop=[["x", 1], None])
assert_type(engine.generate(prompt for prompt in ("a", "b")), list[Completion])
assert_type(engine.generate("text", n=3, seed=None), list[Completion])
assert_type(engine.generate(["a", "b"], n=[1, 2], seed=[1, None]), list[list[Completion]])
assert_type(engine.generate("text", return_errors=True), Completion | Exception)
assert_type(engine.generate("text", n=2, return_errors=True), list[Completion | Exception])
assert_type(engine.generate(["a"], return_errors=True, progress=True), list[Completion | Exception])
assert_type(engine.generate(["a"], n=2, return_errors=True, progress=print), list[list[Completion | Exception]])
assert_type(engine.as_completed(["a", [1, 2]], adapters=["sql", None]), AsCompleted[Completion])
assert_type(engine.as_completed(iter(["a"]), n=2, return_errors=True), AsCompleted[Completion | Exception])
for index, completion in engine.as_completed(["a"]):
    assert_type((index, completion), tuple[int, Completion])
async def use() -> None:
    engine_async = await AsyncEngine.load("model", threads=2)
    assert_type(engine_async, AsyncEngine)
    assert_type(await engine_async.generate("text", adapter={"sql": 0.5}), Completion)
    assert_type(await engine_async.generate("text", n=2), list[Completion])
    assert_type(await engine_async.generate(["a", "b"], adapters=["sql", None]), list[Completion])
    assert_type(await engine_async.generate(["a", "b"], n=2), list[list[Completion]])
    async for piece in engine_async.stream("text", max_new_tokens=3):
        assert_type(piece, Chunk)
    async for chunk in engine.stream("text"):
        assert_type(chunk.seed, int | None)
    async for index, result in engine.as_completed(["a"], return_errors=True):
        assert_type(result, Completion | Exception)
assert_type(engine.generate("text").seed, int)
assert_type(engine.max_seq_len, int)
engine.generate("text", temprature=1.0)  # wrong
engine.generate("text", max_new_tokens="many")  # wrong
engine.generate("text", temperature=[0.5, 1.0])  # wrong
engine.stream("text", max_new_tokens=[1, 2])  # wrong
engine.stream("text", n=2)  # wrong
"""


def test_a_type_checker_tells_one_prompt_from_a_list(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", tmp_path / "use.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in found.stdout.splitlines() if ": error: " in line]
    wrong_calls = [number for number, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# wrong")]
    assert {int(line.split(":")[1]) for line in errors} == set(wrong_calls), errors


def test_the_python_half_is_typed():
    pytest.importorskip("mypy")
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert (ROOT / "python/exlora/py.typed").exists()
