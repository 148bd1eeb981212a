"""The environment variable EXLORA_LOG: levels of the loggers under "exlora", shown on stderr without further setup.

A level (`error`, `warn`, `info`, `debug`, `off`), or several for single modules as for the command:
`EXLORA_LOG=info,exlora::engine=debug`. Without it, the loggers are as any library's.
"""

from __future__ import annotations

import logging
import os

__all__ = ["configure"]

_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}


def configure() -> None:
    """Sets the levels that EXLORA_LOG names and shows the records on stderr. Unknown directives are ignored."""
    directives = [directive.strip() for directive in os.environ.get("EXLORA_LOG", "").split(",") if directive.strip()]
    if not directives:
        return
    root = logging.getLogger("exlora")
    root.setLevel(logging.WARNING)
    for directive in directives:
        target, _, level = directive.rpartition("=")
        if level.lower() in _LEVELS:
            logging.getLogger(target.replace("::", ".") or "exlora").setLevel(_LEVELS[level.lower()])
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.propagate = False  # the handlers of the root logger would show every record again
