"""`ExLlamaV2Sampler`: exllamav2's sampling settings, and a sampler for logits of `forward`.

The order is penalties, token bias, temperature, top-k, top-p, min-p. Frequency and presence penalties count the tokens
of the output. Settings of exllamav2 without a counterpart are accepted while they are off and refused when on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, to_array, token_rows
from exlora._unsupported import refuse

if TYPE_CHECKING:
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2Sampler"]

#: Settings that are off at these values and have no counterpart here.
_OFF: dict[str, tuple[Any, ...]] = {
    "token_repetition_decay": (0,),
    "smoothing_factor": (0,),
    "max_temp": (0,),
    "temperature_last": (False,),
    "top_a": (0,),
    "tfs": (0, 1),
    "typical": (0, 1),
    "skew": (0,),
    "mirostat": (False,),
    "cfg_scale": (None,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}


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
    mirostat_mu: float | None = None
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

    def request_settings(self) -> dict[str, Any]:
        """The same settings as keywords of a request. Settings without a counterpart are refused."""
        on = {name: getattr(self, name) for name, off in _OFF.items() if getattr(self, name) not in off}
        refuse("ExLlamaV2Sampler.Settings", **on, post_sampling_hooks=self.post_sampling_hooks)
        return {
            "temperature": 0.0 if self.temperature < 0.01 else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.token_repetition_penalty,
            "repetition_range": None if self.token_repetition_range < 0 else self.token_repetition_range,
            "frequency_penalty": self.token_frequency_penalty,
            "presence_penalty": self.token_presence_penalty,
            "logit_bias": self._logit_bias(),
        }

    def _logit_bias(self) -> dict[int, float]:
        if self.token_bias is None:
            return {}
        bias = as_numpy(self.token_bias).reshape(-1)
        ids = np.flatnonzero(bias)
        return dict(zip(ids.tolist(), bias[ids].tolist(), strict=True))


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
        [batch, 1], and False (no filter ended). Probabilities are those before penalties and filters. `random` in
        [0, 1) decides the draw.
        """
        del tokenizer, sync, kwargs
        refuse("ExLlamaV2Sampler.sample", prefix_token=prefix_token, filters=filters)
        keywords = settings.request_settings()
        keywords["logit_bias"] |= dict.fromkeys(blocked_tokens or (), float("-inf"))
        params = _exlora.SamplingParams(seed=int(random * 2**62), **keywords)
        values = as_numpy(logits)
        values = values.reshape(-1, values.shape[-1])
        sampled = [
            params.sample(line.tolist(), row, top=max(1, return_top_tokens))
            for line, row in zip(values, token_rows(sequence_ids), strict=True)
        ]
        best = [top[:return_top_tokens] for _, _, top in sampled]
        return (
            to_array(np.array([[token] for token, _, _ in sampled], dtype=np.int64)),
            to_array(np.array([[[i for i, _ in top]] for top in best], dtype=np.int64)),
            to_array(np.exp(np.array([[[p for _, p in top]] for top in best], dtype=np.float32))),
            to_array(np.exp(np.array([[logprob] for _, logprob, _ in sampled], dtype=np.float32))),
            False,
        )
