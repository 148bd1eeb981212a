"""`ExLlamaV2DynamicJob`: one sequence of a dynamic generator, and its results."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import exlora._exlora as _exlora
from exlora._arrays import to_array, token_row
from exlora._unsupported import warn_unknown
from exlora.generator._common import mixture, new_seed, stop_list, token_array, top_arrays
from exlora.generator.filters.base import filter_settings
from exlora.generator.sampler import ExLlamaV2Sampler, _Settings
from exlora.indexed_embeddings import prompt_of
from exlora.util import SeqTensor

__all__ = ["ExLlamaV2DynamicJob"]

_EOS_REASONS = {"length": "max_new_tokens", "cancelled": "cancelled"}


class _SetLoras:
    """Default of a job's `loras`: those of the generator's `set_loras` when the job is enqueued."""

    def __repr__(self) -> str:
        return "<as set_loras>"


SET_LORAS = _SetLoras()


@dataclass(frozen=True)
class JobSequence:
    """Ids [1, n] of one of a job's prompts, and of the prompt, of which healing replaces the end, with its output."""

    input_ids: SeqTensor
    sequence_ids: SeqTensor


def _prompt_and_negative(input_ids: Any) -> tuple[list[int], list[int] | None]:
    """Ids of a prompt and of its negative prompt, from ids [1, n] or a list of one or two such arrays."""
    is_list = isinstance(input_ids, list | tuple) and len(input_ids) in (1, 2)
    if not is_list or not (isinstance(input_ids[0], list) or bool(getattr(input_ids[0], "ndim", 0))):
        return token_row(input_ids), None
    prompt, *negative = map(token_row, input_ids)
    return prompt, negative[0] if negative else None


class ExLlamaV2DynamicJob:
    """One sequence to continue.

    `loras` is exlora's own: this job's adapters, as one adapter or an ordered list of adapters or (adapter, weight);
    `None` or an empty list is the base model. If left out, the adapters of `set_loras` when the job is enqueued.
    `return_probs` and `return_top_tokens` give probabilities after penalties and filters. `input_ids` [1, n] may be a
    list of two such arrays, for `gen_settings.cfg_scale`: the prompt and the one that the text is guided away from.
    """

    def __init__(
        self,
        input_ids: Any,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        max_skips: int | None = 4,
        gen_settings: _Settings | None = None,
        seed: int | None = None,
        stop_conditions: int | str | Iterable[int | str | None] | None = None,
        decode_special_tokens: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        return_probs: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        token_healing: bool = False,
        identifier: object = None,
        banned_strings: Any = None,
        embeddings: Any = None,
        loras: Any = SET_LORAS,
        **kwargs: Any,
    ) -> None:
        owner = type(self).__name__
        self.loras = kwargs.pop("lora", loras)
        warn_unknown(owner, kwargs)
        self.input_ids, negative = _prompt_and_negative(input_ids)
        self._negative = negative
        self._output: list[int] = []
        #: Vectors that ids of the prompts stand for.
        self.embeddings = list(embeddings or [])
        self.identifier = identifier
        #: Without effect: jobs start in the order in which they were enqueued, so none is skipped.
        self.max_skips = max_skips
        self.max_new_tokens = max_new_tokens
        self.min_new_tokens = min_new_tokens
        stops = stop_list(stop_conditions)
        self.stop_tokens = {stop for stop in stops if isinstance(stop, int)}
        self.stop_strings = {stop for stop in stops if isinstance(stop, str)}
        self.gen_settings = gen_settings or ExLlamaV2Sampler.Settings()
        self.return_top_tokens = return_top_tokens
        self.return_probs = return_probs
        self.filters = list(filters or self.gen_settings.filters)
        # Of the new tokens, the one that replaces the prompt's last is not counted.
        self._heals = bool(token_healing) and len(self.input_ids) > 1
        self._settings: dict[str, Any] = {
            **self.gen_settings.request_settings(return_top_tokens),
            "min_new_tokens": min_new_tokens,
            "seed": new_seed(seed),
            "stop": stops,
            "banned_strings": banned_strings or [],
            "stop_at_eos": False,
            "probs": max(return_top_tokens, int(return_probs)),
            "return_logits": return_logits,
            "skip_special_tokens": not decode_special_tokens,
            "token_healing": token_healing,
            "negative_prompt": None if negative is None else prompt_of(negative, self.embeddings),
            **filter_settings(self.filters, filter_prefer_eos),
        }
        self.serial_number: int | None = None
        self.full_completion = ""
        self.new_tokens = 0
        self.cached_pages = self.cached_tokens = 0
        self.is_finished = False
        self._tokenizer: _exlora.Tokenizer | None = None
        self._native: _exlora.Job | None = None
        self._prefilled = -1
        self._enqueued_at = self._started_at = self._first_token_at = 0.0

    def submit(
        self, engine: _exlora.Engine, serial: int, loras: list[Any], max_tokens: int, drafts: dict[str, Any]
    ) -> None:
        """Queues it in an engine; prompt and output together get at most `max_tokens`. The generator calls this.

        `drafts` are the generator's settings of drafts, as keywords of a request.
        """
        if self._native is not None:
            raise _exlora.error("request_invalid", "the job was enqueued before", hint="make a new job")
        adapters = loras if self.loras is SET_LORAS else mixture(self.loras)
        if len(self.input_ids) >= max_tokens:
            raise _exlora.error(
                "prompt_too_long",
                "the prompt leaves no room in max_seq_len",
                expected=f"at most {max_tokens - 1} tokens",
                found=f"{len(self.input_ids)} tokens",
            )
        room = min(self.max_new_tokens, max_tokens - len(self.input_ids)) + self._heals
        prompt = prompt_of(self.input_ids, self.embeddings)
        request = _exlora.Request(prompt, adapters, max_new_tokens=room, **self._settings, **drafts)
        self._native = engine.submit(request)
        self._tokenizer = engine.tokenizer_for(adapters)
        self.serial_number = serial
        self._enqueued_at = time.perf_counter()

    def cancel(self) -> None:
        """Ends it; it has no further results."""
        if self._native is not None:
            self._native.close()
        self.is_finished = True

    @property
    def sequences(self) -> list[JobSequence]:
        """Its ids so far, as torch tensors; with a `cfg_scale`, then those of the negative prompt."""
        prompts = [self.input_ids] if self._negative is None else [self.input_ids, self._negative]
        return [JobSequence(SeqTensor.from_ids(ids), SeqTensor.from_ids(self._computed(ids))) for ids in prompts]

    def _computed(self, prompt: list[int]) -> list[int]:
        is_cut = self._heals and prompt[-1] == self.input_ids[-1] and len(prompt) > 1
        return (prompt[:-1] if is_cut else prompt) + self._output

    @property
    def has_started(self) -> bool:
        """Whether it runs, or has ended; before that it waits for others."""
        return self._native is not None and self._native.has_started

    def started(self, when: float) -> dict[str, Any]:
        """Its first result, if it started at that time."""
        self._started_at = self._first_token_at = max(when, self._enqueued_at)
        return self._result("started")

    def collect(self) -> list[dict[str, Any]]:
        """The results since the last call."""
        assert self._native is not None, "a job reports after it was submitted"
        results = []
        done, total = self._native.prefill_progress
        if done > self._prefilled and self.new_tokens == 0:
            self._prefilled = done
            results.append(self._result("prefill", curr_progress=done, max_progress=total))
        while (chunk := self._native.poll_chunk()) is not None:
            results.append(self._streaming(chunk))
        return results

    def _streaming(self, chunk: _exlora.Chunk) -> dict[str, Any]:
        if self.new_tokens == 0:
            self._first_token_at = time.perf_counter()
        self.new_tokens += len(chunk.token_ids)
        self._output += chunk.token_ids
        self.full_completion += chunk.text
        result = self._result("streaming")
        if chunk.text:
            result["text"] = chunk.text
        if chunk.suppressed_token_ids:
            result["suppressed_text"] = chunk.suppressed_text
            result["suppressed_tokens"] = token_array(chunk.suppressed_token_ids)
        # The token that ends the text is not part of it.
        ends_by_stop = chunk.stop_match is not None
        tokens = self._token_results(chunk)
        if chunk.finish_reason is not None:
            result |= self._end(chunk)
        if not ends_by_stop:
            result |= tokens
        elif tokens:
            result["held"] = tokens
        return result

    def _token_results(self, chunk: _exlora.Chunk) -> dict[str, Any]:
        if not chunk.token_ids:
            return {}
        tokens = {"token_ids": token_array(chunk.token_ids)}
        if self.return_probs and chunk.probs is not None:
            tokens["token_probs"] = to_array(chunk.probs[None])
        if self.return_top_tokens and chunk.top_probs is not None:
            top = top_arrays(chunk.top_probs, self.return_top_tokens)
            tokens["top_k_tokens"], tokens["top_k_probs"] = top
        if chunk.logits is not None:
            tokens["logits"] = to_array(chunk.logits[None])
        return tokens

    def _end(self, chunk: _exlora.Chunk) -> dict[str, Any]:
        usage, match = chunk.usage, chunk.stop_match
        assert usage is not None, "a last chunk has its usage"
        assert self._tokenizer is not None, "a job reports after it was submitted"
        self.is_finished = True
        self.cached_tokens = usage.cached_tokens
        self.cached_pages = usage.cached_tokens // _exlora.PAGE_TOKENS
        now = time.perf_counter()
        ending: dict[str, Any] = {
            "eos": True,
            "eos_reason": _EOS_REASONS.get(chunk.finish_reason or "", "end_filter"),
            "full_completion": self.full_completion,
            "new_tokens": usage.completion_tokens - self._heals,
            "prompt_tokens": usage.prompt_tokens + self._heals,
            "time_enqueued": self._started_at - self._enqueued_at,
            "time_prefill": self._first_token_at - self._started_at,
            "time_generate": now - self._first_token_at,
            "cached_pages": self.cached_pages,
            "cached_tokens": self.cached_tokens,
            "accepted_draft_tokens": usage.accepted_draft_tokens,
            "rejected_draft_tokens": usage.rejected_draft_tokens,
        }
        if isinstance(match, str):
            ending["eos_reason"] = "stop_string"
            ending["eos_triggering_string"] = match
        elif match is not None:
            ending["eos_reason"] = "stop_token"
            ending["eos_triggering_token_id"] = match
            ending["eos_triggering_token_str"] = self._tokenizer.decode([match])
        return ending

    def _result(self, stage: str, **values: Any) -> dict[str, Any]:
        result = {"job": self, "stage": stage, "eos": False, "serial": self.serial_number, **values}
        if self.identifier is not None:
            result["identifier"] = self.identifier
        return result
