"""Engines of the tiny bases, which load the collection's adapters one at a time, when a test first names them."""

import pathlib
from typing import Any

from exlora import Engine

from support import adapter_specs
from support.collection import Collection


class Engines:
    """One engine per base, dense or packed, and the dense folder that its oracle runs on."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._engines: dict[tuple[str, bool], tuple[Engine, pathlib.Path]] = {}
        self._loaded: set[tuple[str, bool, str]] = set()

    def engine(self, base: str, packed: bool, *names: str) -> tuple[Engine, pathlib.Path]:
        """The engine of a base with these adapters loaded among others, and the folder that holds its weights."""
        if (base, packed) not in self._engines:
            dense = self.collection.dense(base)
            folder, meant = self.collection.packed(base) if packed else (dense, dense)
            # Without a prefix cache, so that every run computes everything.
            self._engines[base, packed] = Engine(folder, kv_dtype="f32", prefix_cache=False), meant
        engine, meant = self._engines[base, packed]
        for name in names:
            if (base, packed, name) not in self._loaded:
                engine.load_adapter(name, self.collection.adapter(base, name))
                self._loaded.add((base, packed, name))
        return engine, meant

    def logits(self, base: str, packed: bool, name: str, weight: float | None = None) -> Any:
        """The engine's logits for the adapter's own prompt."""
        engine, _ = self.engine(base, packed, name)
        return engine.logits(adapter_specs.prompt(name), adapter=name if weight is None else {name: weight})
