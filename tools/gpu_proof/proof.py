"""Runs every part of the proof that README.md beside this file lists, and writes what came of it: proof.py OUT."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = Path(os.environ.get("EXLORA_FIXTURES", HERE / "fixtures"))
IS_TINY = os.environ.get("PROOF_SHAPE") == "tiny"
SECONDS = float(os.environ.get("PROOF_SECONDS", "480"))
TESTS = re.compile(os.environ.get("PROOF_TESTS", ""))
PARTS = os.environ.get("PROOF_PARTS")

BIT_EQUALITY = re.compile("same_bits|change_no_bits|bit_for_bit")
SKIPPED = [
    (re.compile("^compile_gate::"), "needs no card"),
    (re.compile("^launches::|^bytes::"), "counts launches and bytes as only the emulated driver does"),
    (
        re.compile("^memory::.*(allocat|does_not_fit|finds_no_memory|launch_that_fails)"),
        "is of memory as only the emulated driver has it",
    ),
    (re.compile("^golden_vectors::"), "is a part of its own"),
]
# What a test reads beside the models and adapters that are always here.
MODELS = [
    (re.compile("a_dense_model|cached_prefixes"), "quill-4m"),
    (re.compile("an_8_bit_gptq_model"), "quill-4m-gptq-8bit-g128-sym"),
    (re.compile("asymmetric_gptq_model"), "quill-4m-gptq-4bit-g32-asym-actorder"),
    (re.compile("an_exl2_model"), "quill-4m-exl2-mixed"),
]


class Failed(Exception):
    """A part did not pass, for this reason."""


@dataclass
class Part:
    """What came of a part."""

    name: str
    status: str = "passed"
    seconds: float = 0.0
    detail: str = ""
    results: list[dict[str, object]] = field(default_factory=list)


class Proof:
    """Folders, environment and time that the parts share."""

    def __init__(self, out: Path):
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="exlora-proof-"))
        self.log = (out / "log.txt").open("w")
        self.start = time.monotonic()
        self.tests = self.work / "cuda_tests"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.work / "site"),
            "EXLORA_FIXTURES": str(FIXTURES),
            "EXLORA_CACHE": os.environ.get("EXLORA_CACHE", str(self.work / "cache")),
        }
        self.parts: list[Part] = []

    def left(self) -> float:
        """Seconds left for all parts."""
        return self.start + SECONDS - time.monotonic()

    def run(self, command: list[str], limit: float) -> tuple[int | None, str, str]:
        """Status (None if it took too long), stdout and stderr of a command, which are logged."""
        limit = max(min(limit, self.left()), 1.0)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self.environment,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=limit)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            status = None
        self.log.write(f"$ {' '.join(command)}\n{stdout}{stderr}[{'timed out' if status is None else status}]\n\n")
        self.log.flush()
        return status, stdout, stderr

    def exlora(self, arguments: list[str], limit: float) -> dict[str, object]:
        """The JSON that a run of the command prints, whether it succeeds or not."""
        status, stdout, stderr = self.run([sys.executable, "-m", "exlora", "--json", *arguments], limit)
        if status is None:
            raise Failed(f"exlora {arguments[0]} took longer than {limit:.0f} s")
        try:
            answer = json.loads(stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise Failed(f"exlora {arguments[0]} ended with {status}: {last_line(stderr)}") from None
        if "error" in answer:
            raise Failed(f"exlora {arguments[0]}: {last_line(stderr)}")
        return answer

    def part(self, name: str, work: Callable[[Part], None]) -> None:
        """Runs a part, whatever becomes of it."""
        part = Part(name)
        start = time.monotonic()
        if self.left() < 5:
            part.status, part.detail = "skipped", "no time is left"
        else:
            try:
                work(part)
            except Failed as error:
                part.status, part.detail = "failed", str(error)
            except Exception as error:
                part.status, part.detail = "failed", f"{type(error).__name__}: {error}"
        part.seconds = round(time.monotonic() - start, 1)
        self.parts.append(part)
        print(f"{part.status:<8} {part.name:<15} {part.seconds:6.1f} s  {part.detail}")
        parts = [asdict(part) for part in self.parts]
        (self.out / "results.json").write_text(json.dumps({"shape": shape(), "parts": parts}, indent=1) + "\n")

    def table(self, name: str, rows: Iterable[dict[str, object]]) -> None:
        """Writes rows that have the same columns."""
        rows = list(rows)
        if rows:
            with (self.out / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)

    def close(self) -> bool:
        """Whether all parts passed."""
        self.log.close()
        shutil.rmtree(self.work, ignore_errors=True)
        return all(part.status != "failed" for part in self.parts)


def shape() -> str:
    """The shape of the model that is measured."""
    return "tiny" if IS_TINY else "8b"


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing on stderr")[:300]


def panic_of(text: str) -> str:
    """The message of the first panic in a test's output."""
    panic = re.search(r"panicked at [^\n]*\n([^\n]*)", text)
    return panic.group(1)[:300] if panic else ""


def environment(proof: Proof, part: Part) -> None:
    """Unpacks wheel and tests; tells driver, card and compiler."""
    zipfile.ZipFile(HERE / "cuda_tests.zip").extract(proof.tests.name, proof.work)
    proof.tests.chmod(0o755)
    [wheel] = HERE.glob("*.whl")
    site = proof.work / "site"
    status, _, _ = proof.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), str(wheel)], 60
    )
    if status != 0:
        zipfile.ZipFile(wheel).extractall(site)
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,memory.total,clocks.max.memory,clocks.max.sm,clocks.sm,power.limit"
        proof.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv"], 20)
    report = proof.exlora(["doctor"], 60)
    part.results = [report]
    cuda = report["cuda"]
    if cuda["missing"]:
        raise Failed(cuda["missing"])
    # The test binary knows no Python that could tell where NVRTC is.
    proof.environment["EXLORA_NVRTC"] = cuda["nvrtc"]["library"]
    card = cuda["cards"][0]
    part.detail = f"{card['name']}, driver for CUDA {cuda['driver']}, NVRTC {cuda['nvrtc']['version']}"


def kernels(proof: Proof, part: Part) -> None:
    """Every family of kernels against the reference."""
    checks = proof.exlora(["doctor", "--device", "cuda"], 120)["kernels"]
    part.results = checks
    proof.table("kernels.csv", checks)
    failed = [check for check in checks if not check["passed"]]
    worst = max((check["error"] / check["tolerance"] for check in checks if check["error"] is not None), default=0)
    part.detail = f"{len(checks) - len(failed)} of {len(checks)} passed, the worst has {worst:.2f} of what is allowed"
    if failed:
        raise Failed(f"{part.detail}; failed: {', '.join(check['kernel'] for check in failed)}")


def golden_vectors(proof: Proof, part: Part) -> None:
    """The kernels' results against recorded ones."""
    name = "golden_vectors::results_are_those_that_were_recorded"
    status, _, stderr = proof.run([str(proof.tests), "--exact", name, "--nocapture"], 90)
    lines = [line for line in stderr.splitlines() if line.startswith("golden vector")]
    part.results = [{"line": line} for line in lines]
    part.detail = lines[-1] if lines else panic_of(stderr) or last_line(stderr)
    deviations = [float(match) for match in re.findall(r"deviates by (\S+)", stderr)]
    if deviations:
        part.detail += f", the largest deviation is {max(deviations):.1e}"
    if status != 0:
        raise Failed(part.detail)


def test_names(proof: Proof) -> list[str]:
    """The tests of the binary that PROOF_TESTS selects."""
    status, stdout, stderr = proof.run([str(proof.tests), "--list", "--format", "terse"], 30)
    if status != 0:
        raise Failed(last_line(stderr))
    names = [line.removesuffix(": test") for line in stdout.splitlines() if line.endswith(": test")]
    _, ignored, _ = proof.run([str(proof.tests), "--list", "--format", "terse", "--ignored"], 30)
    slow = set(ignored.splitlines())
    return [name for name in names if f"{name}: test" not in slow and TESTS.search(name)]


def why_skipped(name: str) -> str | None:
    """Why a test is not run here, if it is not."""
    for pattern, reason in SKIPPED:
        if pattern.search(name):
            return reason
    for pattern, model in MODELS:
        if pattern.search(name) and not (FIXTURES / model).is_dir():
            return f"the folder does not carry {model}"
    return None


def run_tests(proof: Proof, part: Part, names: list[str], limit: float) -> None:
    """Runs tests, each in a process of its own: an error of a kernel ends the use of the card by its process."""
    deadline = time.monotonic() + min(limit, proof.left())

    def one(name: str) -> dict[str, object]:
        reason = why_skipped(name)
        if reason is not None:
            return {"test": name, "status": "skipped", "seconds": 0.0, "detail": reason}
        left = deadline - time.monotonic()
        if left < 1:
            return {"test": name, "status": "skipped", "seconds": 0.0, "detail": "no time is left"}
        start = time.monotonic()
        status, stdout, _ = proof.run([str(proof.tests), "--exact", name], min(60, left))
        verdict = {0: "passed", None: "timed out"}.get(status, "failed")
        detail = panic_of(stdout) if status != 0 else ""
        return {"test": name, "status": verdict, "seconds": round(time.monotonic() - start, 2), "detail": detail}

    # Tests of the driver look at the card's free memory, which others would change meanwhile.
    alone = [name for name in names if name.startswith("driver::")]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        part.results = list(pool.map(one, [name for name in names if name not in alone]))
    part.results += [one(name) for name in alone]
    counts = {
        verdict: [row["test"] for row in part.results if row["status"] == verdict]
        for verdict in ("passed", "failed", "timed out", "skipped")
    }
    part.detail = ", ".join(f"{len(tests)} {verdict}" for verdict, tests in counts.items() if tests)
    if counts["failed"] or counts["timed out"]:
        raise Failed(f"{part.detail}: {', '.join(counts['failed'] + counts['timed out'])}")
    if not counts["passed"]:
        raise Failed(f"no test was run: {part.detail or 'none has such a name'}")


def bit_equality(proof: Proof, part: Part) -> None:
    """Tests of batch invariance."""
    run_tests(proof, part, [name for name in test_names(proof) if BIT_EQUALITY.search(name)], 90)


def tests(proof: Proof, part: Part) -> None:
    """The other tests."""
    run_tests(proof, part, [name for name in test_names(proof) if not BIT_EQUALITY.search(name)], 150)


def bench(proof: Proof, part: Part) -> None:
    """Ceilings, then load, prefill and decode, most telling combinations first."""
    memory = Path("/dev/shm")
    is_roomy = memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30
    folder = Path(tempfile.mkdtemp(prefix="exlora-proof-", dir=memory if is_roomy else proof.work))
    try:
        command = [sys.executable, str(HERE / "make_model.py"), str(folder / "made"), "--shape", shape()]
        if proof.run(command, 90)[0] != 0:
            raise Failed("the model could not be made")
        combinations = [(1, 1), (2, 2)] if IS_TINY else [(1, 1), (8, 8), (32, 32), (8, 1), (32, 8), (32, 1)]
        failures = []
        for batch, adapters in combinations:
            try:
                measured = measure(proof, folder / "made", batch, adapters, is_first=not part.results)
                part.results.append(measured)
            except Failed as error:
                failures.append(f"{batch} rows, {adapters} adapters: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    proof.table("bench.csv", bench_rows(part.results))
    part.detail = f"{len(part.results)} of {len(combinations)} combinations measured"
    for row in bench_rows(part.results):
        print("         " + "  ".join(f"{name} {value}" for name, value in row.items()))
    if failures:
        raise Failed(f"{part.detail}; {'; '.join(failures)}")


def measure(proof: Proof, made: Path, batch: int, adapters: int, is_first: bool) -> dict[str, object]:
    """A combination of rows and adapters; the first one also measures ceilings and a long prompt."""
    prompt = (16 if IS_TINY else 2048) if is_first else (4 if IS_TINY else 128)
    decode, rounds = (4, 1) if IS_TINY else (32, 3)
    arguments = ["bench", "--model", str(made / "model"), "--device", "cuda", "--adapter", f"a={made / 'adapter'}"]
    arguments += ["--batch", str(batch), "--distinct-adapters", str(adapters), "--prompt", str(prompt)]
    arguments += ["--decode", str(decode), "--rounds", str(rounds)]
    if is_first:
        arguments.append(f"--ceilings={'64KiB' if IS_TINY else '1GiB'}")
    return proof.exlora(arguments, 90)


def bench_rows(measured: list[dict[str, object]]) -> list[dict[str, object]]:
    """A row for each combination, with and without adapters, and how near decoding is to the read bandwidth."""
    ceilings = next((one["ceilings"] for one in measured if "ceilings" in one), None)
    rows = []
    for one in measured:
        for variant, adapters in (("base", 0), ("lora", one["distinct_adapters"])):
            speed = one[variant]
            read_mib = one["weights_mib"] - embedding_mib() + (one["adapters_mib"] if adapters else 0)
            read_gb_s = read_mib * (1 << 20) / 1e9 * speed["decode_tps"] / one["batch"]
            rows.append(
                {
                    "rows": one["batch"],
                    "adapters": adapters,
                    "load_s": one["load_s"],
                    "prompt": one["prompt"],
                    "prefill_tps": speed["prefill_tps"],
                    "decode_tps": speed["decode_tps"],
                    "decode_tps_min": speed["decode_tps_min"],
                    "decode_tps_max": speed["decode_tps_max"],
                    "weights_read_gb_s": round(read_gb_s, 1),
                    "share_of_read_ceiling": round(read_gb_s / ceilings["read_gb_s"], 3) if ceilings else "",
                    "read_ceiling_gb_s": round(ceilings["read_gb_s"], 1) if ceilings else "",
                    "launch_us": round(ceilings["launch_us"], 2) if ceilings else "",
                }
            )
    return rows


def embedding_mib() -> float:
    """The embedding, of which a step reads a row for each token."""
    from make_model import SHAPES

    hidden, *_, vocab = SHAPES[shape()]
    return 2 * hidden * vocab / (1 << 20)


def sanitizer(proof: Proof, part: Part) -> None:
    """compute-sanitizer over the kernels' checks."""
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(f"{place}/bin" for place in places if place)
    )
    if found is None:
        part.status, part.detail = "skipped", "compute-sanitizer is not installed"
        return
    for tool in ("memcheck", "racecheck"):
        # Calls that may fail, such as asking for a parameter beyond the last one, are not errors of kernels.
        command = [found, "--tool", tool, "--error-exitcode", "17", "--target-processes", "all"]
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        status, stdout, _ = proof.run([*command, sys.executable, "-m", "exlora", "doctor", "--device", "cuda"], 60)
        verdict = {0: "passed", None: "timed out", 17: "found errors"}.get(status, f"ended with {status}")
        summary = next((line for line in reversed(stdout.splitlines()) if "SUMMARY" in line), "")
        part.results.append({"tool": tool, "status": verdict, "summary": summary})
    part.detail = ", ".join(f"{row['tool']} {row['status']}" for row in part.results)
    if any(row["status"] == "found errors" for row in part.results):
        raise Failed(part.detail)
    if any(row["status"] != "passed" for row in part.results):
        part.status = "skipped"


def main() -> int:
    """Runs the parts, most valuable first."""
    proof = Proof(Path(sys.argv[1]))
    proof.part("environment", lambda part: environment(proof, part))
    for name, work in (
        ("kernels", kernels),
        ("golden vectors", golden_vectors),
        ("bit equality", bit_equality),
        ("bench", bench),
        ("tests", tests),
        ("sanitizer", sanitizer),
    ):
        if PARTS is None or name in PARTS.split(","):
            proof.part(name, lambda part, work=work: work(proof, part))
    run = [part for part in proof.parts if part.name in ("bit equality", "tests")]
    proof.table("tests.csv", [{"part": part.name, **row} for part in run for row in part.results])
    return 0 if proof.close() else 1


if __name__ == "__main__":
    sys.exit(main())
