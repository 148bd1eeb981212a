"""`AsyncEngine`: an engine for asyncio, whose methods wait without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload
from weakref import WeakSet

import exlora._exlora as _exlora
from exlora._exlora import AdapterInfo, Chunk, Completion, Request, SamplingParams, Tokenizer
from exlora.as_completed import AsCompleted
from exlora.engine import Engine, OnePrompt, shows_request_keywords
from exlora.stream import Stream
from exlora.types import (
    Adapter,
    Adapters,
    FloatArray,
    OneRequestKeywords,
    PerPrompt,
    Prompt,
    RequestKeywords,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncEngine", "AsyncStream"]


class AsyncEngine:
    """An `Engine` whose methods are awaited: the requests of all tasks run in one batch, each with its own adapters.

        async with await AsyncEngine.load("models/quill", adapters={"sql": "adapters/sql"}) as engine:
            completion = await engine.generate("SELECT", adapter="sql")
            async for chunk in engine.stream("Once"):
                print(chunk.text)

    While tasks wait, one thread for each event loop computes steps for all of them; there is no other thread, and none
    while nobody waits. A task that is cancelled while it waits ends its requests, which frees their adapters and pages.

    model    folder of a model, which is loaded at once, so `load` suits a running event loop better; or an `Engine`,
             which threads can use at the same time, and which stays open when this is closed
    options  those of `Engine`, for a folder
    """

    def __init__(self, model: str | PathLike[str] | Engine, **options: Any) -> None:
        if isinstance(model, Engine) and options:
            raise TypeError("options are those of a model's folder; an Engine has its own")
        self._is_owner = not isinstance(model, Engine)
        self._engine = model if isinstance(model, Engine) else Engine(model, **options)
        self._is_closed = False
        #: What has requests that may be running.
        self._running: WeakSet[AsyncStream | AsCompleted[Any]] = WeakSet()

    @classmethod
    async def load(cls, model: str | PathLike[str], **options: Any) -> AsyncEngine:
        """Loads a model in a thread. Options are those of `Engine`."""
        return await asyncio.to_thread(cls, model, **options)

    @property
    def engine(self) -> Engine:
        """The engine, whose methods block."""
        if self._is_closed:
            raise _closed()
        return self._engine

    @overload
    async def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: None = None,
        return_errors: Literal[False] = False,
        **keywords: Unpack[OneRequestKeywords],
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompts: Prompt | Request,
        adapters: Adapter = None,
        *,
        adapter: Adapter = None,
        sampling: SamplingParams | None = None,
        n: int,
        return_errors: Literal[False] = False,
        **keywords: Unpack[OneRequestKeywords],
    ) -> list[Completion]: ...

    @overload
    async def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: None = None,
        return_errors: Literal[False] = False,
        **keywords: Unpack[RequestKeywords],
    ) -> list[Completion]: ...

    @overload
    async def generate(
        self,
        prompts: list[OnePrompt] | tuple[OnePrompt, ...] | Iterator[OnePrompt],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int],
        return_errors: Literal[False] = False,
        **keywords: Unpack[RequestKeywords],
    ) -> list[list[Completion]]: ...

    @overload
    async def generate(
        self,
        prompts: Any,
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        sampling: PerPrompt[SamplingParams | None] = None,
        n: PerPrompt[int] | None = None,
        return_errors: Literal[True],
        **keywords: Unpack[RequestKeywords],
    ) -> Any: ...

    @shows_request_keywords
    async def generate(
        self,
        prompts: Any,
        adapters: Any = None,
        *,
        adapter: Any = None,
        n: Any = None,
        return_errors: bool = False,
        **keywords: Any,
    ) -> Any:
        """As `Engine.generate`: takes the same prompts and keywords (but `progress`), and returns the same."""
        engine = self.engine
        batch = engine.request_batch(prompts, adapters, adapter, n, keywords, return_errors=return_errors)
        valid = batch.valid()
        requests = [request for _, request in valid]
        if not return_errors and len(requests) > 1:
            await asyncio.to_thread(engine.check_requests, requests)
        found: dict[int, list[Completion | Exception]] = {i: [] for i, _ in valid}
        results = engine.results_of(iter(requests), lambda at: batch.samples(valid[at][0]), return_errors=True)
        self._running.add(results)
        async with results:
            async for at, result in results:
                found[valid[at][0]].append(result)
        for samples in found.values():
            samples.sort(key=lambda result: result.sample if isinstance(result, Completion) else 0)
        return batch.shaped(found, return_errors=return_errors)

    @shows_request_keywords
    def stream(
        self,
        prompt: Prompt | Request,
        adapter: Adapter = None,
        *,
        sampling: SamplingParams | None = None,
        **keywords: Unpack[OneRequestKeywords],
    ) -> AsyncStream:
        """Continues one prompt piece by piece, for `async for`. Takes what `Engine.stream` takes.

        The request begins with the first chunk that is awaited, which raises what is wrong with it.
        """
        engine = self.engine
        stream = AsyncStream(lambda: engine.stream(prompt, adapter, sampling=sampling, **keywords))
        self._running.add(stream)
        return stream

    @shows_request_keywords
    def as_completed(
        self,
        prompts: Iterable[Prompt | Request],
        adapters: Adapters = None,
        *,
        adapter: Adapters = None,
        n: PerPrompt[int] | None = None,
        return_errors: bool = False,
        **keywords: Any,
    ) -> AsCompleted[Any]:
        """As `Engine.as_completed`: `async for` gets `(index, completion)` as each completes."""
        results: AsCompleted[Any] = self.engine.as_completed(
            prompts,
            adapters,
            adapter=adapter,
            n=n,
            return_errors=return_errors,  # type: ignore[call-overload]  # either overload
            **keywords,
        )
        self._running.add(results)
        return results

    async def logits(self, prompt: Prompt, adapter: Adapter = None) -> FloatArray:
        """Logits of every position of a prompt under a mixture, float32 [tokens, vocab]."""
        return await asyncio.to_thread(self.engine.logits, prompt, adapter)

    async def load_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter, or replaces the one of that name, while requests run; they keep the version they have."""
        return await asyncio.to_thread(self.engine.load_adapter, name, path)

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter. Running requests keep it. A name that is not loaded is an error."""
        await asyncio.to_thread(self.engine.unload_adapter, name)

    async def load_draft_adapter(self, name: str, path: str | PathLike[str]) -> AdapterInfo:
        """Loads an adapter of the draft model, as `load_adapter`."""
        return await asyncio.to_thread(self.engine.load_draft_adapter, name, path)

    async def unload_draft_adapter(self, name: str) -> None:
        """Unloads an adapter of the draft model, as `unload_adapter`."""
        await asyncio.to_thread(self.engine.unload_draft_adapter, name)

    async def clear_prefix_cache(self) -> None:
        """Forgets all cached prefixes."""
        await asyncio.to_thread(self.engine.clear_prefix_cache)

    def adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, sorted by name. Never waits."""
        return self.engine.adapters()

    def draft_adapters(self) -> list[AdapterInfo]:
        """The loaded adapters of the draft model, sorted by name. Never waits."""
        return self.engine.draft_adapters()

    def stats(self) -> dict[str, int]:
        """Counters and resident bytes. Never waits."""
        return self.engine.stats()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's folder."""
        return self.engine.tokenizer

    def tokenizer_for(self, adapter: Adapter) -> Tokenizer:
        """The tokenizer of requests with these adapters, as `Engine.tokenizer_for`."""
        return self.engine.tokenizer_for(adapter)

    @property
    def device(self) -> str:
        """What computes: `cpu (avx512, 2 threads)`."""
        return self.engine.device

    @property
    def max_seq_len(self) -> int:
        """Positions that prompt and output together can have."""
        return self.engine.max_seq_len

    async def close(self) -> None:
        """Ends all requests that were made here, whose tasks get `model_not_loaded`, and closes the engine."""
        running, self._running, self._is_closed = list(self._running), WeakSet(), True
        reason = _closed()
        for one in running:
            await asyncio.to_thread(one.close, reason)
        if self._is_owner:
            # The last reference frees the model's memory.
            await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncEngine(closed, {self._engine!r})" if self._is_closed else f"AsyncEngine({self._engine!r})"


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one request, made by `AsyncEngine.stream`.

    Leaving its `async with` block, closing it, deleting it, or cancelling a task that waits for a chunk ends the
    request.
    """

    def __init__(self, begin: Callable[[], Stream]) -> None:
        self._begin = begin
        self._stream: Stream | None = None
        self._beginning = asyncio.Lock()
        self._is_closed = False
        self._closed_by: Exception | None = None

    @property
    def seed(self) -> int | None:
        """Seed of the request's random numbers; `None` before the first chunk."""
        return None if self._stream is None else self._stream.seed

    async def __anext__(self) -> Chunk:
        try:
            stream = await self._begun()
            chunk = None if stream is None else await anext(stream, None)
        except asyncio.CancelledError:
            self.close()
            raise
        if self._closed_by is not None:
            raise self._closed_by
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _begun(self) -> Stream | None:
        """The stream, begun by the first call; `None` once this is closed."""
        async with self._beginning:
            if self._stream is None and not self._is_closed:
                stream = await asyncio.to_thread(self._begin)  # the prompt is encoded
                if self._is_closed:
                    stream.close()
                else:
                    self._stream = stream
        return self._stream

    def close(self, reason: Exception | None = None) -> None:
        """Ends the request. A task that waits for a chunk gets the reason."""
        self._is_closed = True
        self._closed_by = reason
        if self._stream is not None:
            self._stream.close()

    async def aclose(self) -> None:
        """Ends the request."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _closed() -> Exception:
    return _exlora.error("model_not_loaded", "the engine is closed", hint="make a new AsyncEngine")
