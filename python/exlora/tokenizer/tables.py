"""Tables of what tokens add to a text, by how it begins."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Trie", "char_trie", "prefix_to_ids"]


class Trie:
    """The continuations of a text, by their next character, and the ids of tokens whose text it is."""

    def __init__(self, children: dict[str, Trie] | None = None, leaf: list[int] | None = None) -> None:
        self.children = {} if children is None else children
        self.leaf = [] if leaf is None else leaf


def char_trie(pieces: Iterable[str], *, case_insensitive: bool) -> Trie:
    """The texts of all ids, in their order; empty ones are left out."""
    root = Trie()
    for token, piece in enumerate(pieces):
        node = root
        for character in piece.lower() if case_insensitive else piece:
            node = node.children.setdefault(character, Trie())
        if node is not root:
            node.leaf.append(token)
    return root


def prefix_to_ids(piece_to_id: dict[str, int]) -> dict[str, list[int]]:
    """For each text of a token the sorted ids of tokens whose texts begin with it, its own among them."""
    found: dict[str, list[int]] = {piece: [] for piece in piece_to_id if piece}
    for piece, token in piece_to_id.items():
        for end in range(1, len(piece) + 1):
            if piece[:end] in found:
                found[piece[:end]].append(token)
    return {piece: sorted(ids) for piece, ids in found.items()}
