"""The modules of the Python package: no two import each other in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "exlora"


def read_modules(package: Path) -> dict[str, str]:
    """The sources of a package's modules, by dotted name. A native module has a stub, and no imports that count."""
    found = {".".join(path.relative_to(package.parent).with_suffix("").parts): "" for path in package.rglob("*.pyi")}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports_of(module: str, modules: dict[str, str]) -> set[str]:
    """The modules of the package that a module imports, in functions and for type checkers too.

    A name counts for the module that it is taken from, which is the package's own `__init__` unless the name is a submodule.
    """
    is_package = any(other.startswith(f"{module}.") for other in modules)
    found = set()
    for node in ast.walk(ast.parse(modules[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            base = parents[: len(parents) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            found |= submodules & modules.keys()
            if submodules - modules.keys():
                found.add(source)
    return found & modules.keys() - {module}


def circles(modules: dict[str, str]) -> list[str]:
    """Each import that lies on a circle, as `importer -> imported`."""
    imports = {module: imports_of(module, modules) for module in modules}

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        pending = [start]
        while pending:
            new = imports[pending.pop()] - found
            found |= new
            pending += new
        return found

    reached = {module: reachable(module) for module in modules}
    return sorted(f"{a} -> {b}" for a in modules for b in imports[a] if a in reached[b])


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    modules = read_modules(PACKAGE)
    assert sum(len(imports_of(module, modules)) for module in modules) > 20, "the reader finds too little"
    assert circles(modules) == []


@pytest.mark.parametrize(
    ("importer", "source", "expected"),
    [
        ("p.a", "from . import b", {"p.b"}),
        ("p.a", "from .q.c import x", {"p.q.c"}),
        ("p.a", "from p import b, name", {"p.b", "p"}),
        ("p.a", "import p.q.c, os", {"p.q.c"}),
        ("p.a", "def f():\n    from .b import x", {"p.b"}),
        ("p.q.c", "from ..b import x", {"p.b"}),
        ("p.q.c", "from . import x", {"p.q"}),
        ("p.q", "from .c import x", {"p.q.c"}),
        ("p.q", "from .. import b", {"p.b"}),
        ("p.a", "import sys\nfrom os import path", set()),
    ],
)
def test_the_reader_resolves_imports(importer: str, source: str, expected: set[str]) -> None:
    modules = dict.fromkeys(["p", "p.a", "p.b", "p.q", "p.q.c"], "")
    assert imports_of(importer, modules | {importer: source}) == expected


def test_a_circle_of_three_is_found_and_what_it_uses_is_not() -> None:
    modules = {"p": "", "p.a": "from . import b", "p.b": "from . import c, d", "p.c": "from .a import x", "p.d": ""}
    assert circles(modules) == ["p.a -> p.b", "p.b -> p.c", "p.c -> p.a"]
