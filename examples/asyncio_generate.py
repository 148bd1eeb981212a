"""Several tasks of an event loop share one engine: each names its own adapters, and all run in one batch.

    python examples/asyncio_generate.py            (at the root of the repository)

A task that is cancelled, here by a time limit, ends its request; a request that fails harms no other; adapters are
loaded and unloaded while requests run.
"""

import asyncio

from exlora import AsyncEngine, ExloraError

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {"jargon": "tests/fixtures/adapters/jargon-lora-r8"}
SQLITE = "tests/fixtures/adapters/sqlite-rslora-r16"


async def answer(engine: AsyncEngine, prompt: str, adapter: str | dict[str, float] | None = None) -> str:
    """One whole text, or why there is none."""
    try:
        completion = await engine.generate(prompt, adapter, max_new_tokens=24, stop=".")
    except ExloraError as error:
        return error.code
    return prompt + completion.text


async def follow(engine: AsyncEngine, prompt: str) -> str:
    """A text as it is generated."""
    text = prompt
    async with engine.stream(prompt, "jargon", max_new_tokens=24) as chunks:
        async for chunk in chunks:
            text += chunk.text
            if "." in text:
                break  # leaving the block ends the request
    return text


async def endless(engine: AsyncEngine) -> str:
    """A request that is given up."""
    try:
        await asyncio.wait_for(engine.generate("Once", max_new_tokens=900, stop_at_eos=False), timeout=0.05)
    except asyncio.TimeoutError:
        return "given up"
    return "a fast machine"


async def main() -> None:
    """Runs everything at once."""
    async with await AsyncEngine.load(MODEL, adapters=ADAPTERS) as engine:
        tasks = [asyncio.create_task(task) for task in (answer(engine, "The truth is"), endless(engine))]
        await engine.load_adapter("sqlite", SQLITE)  # while these run
        tasks += [
            asyncio.create_task(answer(engine, "The truth is", "sqlite")),
            asyncio.create_task(answer(engine, "The truth is", {"sqlite": 0.5, "jargon": 0.5})),
            asyncio.create_task(answer(engine, "The truth is", "missing")),
            asyncio.create_task(follow(engine, "A bug is")),
        ]
        for line in await asyncio.gather(*tasks):
            print(line)


if __name__ == "__main__":
    asyncio.run(main())
