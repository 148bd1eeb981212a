"""Helpers that exllamav2's scripts import from its package."""

from __future__ import annotations

import time

__all__ = ["Timer"]


class Timer:
    """Seconds a `with` block took, in `interval`."""

    interval: float = 0.0
    _start: float

    def __enter__(self) -> Timer:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.interval = time.perf_counter() - self._start
