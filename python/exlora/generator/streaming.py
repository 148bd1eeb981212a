"""`ExLlamaV2StreamingGenerator`: one sequence, token by token."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import to_array
from exlora._unsupported import warn_unknown
from exlora.generator._common import (
    mixture,
    new_seed,
    open_engine,
    stop_list,
    token_array,
    top_arrays,
    unpadded_rows,
)
from exlora.generator.base import ExLlamaV2BaseGenerator
from exlora.generator.filters.base import filter_settings
from exlora.indexed_embeddings import EMBEDDING_INDEX, indexed_embeddings, prompt_of

if TYPE_CHECKING:
    from exlora.cache import ExLlamaV2CacheBase
    from exlora.generator.sampler import _Settings
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2StreamingGenerator"]


class ExLlamaV2StreamingGenerator(ExLlamaV2BaseGenerator):
    """Call `begin_stream_ex`, then `stream_ex` until `eos`, or for as many tokens as needed.

    Prefixes of prompts that were computed before, under the same adapters and weights, are reused.
    """

    def __init__(
        self,
        model: ExLlamaV2,
        cache: ExLlamaV2CacheBase,
        tokenizer: ExLlamaV2Tokenizer,
        draft_model: ExLlamaV2 | None = None,
        draft_cache: ExLlamaV2CacheBase | None = None,
        num_speculative_tokens: int = 5,
    ) -> None:
        self.draft_model = draft_model
        self.draft_cache = draft_cache
        self.num_speculative_tokens = num_speculative_tokens
        #: Whether streams begun from now on draft from their own text, and the longest n-gram that is looked up.
        self.speculative_ngram = False
        self.speculative_ngram_max = 5
        super().__init__(model, cache, tokenizer)
        self.set_stop_conditions([tokenizer.eos_token_id])
        self._job: _exlora.Job | None = None
        self._abort_event: threading.Event | None = None
        self._returns_probs = self._returns_logits = False
        self._top_tokens = 0
        self._drafts = False
        self._seed: int | None = None
        self.reset_sd_stats()

    def _open_engine(self) -> _exlora.Engine:
        return open_engine(self.model, self.cache, self.tokenizer, draft_model=self.draft_model)

    def set_stop_conditions(self, stop_conditions: int | str | Iterable[int | str | None] | None) -> None:
        """Sets the ids and strings that end streams begun from now on; by default the tokenizer's EOS."""
        self._stop = stop_list(stop_conditions)
        self.stop_tokens = {stop for stop in self._stop if isinstance(stop, int)}
        self.stop_strings = {stop for stop in self._stop if isinstance(stop, str)}

    def get_sd_stats(self) -> tuple[float, float, int, int, int]:
        """Of all streams so far: accepted drafts per token, and per draft; tokens, drafts, accepted drafts."""
        stats = {name: count - self._stats[name] for name, count in self._engine.stats().items() if name in self._stats}
        tokens, accepted = stats["tokens_generated"], stats["accepted_draft_tokens"]
        drafts = accepted + stats["rejected_draft_tokens"]
        return accepted / max(tokens, 1), accepted / max(drafts, 1), tokens, drafts, accepted

    def reset_sd_stats(self) -> None:
        """Counts from now on."""
        names = ("tokens_generated", "accepted_draft_tokens", "rejected_draft_tokens")
        self._stats = {name: self._engine.stats()[name] for name in names}

    def set_seed(self, seed: int | None) -> None:
        """Sets the seed of streams begun from now on; `None` is a random seed for each. exlora's own."""
        self._seed = seed

    def begin_stream(
        self,
        input_ids: Any,
        gen_settings: _Settings,
        token_healing: bool = False,
        loras: Any = None,
        input_mask: Any = None,
        position_offsets: Any = None,
        abort_event: threading.Event | None = None,
        **kwargs: Any,
    ) -> None:
        """Begins a sequence; see `begin_stream_ex`."""
        self.begin_stream_ex(
            input_ids,
            gen_settings,
            token_healing,
            loras,
            input_mask,
            position_offsets,
            abort_event=abort_event,
            **kwargs,
        )

    def begin_stream_ex(
        self,
        input_ids: Any,
        gen_settings: _Settings,
        token_healing: bool = False,
        loras: Any = None,
        input_mask: Any = None,
        position_offsets: Any = None,
        return_probabilities: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        abort_event: threading.Event | None = None,
        input_embeddings: Any = None,
        decode_special_tokens: bool = False,
        banned_strings: Any = None,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        **kwargs: Any,
    ) -> None:
        """Begins a sequence [1, n] and ends the one before.

        With a `cfg_scale`, `input_ids` [2, n] are a prompt and its negative prompt. `input_mask` [batch, n] marks
        padding on their left (see `tokenizer.padding_mask`), which is left out. `position_offsets` shift all positions
        of a row, which changes nothing. `input_embeddings` [batch, n, hidden_size] are the vectors that ids from
        1000000000 on stand for, or a list of `ExLlamaV2MMEmbedding`.

        `loras` is one adapter, or an ordered list of adapters or (adapter, weight). Probabilities are those after
        penalties and filters.
        """
        owner = f"{type(self).__name__}.begin_stream"
        del position_offsets
        loras = kwargs.pop("lora", loras)
        warn_unknown(owner, kwargs)
        self.model.native_model()  # which raises where the model was unloaded
        self._returns_probs, self._returns_logits = return_probabilities, return_logits
        self._top_tokens, self._abort_event = return_top_tokens, abort_event
        if self._job is not None:
            self._job.close()
        prompt, *negative = unpadded_rows(input_ids, input_mask)
        if len(negative) > 1:
            raise _exlora.error(
                "request_invalid", "a stream has one sequence, and with a cfg_scale a negative prompt",
                expected="1 or 2 rows of ids", found=f"{len(negative) + 1} rows",
            )  # fmt: skip
        embeddings = indexed_embeddings(input_embeddings, 0)
        request = _exlora.Request(
            prompt_of(prompt, embeddings),
            mixture(loras),
            negative_prompt=prompt_of(negative[0], embeddings) if negative else None,
            max_new_tokens=self._engine.max_tokens,
            seed=new_seed(self._seed),
            stop=self._stop,
            banned_strings=banned_strings or [],
            stop_at_eos=False,
            probs=max(return_top_tokens, int(return_probabilities)),
            return_logits=return_logits,
            skip_special_tokens=not decode_special_tokens,
            ngram_draft=self.speculative_ngram,
            max_ngram=self.speculative_ngram_max,
            num_draft_tokens=self.num_speculative_tokens,
            token_healing=token_healing,
            **filter_settings(filters or gen_settings.filters, filter_prefer_eos),
            **gen_settings.request_settings(return_top_tokens),
        )
        self._job = self._engine.submit(request)
        self._drafts = self.speculative_ngram or self.draft_model is not None
        # Healing replaces the last token.
        pad = self.tokenizer.pad_token_id or 0
        kept = prompt[:-1] if token_healing and len(prompt) > 1 else prompt
        self._sequences = [[token if token < EMBEDDING_INDEX else pad for token in kept]]

    def stream(self) -> tuple[Any, ...]:
        """The next (text, eos, ids [1, n]); then probabilities [1, n] and logits [1, n, vocab] where asked for."""
        result = self.stream_ex()
        values = [result["chunk"], result["eos"], result["chunk_token_ids"]]
        values += [result["probs"]] if self._returns_probs else []
        values += [result["logits"]] if self._returns_logits else []
        return tuple(values)

    def stream_ex(self, ban_tokens: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The next piece: `chunk`, `eos`, `chunk_token_ids` [1, n]; without tokens where banned text was given up.

        Where asked for: `probs` [1, n], `top_tokens` and `top_probs` [1, n, k], `logits` [1, n, vocab]. The token that
        ends the text is not in it. With the last token that the context has room for, `eos` is false and `full()` true.
        `ban_tokens` are ids that the next token is not.
        """
        warn_unknown(f"{type(self).__name__}.stream", kwargs)
        if self._job is None:
            raise _exlora.error("request_invalid", "no stream was begun", hint="call begin_stream_ex first")
        vocab = self.model.native_model().vocab_size
        if self._abort_event is not None and self._abort_event.is_set():
            self._job.cancel()
        if ban_tokens:
            self._ban(ban_tokens)
        chunk = self._job.next_chunk()
        stopped = chunk is not None and chunk.stop_match is not None
        has_tokens = chunk is not None and bool(chunk.token_ids) and not stopped
        if chunk is not None:
            self._sequences[0] += chunk.token_ids
        # A sequence that only lacks room has not ended: the caller may begin again with less of it.
        lacks_room = chunk is not None and chunk.finish_reason == "length" and has_tokens and self.full()
        result: dict[str, Any] = {
            "chunk": "" if chunk is None else chunk.text,
            "eos": chunk is None or (chunk.finish_reason is not None and not lacks_room),
            "chunk_token_ids": token_array(chunk.token_ids if chunk is not None and has_tokens else []),
        }
        if self._returns_probs:
            probs = chunk.probs if chunk is not None and has_tokens else None
            result["probs"] = to_array(_empty(0) if probs is None else probs[None])
        if self._top_tokens:
            top = chunk.top_probs if chunk is not None and has_tokens else None
            result["top_tokens"], result["top_probs"] = top_arrays(top or [], self._top_tokens)
        if self._returns_logits:
            logits = chunk.logits if chunk is not None and has_tokens else None
            result["logits"] = to_array(_empty(0, vocab) if logits is None else logits[None])
        return result

    def _ban(self, tokens: Any) -> None:
        """Forbids tokens for the next one of the stream."""
        assert self._job is not None, "a stream was begun"
        if self._drafts:
            what = "ban_tokens concerns the next token, and a stream with drafts may have chosen it"
            raise _exlora.error("request_invalid", what, hint="stream without a draft model and n-gram drafts")
        self._job.forbid_next(tokens)


def _empty(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros((1, *shape), dtype=np.float32)
