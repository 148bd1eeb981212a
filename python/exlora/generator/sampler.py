"""`ExLlamaV2Sampler`: exllamav2's sampling settings, and a sampler for logits of `forward`.

The settings act in exllamav2's order. `cfg_scale` is that of a pair of prompts, whose logits it weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, to_array, token_rows
from exlora.generator._common import top_arrays
from exlora.generator.filters._pieces import Pieces
from exlora.generator.filters.base import allowed_and_ending
from exlora.generator.hooks import native_hook

if TYPE_CHECKING:
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2Sampler"]

#: Added to the random number of each further row of logits, modulo 1.
_GOLDEN_RATIO = 0.6180339887498949


@dataclass
class _Settings:
    """How tokens are chosen."""

    token_repetition_penalty: float = 1.025
    token_repetition_range: int = -1
    token_repetition_decay: int = 0
    token_frequency_penalty: float = 0.0
    token_presence_penalty: float = 0.0
    temperature: float = 0.8
    smoothing_factor: float = 0.0
    min_temp: float = 0.0
    max_temp: float = 0.0
    temp_exponent: float = 1.0
    top_k: int = 50
    top_p: float = 0.8
    top_a: float = 0.0
    min_p: float = 0.0
    tfs: float = 0.0
    typical: float = 0.0
    skew: float = 0.0
    temperature_last: bool = False
    mirostat: bool = False
    mirostat_tau: float = 1.5
    mirostat_eta: float = 0.1
    mirostat_mu: float | list[float | None] | None = None
    token_bias: Any = None
    cfg_scale: float | None = None
    post_sampling_hooks: list[Any] = field(default_factory=list)
    dry_allowed_length: int = 2
    dry_base: float = 1.75
    dry_multiplier: float = 0.0
    dry_sequence_breakers: Any = None
    dry_range: int = 0
    dry_max_ngram: int = 20
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_ignore_tokens: Any = None
    filters: list[Any] = field(default_factory=list)

    @classmethod
    def greedy(cls, **kwargs: Any) -> _Settings:
        """Always the most likely token."""
        return cls(**{"temperature": 1.0, "token_repetition_penalty": 1.0, "top_p": 0.0, "top_k": 1, **kwargs})

    def clone(self) -> _Settings:
        """An independent copy."""
        # Filters are the caller's objects.
        return copy.deepcopy(self, {id(self.filters): list(self.filters)})

    def greedy_clone(self) -> _Settings:
        """A greedy copy with the same penalties and bias."""
        settings = self.clone()
        settings.temperature, settings.top_k, settings.top_p = 1.0, 1, 0.0
        return settings

    def disallow_tokens(self, tokenizer: ExLlamaV2Tokenizer, tokens: Iterable[int | str]) -> None:
        """Forbids tokens, given as ids or spellings."""
        bias = (
            np.zeros(tokenizer.get_vocab_size(), np.float32)
            if self.token_bias is None
            else as_numpy(self.token_bias).copy()
        )
        bias[_ids(tokenizer, tokens)] = -np.inf
        self.token_bias = to_array(bias)

    def allow_tokens(self, tokenizer: ExLlamaV2Tokenizer, tokens: Iterable[int | str]) -> None:
        """Forbids all tokens but these, given as ids or spellings; several calls add up."""
        size = tokenizer.get_vocab_size()
        bias = np.full(size, -np.inf, np.float32) if self.token_bias is None else as_numpy(self.token_bias).copy()
        bias[_ids(tokenizer, tokens)] = 0.0
        self.token_bias = to_array(bias)

    def request_settings(self, top_tokens: int = 0) -> dict[str, Any]:
        """The same settings as keywords of a request. Hooks see the `top_tokens` most likely tokens."""
        hooks = [native_hook(hook, top_tokens) for hook in self.post_sampling_hooks]
        return {**self.sampling(), "post_sampling_hooks": hooks}

    def sampling(self) -> dict[str, Any]:
        """The same settings as keywords of `SamplingParams`, which have no hooks."""
        return {
            "cfg_scale": self.cfg_scale,
            **{name: getattr(self, name) for name in _SAME},
            "temperature": 0.0 if self.temperature < 0.01 else self.temperature,
            "repetition_penalty": self.token_repetition_penalty,
            "repetition_range": None if self.token_repetition_range < 0 else self.token_repetition_range,
            "repetition_decay": self.token_repetition_decay,
            "frequency_penalty": self.token_frequency_penalty,
            "presence_penalty": self.token_presence_penalty,
            "penalize_prompt": True,
            "mirostat_mu": _first(self.mirostat_mu),
            "dry_sequence_breakers": _sorted(self.dry_sequence_breakers),
            "xtc_ignore_tokens": _sorted(self.xtc_ignore_tokens),
            **self._token_bias(),
        }

    def _token_bias(self) -> dict[str, Any]:
        """The bias of single tokens, and the allowed ones where most are forbidden."""
        if self.token_bias is None:
            return {"logit_bias": {}}
        bias = as_numpy(self.token_bias).reshape(-1)
        is_forbidden = np.isneginf(bias)
        allowed = None
        if 2 * is_forbidden.sum() > len(bias):
            allowed = np.flatnonzero(~is_forbidden).tolist()
            bias = np.where(is_forbidden, 0, bias)
        ids = np.flatnonzero(bias)
        values = dict(zip(ids.tolist(), bias[ids].tolist(), strict=True))
        return {"logit_bias": values, "allowed_token_ids": allowed}


#: Settings of the same name and meaning in `SamplingParams`.
_SAME = (
    "top_k",
    "top_p",
    "top_a",
    "min_p",
    "tfs",
    "typical",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "smoothing_factor",
    "min_temp",
    "max_temp",
    "temp_exponent",
    "temperature_last",
    "xtc_probability",
    "xtc_threshold",
    "skew",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_max_ngram",
    "dry_range",
)


def _both(one: Iterable[int] | None, other: Iterable[int] | None) -> list[int] | None:
    """The ids that both allow; `None` allows all."""
    if one is None or other is None:
        return _sorted(other if one is None else one)
    return sorted(set(one) & set(other))


def _sorted(ids: Iterable[int] | None) -> list[int] | None:
    return None if ids is None else sorted(ids)


def _first(limits: Any, row: int = 0) -> float | None:
    """Mirostat's limit of a row, where `limits` is one for all rows or a list; `None` and 0 stand for the default."""
    limit = limits[row] if isinstance(limits, list | tuple) and row < len(limits) else limits
    return None if isinstance(limit, list | tuple) else limit or None


def _ids(tokenizer: ExLlamaV2Tokenizer, tokens: Iterable[int | str]) -> list[int]:
    ids = []
    for token in tokens:
        token_id = tokenizer.single_id(token) if isinstance(token, str) else token
        if token_id is None:
            raise _exlora.error("sampling_invalid", "the vocabulary has no such token", found=repr(token))
        ids.append(token_id)
    return ids


class ExLlamaV2Sampler:
    """Sampling settings, and `sample` for given logits."""

    class Settings(_Settings):
        __doc__ = _Settings.__doc__

    @staticmethod
    def sample(
        logits: Any,
        settings: _Settings,
        sequence_ids: Any,
        random: float,
        tokenizer: ExLlamaV2Tokenizer,
        prefix_token: Any = None,
        return_top_tokens: int = 0,
        blocked_tokens: list[int] | None = None,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        sync: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any, Any, Any, bool]:
        """Chooses the token that follows `sequence_ids` [batch, n] from `logits` [batch, 1, vocab].

        Returns ids [batch, 1], ids and probabilities of the best tokens [batch, 1, k], the chosen ids' probabilities
        [batch, 1], and whether a filter ended. Probabilities are those after penalties and filters. `random` in
        [0, 1) decides the draw. A `prefix_token` [batch, 1] allows only tokens whose text begins with its text. With
        Mirostat, `settings.mirostat_mu` becomes the list of the rows' limits. With a `cfg_scale`, `logits` are those of
        two prompts, and one token is chosen from both.
        """
        del sync, kwargs
        keywords = settings.sampling()
        filtered, ending = allowed_and_ending(filters, filter_prefer_eos, tokenizer.eos_token_id)
        keywords["allowed_token_ids"] = _both(keywords.get("allowed_token_ids"), filtered)
        prefixes = None if prefix_token is None else as_numpy(prefix_token).reshape(-1).tolist()
        keywords["logit_bias"] |= dict.fromkeys(blocked_tokens or (), float("-inf"))
        values = as_numpy(logits)
        values = values.reshape(-1, values.shape[-1])
        contexts, negative = token_rows(sequence_ids), None
        if settings.cfg_scale is not None:
            if len(values) != 2:
                raise _exlora.error(
                    "request_invalid", "cfg_scale weights the logits of two prompts",
                    expected="2 rows", found=f"{len(values)} rows",
                )  # fmt: skip
            values, contexts, negative = values[:1], contexts[:1], values[1].tolist()
        sampled = []
        for row, (line, ids) in enumerate(zip(values, contexts, strict=True)):
            own = keywords | {"mirostat_mu": _first(settings.mirostat_mu, row)}
            if prefixes is not None:
                pieces = Pieces.of(tokenizer)
                continuing = pieces.beginning_with(pieces[prefixes[row]])
                own["allowed_token_ids"] = _both(own["allowed_token_ids"], continuing)
            params = _exlora.SamplingParams(**own)
            number = (random + row * _GOLDEN_RATIO) % 1.0
            sampled.append(params.draw(line.tolist(), ids, number, return_top_tokens, tokenizer.native, negative))
        if settings.mirostat:
            settings.mirostat_mu = [limit for _, _, _, limit in sampled]
        top_tokens, top_probs = top_arrays([top for _, _, top, _ in sampled], return_top_tokens)
        return (
            to_array(np.array([[token] for token, _, _, _ in sampled], dtype=np.int64)),
            top_tokens.reshape(len(sampled), 1, return_top_tokens),
            top_probs.reshape(len(sampled), 1, return_top_tokens),
            to_array(np.array([[prob] for _, prob, _, _ in sampled], dtype=np.float32)),
            any(token in ending for token, _, _, _ in sampled),
        )
