"""`ExLlamaV2TokenizerHF`: the vocabulary of a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import exlora._exlora as _exlora
from exlora.tokenizer.base import ExLlamaV2TokenizerBase

__all__ = ["ExLlamaV2TokenizerHF"]


class ExLlamaV2TokenizerHF(ExLlamaV2TokenizerBase):
    """The vocabulary of exlora's tokenizer of a model's folder."""

    def __init__(self, native: _exlora.Tokenizer) -> None:
        self._native = native

    @cached_property
    def vocab(self) -> list[str]:
        """What each id adds to a text; special tokens add nothing."""
        native = self._native
        is_text = [native.token_of(i) is not None and not native.is_special(i) for i in range(native.vocab_size)]
        return [native.piece(i) if is_text[i] else "" for i in range(native.vocab_size)]

    def unk_id(self) -> int | None:
        return self._native.unk_token_id

    def pad_id(self) -> int | None:
        return self._native.pad_token_id

    def bos_id(self) -> int | None:
        return self._native.bos_token_id

    def eos_id(self) -> int | None:
        return self._native.eos_token_id

    def vocab_size(self) -> int:
        return self._native.vocab_size

    def id_to_piece(self, idx: int | None) -> str | None:
        return "" if idx is None else self._native.token_of(idx)

    def piece_to_id(self, text: str) -> int | None:
        return self._native.id_of(text)

    def encode(self, text: str) -> list[int]:
        return self._native.encode(text, add_special_tokens=False, parse_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self._native.decode(ids, skip_special_tokens=True)

    def enumerate_tokens(self) -> Iterable[tuple[int, str]]:
        return enumerate(self.vocab)

    def space_char(self) -> str:
        return self._characters[0]

    def newline_char(self) -> str:
        return self._characters[1]

    @cached_property
    def _characters(self) -> tuple[str, str]:
        return self.deduce_char_map(" "), self.deduce_char_map("\n")
