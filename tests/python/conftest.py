"""Fixtures shared by all Python tests."""

from pathlib import Path

import pytest
from support.collection import Collection
from support.engines import Engines

# Fixtures for tests with damaged input.
pytest_plugins = ["support.corruption"]


def pytest_collection_modifyitems(config, items):
    """Leaves out what needs a CUDA device, unless `-m` asks for it."""
    if "cuda" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of bundled models, adapters and reference values."""
    return Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def quill(fixtures) -> Path:
    """The bundled model, unquantized."""
    return fixtures / "quill-4m"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """The folder of the tiny models of `families.py`, written on first use."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Collection:
    """Adapters of every PEFT feature with their oracles, written on first use."""
    return Collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def engines(collection) -> Engines:
    """Engines of the collection's bases, each with the adapters that tests asked for so far."""
    return Engines(collection)
