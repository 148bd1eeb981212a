"""Steps for the tasks of event loops: in each loop one thread at a time computes them, however many tasks wait."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

import exlora._exlora as _exlora

__all__ = ["Stepper"]

#: Seconds to wait after a step in which there was nothing to do, because another thread had done it.
_IDLE = 0.001


class Stepper:
    """Computes steps in a thread for as long as tasks wait for results of an engine.

    A thread for each waiting task would hand the interpreter's lock around for each token of each task.
    """

    def __init__(self, engine: _exlora.Engine) -> None:
        self._engine = engine
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting] = WeakKeyDictionary()

    async def step(self) -> None:
        """Waits until a step has been computed. What it produced may be another task's."""
        loop = asyncio.get_running_loop()
        waiting = self._loops.setdefault(loop, _Waiting())
        future = loop.create_future()
        waiting.futures.append(future)
        if waiting.task is None:
            waiting.task = loop.create_task(self._run(waiting))
        await future

    async def _run(self, waiting: _Waiting) -> None:
        try:
            while waiting.futures:
                failed = None
                try:
                    if not await asyncio.to_thread(self._engine.step):
                        await asyncio.sleep(_IDLE)
                except Exception as error:  # concerns everyone
                    failed = error
                waiting.wake(failed)
                await asyncio.sleep(0)  # they take their results, and wait again if they need more
        finally:
            # A task refers to its loop, which is to be freed when nothing else does.
            waiting.task = None
            waiting.cancel()


class _Waiting:
    """The waiting tasks of an event loop."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[None]] = []
        #: Runs while there are any.
        self.task: asyncio.Task[None] | None = None

    def wake(self, error: Exception | None) -> None:
        """Lets all go on, or raises the error in all."""
        for future in self._take():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def cancel(self) -> None:
        """Cancels all: the loop ends."""
        for future in self._take():
            future.cancel()

    def _take(self) -> list[asyncio.Future[None]]:
        futures, self.futures = self.futures, []
        return [future for future in futures if not future.done()]  # done: its task was cancelled
