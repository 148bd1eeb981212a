"""A JSONL of requests through Ray Data: workers with an engine each, results in the order of the requests.

    pip install '.[ray]'                    (at the root of the repository)
    python examples/ray_data.py examples/requests.jsonl results.jsonl

A line is a JSON object with the arguments of `exlora.Request`, so that each request names its own adapter or mixture. A
result is the line of its request with its text; one that fails has an error, and harms no other.
"""

import json
import sys
from pathlib import Path
from typing import Any

import exlora
import ray

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {
    "devil": "tests/fixtures/adapters/devil-dora-r8",
    "sqlite": "tests/fixtures/adapters/sqlite-rslora-r16",
}
CPUS = 1  # of a worker


class Complete:
    """Completes batches of requests. Each worker loads the model once."""

    def __init__(self, model: str, adapters: dict[str, str]) -> None:
        self.engine = exlora.Engine(model, adapters=adapters, threads=CPUS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Runs a batch of lines together, whatever their adapters."""
        fields = [json.loads(line) for line in batch["text"]]
        requests = [exlora.Request(**field) for field in fields]
        outs = self.engine.generate(requests, return_errors=True)
        return {"text": [json.dumps({**field, **result(out)}) for field, out in zip(fields, outs, strict=True)]}


def result(out: exlora.Completion | exlora.ExloraError) -> dict[str, Any]:
    """What became of a request."""
    if isinstance(out, exlora.ExloraError):
        return {"error": {"code": out.code, "message": str(out)}}
    return {"completion": out.text, "finish_reason": out.finish_reason}


def run(requests: Path, results: Path, workers: int = 2, batch_size: int = 32) -> None:
    """Completes every line of a file and writes the results as they come."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Lines stay text: an `adapter` may be a name in one line and an object in the next, which no table can hold.
    # Reading them needs no processor of its own, which all may be the workers'.
    lines = ray.data.read_text(str(requests.absolute()), ray_remote_args={"num_cpus": 0})
    adapters = {name: str(Path(path).absolute()) for name, path in ADAPTERS.items()}
    completed = lines.map_batches(
        Complete,
        fn_constructor_args=(str(Path(MODEL).absolute()), adapters),
        batch_size=batch_size,
        concurrency=workers,
        num_cpus=CPUS,
    )
    with results.open("w") as file:
        for row in completed.iter_rows():
            file.write(row["text"] + "\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
