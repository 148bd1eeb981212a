"""`ExLlamaV2MMEmbedding`, by name only."""

from __future__ import annotations

from typing import Any

from exlora._unsupported import refuse

__all__ = ["ExLlamaV2MMEmbedding"]


class ExLlamaV2MMEmbedding:
    """Embeddings of images are not supported: making one raises `setting_unsupported`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("exlora", multimodal_embedding=True)
