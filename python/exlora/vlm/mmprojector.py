"""`ExLlamaV2MultimodalProjector`, by name only."""

from __future__ import annotations

from typing import Any

from exlora._unsupported import refuse

__all__ = ["ExLlamaV2MultimodalProjector"]


class ExLlamaV2MultimodalProjector:
    """Vision models are not supported: making one raises `setting_unsupported`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("exlora", multimodal_projector=True)
