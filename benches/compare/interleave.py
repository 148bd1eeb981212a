#!/usr/bin/env python3
"""Runs the benchmarks of all engines interleaved, and prints medians as markdown tables.

  interleave.py --model DIR [--peers DIR] [--rounds 5] [--only exlora,llama.cpp] [--record] [--log runs.jsonl]
                [--first]

`peers.toml` says which engines and workloads there are. Every run is a fresh process in a scheduler autogroup of its
own; --first gives that group the highest weight, for a machine that other work shares (needs root). Rounds of all
workloads and engines alternate, so that a slow spell of the machine affects all of them, and ratios are taken within a
round. An engine that is not installed is left out, and said so. --record writes the medians to
benches/record/<cpu>/peers/<date>.csv.
"""

import argparse
import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools"))

import bench_record  # noqa: E402

# What is compared, and where the JSON line has it.
COLUMNS = {
    "prefill": ("base", "prefill_tps"),
    "decode": ("base", "decode_tps"),
    "prefill, adapters": ("lora", "prefill_tps"),
    "decode, adapters": ("lora", "decode_tps"),
    "load, s": ("load_s",),
    "peak memory, MiB": ("peak_rss_mib",),
}
REFERENCE = "exlora"

# One JSON line of a benchmark, by round; of one engine in one workload.
Runs = dict[int, dict]


def value(run: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        run = run.get(key) if isinstance(run, dict) else None
    return run


def alone(first: bool) -> None:
    os.setsid()
    if first:
        Path("/proc/self/autogroup").write_text("-20")


def run_once(command: list[str], first: bool, limit_s: float) -> dict | None:
    """The JSON line that a command prints last; `None` with a message on stderr if there is none."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            preexec_fn=lambda: alone(first),
        )
    except subprocess.TimeoutExpired:
        print(f"{command[:3]}: no answer in {limit_s:.0f} s", file=sys.stderr)
        return None
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        print(f"{command[:3]}: no answer, exit {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.3g} to {max(values):.3g})" if values else ""


def ratios(runs: Runs, reference: Runs, path: tuple[str, ...]) -> list[float]:
    """The reference over the engine, round by round."""
    pairs = [(value(reference[r], path), value(runs[r], path)) for r in runs if r in reference]
    return [ours / theirs for ours, theirs in pairs if ours and theirs]


def table(name: str, engines: dict[str, Runs]) -> str:
    """A workload's medians and ranges, with exlora's ratio to each engine."""
    lines = [f"### {name}", "", "| | " + " | ".join(COLUMNS) + " | rounds |", "| --- " * (len(COLUMNS) + 2) + "|"]
    reference = engines.get(REFERENCE, {})
    for engine, runs in engines.items():
        cells = []
        for column, path in COLUMNS.items():
            cell = spread([v for v in (value(run, path) for run in runs.values()) if v is not None])
            compared = ratios(runs, reference, path) if engine != REFERENCE and column in list(COLUMNS)[:4] else []
            cells.append(cell + (f"; {statistics.median(compared):.2f} times" if compared else ""))
        lines.append(f"| {engine} | " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines) + "\n"


def records(results: dict[str, dict[str, Runs]]) -> list[dict[str, object]]:
    """One row per workload, engine and column."""
    rows = []
    for workload, engines in results.items():
        for engine, runs in engines.items():
            for column, path in COLUMNS.items():
                values = [v for v in (value(run, path) for run in runs.values()) if v is not None]
                if values:
                    middle = round(statistics.median(values), 3)
                    rows.append(
                        {
                            "workload": workload,
                            "engine": engine,
                            "what": column,
                            "median": middle,
                            "min": round(min(values), 3),
                            "max": round(max(values), 3),
                            "rounds": len(values),
                        }
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="what make_random_llama.py wrote")
    parser.add_argument("--peers", type=Path, default=Path("target/peers"), help="what install_peers.sh made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between runs")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one run may take")
    parser.add_argument("--only", default="", help="beginnings of the names of engines, by comma")
    parser.add_argument("--workloads", default="", help="beginnings of the names of workloads, by comma")
    parser.add_argument("--record", action="store_true", help="write the medians to benches/record")
    parser.add_argument("--log", type=Path, help="append every run here, a JSON line each")
    parser.add_argument("--first", action="store_true")
    chosen = parser.parse_args()
    plan = tomllib.loads((HERE / "peers.toml").read_text(encoding="utf-8"))
    folders = {"model": chosen.model.resolve(), "peers": chosen.peers.resolve(), "here": HERE}
    engines = {name: shlex.split(command.format(**folders)) for name, command in plan["engines"].items()}
    engines = {name: words for name, words in engines.items() if name.startswith(tuple(chosen.only.split(",")))}
    for name in [name for name, words in engines.items() if words[0].startswith("/") and not Path(words[0]).exists()]:
        print(f"{name} is not installed: left out", file=sys.stderr)
        del engines[name]
    workloads = [w for w in plan["workloads"] if w["name"].startswith(tuple(chosen.workloads.split(",")))]
    load = round(os.getloadavg()[0], 1)
    results: dict[str, dict[str, Runs]] = {w["name"]: defaultdict(dict) for w in workloads}
    for turn in range(chosen.rounds):
        for workload in workloads:
            for name, command in engines.items():
                if name in workload.get("without", []):
                    continue
                run = run_once([*command, *shlex.split(workload["options"])], chosen.first, chosen.limit)
                if run is None:
                    continue
                results[workload["name"]][name][turn] = run
                if chosen.log:
                    with chosen.log.open("a", encoding="utf-8") as log:
                        log.write(
                            json.dumps({"workload": workload["name"], "label": name, "round": turn, **run}) + "\n"
                        )
                time.sleep(chosen.rest)
    for name, by_engine in results.items():
        print(table(name, by_engine))
    rows = records(results)
    if chosen.record and rows:
        cpu, date, commit = bench_record.cpu_name("exlora"), datetime.date.today().isoformat(), bench_record.commit()
        path = bench_record.RECORDS / bench_record.slug(cpu) / "peers" / f"{date}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        common = {"commit": commit, "date": date, "cpu": cpu, "loadavg": load}
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*common, *rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**common, **row} for row in rows)
        print(path)


if __name__ == "__main__":
    main()
