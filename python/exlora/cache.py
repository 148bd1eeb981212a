"""exllamav2's caches: how many tokens fit, how many are in the cache, and their keys and values.

Memory is allocated when a cache is first given to `model.forward`; a generator only uses the size of its cache and has
pages of its own. So `lazy` makes no difference, and no cache is allocated twice.

Keys and values lie in pages of the device, in its own layout. What is read here is a copy: writing to it changes no
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import to_array
from exlora._unsupported import refuse
from exlora.config import ExLlamaV2Config, check_max_seq_len

__all__ = [
    "ExLlamaV2Cache",
    "ExLlamaV2CacheBase",
    "ExLlamaV2Cache_8bit",
    "ExLlamaV2Cache_Q4",
    "ExLlamaV2Cache_Q6",
    "ExLlamaV2Cache_Q8",
    "ExLlamaV2Cache_TP",
]


class ExLlamaV2CacheBase:
    """Keys and values of `batch_size` sequences of up to `max_seq_len` tokens.

    `current_seq_len` is the number of tokens in the cache, including padding; set it back to continue from there.
    """

    #: How keys and values are stored; None for the model's `config.kv_dtype`.
    _kv_dtype: str | None = None

    def __init__(
        self,
        model: _exlora.ExLlamaV2Base,
        batch_size: int = 1,
        max_seq_len: int = -1,
        copy_from: ExLlamaV2CacheBase | None = None,
        lazy: bool = False,
        num_key_value_heads: int | None = None,
        fixed_device: int | None = None,
    ) -> None:
        del lazy, fixed_device
        config: ExLlamaV2Config = model.config
        if num_key_value_heads not in (None, config.num_key_value_heads):
            refuse(type(self).__name__, num_key_value_heads=num_key_value_heads)
        if max_seq_len != -1:
            check_max_seq_len("cache", max_seq_len)
        self.model = model
        self.batch_size = batch_size
        self.max_seq_len = config.max_seq_len if max_seq_len == -1 else max_seq_len
        self.current_seq_len: int = 0
        #: Number of leading padding tokens of each sequence, from the mask of the call that started it.
        self.padding = [0] * batch_size
        self._kv: _exlora.SequenceCache | None = None
        if copy_from is not None:
            self._copy(copy_from)

    @property
    def kv_dtype(self) -> str:
        """How keys and values are stored, as `Engine(kv_dtype=...)` has it."""
        return self._kv_dtype or self.model.config.kv_dtype

    def native(self) -> _exlora.SequenceCache:
        """The native cache, allocated by the first call."""
        if self._kv is None:
            native = self.model.native_model()
            self._kv = _exlora.SequenceCache(native, self.batch_size, self.max_seq_len, self.kv_dtype)
        return self._kv

    def reset(self) -> None:
        """Empties it."""
        self.current_seq_len = 0

    def clone(self) -> ExLlamaV2CacheBase:
        """Another cache of the same size with the same contents. What happens to one does not change the other."""
        return type(self)(self.model, self.batch_size, self.max_seq_len, copy_from=self)

    def copy_states(
        self,
        target: ExLlamaV2CacheBase,
        from_column: int,
        from_columns: int,
        to_column: int,
        to_columns: int,
        from_row: int,
        from_rows: int,
        to_row: int,
        to_rows: int,
    ) -> None:
        """Copies columns of a row to rows of a cache of the same class, or of this one, where columns may overlap.

        What precedes the columns in a target's row must have been computed, and stays; what was behind is dropped;
        `target.current_seq_len` stays as it is. Columns of padding can only be copied to where a row begins.

        A token keeps its values. Where its position changes (its column less its row's padding), its keys are rotated
        on to the new one and rounded again. Keys and values still hold what their tokens saw when they were computed,
        whatever precedes them now: computing the tokens again is exact, a copy behind other tokens is not.
        """
        columns, to = range(from_column, from_column + from_columns), range(to_column, to_column + to_columns)
        rows = range(to_row, to_row + to_rows)
        self._check_copy(columns, to, range(from_row, from_row + from_rows))
        self._check_columns_of(target, to, rows)
        if not columns:
            return
        padding = self.padding[from_row]
        first, end = (max(0, column - padding) for column in (columns.start, columns.stop))
        paddings = [target._padding_with(row, to.start, max(0, padding - columns.start)) for row in rows]
        positions = [max(0, to.start - own) for own in paddings]
        self.native().copy_positions(from_row, first, end, target.native(), list(zip(rows, positions, strict=True)))
        for row, own in zip(rows, paddings, strict=True):
            target.padding[row] = own

    @property
    def key_states(self) -> Sequence[Any]:
        """Keys by layer, float32 [batch_size, max_seq_len, num_key_value_heads, head_dim], copied when they are read.

        They are those that attention reads: normed, rotated to their positions, and dequantized where the cache has
        codes; 0 where nothing was computed and for padding.
        """
        return _LayerStates(self, 0)

    @property
    def value_states(self) -> Sequence[Any]:
        """Values by layer, as `key_states`."""
        return _LayerStates(self, 1)

    def all_tensors(self) -> list[Any]:
        """The keys of all layers, then their values, as `key_states` and `value_states` have them."""
        states = [self._states(layer, self.batch_size, range(self.max_seq_len)) for layer in range(self._layers())]
        return [_copy_for_caller(part) for part in (*(key for key, _ in states), *(value for _, value in states))]

    def get_kv_state(
        self,
        layer_idx: int,
        batch_size: int,
        offset: int,
        width: int,
        page_size: int = 0,
        cache_seqlens: Any = None,
        block_table: Any = None,
    ) -> tuple[Any, Any]:
        """Keys and values of a layer, as `key_states` has them, but only of the first rows, and of `width` columns from
        `offset` on; 0 elsewhere.
        """
        refuse(
            f"{type(self).__name__}.get_kv_state",
            page_size=page_size or None,
            cache_seqlens=cache_seqlens is not None,
            block_table=block_table is not None,
        )
        layers = self._layers()
        if not 0 <= layer_idx < layers:
            raise _exlora.error(
                "request_invalid", "the cache has no such layer", expected=f"below {layers}", found=str(layer_idx)
            )
        keys, values = self._states(layer_idx, batch_size, range(max(0, offset), offset + width))
        return _copy_for_caller(keys), _copy_for_caller(values)

    def roll_left(self) -> None:
        """Drops the first column of each row: a token, or padding where the row begins with that. All others move one
        column to the left, and there is room for one more.

        Values stay as they are, and keys are rotated on to their new positions, each time with a rounding to the
        cache's type. All of them still hold what their tokens saw of the ones that were dropped: generating goes on as
        if these had only been forgotten. Computing the remaining tokens again is exact, this is not.

        (exllamav2's method moves heads, not tokens.)
        """
        for row, padding in enumerate(self.padding):
            if padding > 0:
                self.padding[row] = padding - 1
            elif self._kv is not None and (tokens := self._kv.computed_tokens(row, 0)):
                self._kv.copy_positions(row, 1, tokens, self._kv, [(row, 0)])
        self.current_seq_len = max(0, self.current_seq_len - 1)

    def footprint(self) -> list[int]:
        """Bytes on each device; there is one."""
        return [0 if self._kv is None else self._kv.bytes]

    def _layers(self) -> int:
        """Layers that have keys and values: the model's, or more where an adapter runs some of them several times."""
        return self.model.config.num_hidden_layers if self._kv is None else self._kv.layers

    def _states(self, layer: int, rows: int, columns: range) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Keys and values of a layer at some columns of the first rows; 0 where there are none."""
        config: ExLlamaV2Config = self.model.config
        shape = (self.batch_size, self.max_seq_len, config.num_key_value_heads, config.head_dim)
        keys, values = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        for row, padding in enumerate(self.padding[: max(0, rows)]):
            computed = 0 if self._kv is None else self._kv.computed_tokens(row, layer)
            first, end = max(columns.start, padding), min(columns.stop, self.max_seq_len, padding + computed)
            if self._kv is not None and first < end:
                found = self._kv.read_states(row, layer, first - padding, end - padding)
                for states, part in zip((keys, values), found, strict=True):
                    states[row, first:end] = part.reshape(end - first, *shape[2:])
        return keys, values

    def _copy(self, source: ExLlamaV2CacheBase) -> None:
        """Takes over what another cache has, all of which must fit."""
        if source.batch_size != self.batch_size:
            raise _exlora.error(
                "request_invalid",
                "copy_from has another number of sequences",
                expected=f"batch_size={self.batch_size}",
                found=f"batch_size={source.batch_size}",
            )
        if source._kv is not None:
            tokens_of_rows = [source._kv.computed_tokens(row, 0) for row in range(self.batch_size)]
            for row, tokens in enumerate(tokens_of_rows):
                check_columns(self, source.padding[row] + tokens)
                source._kv.copy_positions(row, 0, tokens, self.native(), [(row, 0)])
        self.padding = list(source.padding)
        self.current_seq_len = source.current_seq_len

    def _padding_with(self, row: int, column: int, leading: int) -> int:
        """Leading columns of padding in a row once columns are copied there, `leading` of which are padding."""
        padding = self.padding[row]
        if column <= padding:
            return column + leading
        if leading:
            raise _exlora.error(
                "request_invalid",
                "padding is copied to a place behind tokens",
                expected=f"columns from {leading} further on, or to_column={padding} or less in row {row}",
                found=f"{leading} columns of padding to column {column}",
            )
        return padding

    def _check_copy(self, columns: range, to_columns: range, rows: range) -> None:
        """Checks what exllamav2 asserts, and that the row has the columns."""
        if len(rows) != 1 or len(columns) != len(to_columns) or columns.start > columns.stop:
            raise _exlora.error(
                "request_invalid",
                "copy_states copies one row, and as many columns as it is told to write",
                expected="from_rows=1, from_columns equal to to_columns",
                found=f"{len(rows)} rows, {len(columns)} to {len(to_columns)} columns",
            )
        self._check_columns_of(self, columns, rows)

    @staticmethod
    def _check_columns_of(cache: ExLlamaV2CacheBase, columns: range, rows: range) -> None:
        if columns.start < 0 or rows.start < 0 or rows.start >= rows.stop or rows.stop > cache.batch_size:
            raise _exlora.error(
                "request_invalid",
                "the cache has no such rows or columns",
                expected=f"rows from 0 to {cache.batch_size - 1}, columns from 0 on",
                found=f"{len(rows)} rows from {rows.start} on, columns from {columns.start} on",
            )
        check_columns(cache, columns.stop)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_size={self.batch_size}, {self.current_seq_len} of {self.max_seq_len} tokens)"
        )


class _LayerStates(Sequence[Any]):
    """Keys (0) or values (1) of a cache by layer, each read when it is asked for."""

    def __init__(self, cache: ExLlamaV2CacheBase, part: int) -> None:
        self._cache, self._part = cache, part

    def __len__(self) -> int:
        return self._cache._layers()

    def __getitem__(self, index: Any) -> Any:
        layers = range(len(self))[index]
        return self._read(layers) if isinstance(layers, int) else [self._read(layer) for layer in layers]

    def _read(self, layer: int) -> Any:
        cache = self._cache
        return _copy_for_caller(cache._states(layer, cache.batch_size, range(cache.max_seq_len))[self._part])


def _copy_for_caller(states: np.ndarray[Any, Any]) -> Any:
    """An array that refuses to be written, or a tensor, which cannot."""
    array = to_array(states)
    if array is states:
        states.setflags(write=False)
    return array


def check_columns(cache: ExLlamaV2CacheBase, columns: int, code: str = "request_invalid") -> None:
    """Refuses, with this code, tokens and padding of more columns than a cache has."""
    if columns > cache.max_seq_len:
        raise _exlora.error(
            code,
            "the tokens do not fit the cache",
            expected=f"at most max_seq_len={cache.max_seq_len}",
            found=f"{columns} tokens",
            hint="make a cache with a larger max_seq_len",
        )


class ExLlamaV2Cache(ExLlamaV2CacheBase):
    """The cache: float16 keys and values, or float32 by `config.kv_dtype`."""


class ExLlamaV2Cache_Q8(ExLlamaV2CacheBase):
    """Keys and values of 8 bits: 0.53 of the memory of float16."""

    _kv_dtype = "q8"


class ExLlamaV2Cache_Q6(ExLlamaV2CacheBase):
    """Keys of 8 bits and values of 4: 0.41 of the memory of float16."""

    _kv_dtype = "q6"


class ExLlamaV2Cache_Q4(ExLlamaV2CacheBase):
    """Keys and values of 4 bits: 0.28 of the memory of float16."""

    _kv_dtype = "q4"


class ExLlamaV2Cache_8bit(ExLlamaV2Cache_Q8):
    """As `ExLlamaV2Cache_Q8`, which is more precise than exllamav2's 8-bit floats in as many bits."""


class ExLlamaV2Cache_TP:
    """Tensor parallelism is not supported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("exlora", tensor_parallel=True)
