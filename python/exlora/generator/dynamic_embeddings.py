"""`ExLlamaV2MMEmbedding`: vectors that a text names by an alias, and ids by numbers that no vocabulary has."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, to_array
from exlora.indexed_embeddings import EMBEDDING_INDEX, IndexedEmbeddings

__all__ = ["ExLlamaV2MMEmbedding"]


class ExLlamaV2MMEmbedding(IndexedEmbeddings):
    """Vectors [n, hidden_size] in place of token ids: of an image, by the caller's own vision tower, or any others.

    `text_alias` stands for them in a text, and the ids `first_index` to `first_index + length - 1` in its ids.
    """

    _lock = threading.Lock()
    _next_index = EMBEDDING_INDEX

    def __init__(
        self,
        model: _exlora.ExLlamaV2Base,
        embeddings: Any,
        text_alias: str | None = None,
        thw_grid: tuple[int, int, int] | None = None,
        pre_tokens: int = 0,
        post_tokens: int = 0,
    ) -> None:
        shape, hidden_size = tuple(embeddings.shape), model.config.hidden_size
        if len(shape) != 2 or shape[1] != hidden_size or shape[0] == 0:
            raise _exlora.error(
                "prompt_embeds_invalid", "embeddings have another shape than the model's vectors",
                expected=f"[n, {hidden_size}]", found=str(list(shape)),
            )  # fmt: skip
        with self._lock:
            first_index = ExLlamaV2MMEmbedding._next_index
            ExLlamaV2MMEmbedding._next_index += shape[0]
        super().__init__(first_index, embeddings)
        self.model = model
        self.text_alias = text_alias or f"<$EMB_{first_index}$>"
        self.thw_grid = thw_grid
        self.pre_tokens, self.post_tokens = pre_tokens, post_tokens
        self.metadata: dict[str, Any] = {}

    def get_ids_tensor(self) -> Any:
        """The ids, int64 [1, n]."""
        return to_array(np.array([self.get_ids()], dtype=np.int64))

    def get_vision_token_range(self) -> tuple[int, int]:
        """The first id that is not one of `pre_tokens`, and the first of `post_tokens`."""
        return self.first_index + self.pre_tokens, self.first_index + self.length - self.post_tokens

    def get_size_in_bytes(self) -> int:
        """Bytes of the vectors."""
        return as_numpy(self.embeddings).size * getattr(self.embeddings, "itemsize", 4)
