"""How results are compared."""

from typing import Any

import numpy as np


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the oracle's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def gap(ours: Any, theirs: Any) -> float:
    """The largest absolute difference, for oracles whose values are of the order of 1 to 10."""
    theirs = np.asarray(theirs)
    assert 1 <= np.abs(theirs).max() <= 15
    return distance(ours, theirs) * float(np.abs(theirs).max())


def log_softmax(logits: Any) -> Any:
    """Natural logarithm of the probabilities, in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def bits(result: Any) -> tuple[Any, ...]:
    """Everything of a completion that must not depend on the rest of the batch, as values that compare by bits."""
    top = [[(token, np.float32(value).tobytes()) for token, value in row] for row in result.top_logprobs]
    logprobs = np.asarray(result.logprobs)
    assert logprobs.dtype == np.float32
    return result.text, list(result.token_ids), result.finish_reason, logprobs.tobytes(), top
