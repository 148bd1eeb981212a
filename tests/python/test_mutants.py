"""The table of bugs that `make mutants` plants: it has to follow the sources, which need not be built for that."""

import pathlib

import mutants
import pytest
from host_mutants import HOST_MUTANTS
from kernel_mutants import KERNEL_MUTANTS
from mutant import CHECKS, DoesNotApplyError, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[2]
MUTANTS = (*KERNEL_MUTANTS, *HOST_MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_sources(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.applied(text, mutant.new) != text


@pytest.mark.parametrize("mutant", KERNEL_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_of_a_kernel_is_a_source_of_the_same_length_and_lines(mutant):
    text = (ROOT / mutant.file).read_text()
    mutated = mutant.applied(text, mutant.new)
    fitted = mutants.fitted(mutated, len(text.encode()))
    assert len(fitted) == len(text.encode())
    assert fitted.count(b"\n") == mutated.count("\n")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_mutant_exist(mutant):
    for test in mutant.tests:
        module, _, name = test.partition("::")
        assert f"#[test]\nfn {name}" in (ROOT / "tests/cuda" / f"{module}.rs").read_text()


@pytest.mark.parametrize("mutant", HOST_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_of_the_host_replaces_an_expression(mutant):
    assert f".{mutant.old}" not in (ROOT / mutant.file).read_text()
    for expression in (mutant.old, mutant.new):
        assert "let " not in expression
        assert all(expression.count(a) == expression.count(b) for a, b in ["()", "[]", "{}"])


def test_mutants_are_of_many_kinds_and_every_check_of_the_emulated_driver_finds_one():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert len(MUTANTS) >= 40
    assert len({mutant.kind for mutant in MUTANTS}) >= 15
    assert {mutant.check for mutant in MUTANTS} == {"", *CHECKS}


def test_representatives_are_mutants_of_kernels():
    assert set(mutants.REPRESENTATIVES) <= {mutant.name for mutant in KERNEL_MUTANTS}


def test_a_text_that_is_gone_or_is_there_twice_is_reported():
    def mutant(**fields):
        return Mutant(name="m", kind="k", file="f", new="NEW", tests=(), **fields)

    text = "one two two three"
    assert mutant(old="two", after="one two").applied(text, "NEW") == "one two NEW three"
    for old, after in [("two", ""), ("four", ""), ("one", "three"), ("two", "two")]:
        with pytest.raises(DoesNotApplyError, match="m: f does not have this"):
            mutant(old=old, after=after).applied(text, "NEW")
