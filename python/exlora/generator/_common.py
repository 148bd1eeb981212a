"""Shared by all generators: the engine, the meaning of `loras`, seeds and stop conditions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import padding_of, to_array, token_rows
from exlora.config import check_max_seq_len
from exlora.indexed_embeddings import IndexedEmbeddings, split_at_aliases

if TYPE_CHECKING:
    from exlora.cache import ExLlamaV2CacheBase
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = [
    "mixture",
    "new_seed",
    "open_engine",
    "pair_of",
    "prompt_ids",
    "stop_list",
    "token_array",
    "top_arrays",
    "unpadded_rows",
]


def open_engine(
    model: ExLlamaV2,
    cache: ExLlamaV2CacheBase,
    tokenizer: ExLlamaV2Tokenizer,
    max_batch_size: int | None = None,
    max_chunk_size: int | None = None,
    draft_model: ExLlamaV2 | None = None,
) -> _exlora.Engine:
    """An engine over a loaded model whose KV cache, and that of `draft_model`, has the size and type of `cache`."""
    check_max_seq_len("cache", cache.max_seq_len)
    check_max_seq_len("config", model.config.max_seq_len)
    return _exlora.Engine.from_model(
        model.native_model(),
        tokenizer.native,
        kv_dtype=cache.kv_dtype,
        max_seq_len=model.config.max_seq_len,
        kv_tokens=cache.max_seq_len * cache.batch_size,
        max_batch_size=max_batch_size or 32,
        prefill_chunk=max_chunk_size or model.config.max_input_len,
        draft_model=draft_model.native_model() if draft_model is not None else None,
    )


def mixture(loras: Any) -> list[Any]:
    """What `set_loras` takes, as a list of adapters and (adapter, weight); empty is the base model."""
    if loras is None:
        return []
    return list(loras) if isinstance(loras, list | tuple) else [loras]


def pair_of(prompt: Any) -> tuple[Any, Any]:
    """A prompt and its negative prompt: those of a tuple of two, for classifier-free guidance; else it and `None`."""
    if not isinstance(prompt, tuple):
        return prompt, None
    if len(prompt) != 2:
        raise _exlora.error(
            "request_invalid",
            "a tuple of prompts is a pair, for cfg_scale",
            expected="2 prompts",
            found=f"{len(prompt)}",
        )
    return prompt


def unpadded_rows(input_ids: Any, input_mask: Any) -> list[list[int]]:
    """Rows of ids without their padding on the left, which is where `input_mask` is `False` or minus infinity."""
    rows = token_rows(input_ids)
    return [row[length:] for row, length in zip(rows, padding_of(input_mask, len(rows)), strict=True)]


def prompt_ids(
    engine: _exlora.Engine,
    tokenizer: ExLlamaV2Tokenizer,
    loras: list[Any],
    text: str,
    add_bos: bool,
    encode_special_tokens: bool,
    embeddings: Iterable[IndexedEmbeddings] | None = None,
) -> tuple[list[int], _exlora.Tokenizer]:
    """Ids of a prompt and the tokenizer that made them: an adapter's own, if there is one.

    The text aliases of `embeddings` become their ids.
    """
    native = engine.tokenizer_for(loras)
    ids: list[int] = []
    for part in split_at_aliases(text, embeddings or []):
        if isinstance(part, str):
            ids += native.encode(part, add_special_tokens=False, parse_special_tokens=encode_special_tokens)
        else:
            ids += part.get_ids()
    bos = tokenizer.bos_token_id if native.bos_token_id is None else native.bos_token_id
    return [bos, *ids] if add_bos and bos is not None else ids, native


def new_seed(seed: int | None) -> int:
    """The seed, or a random one."""
    return random.getrandbits(63) if seed is None else seed


def stop_list(conditions: int | str | Iterable[int | str | None] | None) -> list[int | str]:
    """Stop conditions as a list, without `None`: a model may have no EOS. One string or id is one condition."""
    if conditions is None or isinstance(conditions, (int, str)):
        conditions = [conditions]
    stops: list[int | str] = []
    for condition in conditions:
        if isinstance(condition, str):
            stops.append(condition)
        elif condition is None:
            continue
        elif hasattr(condition, "__index__"):
            stops.append(int(condition))
        else:
            raise ValueError(f"stop conditions are token ids and strings, not {type(condition).__name__}")
    return stops


def token_array(ids: list[int]) -> Any:
    """Ids as an array [1, n]."""
    return to_array(np.array([ids], dtype=np.int64))


def top_arrays(top: list[list[tuple[int, float]]], k: int) -> tuple[Any, Any]:
    """Ids and probabilities of the `k` best tokens, [1, n, k] each.

    Where fewer are possible, the lowest other ids follow with a probability of 0.
    """
    rows = [_padded(token, k) for token in top]
    ids = np.array([[i for i, _ in row] for row in rows], dtype=np.int64).reshape(1, len(rows), k)
    probs = np.array([[p for _, p in row] for row in rows], dtype=np.float32).reshape(1, len(rows), k)
    return to_array(ids), to_array(probs)


def _padded(top: list[tuple[int, float]], k: int) -> list[tuple[int, float]]:
    top = top[:k]
    taken = {token for token, _ in top}
    others = (token for token in itertools.count() if token not in taken)
    return top + [(next(others), 0.0) for _ in range(k - len(top))]
