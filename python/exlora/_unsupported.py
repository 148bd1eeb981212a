"""exllamav2's settings that exlora does not have: accepted at their default, else refused by name, never ignored."""

from __future__ import annotations

import logging
from typing import Any

import exlora._exlora as _exlora

__all__ = ["log", "refuse", "warn_unknown"]

log = logging.getLogger("exlora")


def refuse(owner: str, **settings: Any) -> None:
    """Raises `setting_unsupported` for the first setting that is not off."""
    for name, value in settings.items():
        is_empty = isinstance(value, list | tuple | dict | str) and not value
        if not (value is None or value is False or is_empty):
            raise _exlora.error("setting_unsupported", f"{owner} does not have {name}", found=f"{name}={value!r}")


def warn_unknown(owner: str, settings: dict[str, Any]) -> None:
    """Logs which keywords have no effect; exllamav2 accepts any keyword, and scripts written for it rely on that."""
    if settings:
        log.warning("%s ignores unknown settings: %s", owner, ", ".join(sorted(settings)))
