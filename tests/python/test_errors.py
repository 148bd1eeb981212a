"""Exceptions: every code has a class that is also a builtin, is rendered, and can be pickled."""

import pickle
import re

import error_examples
import pytest
from exlora import Engine, ExloraError, _exlora, error_codes, errors

BUILTIN = {
    "not_found": FileNotFoundError,
    "invalid": ValueError,
    "unsupported": (NotImplementedError, ValueError),
    "memory": MemoryError,
    "cancelled": ExloraError,
    "io": OSError,
    "internal": RuntimeError,
}


@pytest.mark.parametrize("entry", error_codes(), ids=lambda entry: entry["code"])
def test_every_code_is_rendered_and_has_its_builtin_class(entry):
    error = _exlora.error(entry["code"], "something is wrong", path="a/b", expected="x", found="y")
    assert isinstance(error, ExloraError)
    kinds = BUILTIN[entry["kind"]]
    assert all(isinstance(error, kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    assert str(error).endswith(f"[{entry['code']}]")
    assert "something is wrong: a/b: expected x, found y" in str(error)
    assert (error.code, error.message, error.path) == (entry["code"], "something is wrong", "a/b")
    assert (error.expected, error.found, error.tensor, error.hint) == ("x", "y", None, entry["remedy"])
    assert entry["summary"].endswith(".")


@pytest.mark.parametrize("code", [entry["code"] for entry in error_codes()])
def test_each_documented_example_is_really_raised(code):
    """`tools/docs_tables.py --check` compares the text; this test checks the code, and that there is one problem."""
    if code in error_examples.UNPROVOKED:
        assert code not in error_examples.PROVOKE
        return
    error = error_examples.provoke(code)
    assert (error.code, error.others) == (code, []), str(error)
    assert "/tmp" not in str(error)


def test_codes_are_unique():
    codes = [entry["code"] for entry in error_codes()]
    assert len(codes) == len(set(codes)) > 40
    assert all(re.fullmatch("[a-z_]+", code) for code in codes)


def test_an_error_can_be_pickled():
    error = _exlora.error("adapter_not_found", "no such adapter", hint="load it")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_an_adapter_that_is_not_loaded_is_also_a_lookup_error():
    error = _exlora.error("adapter_not_found", "no such adapter")
    assert isinstance(error, errors.AdapterNotFoundError)
    assert isinstance(error, (LookupError, ValueError, FileNotFoundError))


def test_all_problems_are_reported_at_once(quill):
    engine = Engine(quill)
    with pytest.raises(ValueError, match="also:") as caught:
        engine.generate("x", temperature=-1.0, top_p=2.0, min_p=-0.5)
    assert [error.code for error in (caught.value, *caught.value.others)] == ["sampling_invalid"] * 3


def test_a_missing_model_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Engine(tmp_path / "nowhere")
    assert caught.value.code == "checkpoint_not_found"
    assert caught.value.path == str(tmp_path / "nowhere")


def test_an_unknown_device_is_unsupported(quill):
    with pytest.raises(NotImplementedError) as caught:
        Engine(quill, device="tpu")
    assert (caught.value.code, caught.value.found) == ("device_unavailable", "tpu")
