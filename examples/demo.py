"""The main job in one screen: a 4-bit GPTQ model, five requests in one batch, each with adapters of its own.

Run by `make demo`, or `python examples/demo.py` at the root of the repository.
"""

import textwrap
import time

from exlora import Engine

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {
    "jargon": "tests/fixtures/adapters/jargon-lora-r8",
    "sqlite": "tests/fixtures/adapters/sqlite-rslora-r16",
    "devil": "tests/fixtures/adapters/devil-dora-r8",
}
PROMPT = "The file"
TOKENS = 48

WHO = {
    "the base model": None,
    "jargon": "jargon",
    "sqlite": "sqlite",
    "devil (DoRA)": "devil",
    "half jargon, half sqlite": {"jargon": 0.5, "sqlite": 0.5},
}


def main() -> None:
    """Loads, answers the batch, prints each text and the speed of all."""
    engine = Engine(MODEL, adapters=ADAPTERS)
    stats = engine.stats()
    print(f"{MODEL}: {stats['weights_bytes'] / 1e6:.1f} MB resident, adapters {stats['adapters_bytes'] / 1e6:.1f} MB")
    for info in engine.adapters():
        print(f"  {info.name}: rank {info.rank} on {info.sites} linears")

    engine.generate(PROMPT, max_new_tokens=1)  # the first step wakes the threads
    start = time.perf_counter()
    outs = engine.generate([PROMPT] * len(WHO), adapters=list(WHO.values()), max_new_tokens=TOKENS, temperature=0.0)
    seconds = time.perf_counter() - start

    for who, out in zip(WHO, outs, strict=True):
        print(f"\n{who}:")
        print(textwrap.indent(textwrap.fill(PROMPT + out.text, 100), "  "))
    tokens = sum(out.usage.completion_tokens for out in outs)
    print(f"\n{tokens} tokens of {len(WHO)} requests in one batch: {tokens / seconds:.0f} tokens per second")


if __name__ == "__main__":
    main()
