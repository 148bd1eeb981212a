#!/usr/bin/env python3
"""Runs the benchmarks of all engines interleaved, for several rounds, and prints medians as a markdown table.

  interleave.py COMMANDS.txt [--model DIR] [--rounds 5] [--rest 1] [--log runs.jsonl] [--first]

COMMANDS.txt has one `label: command` per line (blank lines and # lines are skipped); {python}, {lib} and {model}
stand for this interpreter, this folder and --model. Each command prints one JSON line (timing.py says what is in it).
Every run is a fresh process, in a scheduler autogroup of its own; --first gives that group the highest weight, for a
machine that other work shares (needs root). Runs of all labels alternate, so that a slow spell of the machine affects
all of them.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ["base.prefill_tps", "base.decode_tps", "lora.prefill_tps", "lora.decode_tps", "load_s", "peak_rss_mib"]


def at(run, path):
    for key in path.split("."):
        run = run.get(key) if isinstance(run, dict) else None
    return run


def alone(first):
    os.setsid()
    if first:
        Path("/proc/self/autogroup").write_text("-20")


def table(runs):
    print("| what | " + " | ".join(COLUMNS) + " | lora/base decode | n |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for label, rows in runs.items():
        cells = []
        for column in COLUMNS:
            values = [v for v in (at(r, column) for r in rows) if v is not None]
            cells.append(f"{statistics.median(values):.4g} ({min(values):.3g}..{max(values):.3g})" if values else "")
        pairs = [at(r, "lora.decode_tps") / at(r, "base.decode_tps") for r in rows if at(r, "lora.decode_tps")]
        cells.append(f"{statistics.median(pairs):.2f}" if pairs else "")
        print(f"| {label} | " + " | ".join(cells) + f" | {len(rows)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", type=Path)
    parser.add_argument("--model", default="", help="what make_random_llama.py wrote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between runs")
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    lines = [
        line.strip() for line in options.commands.read_text().splitlines() if line.strip() and not line.startswith("#")
    ]
    todo = {label.strip(): command.strip() for label, command in (line.split(": ", 1) for line in lines)}
    runs = {label: [] for label in todo}
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    for r in range(options.rounds):
        for label, command in todo.items():
            words = shlex.split(command.format(python=sys.executable, lib=Path(__file__).parent, model=options.model))
            done = subprocess.run(
                words,
                env=env,
                capture_output=True,
                text=True,
                preexec_fn=lambda: alone(options.first),
            )
            try:
                run = json.loads(done.stdout.strip().splitlines()[-1])
            except (ValueError, IndexError):
                print(f"{label}: no answer, exit {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
                continue
            runs[label].append(run)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps({"label": label, "round": r, **run}) + "\n")
            time.sleep(options.rest)
    table(runs)


if __name__ == "__main__":
    main()
