"""exllamav2's caches: how many tokens there is room for, and how many are in.

Memory is taken when a cache is first given to `model.forward`; a generator takes only the size of its cache and keeps
the pages itself. So `lazy` makes no difference here, and no cache holds memory twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exlora import _exlora
from exlora._settings import log, refuse

if TYPE_CHECKING:
    from exlora.model import ExLlamaV2

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

    `current_seq_len` is how many tokens are in, padding included; set it back to write on from there.
    """

    def __init__(
        self,
        model: ExLlamaV2,
        batch_size: int = 1,
        max_seq_len: int = -1,
        copy_from: ExLlamaV2CacheBase | None = None,
        lazy: bool = False,
        num_key_value_heads: int | None = None,
        fixed_device: int | None = None,
    ) -> None:
        del lazy, fixed_device
        if num_key_value_heads not in (None, model.config.num_key_value_heads):
            refuse(type(self).__name__, num_key_value_heads=num_key_value_heads)
        if copy_from is not None and copy_from.current_seq_len:
            refuse(type(self).__name__, copy_from=copy_from)
        self.model = model
        self.batch_size = batch_size
        self.max_seq_len = model.config.max_seq_len if max_seq_len == -1 else max_seq_len
        self.current_seq_len: int = 0
        #: Leading tokens of each sequence that are padding, from the mask of the pass that began it.
        self.padding = [0] * batch_size
        self._kv: _exlora.KvCache | None = None

    def native(self) -> _exlora.KvCache:
        """The memory, taken now if it was not before."""
        if self._kv is None:
            native = self.model.native_model()
            self._kv = _exlora.KvCache(native, self.batch_size, self.max_seq_len, self.model.config.kv_dtype)
        return self._kv

    def reset(self) -> None:
        """Empties it."""
        self.current_seq_len = 0

    def clone(self) -> ExLlamaV2CacheBase:
        """Another cache of the same size. Only an empty one can be cloned."""
        return type(self)(self.model, self.batch_size, self.max_seq_len, copy_from=self)

    def copy_states(self, *args: Any, **kwargs: Any) -> None:
        """Not done here: prompts that begin alike share their pages in a generator by themselves."""
        refuse(type(self).__name__, copy_states=True)

    def footprint(self) -> list[int]:
        """Bytes on each device; there is one."""
        return [0 if self._kv is None else self._kv.bytes]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_size={self.batch_size}, {self.current_seq_len} of {self.max_seq_len} tokens)"
        )


class ExLlamaV2Cache(ExLlamaV2CacheBase):
    """The cache: float16 keys and values, or float32 by `config.kv_dtype`."""


class _Compressed(ExLlamaV2CacheBase):
    """A name of exllamav2's compressed caches. Here it holds what the plain one holds: more memory, no error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        log.warning(
            "%s is not compressed here: keys and values stay %s", type(self).__name__, self.model.config.kv_dtype
        )


class ExLlamaV2Cache_8bit(_Compressed):
    """As `ExLlamaV2Cache`."""


class ExLlamaV2Cache_Q4(_Compressed):
    """As `ExLlamaV2Cache`."""


class ExLlamaV2Cache_Q6(_Compressed):
    """As `ExLlamaV2Cache`."""


class ExLlamaV2Cache_Q8(_Compressed):
    """As `ExLlamaV2Cache`."""


class ExLlamaV2Cache_TP:
    """Tensor parallelism is not done here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("exlora", tensor_parallel=True)
