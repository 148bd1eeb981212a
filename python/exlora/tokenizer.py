"""`ExLlamaV2Tokenizer`: the tokenizer under exllamav2's names, ids as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, to_array, token_rows
from exlora._unsupported import refuse
from exlora.config import ExLlamaV2Config

__all__ = ["ExLlamaV2Tokenizer"]


class ExLlamaV2Tokenizer:
    """tokenizer.json of a model's folder. `lazy_init` and `force_json` have no effect."""

    def __init__(
        self, config: ExLlamaV2Config, lazy_init: bool = True, force_json: bool = False, force_spm: bool = False
    ) -> None:
        del lazy_init, force_json
        refuse("ExLlamaV2Tokenizer", force_spm=force_spm)
        if config.model_dir is None:
            raise _exlora.error("tokenizer_not_found", "the config has no model_dir")
        self.config = config
        self.native = _exlora.Tokenizer(config.model_dir)
        self.bos_token_id = _first(self.native.bos_token_id, config.bos_token_id)
        self.eos_token_id = _first(self.native.eos_token_id, config.eos_token_id)
        self.pad_token_id = _first(self.native.pad_token_id, config.pad_token_id, self.eos_token_id, 0)
        self.unk_token_id = self.native.unk_token_id
        self._pieces: dict[bool, list[str]] = {}

    bos_token = property(lambda self: self._spelling(self.bos_token_id), doc="Spelling of the BOS.")
    eos_token = property(lambda self: self._spelling(self.eos_token_id), doc="Spelling of the EOS.")
    pad_token = property(lambda self: self._spelling(self.pad_token_id), doc="Spelling of the padding token.")
    unk_token = property(lambda self: self._spelling(self.unk_token_id), doc="Spelling of the unknown token.")

    def encode(
        self,
        text: str | list[str],
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        return_offsets: bool = False,
        embeddings: Any = None,
    ) -> Any:
        """Ids of a text, int64 [1, n], or of several, [batch, n], padded on the left; with the negative numbers of
        padding tokens [batch] if `return_offsets`."""
        refuse("ExLlamaV2Tokenizer.encode", embeddings=embeddings)
        texts = [text] if isinstance(text, str) else text
        rows = [self.encode_list(one, add_bos, add_eos, encode_special_tokens) for one in texts]
        width = max(map(len, rows), default=0)
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[width - len(row) :] = row
        if not return_offsets:
            return to_array(ids)
        return to_array(ids), to_array(np.array([len(row) - width for row in rows], dtype=np.int32))

    def encode_list(
        self, text: str, add_bos: bool = False, add_eos: bool = False, encode_special_tokens: bool = False
    ) -> list[int]:
        """Ids of a text as a list."""
        ids = self.native.encode(text, add_special_tokens=False, parse_special_tokens=encode_special_tokens)
        if add_bos and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        if add_eos and self.eos_token_id is not None:
            ids.append(self.eos_token_id)
        return ids

    def decode(self, ids: Any, decode_special_tokens: bool = False) -> Any:
        """Text of ids [n], or a list of texts of ids [batch, n] or of a list of arrays. Padding is left out."""
        if isinstance(ids, list) and ids and not hasattr(ids[0], "__index__"):
            return [self.decode(row, decode_special_tokens) for row in ids]
        array = as_numpy(ids)
        texts = [
            self.native.decode(
                [i for i in row if i != self.pad_token_id], skip_special_tokens=not decode_special_tokens
            )
            for row in (token_rows(array) if array.size else [[]] * (len(array) if array.ndim > 1 else 1))
        ]
        return texts if array.ndim > 1 else texts[0]

    def single_id(self, token: str) -> int | None:
        """Id of a token by its exact spelling in the vocabulary, or by its text."""
        known = self.native.id_of(token)
        if known is None and len(ids := self.encode_list(token)) == 1:
            return ids[0]
        return known

    def single_token(self, token_id: int) -> Any:
        """One id as an array [1, 1]."""
        return to_array(np.array([[token_id]], dtype=np.int64))

    def num_tokens(self, text: str) -> int:
        """Number of ids of a text."""
        return len(self.encode_list(text))

    def padding_mask(self, ids: Any) -> Any:
        """Additive mask [batch, n]: minus infinity where `ids` is padding, 0 elsewhere."""
        is_padding = as_numpy(ids) == self.pad_token_id
        return to_array(np.where(is_padding, np.float16("-inf"), np.float16(0)))

    def get_vocab_size(self) -> int:
        """Number of ids."""
        return self.native.vocab_size

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        """The text that every id adds within a text; special tokens are empty unless asked for."""
        if include_special_tokens not in self._pieces:
            self._pieces[include_special_tokens] = [
                self._piece(i, include_special_tokens) for i in range(self.native.vocab_size)
            ]
        return self._pieces[include_special_tokens]

    def _piece(self, token_id: int, include_special_tokens: bool) -> str:
        if self.native.token_of(token_id) is None:
            return ""
        if self.native.is_special(token_id):
            return self.native.decode([token_id]) if include_special_tokens else ""
        return self.native.piece(token_id)

    def _spelling(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.native.token_of(token_id)


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
