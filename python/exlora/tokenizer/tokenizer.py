"""`ExLlamaV2Tokenizer`: the tokenizer under exllamav2's names, ids as arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import exlora._exlora as _exlora
from exlora._arrays import as_numpy, padded_rows, to_array, token_rows
from exlora._unsupported import refuse
from exlora.config import ExLlamaV2Config
from exlora.indexed_embeddings import IndexedEmbeddings, split_at_aliases
from exlora.tokenizer import tables
from exlora.tokenizer.base import ExLlamaV2TokenizerBase
from exlora.tokenizer.hf import ExLlamaV2TokenizerHF

__all__ = ["ExLlamaV2Tokenizer"]


class ExLlamaV2Tokenizer:
    """tokenizer.json of a model's folder. `lazy_init` and `force_json` have no effect: tables are made when needed.

    What a token adds to a text is its *piece*; special tokens have none, except in `extended_id_to_piece`.
    """

    Trie = tables.Trie

    newline_token = "\n"
    space_token = " "
    #: Added tokens that need to be told from the text before it is encoded; here encoding does that for all.
    unspecial_piece_to_id: dict[str, int]
    unspecial_id_to_piece: dict[int, str]
    #: Largest number of texts that `cached_encode_str` remembers.
    max_cached_strings = 100

    def __init__(
        self, config: ExLlamaV2Config, lazy_init: bool = True, force_json: bool = False, force_spm: bool = False
    ) -> None:
        del lazy_init, force_json
        refuse("ExLlamaV2Tokenizer", force_spm=force_spm)
        if config.model_dir is None:
            raise _exlora.error("tokenizer_not_found", "the config has no model_dir")
        self.config = config
        self.native = _exlora.Tokenizer(config.model_dir)
        # What a script has set precedes what the tokenizer's files say, and these what config.json says.
        self.bos_token_id = _first(config.changed("bos_token_id"), self.native.bos_token_id, config.bos_token_id)
        self.eos_token_id = _first(config.changed("eos_token_id"), self.native.eos_token_id, config.eos_token_id)
        pad_token_id = _first(config.changed("pad_token_id"), self.native.pad_token_id, config.pad_token_id)
        self.pad_token_id = _first(pad_token_id, self.eos_token_id, 0)
        self.unk_token_id = self.native.unk_token_id
        self.tokenizer_model: ExLlamaV2TokenizerBase = ExLlamaV2TokenizerHF(self.native)
        self.unspecial_piece_to_id, self.unspecial_id_to_piece = {}, {}
        self.tokenized_str_cache: dict[str, Any] = {}

    tokenizer = property(lambda self: self.tokenizer_model, doc="The vocabulary.")
    actual_vocab_size = property(lambda self: self.native.vocab_size, doc="Number of ids.")
    newline_token_id = property(lambda self: self._last_id("\n"), doc="Last id of a line feed.")
    space_token_id = property(lambda self: self._last_id(" "), doc="Last id of a space.")
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
        padding tokens [batch] if `return_offsets`. The text aliases of `embeddings` become their ids."""
        texts = [text] if isinstance(text, str) else text
        rows = [self.encode_list(one, add_bos, add_eos, encode_special_tokens, embeddings) for one in texts]
        ids = padded_rows(rows, self.pad_token_id)
        if not return_offsets:
            return ids
        return ids, to_array(np.array([len(row) - ids.shape[1] for row in rows], dtype=np.int32))

    def encode_list(
        self,
        text: str,
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        embeddings: Iterable[IndexedEmbeddings] | None = None,
    ) -> list[int]:
        """Ids of a text as a list; `embeddings` as for `encode`."""
        ids: list[int] = []
        for part in split_at_aliases(text, embeddings or []):
            if isinstance(part, str):
                ids += self.native.encode(part, add_special_tokens=False, parse_special_tokens=encode_special_tokens)
            else:
                ids += part.get_ids()
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

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are recognized, as a list."""
        return self.encode_list(text, encode_special_tokens=True)

    def encode_unspecial(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are text, as a list."""
        return self.encode_list(text)

    def cached_encode_str(self, text: str) -> Any:
        """As `encode`; the last `max_cached_strings` texts are remembered."""
        if text not in self.tokenized_str_cache:
            while len(self.tokenized_str_cache) >= self.max_cached_strings:
                del self.tokenized_str_cache[next(iter(self.tokenized_str_cache))]
            self.tokenized_str_cache[text] = self.encode(text)
        return self.tokenized_str_cache[text]

    @cached_property
    def tokenizer_config_dict(self) -> dict[str, Any] | None:
        """tokenizer_config.json, if there is one."""
        assert self.config.model_dir is not None, "the tokenizer was read from it"
        path = Path(self.config.model_dir) / "tokenizer_config.json"
        if not path.is_file():
            return None
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config

    @cached_property
    def extended_id_to_piece(self) -> dict[int, str]:
        """Spellings of the special tokens, and of BOS, EOS and unknown token."""
        controls = {self.bos_token_id, self.eos_token_id, self.unk_token_id}
        ids = [i for i in range(self.native.vocab_size) if i in controls or self.native.is_special(i)]
        return {i: spelling for i in ids if (spelling := self.native.token_of(i))}

    @cached_property
    def extended_piece_to_id(self) -> dict[str, int]:
        """Ids of those tokens by their spelling."""
        return {piece: i for i, piece in self.extended_id_to_piece.items()}

    @cached_property
    def id_to_piece(self) -> list[str]:
        """The piece of every id."""
        return [piece for _, piece in self.tokenizer_model.enumerate_tokens()]

    @cached_property
    def id_to_piece_with_special(self) -> list[str]:
        """The piece of every id, and the spelling of those without one."""
        extended = self.extended_id_to_piece
        return [extended.get(i, piece) for i, piece in enumerate(self.id_to_piece)]

    @cached_property
    def id_to_ord(self) -> list[int]:
        """The byte that every id stands for, or -1."""
        return [self.tokenizer_model.id_to_ord(i) for i in range(self.native.vocab_size)]

    @cached_property
    def piece_to_id(self) -> dict[str, int]:
        """The last id of each piece."""
        return {piece: i for i, piece in enumerate(self.id_to_piece)}

    @cached_property
    def prefix_to_ids(self) -> dict[str, list[int]]:
        """For each piece the sorted ids of pieces that begin with it."""
        return tables.prefix_to_ids(self.piece_to_id)

    @cached_property
    def prefix_id_to_ids(self) -> dict[int, list[int]]:
        """For each id the sorted ids of pieces that begin with its own."""
        found = {self.piece_to_id[piece]: ids for piece, ids in self.prefix_to_ids.items()}
        return {i: found.get(i, [i]) for i in range(max(self.native.vocab_size, self.config.vocab_size))}

    @cached_property
    def char_trie(self) -> tables.Trie:
        """All pieces, character by character."""
        return tables.char_trie(self.id_to_piece, case_insensitive=False)

    @cached_property
    def char_trie_ci(self) -> tables.Trie:
        """All pieces in lower case, character by character."""
        return tables.char_trie(self.id_to_piece, case_insensitive=True)

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        """The text that every id adds within a text; special tokens are empty unless asked for."""
        return self.id_to_piece_with_special if include_special_tokens else self.id_to_piece

    def get_id_to_ord_list(self) -> list[int]:
        """`id_to_ord`."""
        return self.id_to_ord

    def get_piece_to_id_dict(self) -> dict[str, int]:
        """`piece_to_id`."""
        return self.piece_to_id

    def get_prefix_to_ids_dict(self) -> dict[str, list[int]]:
        """`prefix_to_ids`."""
        return self.prefix_to_ids

    def get_prefix_id_to_ids_dict(self) -> dict[int, list[int]]:
        """`prefix_id_to_ids`."""
        return self.prefix_id_to_ids

    def get_char_trie(self) -> tables.Trie:
        """`char_trie`."""
        return self.char_trie

    def get_char_trie_ci(self) -> tables.Trie:
        """`char_trie_ci`."""
        return self.char_trie_ci

    def _last_id(self, text: str) -> int | None:
        return next(iter(self.encode_list(text)[-1:]), None)

    def _spelling(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.native.token_of(token_id)


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
