"""`ExLlamaV2Filter`: the base of filters, and what an engine calls of them."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from exlora._arrays import as_numpy, to_array

if TYPE_CHECKING:
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2Filter", "allowed_and_ending", "filter_settings"]


class ExLlamaV2Filter:
    """Chooses the tokens of one text. A subclass has `begin`, `feed` and `next`.

    A filter is called from the thread that computes a step or one beside it, never from two at once; it must not call
    the engine. What it raises ends its own job, with `constraint_failed`.
    """

    #: exllamav2's note that `next` may return lists.
    allow_return_type_list: bool = True

    def __init__(self, model: ExLlamaV2 | None, tokenizer: ExLlamaV2Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sequence_str = ""

    def clone(self, c: Any = None) -> Any:
        """A copy with the same settings; into `c`, if that is given."""
        if c is None:
            return copy.copy(self)
        c.__dict__.update(self.__dict__)
        return c

    def begin(self, prefix_str: str) -> None:
        """A text begins."""
        raise NotImplementedError

    def feed(self, token: Any) -> None:
        """A token was chosen: its id as an array [1, 1]."""
        raise NotImplementedError

    def next(self) -> tuple[Collection[int] | None, Collection[int]]:
        """The ids that may follow, or `None` for all; and the ids that end the text."""
        raise NotImplementedError

    def use_background_worker(self) -> bool:
        """Whether `next` may run while the step computes, for a filter that takes long."""
        return False

    def can_mask_logits(self) -> bool:
        """Whether it has `prepare_logit_mask` and `mask_logits`, which are called if it has no `next`."""
        return False

    def prepare_logit_mask(self) -> bool:
        """Computes what `mask_logits` will do."""
        raise NotImplementedError

    def mask_logits(self, logits: Any) -> Any:
        """The logits [vocab] with those of forbidden ids at minus infinity."""
        raise NotImplementedError


def filter_settings(filters: Any, prefer_eos: bool) -> dict[str, Any]:
    """Filters as keywords of a request."""
    return {"filters": [_caller_of(one) for one in filters or ()], "filter_prefer_eos": bool(prefer_eos)}


def _caller_of(target: Any) -> _Caller:
    """A filter as an engine calls it, under the name of the filter's own class, which errors name."""
    named: type[_Caller] = type(type(target).__name__, (_Caller,), {})
    return named(target)


def allowed_and_ending(filters: Any, prefer_eos: bool, eos: int | None) -> tuple[set[int] | None, set[int]]:
    """The ids that all filters allow, or `None` for all; and those that end the text."""
    allowed: set[int] | None = None
    ending: set[int] = set()
    for one in filters or ():
        own, own_ending = _Caller(one).next()
        ending.update(own_ending or ())
        if own is not None:
            allowed = set(own) if allowed is None else allowed & set(own)
    if prefer_eos and allowed is not None and eos in allowed:
        allowed = {eos}
    return allowed, ending


class _Caller:
    """A filter as an engine calls it: ids are integers there, and arrays [1, 1] in exllamav2."""

    def __init__(self, target: Any) -> None:
        self._target = target
        # Ids are needed either way, so a filter that has both is asked for them.
        has_next = getattr(type(target), "next", ExLlamaV2Filter.next) is not ExLlamaV2Filter.next
        self._masks_logits = not has_next and bool(getattr(target, "can_mask_logits", bool)())

    def begin(self, prefix: str) -> None:
        self._target.begin(prefix)

    def feed(self, token: int) -> None:
        self._target.feed(to_array(np.array([[token]], dtype=np.int64)))

    def next(self) -> tuple[Any, Any]:
        if not self._masks_logits:
            allowed, ending = self._target.next()
            return allowed, ending
        self._target.prepare_logit_mask()
        logits = np.zeros(self._target.tokenizer.get_vocab_size(), dtype=np.float32)
        masked = as_numpy(self._target.mask_logits(to_array(logits))).reshape(-1)
        return np.flatnonzero(masked > -np.inf).tolist(), []

    def use_background_worker(self) -> bool:
        return bool(getattr(self._target, "use_background_worker", bool)())
