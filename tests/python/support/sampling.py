"""The sampler's settings by their definitions, in float64, with a sort wherever an order matters."""

from collections import Counter
from typing import Any

import numpy as np

#: What no setting changes.
OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "top_a": 0.0,
    "min_p": 0.0,
    "tfs": 1.0,
    "typical": 1.0,
    "mirostat": False,
    "mirostat_tau": 1.5,
    "mirostat_mu": None,
    "smoothing_factor": 0.0,
    "min_temp": 0.0,
    "max_temp": 0.0,
    "temp_exponent": 1.0,
    "temperature_last": False,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "xtc_ignore_tokens": (),
    "repetition_penalty": 1.0,
    "repetition_range": None,
    "repetition_decay": 0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "penalize_prompt": False,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_max_ngram": 20,
    "dry_range": 0,
    "dry_sequence_breakers": (),
    "logit_bias": {},
    "allowed_token_ids": None,
}


def distribution(logits: np.ndarray, tokens: list[int], prompt_len: int = 0, **settings: Any) -> np.ndarray:
    """The probabilities that the token after `tokens` is drawn from."""
    s = {**OFF, **{name: value for name, value in settings.items() if value is not None}}
    scores = _penalized(np.asarray(logits, np.float64), tokens, prompt_len, s)
    scores = _biased(scores, tokens, s)
    if s["temperature"] == 0 or s["top_k"] == 1:
        return np.eye(len(scores))[np.argmax(scores)]

    temperature = 1.0 if s["temperature_last"] else s["temperature"]
    distance = scores - scores.max()
    if s["smoothing_factor"] > 0:
        distance = -s["smoothing_factor"] * distance**2
    probs = _normalized(np.exp(distance / temperature))
    order = np.argsort(-scores, kind="stable")

    if s["top_k"] > 0:
        probs = _keep(probs, order[: s["top_k"]])
    if 0 < s["top_p"] < 1:
        probs = _keep(probs, _reach(probs, order, s["top_p"]))
    if s["top_a"] > 0:
        probs = _keep(probs, np.flatnonzero(probs >= s["top_a"] * probs.max() ** 2))
    if s["min_p"] > 0:
        probs = _keep(probs, np.flatnonzero(probs >= s["min_p"] * probs.max()))
    if 0 < s["tfs"] < 1:
        probs = _keep(probs, _tail_free(probs, order, s["tfs"]))
    if 0 < s["typical"] < 1:
        probs = _keep(probs, _typical(probs, order, s["typical"]))
    if s["mirostat"]:
        mu = 2 * s["mirostat_tau"] if s["mirostat_mu"] is None else s["mirostat_mu"]
        probs = _keep(probs, np.flatnonzero(probs >= min(2.0**-mu, probs.max())))

    if s["max_temp"] > s["min_temp"]:
        probs = _power(probs, 1 / _dynamic_temperature(probs, s)) if np.count_nonzero(probs) > 1 else probs
    elif s["temperature_last"]:
        probs = _power(probs, 1 / s["temperature"])
    if s["xtc_probability"] > 0:
        probs = _exclude_top_choices(probs, scores, s)
    return probs


def _penalized(scores: np.ndarray, tokens: list[int], prompt_len: int, s: dict[str, Any]) -> np.ndarray:
    """Repetition, then frequency and presence penalties."""
    scores = scores.copy()
    full = len(tokens) if s["repetition_range"] is None else s["repetition_range"]
    shares: dict[int, list[float]] = {}
    for age, token in enumerate(reversed(tokens)):
        share = 1.0 if age < full else 1 - (age - full) / s["repetition_decay"] if s["repetition_decay"] else 0.0
        if share > 0:
            shares.setdefault(token, []).append(share)
    for token, values in shares.items():
        penalty = 1 + (s["repetition_penalty"] - 1) * values[0]
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    if not s["penalize_prompt"]:
        shares = {token: [1.0] * n for token, n in Counter(tokens[prompt_len:]).items()}
    for token, values in shares.items():
        scores[token] -= s["frequency_penalty"] * sum(values) + s["presence_penalty"] * values[0]
    return scores


def _biased(scores: np.ndarray, tokens: list[int], s: dict[str, Any]) -> np.ndarray:
    """Single biases, DRY, and the allowed tokens."""
    for token, bias in s["logit_bias"].items():
        scores[token] += bias
    if s["dry_multiplier"] > 0:
        for token, length in _repetitions(tokens[-s["dry_range"] :] if s["dry_range"] else tokens, s).items():
            if length >= s["dry_allowed_length"]:
                scores[token] -= s["dry_multiplier"] * s["dry_base"] ** (length - s["dry_allowed_length"])
    if s["allowed_token_ids"] is not None:
        allowed = np.full(len(scores), -np.inf)
        allowed[list(s["allowed_token_ids"])] = 0
        scores = scores + allowed
    return scores


def _repetitions(tokens: list[int], s: dict[str, Any]) -> Counter:
    """For each token, the length of the longest end of the text that it followed before."""
    longest: Counter = Counter()
    for length in range(1, min(s["dry_max_ngram"], len(tokens) - 1) + 1):
        end = tokens[len(tokens) - length :]
        if any(token in s["dry_sequence_breakers"] for token in end):
            break
        for first in range(len(tokens) - length):
            if tokens[first : first + length] == end and tokens[first + length] not in s["dry_sequence_breakers"]:
                longest[tokens[first + length]] = length
    return longest


def _normalized(probs: np.ndarray) -> np.ndarray:
    return probs / probs.sum()


def _power(probs: np.ndarray, exponent: float) -> np.ndarray:
    return _normalized((probs / probs.max()) ** exponent)


def _keep(probs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(probs))
    mask[kept] = 1
    return _normalized(probs * mask)


def _reach(probs: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """The head of an order whose probabilities reach a share."""
    order = order[probs[order] > 0]
    return order[: np.searchsorted(np.cumsum(probs[order]), share) + 1]


def _tail_free(probs: np.ndarray, order: np.ndarray, limit: float) -> np.ndarray:
    order = order[probs[order] > 0]
    curvature = np.abs(np.diff(probs[order], n=2))
    if curvature.sum() == 0:
        return order
    return order[: np.count_nonzero(np.cumsum(curvature / curvature.sum()) <= limit) + 1]


def _typical(probs: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    order = order[probs[order] > 0]
    surprise = -np.log(probs[order])
    nearest = np.argsort(np.abs(surprise - (probs[order] * surprise).sum()), kind="stable")
    return _reach(probs, order[nearest], share)


def _dynamic_temperature(probs: np.ndarray, s: dict[str, Any]) -> float:
    possible = probs[probs > 0]
    entropy = -(possible * np.log(possible)).sum() / np.log(len(possible))
    return s["min_temp"] + (s["max_temp"] - s["min_temp"]) * entropy ** s["temp_exponent"]


def _exclude_top_choices(probs: np.ndarray, scores: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    """The mean of what two outcomes of a coin give."""
    top = [token for token in np.flatnonzero(probs >= s["xtc_threshold"]) if token not in s["xtc_ignore_tokens"]]
    top = [token for token in top if probs[token] > 0]
    if len(top) < 2:
        return probs
    excluded = sorted(top, key=lambda token: (-scores[token], token))[:-1]
    without = probs.copy()
    without[excluded] = 0
    return (1 - s["xtc_probability"]) * probs + s["xtc_probability"] * _normalized(without)
