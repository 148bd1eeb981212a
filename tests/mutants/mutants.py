"""Plants bugs in the CUDA backend, one at a time, and runs the tests that have to notice them: `make mutants`.

A kernel's source is text in the test binary, so a bug is planted in a copy of the binary, and NVRTC compiles it when
the tests run. Bugs of the host are planted in a copy of the sources, all at once: each replaced expression asks the
environment which one it is, so that one build serves all of them.

A mutant is *caught* if a test fails; *caught otherwise* if the table names a check of the emulated driver, and it was
not that one; *hung* if the tests do not end; *survived* if they pass; *not built* if NVRTC refuses it. Whatever is not
caught or hung fails the run, and so does a table that does not apply to the sources.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from host_mutants import HOST_MUTANTS
from kernel_mutants import KERNEL_MUTANTS
from mutant import CHECKS, DoesNotApplyError, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Mutated binaries, the copy of the sources and its build, kernels that were compiled from mutants, the report.
FOLDER = ROOT / "target" / "mutants"

# Those that `make test-cuda-slow` runs, from six kernels: what a check finds, a wrong value, the order of a sum.
REPRESENTATIVES = (
    "attention_reads_sums_before_they_are_written",
    "attention_adds_splits_in_another_order_in_one_block",
    "repack_swaps_the_registers_of_a_tile",
    "expand_without_the_adapters_scale",
    "argmax_is_stored_without_an_atomic",
    "linear_waits_for_one_copy_too_few",
)

# As in `make test-cuda`: what one of the two does not notice, the other may.
SCHEDULES = ({}, {"EMULATED_CUDA_ORDER": "reverse", "EMULATED_CUDA_ASYNC": "eager"})

OUTCOMES = ("caught", "hung", "caught otherwise", "survived", "not built")

# Given to the copy of the sources.
CHOICE = """
/// Whether the environment chooses this mutant.
pub(crate) fn is_mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("MUTANT").ok()).as_deref() == Some(name)
}
"""


def build(manifest: pathlib.Path, *options: str) -> pathlib.Path:
    """Builds the CUDA tests of a tree, and returns their binary."""
    command = ["cargo", "test", "--no-run", "--test", "cuda", "--manifest-path", str(manifest), *options]
    messages = subprocess.run([*command, "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE, text=True)
    if messages.returncode != 0:
        sys.exit("mutants: the tests do not build")
    artifacts = [json.loads(line) for line in messages.stdout.splitlines()]
    binaries = [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "cuda" and a.get("executable")]
    return pathlib.Path(binaries[-1])


def fitted(text: str, length: int) -> bytes:
    """A source of that many bytes with the same lines: comments give way to what is longer, blanks follow the rest."""
    lines = text.split("\n")
    surplus = len(text.encode()) - length
    for index, line in enumerate(lines):
        if surplus > 0 and line.lstrip().startswith("//"):
            surplus -= len(line.encode())
            lines[index] = ""
    if surplus > 0:
        raise ValueError("a source is longer than the one it replaces, and has too few comments")
    return "\n".join(lines).encode() + b" " * -surplus


def plant_in_binary(mutant: Mutant, source: str, binary: bytes) -> bytes:
    """The test binary with a mutant in the source of a kernel."""
    old = source.encode()
    if binary.count(old) != 1:
        raise DoesNotApplyError(f"{mutant.name}: the test binary does not have the text of {mutant.file} exactly once")
    return binary.replace(old, fitted(mutant.applied(source, mutant.new), len(old)))


def plant_in_tree(mutants: Iterable[Mutant]) -> pathlib.Path:
    """Copies the sources, with every mutant of the host in them; returns the copy's manifest."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    files = {name: (ROOT / name).read_bytes() for name in listed if name and (ROOT / name).is_file()}
    for mutant in mutants:
        chosen = f'(if crate::is_mutant("{mutant.name}") {{ {mutant.new} }} else {{ {mutant.old} }})'
        files[mutant.file] = mutant.applied(files[mutant.file].decode(), chosen).encode()
    files["src/lib.rs"] = b"#![allow(unused_parens)]\n" + files["src/lib.rs"] + CHOICE.encode()
    tree = FOLDER / "tree"
    for path in [path for path in tree.rglob("*") if path.is_file()]:
        if str(path.relative_to(tree)) not in files:
            path.unlink()
    for name, content in files.items():
        path = tree / name
        # What has not changed keeps its time, so that it is not built again.
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return tree / "Cargo.toml"


def link_cache() -> None:
    """Gives the mutants' cache of compiled kernels those that there are of the sources as they are."""
    folder = FOLDER / "cache" / "cubins"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in pathlib.Path(os.environ["EXLORA_CACHE"], "cubins").glob("*"):
        if not (folder / entry.name).exists():
            os.link(entry, folder / entry.name)


def run(
    binary: pathlib.Path, tests: Iterable[str], environment: dict[str, str], seconds: float
) -> tuple[int | None, str]:
    """Runs tests one after another; returns their status, or None if they did not end, and what they printed."""
    variables = {**os.environ, "EXLORA_CACHE": str(FOLDER / "cache"), "RUST_BACKTRACE": "0", **environment}
    command = [str(binary), "--test-threads=1", *tests]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds
        )
        return done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as hung:
        return None, (hung.stdout or b"").decode(errors="replace")


def failed_test(output: str) -> str:
    """The first test that failed, or in which the process died."""
    failed = re.search(r"^failures:\n    (\S+)$", output, re.MULTILINE)
    started = re.findall(r"^test (\S+) \.\.\.", output, re.MULTILINE)
    return failed[1] if failed else started[-1] if started else ""


def judge(mutant: Mutant, binary: pathlib.Path, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Runs the tests of a mutant in each schedule until one notices it."""
    result: dict[str, Any] = {"name": mutant.name, "kind": mutant.kind, "file": mutant.file, "outcome": "survived"}
    start = time.monotonic()
    for schedule in SCHEDULES:
        status, output = run(binary, mutant.tests, {**environment, **schedule}, seconds)
        if status == 0:
            continue
        result |= {"outcome": "caught", "test": failed_test(output), "schedule": schedule}
        result["checks"] = [check for check, message in CHECKS.items() if message in output]
        if status is None:
            result["outcome"] = "hung"
        elif "does not compile" in output:
            result |= {"outcome": "not built", "output": output}
        elif mutant.check and mutant.check not in result["checks"]:
            result |= {"outcome": "caught otherwise", "output": output}
        break
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def judge_kernel(mutant: Mutant, source: str, binary: bytes, seconds: float) -> dict[str, Any]:
    """Runs the tests of a mutant of a kernel, in a binary of its own."""
    path = FOLDER / "binaries" / mutant.name
    path.write_bytes(plant_in_binary(mutant, source, binary))
    path.chmod(0o755)
    try:
        return judge(mutant, path, {}, seconds)
    finally:
        path.unlink()


def judge_all(
    judge_one: Callable[[Mutant], dict[str, Any]], mutants: Sequence[Mutant], jobs: int
) -> list[dict[str, Any]]:
    """Judges mutants, some at a time, and prints each result when it is there."""
    results = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        for job in concurrent.futures.as_completed([executor.submit(judge_one, mutant) for mutant in mutants]):
            result = job.result()
            results.append(result)
            where = ", ".join([result.get("test", ""), *result.get("checks", [])])
            print(f"{result['outcome']:>16}  {result['seconds']:6.1f} s  {result['name']}: {where}", flush=True)
    return results


def expect_passing(binary: pathlib.Path, mutants: Sequence[Mutant]) -> None:
    """Ends the run unless the tests of mutants pass without them, in every schedule."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with concurrent.futures.ThreadPoolExecutor(len(SCHEDULES)) as executor:
        runs = list(executor.map(lambda schedule: run(binary, tests, schedule, 900), SCHEDULES))
    for status, output in runs:
        if status != 0:
            sys.exit(f"{output}\nmutants: the tests do not pass without a mutant")
        listed = re.findall(r"^test (\S+) \.\.\.", output, re.MULTILINE)
        for test in tests:
            if not any(test in name for name in listed):
                sys.exit(f"mutants: no test has '{test}' in its name")


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutants to run, by parts of their names; all without any")
    parser.add_argument("--representatives", action="store_true", help="the few that `make test-cuda-slow` runs")
    parser.add_argument("--only", choices=("kernels", "host"), help="those of the kernels, or those of the host code")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants that run at a time")
    parser.add_argument("--seconds", type=float, default=120, help="time for the tests of one mutant in one schedule")
    options = parser.parse_args()

    def is_chosen(mutant: Mutant) -> bool:
        if options.representatives:
            return mutant.name in REPRESENTATIVES
        return not options.names or any(name in mutant.name for name in options.names)

    kernels = [mutant for mutant in KERNEL_MUTANTS if is_chosen(mutant) and options.only != "host"]
    host = [mutant for mutant in HOST_MUTANTS if is_chosen(mutant) and options.only != "kernels"]
    (FOLDER / "binaries").mkdir(parents=True, exist_ok=True)
    link_cache()

    results: list[dict[str, Any]] = []
    if kernels:
        # As they are built, whatever becomes of them meanwhile.
        sources = {mutant.file: (ROOT / mutant.file).read_text() for mutant in kernels}
        path = build(ROOT / "Cargo.toml", "--features=cli")
        expect_passing(path, kernels)
        binary = path.read_bytes()
        results += judge_all(
            lambda mutant: judge_kernel(mutant, sources[mutant.file], binary, options.seconds), kernels, options.jobs
        )
    if host:
        path = build(plant_in_tree(HOST_MUTANTS), f"--target-dir={FOLDER / 'target'}")
        expect_passing(path, host)
        results += judge_all(
            lambda mutant: judge(mutant, path, {"MUTANT": mutant.name}, options.seconds), host, options.jobs
        )

    (FOLDER / "report.json").write_text(json.dumps(sorted(results, key=lambda result: result["name"]), indent=1))
    counts = {outcome: sum(result["outcome"] == outcome for result in results) for outcome in OUTCOMES}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return int(counts["caught"] + counts["hung"] < len(results))


if __name__ == "__main__":
    sys.exit(main())
