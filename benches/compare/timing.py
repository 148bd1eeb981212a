"""What the benchmarks of other engines share: their options, the timed part, and the JSON line that each prints.

The options and the line are those of `exlora bench --json`: batch, distinct_adapters, prompt, decode, threads, load_s,
lora_load_s, file_mib, peak_rss_mib, loadavg, and for each variant (base, lora) prefill_tps and decode_tps, which count
the tokens of all sequences together. Decode continues after the prompts.
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

# Which adapter each sequence of the batch uses, by its number; `None` is the base.
Assignment = list[int | None]
# Computes prompts of a length for all sequences, then some decode steps: seconds of all prompts, seconds of one step.
Run = Callable[[Assignment, int, int], tuple[float, float]]


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; each adds those of its engine."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path, help="measure a second time with this adapter, alternating")
    parser.add_argument("--distinct-adapters", type=int, default=1, help="load it so often, for the sequences in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="sequences decoded together")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens that each sequence decodes in a round")
    parser.add_argument("--rounds", type=int, default=1)
    return parser


def random_tokens(count: int, vocab: int, draw: random.Random) -> list[int]:
    """Ids of no special token."""
    return [draw.randrange(3, vocab) for _ in range(count)]


def measured(run: Run, chosen: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of the rounds; base and adapters alternate, so that a slow spell of the machine affects both."""
    variants: dict[str, Assignment] = {"base": [None] * chosen.batch}
    if chosen.adapter:
        variants["lora"] = [i % chosen.distinct_adapters for i in range(chosen.batch)]
    for assignment in variants.values():  # touches every page and builds every graph
        run(assignment, 16, 3)
    speeds = {name: {"prefill_tps": [], "decode_tps": []} for name in variants}
    for _ in range(chosen.rounds):
        for name, assignment in variants.items():
            prompts, step = run(assignment, chosen.prompt, chosen.decode)
            speeds[name]["prefill_tps"].append(chosen.batch * chosen.prompt / prompts)
            speeds[name]["decode_tps"].append(chosen.batch / step)
    return {name: {key: statistics.median(values) for key, values in by.items()} for name, by in speeds.items()}


def report(
    engine: str, chosen: argparse.Namespace, load_s: float, lora_load_s: float | None, speeds: dict[str, dict]
) -> None:
    """Prints the line and leaves at once: some engines crash or hang when Python takes them down."""
    files = [chosen.model] if chosen.model.is_file() else [f for f in chosen.model.rglob("*") if f.is_file()]
    line = {
        "engine": engine,
        "model": chosen.model.name,
        "threads": chosen.threads,
        "load_s": round(load_s, 3),
        "lora_load_s": None if lora_load_s is None else round(lora_load_s, 3),
        "file_mib": round(sum(file.stat().st_size for file in files) / 2**20, 1),
        "batch": chosen.batch,
        "distinct_adapters": chosen.distinct_adapters if chosen.adapter else 0,
        "prompt": chosen.prompt,
        "decode": chosen.decode,
        **speeds,
        "loadavg": os.getloadavg()[0],
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(line), flush=True)
    sys.stderr.flush()
    os._exit(0)
