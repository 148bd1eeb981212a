"""Arrays in arguments and results: torch tensors if the process has imported torch, numpy arrays otherwise.

Nothing here imports torch.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import exlora._exlora as _exlora

__all__ = ["as_numpy", "padded_rows", "padding_of", "to_array", "token_row", "token_rows"]


def to_array(array: np.ndarray[Any, Any]) -> Any:
    """The array, as a torch tensor with the same memory if the process has imported torch."""
    from_numpy = getattr(sys.modules.get("torch"), "from_numpy", None)
    return array if from_numpy is None else from_numpy(array)


def as_numpy(values: Any) -> np.ndarray[Any, Any]:
    """A numpy array of a torch tensor, an array or nested lists."""
    if hasattr(values, "detach"):  # a tensor, wherever it lives
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()
    return np.asarray(values)


def padded_rows(rows: list[list[int]], pad: int | None) -> Any:
    """Rows of ids as an array [batch, n], padded on the left; `None` is 0."""
    width = max(map(len, rows), default=0)
    ids = np.full((len(rows), width), pad or 0, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[width - len(row) :] = row
    return to_array(ids)


def token_rows(input_ids: Any) -> list[list[int]]:
    """Rows of ids from an array [n] or [batch, n], or from (lists of) lists."""
    ids = as_numpy(input_ids)
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"token ids must be integers, not {ids.dtype}")
    if ids.ndim not in (1, 2):
        raise _exlora.error(
            "request_invalid", "token ids have the wrong shape", expected="[n] or [batch, n]", found=str(ids.shape)
        )
    rows: list[list[int]] = np.atleast_2d(ids).tolist()
    return rows


def token_row(input_ids: Any) -> list[int]:
    """The ids of the only row."""
    rows = token_rows(input_ids)
    if len(rows) != 1:
        raise _exlora.error(
            "request_invalid", "a job has one sequence", expected="one row of ids", found=f"{len(rows)} rows"
        )
    return rows[0]


def padding_of(input_mask: Any, rows: int) -> list[int]:
    """Leading tokens of each row that are padding. A mask with holes elsewhere is refused."""
    if input_mask is None:
        return [0] * rows
    mask = as_numpy(input_mask)
    visible = mask if mask.dtype == bool else mask >= 0
    if visible.ndim != 2 or len(visible) != rows:
        raise _exlora.error(
            "request_invalid", "the mask does not fit the tokens", expected=f"[{rows}, n]", found=str(mask.shape)
        )
    padding = np.where(visible.any(axis=1), visible.argmax(axis=1), visible.shape[1])
    if (visible.sum(axis=1) + padding != visible.shape[1]).any():
        raise _exlora.error("setting_unsupported", "a mask hides tokens elsewhere than on the left of a row")
    counts: list[int] = padding.tolist()
    return counts
