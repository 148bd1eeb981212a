"""Fixtures all Python tests share."""

from pathlib import Path

import pytest

# Fixtures of the tests of damaged input.
pytest_plugins = ["support.spoil"]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of bundled models, adapters and reference values."""
    return Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def quill(fixtures) -> Path:
    """The bundled model, unquantised."""
    return fixtures / "quill-4m"
