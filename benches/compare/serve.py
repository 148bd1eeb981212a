#!/usr/bin/env python3
"""Measures exlora's and llama.cpp's servers by turns, and prints medians as a markdown table.

  serve.py --model DIR --llama-server PROGRAM [--rounds 3] [--only exlora,llama.cpp] [--json FILE]

Both serve the random model of `make_random_llama.py` with eight copies of its adapter, and are driven by `exlora bench
--serve`, which streams completions of random prompts. Each round starts each server, measures the base, one adapter and
eight, and stops it, so that a slow spell of the machine affects both. What HTTP costs is measured in the same round:
`exlora bench` decodes the same number of sequences without a server.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ADAPTERS = 8
STREAMS = 8
# Prompt, new tokens, requests: all at once and little to prefill, so that what is left is decoding.
DECODING = (16, 128, STREAMS)
THREADS = 2
# Seconds in which a server must answer.
START_LIMIT = 120
EXLORA = "exlora"
LLAMA = "llama.cpp"
ADAPTER_COUNTS = (0, 1, ADAPTERS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of make_random_llama.py")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--requests", type=int, default=24, help="sent eight at a time")
    parser.add_argument("--only", default=f"{EXLORA},{LLAMA}", help="servers to measure")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    return parser.parse_args()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def commands(options: argparse.Namespace, adapters: Path, port: int) -> dict[str, list[str]]:
    """How each server is started; its adapters are a0, a1 and so on, or their numbers."""
    exlora = [EXLORA, "serve", "-m", str(options.model / "gptq-4bit-g128"), "--threads", str(THREADS)]
    llama = [str(options.llama_server), "-m", str(options.model / "model-Q4_0.gguf"), "--threads", str(THREADS)]
    # A context for each stream, nothing kept of other prompts, and adapters that act only where a request says so.
    llama += ["-np", str(STREAMS), "-c", str(STREAMS * 512), "--cache-ram", "0", "--lora-init-without-apply"]
    for number in range(ADAPTERS):
        exlora += ["--adapter", f"a{number}={adapters / f'a{number}'}"]
        llama += ["--lora", str(options.model / "lora-r16.gguf")]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return {EXLORA: exlora + address, LLAMA: llama + address}


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """The address of a server, while it runs."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            url, limit = f"http://127.0.0.1:{port}", time.monotonic() + START_LIMIT
            while not answers(url + "/health"):
                if server.poll() is not None or time.monotonic() > limit:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} does not answer:\n{log.read().decode()[-2000:]}")
                time.sleep(0.1)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def bench(*options: str) -> dict:
    run = subprocess.run([EXLORA, "bench", "--json", *options], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout)


def drive(server: str, url: str, adapters: int, shape: tuple[int, int, int], seed: int) -> dict:
    """One measurement of a server that runs."""
    prompt, decode, requests = shape
    names = [str(number) if server == LLAMA else f"a{number}" for number in range(adapters)]
    options = ["--serve", url, "--prompt", str(prompt), "--decode", str(decode), "--num-requests", str(requests)]
    options += ["--concurrency", str(STREAMS), "--seed", str(seed)]
    if names:
        options += ["--served-adapters", ",".join(names), "--popularity", "distinct"]
        options += ["--adapter-field", "lora" if server == LLAMA else "model"]
    report = bench(*options)
    if report["failed"]:
        raise SystemExit(f"{server}: {report['failed']} requests failed: {report['first_failure']}")
    return report


def measure(options: argparse.Namespace, adapters: Path, seed: int) -> list[dict]:
    """One round: rows with the server, the number of adapters, what was measured and its value."""
    rows, shape = [], (options.prompt, options.decode, options.requests)
    for server in options.only.split(","):
        port = free_port()
        with running(commands(options, adapters, port)[server], port) as url:
            for count in ADAPTER_COUNTS:
                report = drive(server, url, count, shape, seed)
                keys = {"server": server, "adapters": count}
                rows.append({**keys, "what": "requests_per_s", "value": report["requests_per_s"]})
                rows.append({**keys, "what": "ttft_ms", "value": report["time_to_first_token_ms"]["p50"]})
                rows.append({**keys, "what": "ttft_p99_ms", "value": report["time_to_first_token_ms"]["p99"]})
            if server == EXLORA:
                per_token = drive(server, url, 0, DECODING, seed)["time_per_token_ms"]["mean"]
                rows.append({"server": server, "adapters": 0, "what": "decode_tps", "value": STREAMS * 1e3 / per_token})
    if EXLORA in options.only.split(","):
        model = ["-m", str(options.model / "gptq-4bit-g128"), "--threads", str(THREADS), "--rounds", "1"]
        decoding = ["--batch", str(STREAMS), "--prompt", str(DECODING[0]), "--decode", str(DECODING[1])]
        value = bench(*model, *decoding)["base"]["decode_tps"]
        rows.append({"server": "Engine", "adapters": 0, "what": "decode_tps", "value": value})
    return rows


def table(rounds: list[list[dict]], servers: list[str]) -> str:
    def values(server: str, adapters: int, what: str) -> list[float]:
        key = (server, adapters, what)
        return [row["value"] for rows in rounds for row in rows if (row["server"], row["adapters"], row["what"]) == key]

    def cell(found: list[float], digits: int) -> str:
        if not found:
            return "-"
        return f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f}-{max(found):.{digits}f})"

    lines = ["| adapters | " + " | ".join(f"{server}: requests/s | first token, ms, p50 | p99" for server in servers)]
    lines[0] += " |"
    lines.append("|---" * (1 + 3 * len(servers)) + "|")
    for count in ADAPTER_COUNTS:
        cells = []
        for server in servers:
            cells += [cell(values(server, count, "requests_per_s"), 2)]
            cells += [cell(values(server, count, what), 0) for what in ("ttft_ms", "ttft_p99_ms")]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    served, alone = values(EXLORA, 0, "decode_tps"), values("Engine", 0, "decode_tps")
    if served and alone:
        costs = [100 * (1 - one / other) for one, other in zip(served, alone, strict=True)]
        lines += ["", f"decoding {STREAMS} streams, tokens/s: served {cell(served, 1)}, Engine {cell(alone, 1)}"]
        lines += [f"HTTP costs {statistics.median(costs):.1f} % ({min(costs):.1f} to {max(costs):.1f})"]
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ADAPTERS):
            os.symlink((options.model / "lora-r16").resolve(), Path(folder) / f"a{number}")
        for number in range(options.rounds):
            rounds.append(measure(options, Path(folder), seed=number))
            print(f"round {number + 1} of {options.rounds} done", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))
    print(table(rounds, options.only.split(",")))


if __name__ == "__main__":
    main()
