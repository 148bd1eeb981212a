"""The committed stubs are what the built module generates, and true to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = Path("exlora/_exlora.pyi")


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


def test_the_python_half_is_typed():
    pytest.importorskip("mypy")
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert (ROOT / "python/exlora/py.typed").exists()
