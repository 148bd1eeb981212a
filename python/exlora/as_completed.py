"""`AsCompleted`: the results of many requests, each as soon as it is there."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import exlora._exlora as _exlora
from exlora._exlora import Completion, Request
from exlora.errors import ExloraError

if TYPE_CHECKING:
    from exlora._stepper import Stepper

__all__ = ["AsCompleted"]

#: `Completion`, or `Completion | Exception` with `return_errors=True`.
Result = TypeVar("Result")


class AsCompleted(Generic[Result], Iterator[tuple[int, Result]], AsyncIterator[tuple[int, Result]]):
    """Pairs of a request's index and its result, in the order in which they complete. Made by `Engine.as_completed`.

    It is an iterator and an async iterator. After an exception it can be used on: the next result is that of another
    request. Closing it, leaving its `with` block or deleting it ends the requests that are running.
    """

    def __init__(
        self,
        engine: _exlora.Engine,
        stepper: Stepper,
        requests: Iterator[Request | Exception],
        samples: Callable[[int], int],
        *,
        return_errors: bool,
    ) -> None:
        self._in_flight: _exlora.InFlight | None = _exlora.InFlight(engine)
        self._requests: Iterator[tuple[int, Request | Exception]] | None = iter(enumerate(requests))
        self._samples = samples
        self._stepper = stepper
        self._return_errors = return_errors
        self._closed_by: Exception | None = None
        self._refused: deque[tuple[int, Exception]] = deque()
        # One thread at a time takes requests, whose iterator may be a generator.
        self._lock = threading.Lock()

    def __next__(self) -> tuple[int, Result]:
        self._submit()
        item: tuple[int, Completion | Exception] | None = self._next_refused()
        if item is None and self._in_flight is not None:
            item = self._in_flight.next_result()
        if item is None:
            raise StopIteration
        return self._checked(*item)

    async def __anext__(self) -> tuple[int, Result]:
        while (in_flight := self._in_flight) is not None:
            if self._requests is not None and in_flight.has_room():
                await asyncio.to_thread(self._submit)  # prompts are encoded
            item = self._next_refused() or in_flight.poll_result()
            if item is not None:
                return self._checked(*item)
            if in_flight.is_empty():
                break
            await self._stepper.step()
        if self._closed_by is not None:
            raise self._closed_by
        raise StopAsyncIteration

    def close(self, reason: Exception | None = None) -> None:
        """Ends the requests that are running and takes no more. A task that waits for a result gets the reason."""
        self._closed_by = reason
        in_flight, self._in_flight, self._requests = self._in_flight, None, None
        self._refused.clear()
        if in_flight is not None:
            in_flight.close()

    async def aclose(self) -> None:
        """As `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def _submit(self) -> None:
        """Submits requests while there is room."""
        with self._lock:
            while (
                self._requests is not None
                and self._in_flight is not None
                and not self._refused
                and self._in_flight.has_room()
            ):
                index, request = next(self._requests, (None, None))
                if index is None or request is None:
                    self._requests = None
                elif isinstance(request, Exception):
                    self._refused.append((index, request))
                else:
                    self._in_flight.submit(index, request, self._samples(index))

    def _next_refused(self) -> tuple[int, Exception] | None:
        return self._refused.popleft() if self._refused else None

    def _checked(self, index: int, result: Completion | Exception) -> tuple[int, Result]:
        if isinstance(result, Exception) and not self._return_errors:
            if isinstance(result, ExloraError):
                result.request_index = index
            raise result
        return index, result  # type: ignore[return-value]  # what `Engine.as_completed` promises

    def __enter__(self) -> AsCompleted[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsCompleted[Result]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
