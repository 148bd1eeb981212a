"""exllamav2's caches: how many tokens fit, and how many are in the cache.

Memory is allocated when a cache is first given to `model.forward`; a generator only uses the size of its cache and has
pages of its own. So `lazy` makes no difference, and no cache is allocated twice.
"""

from __future__ import annotations

from typing import Any

import exlora._exlora as _exlora
from exlora._unsupported import refuse
from exlora.config import ExLlamaV2Config

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
        if copy_from is not None and copy_from.current_seq_len:
            refuse(type(self).__name__, copy_from=copy_from)
        self.model = model
        self.batch_size = batch_size
        self.max_seq_len = config.max_seq_len if max_seq_len == -1 else max_seq_len
        self.current_seq_len: int = 0
        #: Number of leading padding tokens of each sequence, from the mask of the call that started it.
        self.padding = [0] * batch_size
        self._kv: _exlora.SequenceCache | None = None

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
        """Another cache of the same size. Only an empty one can be cloned."""
        return type(self)(self.model, self.batch_size, self.max_seq_len, copy_from=self)

    def copy_states(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: generators share the pages of common prefixes automatically."""
        refuse(type(self).__name__, copy_states=True)

    @property
    def key_states(self) -> list[Any]:
        """Not supported: keys and values lie in pages of the device, in its own layout."""
        refuse(type(self).__name__, key_states=True)
        return []

    @property
    def value_states(self) -> list[Any]:
        """Not supported, as `key_states`."""
        refuse(type(self).__name__, value_states=True)
        return []

    def all_tensors(self) -> list[Any]:
        """Not supported, as `key_states`."""
        refuse(type(self).__name__, all_tensors=True)
        return []

    def roll_left(self) -> None:
        """Not supported: keys belong to their positions. Drop the beginning of the prompt and compute it again."""
        refuse(type(self).__name__, roll_left=True)

    def footprint(self) -> list[int]:
        """Bytes on each device; there is one."""
        return [0 if self._kv is None else self._kv.bytes]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_size={self.batch_size}, {self.current_seq_len} of {self.max_seq_len} tokens)"
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
