"""`ExLlamaV2SelectFilter`: one of some strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exlora.generator.filters._pieces import Pieces, Text, token_id
from exlora.generator.filters.base import ExLlamaV2Filter

if TYPE_CHECKING:
    from exlora.model import ExLlamaV2
    from exlora.tokenizer import ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2SelectFilter"]


class ExLlamaV2SelectFilter(ExLlamaV2Filter):
    """The text is one of some strings, and ends with it."""

    def __init__(
        self,
        model: ExLlamaV2 | None,
        tokenizer: ExLlamaV2Tokenizer,
        options: list[str],
        case_insensitive: bool = False,
    ) -> None:
        super().__init__(model, tokenizer)
        self.case_insensitive = case_insensitive
        self.options = [option.lower() for option in options] if case_insensitive else list(options)
        self.begin("")

    def begin(self, prefix_str: str = "") -> None:
        """A text begins; `prefix_str` precedes the option."""
        self.prefix = prefix_str or ""
        self._tokens: list[int] = []

    def feed(self, token: Any) -> None:
        """A token was chosen."""
        self._tokens.append(token_id(token))

    def next(self) -> tuple[set[int], set[int]]:
        """The ids that lead on to an option, and those of them that complete one."""
        whole = [self.prefix + option for option in self.options]
        if self.case_insensitive:
            folded = Pieces.folded(self.tokenizer)
            return _step(folded, [text.lower() for text in whole], "".join(folded[token] for token in self._tokens))
        exact = Pieces.of(self.tokenizer)
        return _step(exact, [text.encode() for text in whole], b"".join(exact[token] for token in self._tokens))


def _step(pieces: Pieces[Text], options: list[Text], written: Text) -> tuple[set[int], set[int]]:
    allowed: set[int] = set()
    ending: set[int] = set()
    for option in options:
        if option.startswith(written):
            rest = option[len(written) :]
            for piece, ids in pieces.beginnings_of(rest):
                allowed.update(ids)
                if piece == rest:
                    ending.update(ids)
    return allowed, ending
