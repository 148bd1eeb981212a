"""The dynamic generator for asyncio: steps run in a thread, results arrive at their jobs' async iterators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from exlora.generator.dynamic import ExLlamaV2DynamicGenerator
from exlora.generator.job import ExLlamaV2DynamicJob

__all__ = ["ExLlamaV2DynamicGeneratorAsync", "ExLlamaV2DynamicJobAsync"]


class ExLlamaV2DynamicGeneratorAsync:
    """A dynamic generator inside a running event loop; arguments as for `ExLlamaV2DynamicGenerator`.

    The plain generator is `generator`; `set_loras` is the same. Close it when done.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.generator = ExLlamaV2DynamicGenerator(*args, **kwargs)
        self.jobs: dict[ExLlamaV2DynamicJob, ExLlamaV2DynamicJobAsync] = {}
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def set_loras(self, loras: Any = None) -> None:
        """Sets the adapters of jobs enqueued from now on."""
        self.generator.set_loras(loras)

    def enqueue(self, job: ExLlamaV2DynamicJobAsync) -> None:
        """Queues a job. Creating one does it already."""
        self.generator.enqueue(job.job)
        self.jobs[job.job] = job
        self._arrived.set()

    async def cancel(self, job: ExLlamaV2DynamicJobAsync) -> None:
        """Ends a job."""
        self.generator.cancel(job.job)
        self.jobs.pop(job.job, None)

    async def close(self) -> None:
        """Ends all jobs and the task that runs them."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.generator.clear_queue()
        self.jobs.clear()

    async def _run(self) -> None:
        while True:
            if not self.jobs:
                self._arrived.clear()
            await self._arrived.wait()
            try:
                results, failed = await asyncio.to_thread(self.generator.advance)
            except Exception as fatal:  # concerns all jobs
                for waiting in self.jobs.values():
                    waiting.results.put_nowait(fatal)
                self.generator.clear_queue()
                self.jobs.clear()
                continue
            for failed_job, error in failed:
                if failed_job in self.jobs:
                    self.jobs.pop(failed_job).results.put_nowait(error)
            for result in results:
                job = self.jobs.get(result["job"])
                if job is None:
                    continue  # it was cancelled
                job.results.put_nowait(result)
                if result["eos"]:
                    del self.jobs[result["job"]]


class ExLlamaV2DynamicJobAsync:
    """A job of an async generator; iterate over it for its results. Arguments as for `ExLlamaV2DynamicJob`."""

    def __init__(self, generator: ExLlamaV2DynamicGeneratorAsync, *args: Any, **kwargs: Any) -> None:
        self.generator = generator
        self.job = ExLlamaV2DynamicJob(*args, **kwargs)
        self.results: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.cancelled = False
        generator.enqueue(self)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while not self.cancelled:
            result = await self.results.get()
            if isinstance(result, Exception):
                raise result
            yield result
            if result["eos"]:
                return

    async def cancel(self) -> None:
        """Ends it."""
        self.cancelled = True
        await self.generator.cancel(self)
