"""`ExLlamaV2PrefixFilter`: texts with a given beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exlora.generator.filters._pieces import Pieces, token_id
from exlora.generator.filters.base import ExLlamaV2Filter

if TYPE_CHECKING:
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2PrefixFilter"]


class ExLlamaV2PrefixFilter(ExLlamaV2Filter):
    """The text begins with one of some strings. Of two that begin alike, the shorter one is enough."""

    def __init__(self, model: ExLlamaV2 | None, tokenizer: ExLlamaV2Tokenizer, prefix_strings: str | list[str]) -> None:
        super().__init__(model, tokenizer)
        self.prefix_strings = [prefix_strings] if isinstance(prefix_strings, str) else list(prefix_strings)
        self._written = b""

    def begin(self, prefix_str: str = "") -> None:
        """A text begins."""
        self._written = b""

    def feed(self, token: Any) -> None:
        """A token was chosen."""
        self._written += Pieces.of(self.tokenizer)[token_id(token)]

    def next(self) -> tuple[set[int] | None, set[int]]:
        """The ids that lead on to one of the strings; all ids once the text has such a beginning."""
        prefixes = [prefix.encode() for prefix in self.prefix_strings]
        if any(self._written.startswith(prefix) for prefix in prefixes):
            return None, set()
        pieces = Pieces.of(self.tokenizer)
        allowed: set[int] = set()
        for prefix in prefixes:
            if prefix.startswith(self._written):
                rest = prefix[len(self._written) :]
                allowed.update(pieces.beginning_with(rest))
                for _, ids in pieces.beginnings_of(rest):
                    allowed.update(ids)
        return allowed, set()
