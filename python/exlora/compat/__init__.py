"""exlora under the name exllamav2: for scripts and libraries that say `import exllamav2`, without changing them.

    python -m exlora.compat script.py [arguments]

or, at the start of a program, before anything imports exllamav2:

    import exlora.compat

    exlora.compat.install()

After that `exllamav2` and its submodules are exlora's, whether exllamav2 is installed or not.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Sequence

__all__ = ["EXLLAMAV2_VERSION", "install", "uninstall"]

#: The version whose names, arguments and results are here; the local part says what it is.
EXLLAMAV2_VERSION = "0.3.2+exlora"

_NAME = "exllamav2"

#: Modules that `import exllamav2` makes attributes of the package.
_IMPORTED = ("cache", "config", "lora", "model", "module", "tokenizer", "util", "version", "vlm")

#: What the package exports, by the module of exlora that has it.
_EXPORTED = {
    "exlora.model": ("ExLlamaV2",),
    "exlora.cache": (
        "ExLlamaV2Cache",
        "ExLlamaV2CacheBase",
        "ExLlamaV2Cache_8bit",
        "ExLlamaV2Cache_Q4",
        "ExLlamaV2Cache_Q6",
        "ExLlamaV2Cache_Q8",
        "ExLlamaV2Cache_TP",
    ),
    "exlora.config": ("ExLlamaV2Config",),
    "exlora.tokenizer": ("ExLlamaV2Tokenizer",),
    "exlora.lora": ("ExLlamaV2Lora",),
    "exlora.util": ("SeqTensor", "Timer"),
    "exlora.module": ("Intervention",),
    "exlora.vlm": ("ExLlamaV2MultimodalProjector", "ExLlamaV2VisionTower"),
}

#: Modules with exllamav2's names that are exlora's own; with those below `generator`, `tokenizer` and `vlm`.
_MODULES = {"cache", "config", "generator", "lora", "model", "model_init", "module", "tokenizer", "util", "vlm"}


def install() -> None:
    """Makes `exllamav2` and its submodules exlora's, from now on. A second call changes nothing.

    Arrays are torch tensors then, as exllamav2's are, if torch is installed.

    Raises ImportError if the real exllamav2 was imported before.
    """
    if _FINDER in sys.meta_path:
        return
    real = sys.modules.get(_NAME)
    if real is not None:
        where = getattr(real, "__file__", None) or "an unknown place"
        raise ImportError(
            f"exllamav2 was imported before, from {where}; call exlora.compat.install() before anything imports it",
            name=_NAME,
        )
    sys.meta_path.insert(0, _FINDER)
    importlib.invalidate_caches()


def uninstall() -> None:
    """Ends what `install` began. What was imported already stays as it is."""
    if _FINDER not in sys.meta_path:
        return
    sys.meta_path.remove(_FINDER)
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]


#: Every distribution.
_ANY = importlib.metadata.DistributionFinder.Context()


class _Finder(importlib.metadata.DistributionFinder):
    """Finds exllamav2 and all of its modules, and its version among the installed packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        if package != _NAME:
            return None
        if rest in ("", "version"):
            spec = importlib.machinery.ModuleSpec(fullname, _PackageLoader(), origin=__file__, is_package=rest == "")
            # Its file is this one, which scripts print to see which exllamav2 they got.
            spec.has_location = True
            return spec
        own = f"exlora.{rest}"
        if rest.partition(".")[0] not in _MODULES or importlib.util.find_spec(own) is None:
            raise ModuleNotFoundError(f"No module named {fullname!r}: exlora, which stands in for exllamav2, has none")
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader(own))

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context = _ANY
    ) -> Iterable[importlib.metadata.Distribution]:
        if context.name in (None, _NAME):
            yield _Distribution()


class _PackageLoader(importlib.abc.Loader):
    """Makes the package `exllamav2`, and its module `version`."""

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__version__"] = EXLLAMAV2_VERSION
        if module.__name__ != _NAME:
            return
        if importlib.util.find_spec("torch") is not None:
            importlib.import_module("torch")  # as exllamav2 does, so that arrays are tensors
        module.__doc__ = __doc__
        for source, names in _EXPORTED.items():
            found = importlib.import_module(source)
            module.__dict__.update({name: getattr(found, name) for name in names})
        for name in _IMPORTED:
            importlib.import_module(f"{_NAME}.{name}")


class _AliasLoader(importlib.abc.Loader):
    """Gives a module of exlora another name."""

    def __init__(self, own: str) -> None:
        self._own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(self._own)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # It was executed under its own name; importing it under the other one only replaced its spec.
        module.__spec__ = self._spec


class _Distribution(importlib.metadata.Distribution):
    """The metadata of an installed exllamav2."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: {EXLLAMAV2_VERSION}\n"

    def locate_file(self, path: object) -> importlib.abc.Traversable:  # type: ignore[override]
        raise FileNotFoundError(f"{_NAME} is not installed; exlora stands in for it")


_FINDER = _Finder()
