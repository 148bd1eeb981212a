"""exllamav2's way of writing vectors into a prompt: ids from `EMBEDDING_INDEX` on, each of which stands for one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy

__all__ = ["EMBEDDING_INDEX", "IndexedEmbeddings", "indexed_embeddings", "parts_of", "prompt_of", "split_at_aliases"]

#: No vocabulary has so many ids.
EMBEDDING_INDEX = 1_000_000_000


class IndexedEmbeddings:
    """Vectors [n, hidden_size] for the ids `first_index` to `first_index + n - 1`."""

    text_alias: str | None = None

    def __init__(self, first_index: int, embeddings: Any) -> None:
        self.first_index = first_index
        self.embeddings = embeddings
        self.length = int(embeddings.shape[0])

    def get_ids(self) -> list[int]:
        """The ids."""
        return list(range(self.first_index, self.first_index + self.length))


def split_at_aliases(text: str, embeddings: Iterable[IndexedEmbeddings]) -> list[str | IndexedEmbeddings]:
    """A text, with embeddings in the place of their aliases."""
    by_alias = {one.text_alias: one for one in embeddings if one.text_alias}
    if not by_alias:
        return [text]
    parts = re.split("(" + "|".join(map(re.escape, by_alias)) + ")", text)
    return [by_alias.get(part, part) for part in parts if part]


def parts_of(ids: Sequence[int], embeddings: Iterable[IndexedEmbeddings]) -> list[int | np.ndarray[Any, Any]]:
    """Ids, with arrays [n, hidden_size] in the place of those from `EMBEDDING_INDEX` on."""
    arrays: list[tuple[IndexedEmbeddings, np.ndarray[Any, Any]]] | None = None
    parts: list[int | np.ndarray[Any, Any]] = []
    position = 0
    while position < len(ids):
        token = ids[position]
        if token < EMBEDDING_INDEX:
            parts.append(token)
            position += 1
            continue
        arrays = [(one, as_numpy(one.embeddings)) for one in embeddings] if arrays is None else arrays
        found = next((one for one in arrays if 0 <= token - one[0].first_index < one[0].length), None)
        if found is None:
            raise _exlora.error(
                "token_out_of_range", "an id stands for a vector of embeddings that were not given",
                expected="ids of the vocabulary or of the given embeddings", found=str(token),
            )  # fmt: skip
        indexed, array = found
        first = token - indexed.first_index
        count = 1
        while position + count < len(ids) and first + count < indexed.length and ids[position + count] == token + count:
            count += 1
        parts.append(array[first : first + count])
        position += count
    return parts


def prompt_of(ids: Sequence[int], embeddings: Iterable[IndexedEmbeddings] | None) -> Any:
    """A prompt for a request: ids, or, if some stand for vectors, ids and vectors."""
    if not any(token >= EMBEDDING_INDEX for token in ids):
        return ids
    return {"prompt_embeds": parts_of(ids, embeddings or [])}


def indexed_embeddings(embeddings: Any, row: int) -> list[IndexedEmbeddings]:
    """What a model's `indexed_embeddings` are for a row: its part of an array [batch, n, hidden_size], or the list."""
    if embeddings is None:
        return []
    if isinstance(embeddings, list | tuple):
        return list(embeddings)
    array = as_numpy(embeddings)
    if array.ndim != 3 or row >= len(array):
        raise _exlora.error(
            "prompt_embeds_invalid", "embeddings have another shape than the ids",
            expected=f"[batch, n, hidden_size] of at least {row + 1} rows", found=str(list(array.shape)),
        )  # fmt: skip
    return [IndexedEmbeddings(EMBEDDING_INDEX, array[row])]
