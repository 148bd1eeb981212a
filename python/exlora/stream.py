"""`Stream`: the chunks of one request as they are generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import exlora._exlora as _exlora
from exlora._exlora import Chunk

if TYPE_CHECKING:
    from exlora._stepper import Stepper

__all__ = ["Stream"]


class Stream(Iterator[Chunk], AsyncIterator[Chunk]):
    """The chunks of one request. Closing it, leaving its `with` block or deleting it ends the request.

    It is an iterator, and an async iterator for `async for`: streams in an event loop share one thread.
    """

    def __init__(self, job: _exlora.Job, stepper: Stepper) -> None:
        self._job = job
        self._stepper = stepper

    @property
    def seed(self) -> int:
        """Seed of the request's random numbers: the one it was given, or the one drawn for it."""
        return self._job.seed

    def __next__(self) -> Chunk:
        chunk = self._job.next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    async def __anext__(self) -> Chunk:
        while True:
            chunk = self._job.poll_chunk()
            if chunk is not None:
                return chunk
            if self._job.is_finished:
                raise StopAsyncIteration
            await self._stepper.step()

    def close(self) -> None:
        """Ends the request."""
        self._job.close()

    async def aclose(self) -> None:
        """Ends the request without blocking the event loop."""
        self._job.cancel()
        await asyncio.to_thread(self._job.close)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
