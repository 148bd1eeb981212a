"""Builds the folder that proves the CUDA backend on a machine with a card: build_gpu_proof.py OUT [--profile PROFILE].

A wheel of that profile, the stripped and zipped binary of the CUDA tests, fixtures that most of them read, and
tools/gpu_proof.
Needs maturin, cargo and strip.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ["adapters", "quill-4m-gptq-4bit-g128-sym", "quill-4m-exl2-mixed"]
MAX_BYTES = 30 << 20


def build_wheel(out: Path, profile: str) -> None:
    """The package, for any Python from 3.10 on."""
    command = ["maturin", "build", "--quiet", "--profile", profile, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)


def build_tests(out: Path) -> None:
    """The binary of the CUDA tests. It is not that of a release, so that its assertions count."""
    command = ["cargo", "test", "--quiet", "--no-run", "--features", "cli", "--test", "cuda"]
    command += ["--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in built.splitlines()]
    [binary] = [
        message["executable"]
        for message in messages
        if message.get("executable") and message["target"]["name"] == "cuda" and message["profile"]["test"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "cuda_tests"
        subprocess.run(["strip", "-o", str(stripped), binary], check=True)
        with zipfile.ZipFile(out / "cuda_tests.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(stripped, stripped.name)


def main() -> None:
    """Builds the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="release", help="cargo's profile of the wheel")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    build_wheel(options.out, options.profile)
    build_tests(options.out)
    for name in FIXTURES:
        shutil.copytree(ROOT / "tests/fixtures" / name, options.out / "fixtures" / name)
    for name in ("README.md", "proof.sh", "proof.py", "make_model.py"):
        shutil.copy(ROOT / "tools/gpu_proof" / name, options.out)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / (1 << 20):.1f} MiB")
    if options.profile == "release" and size > MAX_BYTES:
        sys.exit(f"the folder has more than {MAX_BYTES >> 20} MiB")


if __name__ == "__main__":
    main()
