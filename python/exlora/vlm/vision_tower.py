"""`ExLlamaV2VisionTower`, by name only."""

from __future__ import annotations

from typing import Any

from exlora._unsupported import refuse

__all__ = ["ExLlamaV2VisionTower"]


class ExLlamaV2VisionTower:
    """Vision models are not supported: making one raises `setting_unsupported`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("exlora", vision_tower=True)
