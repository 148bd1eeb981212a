"""`ExLlamaV2BaseGenerator`: returns when the text is complete."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import exlora._exlora as _exlora
from exlora._arrays import padded_rows
from exlora._unsupported import warn_unknown
from exlora.generator._common import mixture, new_seed, open_engine, pair_of, prompt_ids
from exlora.generator.filters.base import ExLlamaV2Filter, filter_settings
from exlora.indexed_embeddings import EMBEDDING_INDEX, IndexedEmbeddings, indexed_embeddings, prompt_of

if TYPE_CHECKING:
    from exlora.cache import ExLlamaV2CacheBase
    from exlora.generator.sampler import _Settings
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2BaseGenerator", "ExLlamaV2Filter"]

#: Where `input_embeddings` are in a prompt.
EMBED_MARKER = "{{EMBED_HERE}}"


class ExLlamaV2BaseGenerator:
    """Continues one or several prompts."""

    def __init__(self, model: ExLlamaV2, cache: ExLlamaV2CacheBase, tokenizer: ExLlamaV2Tokenizer) -> None:
        self.model = model
        self.cache = cache
        self.tokenizer = tokenizer
        #: Ids of prompt and output of the last call.
        self._sequences: list[list[int]] = []
        self._engine = self._open_engine()

    def _open_engine(self) -> _exlora.Engine:
        return open_engine(self.model, self.cache, self.tokenizer)

    def warmup(self) -> None:
        """Generates a few tokens, so that the first real prompt is not slower."""
        self.model.native_model()
        self._engine.generate([_exlora.Request([0], max_new_tokens=2, stop_at_eos=False)])

    @property
    def sequence_ids(self) -> Any:
        """Ids of prompt and output, int64 [batch, n], of the last call; `None` before the first."""
        return padded_rows(self._sequences, self.tokenizer.pad_token_id) if self._sequences else None

    def full(self) -> bool:
        """Whether the sequence fills the model's context or the cache."""
        return max(map(len, self._sequences), default=0) >= self._engine.max_tokens

    def generate_simple(
        self,
        prompt: str | tuple[str, str] | list[str | tuple[str, str]],
        gen_settings: _Settings,
        num_tokens: int,
        seed: int | None = None,
        token_healing: bool = False,
        encode_special_tokens: bool = False,
        decode_special_tokens: bool = False,
        loras: Any = None,
        stop_token: int | None = -1,
        add_bos: bool = False,
        abort_event: threading.Event | None = None,
        input_embeddings: Any = None,
        completion_only: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        **kwargs: Any,
    ) -> str | list[str]:
        """Prompt and continuation (the continuation alone if `completion_only`); a list for a list of prompts.

        `loras` is one adapter or an ordered list of adapters or (adapter, weight). `stop_token` -1 is the tokenizer's
        EOS, `None` none. `filters` limit the tokens; of several prompts, each has clones of them. With `token_healing`,
        the first new token replaces the prompt's last one by one that begins with its text. A prompt too long for the
        cache loses its beginning. `abort_event` ends all texts at once. A prompt may be a pair (prompt, negative
        prompt), for settings with a `cfg_scale`. `input_embeddings` [batch, n, hidden_size] take the place of
        `{{EMBED_HERE}}` in the prompts, with the spaces around it.
        """
        loras = kwargs.pop("lora", loras)
        warn_unknown(f"{type(self).__name__}.generate_simple", kwargs)
        self.model.native_model()  # which raises where the model was unloaded
        prompts = prompt if isinstance(prompt, list) else [prompt]
        eos = self.tokenizer.eos_token_id if stop_token == -1 else stop_token
        first_seed, room = new_seed(seed), self.cache.max_seq_len - num_tokens
        heads, rows, jobs = [], [], []
        filters = filters or gen_settings.filters
        for i, pair in enumerate(prompts):
            # A filter follows one text.
            own_filters = filters if len(prompts) == 1 else [one.clone() for one in filters]
            text, negative = pair_of(pair)
            marked, embeddings = _marked(text, input_embeddings, i)
            ids, tokenizer = prompt_ids(
                self._engine, self.tokenizer, mixture(loras), marked, add_bos, encode_special_tokens, embeddings
            )
            if negative is not None:
                negative, _ = prompt_ids(
                    self._engine, self.tokenizer, mixture(loras), negative, add_bos, encode_special_tokens
                )
            if len(ids) > max(room, 1):
                ids = ids[-max(room, 1) :]
                text = tokenizer.decode([token for token in ids if token < EMBEDDING_INDEX])
            heads.append("" if completion_only else text)
            # Healing replaces the last token.
            pad = self.tokenizer.pad_token_id or 0
            kept = ids[:-1] if token_healing and len(ids) > 1 else ids
            rows.append([token if token < EMBEDDING_INDEX else pad for token in kept])
            request = _exlora.Request(
                prompt_of(ids, embeddings),
                mixture(loras),
                negative_prompt=negative,
                max_new_tokens=num_tokens + bool(token_healing),
                seed=(first_seed + i) % 2**63,
                stop=eos,
                stop_at_eos=False,
                skip_special_tokens=not decode_special_tokens,
                token_healing=token_healing,
                **filter_settings(own_filters, filter_prefer_eos),
                **gen_settings.request_settings(),
            )
            jobs.append(self._engine.submit(request))
        texts = []
        for head, row, job in zip(heads, rows, jobs, strict=True):
            text, tokens = _finish(job, abort_event)
            texts.append(head + text)
            row += tokens
        self._sequences = rows
        return texts if isinstance(prompt, list) else texts[0]


def _marked(text: str, input_embeddings: Any, row: int) -> tuple[str, list[IndexedEmbeddings]]:
    """A prompt without the spaces around the marker of its vectors, which it contains once, and the vectors."""
    embeddings = indexed_embeddings(input_embeddings, row)
    if not embeddings:
        return text, embeddings
    for one in embeddings:
        one.text_alias = one.text_alias or EMBED_MARKER
    if text.count(EMBED_MARKER) != 1:
        raise _exlora.error(
            "request_invalid", "a prompt with input_embeddings has one marker of where they are",
            expected=f"{EMBED_MARKER} once", found=f"{text.count(EMBED_MARKER)} times",
        )  # fmt: skip
    before, after = text.split(EMBED_MARKER)
    return before.rstrip(" \t") + EMBED_MARKER + after.lstrip(" \t"), embeddings


def _finish(job: _exlora.Job, abort_event: threading.Event | None) -> tuple[str, list[int]]:
    """Text and ids of a job that is run to its end."""
    text, tokens = "", []
    while (chunk := job.next_chunk()) is not None:
        text += chunk.text
        tokens += chunk.token_ids
        if abort_event is not None and abort_event.is_set():
            job.cancel()
    return text, tokens
