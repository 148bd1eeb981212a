"""Extension module and fuzz targets need the crate, and all that it needs, as the tests have them.

Cargo builds a crate once for each set of features that it or any of its dependencies has. A dependency of one of them
that switches on a feature would have everything built again, for minutes. `tests/support/Cargo.toml` and
`bindings/python/Cargo.toml` make up for those that do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test", "--no-run", "--features", "cli")
BUILDS = {"extension module": ("rustc", "-p", "exlora-python", "--lib"), "fuzz targets": ("build", "-p", "exlora-fuzz")}


def units_of(*command: str) -> list[dict]:
    """What cargo would build for a command: crates with features and profile, and the indices of those they need."""
    if shutil.which("cargo") is None:
        pytest.skip("needs cargo")
    # A stable cargo hides the option, which only prints.
    options = ["--locked", "--unit-graph", "-Zunstable-options"]
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1"}
    printed = subprocess.run(
        ["cargo", *command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stderr
    return json.loads(printed.stdout)["units"]


def own_key(unit: dict) -> tuple:
    """What tells builds of a crate apart, without its dependencies. The profile of tests differs in its name alone."""
    profile = sorted((name, str(value)) for name, value in unit["profile"].items() if name != "name")
    target = unit["target"]
    return (
        unit["pkg_id"],
        target["name"],
        *target["kind"],
        unit["mode"],
        unit["platform"],
        *profile,
        *unit["features"],
    )


def keys_of(units: list[dict]) -> list[str]:
    """For each unit what tells it apart from other builds of the crate, dependencies included."""
    keys: dict[int, str] = {}

    def key(index: int) -> str:
        if index not in keys:
            below = sorted(key(needed["index"]) for needed in units[index]["dependencies"])
            keys[index] = hashlib.sha256(repr((own_key(units[index]), below)).encode()).hexdigest()
        return keys[index]

    return [key(index) for index in range(len(units))]


@pytest.mark.parametrize("name", BUILDS)
def test_it_is_built_on_the_crate_as_the_tests_have_it(name):
    tests, other = units_of(*TESTS), units_of(*BUILDS[name])
    of_tests = set(keys_of(tests))
    own_of_tests = {own_key(unit) for unit in tests}
    names_of_tests = {unit["pkg_id"] for unit in tests}
    libraries = [
        key
        for key, unit in zip(keys_of(other), other, strict=True)
        if unit["target"]["name"] == "exlora" and unit["target"]["kind"] == ["lib"]
    ]
    assert len(libraries) == 1
    differing = {
        f"{unit['pkg_id'].rpartition('/')[2]}: {', '.join(unit['features'])}"
        for unit in other
        if unit["pkg_id"] in names_of_tests and own_key(unit) not in own_of_tests
    }
    assert libraries[0] in of_tests, "with other features than in the tests:\n" + "\n".join(sorted(differing))
