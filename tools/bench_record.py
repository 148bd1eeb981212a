"""Measures tokens per second against the number of distinct adapters in the batch: benches/record/<cpu>/<date>.csv.

`python tools/bench_record.py` runs the release build of `exlora bench` on a random model of TinyLlama-1.1B's shape,
which `benches/compare/make_random_llama.py` writes the first time (that needs torch). Every run is a fresh process, and
the runs of all settings alternate, so that a slow spell of the machine affects all of them. No run starts after
--minutes.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benches" / "record"

COLUMNS = [
    "commit",
    "date",
    "cpu",
    "threads",
    "model",
    "format",
    "scenario",
    "batch",
    "distinct_adapters",
    "rank",
    "context",
    "tokens_per_second_median",
    "tokens_per_second_min",
    "tokens_per_second_max",
    "rounds",
    "loadavg",
]

# One JSON object of `exlora bench --json`.
Measurement = dict[str, Any]


def output_of(*command: object) -> str:
    """What a command prints; its own messages go to the terminal."""
    words = [str(word) for word in command]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def counts(text: str) -> list[int]:
    """Parses `1,2,4`."""
    return [int(part) for part in text.split(",")]


def cpu_name(exlora: object) -> str:
    """The processor's name, from `exlora doctor`."""
    doctor = json.loads(output_of(exlora, "doctor", "--json"))
    return doctor["cpu"]["name"] or doctor["platform"]


def slug(cpu: str) -> str:
    """A processor's name as a folder name: `AMD EPYC 9R14` is `amd-epyc-9r14`."""
    return re.sub("[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)| cpu|@.*", "", cpu.lower())).strip("-")


def format_name(report: dict[str, Any]) -> str:
    """The weight format of an `exlora inspect` report: `gptq-4bit-g128`, `exl2-4.2bpw`, `float16`."""
    match report["quantization"]:
        case None:
            return "+".join(report["dtypes"])
        case {"method": "gptq", "bits": bits, "group_size": size}:
            return f"gptq-{bits}bit-" + ("column" if size is None else f"g{size}")
        case {"method": method}:
            return f"{method}-{report['bits_per_weight']:.1f}bpw"
    raise ValueError(report["quantization"])


def rows(runs: list[Measurement], common: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per scenario, batch and number of adapters; each statistic is over the runs' own medians.

    Every run measures the base too, interleaved with its adapters, so the rows of 0 adapters pool all runs of a batch.
    """
    speeds: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    settings: dict[tuple[str, int, int], dict[str, Any]] = {}
    for run in runs:
        for variant, adapters in (("base", 0), ("lora", run["distinct_adapters"])):
            if variant not in run:
                continue
            for scenario in ("prefill", "decode"):
                key = scenario, run["batch"], adapters
                speeds[key].append(run[variant][f"{scenario}_tps"])
                # A prompt is computed from an empty cache.
                context = run["context"] if scenario == "decode" else 0
                settings[key] = {"rank": run["max_rank"] if adapters else 0, "context": context}
    table = []
    for key in sorted(speeds):
        scenario, batch, adapters = key
        values = speeds[key]
        table.append(
            {
                **common,
                "scenario": scenario,
                "batch": batch,
                "distinct_adapters": adapters,
                **settings[key],
                "tokens_per_second_median": round(statistics.median(values), 2),
                "tokens_per_second_min": min(values),
                "tokens_per_second_max": max(values),
                "rounds": len(values),
            }
        )
    return table


def write(path: pathlib.Path, table: list[dict[str, Any]]) -> None:
    """Writes a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a record."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest() -> pathlib.Path:
    """The record with the latest date."""
    records = sorted(RECORDS.glob("*/*.csv"), key=lambda path: path.stem)
    if not records:
        sys.exit("there is no record yet: run `make bench-record`")
    return records[-1]


def summary(table: list[dict[str, str]]) -> str:
    """The medians of a record as a markdown table, a column per number of adapters, and what was measured where."""
    numbers = sorted({int(row["distinct_adapters"]) for row in table})
    medians: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for row in table:
        median = f"{float(row['tokens_per_second_median']):.0f}"
        medians[row["scenario"], int(row["batch"])][int(row["distinct_adapters"])] = median
    heads = ["base" if n == 0 else "1 adapter" if n == 1 else f"{n} adapters" for n in numbers]
    lines = ["| tokens per second | " + " | ".join(heads) + " |", "| --- " * (len(numbers) + 1) + "|"]
    for (scenario, batch), by_number in sorted(medians.items()):
        lines.append(f"| {scenario}, batch of {batch} | " + " | ".join(by_number.get(n, "") for n in numbers) + " |")
    first, last = table[0], table[-1]
    what = (
        f"Medians of interleaved rounds ({last['rounds']} per number of adapters): {last['model']}, {last['format']}, "
        f"rank {last['rank']}, decode after {first['context']} tokens; {last['cpu']}, {last['threads']} threads, "
        f"{last['date']}, commit {last['commit']}, load average {float(last['loadavg']):.1f} at the start."
    )
    return "\n".join([*lines, "", what])


def random_model(shape: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of a random model and of a rank-16 adapter for it, made the first time."""
    folder = ROOT / "target" / "bench-models" / shape
    model, adapter = folder / "gptq-4bit-g128", folder / "lora-r16"
    if not (adapter / "adapter_config.json").exists():
        script = ROOT / "benches" / "compare" / "make_random_llama.py"
        output_of(sys.executable, script, folder, "--shape", shape, "--sym", "--no-gguf")
    return model, adapter


def commit() -> str:
    """The commit that is measured; `+` marks changes that are not committed."""
    changes = output_of("git", "status", "--porcelain", "--untracked-files=no").strip()
    return output_of("git", "rev-parse", "--short=10", "HEAD").strip() + ("+" if changes else "")


def measure(options: argparse.Namespace, model: pathlib.Path, adapter: pathlib.Path) -> list[Measurement]:
    """All runs, round by round; the first round is always complete."""
    settings = [(batch, n) for batch in options.batch for n in options.distinct_adapters if n <= batch]
    deadline = time.monotonic() + 60 * options.minutes
    runs = []
    for turn in range(options.rounds):
        for batch, adapters in settings:
            if turn > 0 and time.monotonic() > deadline:
                return runs
            command = [options.exlora, "bench", "--model", model, "--adapter", f"a={adapter}", "--rounds", 1, "--json"]
            command += ["--batch", batch, "--distinct-adapters", adapters]
            command += ["--prompt", options.prompt, "--decode", options.decode]
            if options.context is not None:
                command += ["--context", options.context]
            if options.threads is not None:
                command += ["--threads", options.threads]
            run = json.loads(output_of(*command).splitlines()[-1])
            base, lora = (run[variant]["decode_tps"] for variant in ("base", "lora"))
            print(f"round {turn + 1}: batch {batch}, {adapters} adapters: {lora} tokens/s, base {base}")
            runs.append(run)
    return runs


def main() -> None:
    """Measures, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exlora", type=pathlib.Path, default=ROOT / "target" / "release" / "exlora")
    parser.add_argument("--shape", default="1.1b", help="shape of the random model: tiny, 0.4b or 1.1b")
    parser.add_argument("--model", type=pathlib.Path, help="measure this model, not a random one")
    parser.add_argument("--adapter", type=pathlib.Path, help="an adapter of --model, loaded under several names")
    parser.add_argument("--batch", type=counts, default=[8, 16])
    parser.add_argument("--distinct-adapters", type=counts, default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--context", type=int, help="tokens in the cache before decoding; the prompt by default")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--threads", type=int, help="one per physical core by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.5, help="start no further run after this time")
    parser.add_argument("--out", type=pathlib.Path, default=RECORDS, help="folder of the records")
    options = parser.parse_args()
    if (options.model is None) != (options.adapter is None):
        parser.error("--model and --adapter go together")

    name, model, adapter = f"random-llama-{options.shape}", options.model, options.adapter
    if model is None:
        model, adapter = random_model(options.shape)
    else:
        name = model.resolve().name
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}); the record will say so", file=sys.stderr)
    cpu = cpu_name(options.exlora)
    report = json.loads(output_of(options.exlora, "inspect", model, "--json"))
    runs = measure(options, model, adapter)

    threads = re.search(r"(\d+) threads?", runs[0]["device"])
    common = {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "threads": threads[1] if threads else "",
        "model": name,
        "format": format_name(report),
        "loadavg": load,
    }
    path = options.out / slug(cpu) / f"{common['date']}.csv"
    write(path, rows(runs, common))
    print(path)


if __name__ == "__main__":
    main()
