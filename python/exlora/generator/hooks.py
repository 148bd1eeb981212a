"""What exllamav2's hooks are called with: after each token, before it becomes part of the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, to_array
from exlora.generator._common import top_arrays

__all__ = ["ExLlamaV2PostSamplingHook", "ExLlamaV2PostSamplingResult", "native_hook"]


@dataclass
class ExLlamaV2PostSamplingResult:
    """A chosen token. A hook may replace `sampled_token`."""

    sampled_token: Any = None
    """The token's id, [1, 1]."""
    sampled_prob: Any = None
    """Its probability after penalties and filters, [1, 1]."""
    candidate_tokens: Any = None
    """The most likely ids, [1, 1, k], if the job returns them."""
    candidate_probs: Any = None
    """Their probabilities, [1, 1, k]."""
    logits: Any = None
    """The logits it was chosen from, [1, 1, vocab]."""
    feed_filters: bool = True


ExLlamaV2PostSamplingHook = Callable[[ExLlamaV2PostSamplingResult], None]


def native_hook(hook: ExLlamaV2PostSamplingHook, top_tokens: int) -> Callable[[_exlora.PostSampling], None]:
    """A hook of a request that calls `hook`."""

    def call(chosen: _exlora.PostSampling) -> None:
        ids, probs = top_arrays([chosen.top_probs], top_tokens) if top_tokens else (None, None)
        result = ExLlamaV2PostSamplingResult(
            sampled_token=to_array(np.array([[chosen.token]], dtype=np.int64)),
            sampled_prob=to_array(np.array([[chosen.prob]], dtype=np.float32)),
            candidate_tokens=ids,
            candidate_probs=probs,
            logits=to_array(chosen.logits[None, None]),
        )
        hook(result)
        if not result.feed_filters:
            raise _exlora.error("setting_unsupported", "filters are told every token", found="feed_filters=False")
        chosen.token = int(as_numpy(result.sampled_token).reshape(-1)[0])

    return call
