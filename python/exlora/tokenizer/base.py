"""`ExLlamaV2TokenizerBase`: a vocabulary, whose tokens have the spellings of the tokenizer's file."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["ExLlamaV2TokenizerBase"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ExLlamaV2TokenizerBase:
    """What a vocabulary has. Ids are integers, `None` where there is no such token; texts are plain lists of ids."""

    def unk_id(self) -> int | None:
        """Id of the unknown token."""
        raise NotImplementedError

    def pad_id(self) -> int | None:
        """Id of the padding token."""
        raise NotImplementedError

    def bos_id(self) -> int | None:
        """Id of the BOS."""
        raise NotImplementedError

    def eos_id(self) -> int | None:
        """Id of the EOS."""
        raise NotImplementedError

    def unk_token(self) -> str | None:
        """Spelling of the unknown token."""
        return self._spelling(self.unk_id())

    def pad_token(self) -> str | None:
        """Spelling of the padding token."""
        return self._spelling(self.pad_id())

    def bos_token(self) -> str | None:
        """Spelling of the BOS."""
        return self._spelling(self.bos_id())

    def eos_token(self) -> str | None:
        """Spelling of the EOS."""
        return self._spelling(self.eos_id())

    def vocab_size(self) -> int:
        """Number of ids."""
        raise NotImplementedError

    def id_to_piece(self, idx: int | None) -> str | None:
        """Spelling of an id."""
        raise NotImplementedError

    def piece_to_id(self, text: str) -> int | None:
        """Id of a spelling."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which special tokens are not recognized."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without special tokens."""
        raise NotImplementedError

    def enumerate_tokens(self) -> Iterable[tuple[int, str]]:
        """Each id with what it adds to a text."""
        raise NotImplementedError

    def space_char(self) -> str:
        """How a space is spelled."""
        raise NotImplementedError

    def newline_char(self) -> str:
        """How a line feed is spelled."""
        raise NotImplementedError

    def clean_special_chars(self, piece: str) -> str:
        """A spelling with its spaces and line feeds as such."""
        return piece.replace(self.space_char(), " ").replace(self.newline_char(), "\n")

    def piece_to_ord(self, piece: str) -> int:
        """The byte that a spelling stands for, `<0x0A>` or a single character; -1 if it stands for more."""
        byte = _BYTE.fullmatch(piece)
        if byte is not None:
            return int(byte[1], 16)
        text = self.clean_special_chars(piece) if len(piece) == 1 else piece
        return ord(text) if len(text) == 1 and ord(text) < 256 else -1

    def id_to_ord(self, idx: int) -> int:
        """The byte that an id stands for, or -1."""
        return self.piece_to_ord(self.id_to_piece(idx) or "")

    def deduce_char_map(self, input_char: str) -> str:
        """How the last token of a character's encoding spells it."""
        piece = self.id_to_piece(self.encode(input_char)[-1]) or input_char
        byte = _BYTE.fullmatch(piece)
        return piece[-1] if byte is None else chr(int(byte[1], 16))

    def _spelling(self, idx: int | None) -> str | None:
        return None if idx is None else self.id_to_piece(idx)
