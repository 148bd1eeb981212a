"""Helpers that exllamav2's scripts import from its package."""

from __future__ import annotations

import importlib
import time
from typing import Any

__all__ = ["SeqTensor", "Timer", "get_basic_progress"]


class Timer:
    """Seconds a `with` block took, in `interval`."""

    interval: float = 0.0
    _start: float

    def __enter__(self) -> Timer:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.interval = time.perf_counter() - self._start


class SeqTensor:
    """A torch tensor that grows along one dimension, `seq_dim`, in which `seq_len` positions are in use.

    `tensor` has room for `seq_cap` positions, a multiple of `PAGE_SIZE`, so that few calls of `append` copy all of it.
    """

    PAGE_SIZE = 256

    def __init__(self, shape: Any, dtype: Any, seq_dim: int, device: Any = "cpu", init_cap: int = -1) -> None:
        """An empty one; of `shape`, the size along `seq_dim` has no meaning. `init_cap` positions have room."""
        self.seq_dim = seq_dim % len(shape)
        self.seq_len = 0
        self.tensor = _torch().empty((0,), dtype=dtype, device=device)
        self._shape = list(shape)
        self.seq_cap = 0
        self._reserve(self.PAGE_SIZE if init_cap == -1 else init_cap)

    @classmethod
    def from_tensor(cls, tensor: Any, seq_dim: int) -> SeqTensor:
        """A copy of a tensor."""
        copy = cls(tensor.shape, tensor.dtype, seq_dim, tensor.device, init_cap=tensor.shape[seq_dim])
        copy.append(tensor)
        return copy

    def __len__(self) -> int:
        return self.seq_len

    def torch(self) -> Any:
        """The positions in use, in the same memory."""
        return self.tensor.narrow(self.seq_dim, 0, self.seq_len)

    def torch_slice(self, a: int | None, b: int | None) -> Any:
        """The positions from `a` to before `b`, in the same memory; `None` is the beginning or the end."""
        first, end = a or 0, self.seq_len if b is None else b
        return self.tensor.narrow(self.seq_dim, first, end - first)

    def slice(self, a: int | None, b: int | None) -> SeqTensor:
        """A copy of the positions from `a` to before `b`."""
        return self.from_tensor(self.torch_slice(a, b), self.seq_dim)

    def clone(self, drop: int | None = None) -> SeqTensor:
        """A copy without the last `drop` positions."""
        return self.slice(None, self.seq_len - drop if drop and drop <= self.seq_len else None)

    def append(self, new_data: Any) -> None:
        """Appends a tensor or another `SeqTensor`; `None` is nothing."""
        if new_data is None:
            return
        values = new_data.torch() if isinstance(new_data, SeqTensor) else new_data
        added = values.shape[self.seq_dim]
        self._reserve(self.seq_len + added)
        self.tensor.narrow(self.seq_dim, self.seq_len, added).copy_(values)
        self.seq_len += added

    def set(self, new_data: Any = None) -> None:
        """Replaces the contents."""
        self.clear()
        self.append(new_data)

    def truncate(self, new_len: int) -> None:
        """Keeps the first `new_len` positions."""
        if not 0 <= new_len <= self.seq_len:
            raise ValueError(f"new_len is {new_len}, of {self.seq_len} positions")
        self.seq_len = new_len

    def clear(self) -> None:
        """Removes all positions."""
        self.seq_len = 0

    def _reserve(self, positions: int) -> None:
        """Makes room for so many positions."""
        if positions <= self.seq_cap:
            return
        self.seq_cap = -(-positions // self.PAGE_SIZE) * self.PAGE_SIZE
        self._shape[self.seq_dim] = self.seq_cap
        larger = self.tensor.new_empty(self._shape)
        if self.seq_len:
            larger.narrow(self.seq_dim, 0, self.seq_len).copy_(self.torch())
        self.tensor = larger


def get_basic_progress() -> Any:
    """A progress bar of rich: description, bar, percentage, time so far and time to go."""
    progress = _imported("rich.progress", "get_basic_progress needs the package rich")
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )


def _torch() -> Any:
    return _imported("torch", "SeqTensor holds a tensor, which needs the package torch")


def _imported(name: str, reason: str) -> Any:
    """A module that exlora itself does not need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(reason, name=name) from error
