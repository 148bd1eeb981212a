"""What a tokenizer's tokens add to a text, to be looked up by how it begins."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from exlora._arrays import as_numpy

__all__ = ["Pieces", "token_id"]

Text = TypeVar("Text", str, bytes)


class Pieces(Generic[Text]):
    """The piece of a text that each id adds; one that is empty is never looked up."""

    def __init__(self, pieces: list[Text]) -> None:
        self._pieces: list[Text] = pieces
        self._ids: dict[Text, list[int]] = {}
        for token, piece in enumerate(pieces):
            if piece:
                self._ids.setdefault(piece, []).append(token)
        self._sorted: list[Text] = sorted(self._ids)
        self._longest = max(map(len, self._sorted), default=0)

    def __getitem__(self, token: int) -> Text:
        return self._pieces[token]

    @staticmethod
    def of(tokenizer: Any) -> Pieces[bytes]:
        """Pieces as bytes, so that tokens of parts of a character count."""

        def pieces() -> list[bytes]:
            native = tokenizer.native
            return [bytes(native.piece_bytes(token) or b"") for token in range(native.vocab_size)]

        return _once(tokenizer, "bytes", lambda: Pieces(pieces()))

    @staticmethod
    def folded(tokenizer: Any) -> Pieces[str]:
        """Pieces in lower case; parts of characters have none."""

        def pieces() -> list[str]:
            return ["" if "\ufffd" in piece else piece.lower() for piece in tokenizer.get_id_to_piece_list()]

        return _once(tokenizer, "folded", lambda: Pieces(pieces()))

    def beginnings_of(self, text: Text) -> Iterator[tuple[Text, list[int]]]:
        """The pieces that a text begins with, and their ids."""
        for end in range(1, min(len(text), self._longest) + 1):
            if text[:end] in self._ids:
                yield text[:end], self._ids[text[:end]]

    def beginning_with(self, text: Text) -> Iterator[int]:
        """The ids of pieces that begin with a text."""
        for index in range(bisect.bisect_left(self._sorted, text), len(self._sorted)):
            piece = self._sorted[index]
            if not piece.startswith(text):
                return
            yield from self._ids[piece]


#: The pieces of each tokenizer, made when they are first needed.
_KNOWN: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def _once(tokenizer: Any, kind: str, make: Callable[[], Pieces[Text]]) -> Pieces[Text]:
    known = _KNOWN.setdefault(tokenizer, {})
    pieces: Pieces[Text] = known[kind] if kind in known else make()
    return known.setdefault(kind, pieces)  # type: ignore[no-any-return]


def token_id(token: Any) -> int:
    """An id that is an integer or an array of one."""
    return int(np.reshape(as_numpy(token), -1)[0])
