"""Many prompts, whose results are used as they complete: a file of answers that grows, and a request that fails alone.

    python examples/as_completed.py            (at the root of the repository)

Prompts come from a generator, which is read as results come, so that there may be any number of them. Each prompt is
answered three times (`n`): the samples have different seeds, and a seed in the output gives its text again.
"""

import json
import sys
from collections.abc import Iterator

from exlora import Engine, Request

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {
    "jargon": "tests/fixtures/adapters/jargon-lora-r8",
    "sqlite": "tests/fixtures/adapters/sqlite-rslora-r16",
}


def requests() -> Iterator[Request]:
    """Requests, as from a file or a data base; one of them names an adapter that does not exist."""
    for adapter in ("jargon", "sqlite", "missing", {"jargon": 0.5, "sqlite": 0.5}):
        yield Request("The file", adapter, max_new_tokens=24, temperature=0.8, top_p=0.95)


def main() -> None:
    """Prints a line of JSON for each result, as soon as it is there."""
    engine = Engine(MODEL, adapters=ADAPTERS)
    for index, result in engine.as_completed(requests(), n=3, return_errors=True):
        if isinstance(result, Exception):
            line = {"index": index, "error": str(result)}
        else:
            line = {"index": index, "sample": result.sample, "seed": result.seed, "text": result.text}
        print(json.dumps(line), flush=True)

    # A sample again, by its seed.
    sample = engine.generate("The file", "sqlite", temperature=0.8, max_new_tokens=24, n=2)[1]
    again = engine.generate("The file", "sqlite", temperature=0.8, max_new_tokens=24, seed=sample.seed)
    print(f"seed {sample.seed}: {'the same text' if again.text == sample.text else 'another text'}", file=sys.stderr)


if __name__ == "__main__":
    main()
