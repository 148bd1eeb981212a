"""Arguments of every type and size, for every function and class: nothing but a fitting error comes out.

A wrong type is a `TypeError`, a wrong value a `ValueError`; an `ExloraError` is one of them or more special. Panics,
aborts, `OverflowError` and `SystemError` are bugs. The text says what was expected and found.
"""

import inspect
import pathlib

import numpy as np
import pytest
from exlora import (
    AdapterInfo,
    Chunk,
    Completion,
    Engine,
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Config,
    ExLlamaV2Tokenizer,
    ExloraError,
    Request,
    SamplingParams,
    Usage,
)
from exlora.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob

PROMPT = [5, 6, 7]
SHORT = {"max_new_tokens": 2}

VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64), 10**40),
    *(0.0, -0.0, 0.5, 1e300, -1e300, float("nan"), float("inf"), 10**400),
    *("", "a", "sql", "~", "\0", "\ud800", "a\nb", "x" * 10_000, b"", b"abc", bytearray(b"a"), memoryview(b"a")),
    *([], [[]], [None], [1.5], ["a"], [[1], "a", None], [-1], [2**40], [2**70], (), (1,), ("a", "b"), ("sql", 0.5)),
    *([("sql", 0.5)], [("sql",)], [("sql", "x")], {}, {"sql": 0.5}, {"sql": None}, {"sql": 10**400}, {1: 2}, {-1: 1.0}),
    *({"role": "user"}, [{"role": "user", "content": "a"}], [{}], [{1: 2}], [{"role": object()}], {"a"}, frozenset()),
    *(object(), object, len, lambda: 1, range(3), iter([1, 2]), pathlib.Path("nowhere"), Ellipsis),
    *(np.int64(3), np.uint64(2**64 - 1), np.float32(0.5), np.bool_(True), np.array(3), np.array([1, 2])),
    *(np.array([[1, 2]]), np.zeros((2, 2, 2), int), np.array([0.5]), np.array(["a"]), np.array([]), np.array([None])),
    *(SamplingParams(), Request("a"), Usage(), 1 + 2j),
]


class Odd:
    """Claims to be whatever is asked for, and fails when used."""

    def __index__(self):
        raise ValueError("no index")

    def __float__(self):
        raise ValueError("no float")

    def __iter__(self):
        raise ValueError("no items")

    def __fspath__(self):
        raise ValueError("no path")

    def __len__(self):
        raise ValueError("no length")


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": fixtures / "adapters/sqlite-rslora-r16"}
    return Engine(fixtures / "quill-4m", adapters=adapters, kv_tokens=256)


def first(function):
    """The first result of a function that returns an iterator: some errors come with it."""

    def call(**arguments):
        with function(**arguments) as results:
            return next(results, None)

    call.__signature__ = inspect.signature(function)
    return call


#: Each function that takes arguments, with the least that it needs.
TARGETS = {
    "Engine": lambda engine, quill: (Engine, {"model": quill, "kv_tokens": 64}),
    "generate one": lambda engine, _: (engine.generate, {"prompts": PROMPT, **SHORT}),
    "generate": lambda engine, _: (engine.generate, {"prompts": [PROMPT, "a"], **SHORT}),
    "generate return_errors": lambda engine, _: (
        engine.generate,
        {"prompts": [PROMPT, "a"], "return_errors": True, **SHORT},
    ),
    "as_completed": lambda engine, _: (first(engine.as_completed), {"prompts": [PROMPT, "a"], **SHORT}),
    "stream": lambda engine, _: (first(engine.stream), {"prompt": PROMPT, **SHORT}),
    "logits": lambda engine, _: (engine.logits, {"prompt": PROMPT}),
    "load_adapter": lambda engine, _: (engine.load_adapter, {"name": "a", "path": "nowhere"}),
    "unload_adapter": lambda engine, _: (engine.unload_adapter, {"name": "a"}),
    "Request": lambda *_: (Request, {"prompt": PROMPT}),
    "SamplingParams": lambda *_: (SamplingParams, {}),
    "sample": lambda *_: (SamplingParams(temperature=1.0).sample, {"logits": [0.5, 1.0], "tokens": PROMPT}),
    "Completion": lambda *_: (Completion, {}),
    "Chunk": lambda *_: (Chunk, {}),
    "Usage": lambda *_: (Usage, {}),
    "AdapterInfo": lambda *_: (
        AdapterInfo,
        {"name": "a", "path": "a", "generation": 1, "content_hash": "", "rank": 1, "sites": 1, "bytes": 1},
    ),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("target", TARGETS)
def test_any_value_for_any_argument_gives_a_result_or_a_fitting_error(target, engine, quill, capfd):
    function, fixed = TARGETS[target](engine, quill)
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert set(fixed) <= set(names)
    silent = []
    for name in names:
        for value in [*VALUES, Odd()]:
            try:
                function(**{**fixed, name: value})
            except (TypeError, ValueError, ExloraError) as error:
                if not str(error):
                    silent.append((name, value))
    assert not silent
    # A panic is reported even where something swallows it.
    assert "panicked" not in capfd.readouterr().err
    assert (engine.stats()["rows_running"], engine.stats()["rows_waiting"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prompts": b"bytes"}, "a prompt is text, token ids or chat messages, not bytes"),
        ({"prompts": 3}, "a prompt is text, token ids or chat messages, not int"),
        ({"prompts": {"role": "user"}}, r"not dict \(a chat is a list of messages\)"),
        ({"prompts": ["a", 1.5]}, "^request 1: .* not float"),
        (
            {"prompts": ["a"], "temperature": ["hot"]},
            "^request 0: argument 'temperature': must be real number, not str",
        ),
        ({"prompts": "a", "temperature": [0.5]}, "argument 'temperature': must be real number, not list"),
        ({"prompts": "a", "max_new_tokens": 2.5}, "argument 'max_new_tokens': 'float' object cannot be interpreted"),
        ({"prompts": "a", "seed": "x"}, "argument 'seed': 'str' object"),
        ({"prompts": "a", "logit_bias": [1]}, "argument 'logit_bias': .*list"),
        ({"prompts": "a", "stop_at_eos": "no"}, "argument 'stop_at_eos': .*str"),
        ({"prompts": "a", "choices": 3}, "argument 'choices': must be a string or a list of strings, not int"),
        ({"prompts": "a", "choices": ["a", 3]}, "argument 'choices': .*, not a list with int"),
        ({"prompts": "a", "banned_strings": {"a": 1}}, "argument 'banned_strings': .* list of strings, not dict"),
        ({"prompts": "a", "banned_strings": b"a"}, "argument 'banned_strings': .* list of strings, not bytes"),
        ({"prompts": "a", "adapter": 3}, "an adapter is None, a name, .*, not int"),
        ({"prompts": "a", "adapter": {"sql": "much"}}, "must be real number, not str"),
        ({"prompts": "a", "n": "two"}, "'str' object cannot be interpreted as an integer"),
        ({"prompts": "a", "progress": "bar"}, "progress is None, a bool or a callable, not str"),
        ({"prompts": "a", "temprature": 1.0}, "unexpected keyword argument 'temprature'"),
    ],
    ids=str,
)
def test_a_type_error_names_the_argument_and_what_was_expected_and_found(arguments, text, engine):
    with pytest.raises(TypeError, match=text):
        engine.generate(**arguments)


def test_one_text_is_as_good_as_a_list_of_one(engine):
    request = Request("a", banned_strings="zq")
    assert (request.banned_strings, Request("a", choices="yes").choices) == (["zq"], ["yes"])
    assert engine.generate("a", choices="yes").text == "yes"
    assert [out.text for out in engine.generate(["a", "b"], choices="yes")] == ["yes", "yes"]
    assert engine.generate("a", stop="zq", **SHORT).text == engine.generate("a", banned_strings="zq", **SHORT).text


@pytest.mark.parametrize("adapters", [["folder"], "folder", 3], ids=str)
def test_adapters_of_an_engine_are_a_mapping(adapters, quill):
    with pytest.raises(TypeError, match=rf"adapters is a mapping of name to folder.*, not {type(adapters).__name__}"):
        Engine(quill, adapters=adapters)


@pytest.mark.parametrize(
    ("path", "hint"),
    [("~/models/quill", "os.path.expanduser"), ("Qwen/Qwen2.5-7B", "hf download Qwen/Qwen2.5-7B")],
)
def test_a_path_that_only_looks_like_one_is_explained(path, hint, engine):
    for call in (lambda: Engine(path), lambda: engine.load_adapter("a", path)):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("logprobs", 10**9), ("n", 10**12), ("min_new_tokens", -1), ("max_new_tokens", -(2**70)), ("top_k", -1)],
)
def test_a_number_out_of_range_is_refused_by_name(name, value, engine):
    with pytest.raises(ExloraError, match=name) as caught:
        engine.generate(PROMPT, **{"max_new_tokens": 2, name: value})
    assert caught.value.code == "request_invalid"


@pytest.mark.parametrize("value", [2**62, 2**63, 2**70])
def test_more_new_tokens_than_fit_are_as_many_as_fit(value, engine):
    out = engine.generate(PROMPT, max_new_tokens=value, stop_at_eos=False)
    assert out.usage.prompt_tokens + out.usage.completion_tokens == engine.max_seq_len + 1


def test_numbers_of_other_libraries_are_numbers(engine):
    numbers = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.uint64(2**64 - 1)}
    out = engine.generate(PROMPT, **numbers, top_k=np.int8(5), logprobs=np.int32(2), stop_at_eos=np.bool_(False))
    plain = engine.generate(PROMPT, max_new_tokens=3, temperature=0.5, seed=2**64 - 1, top_k=5, stop_at_eos=False)
    assert out.token_ids == plain.token_ids


def test_a_pair_of_prompts_needs_a_cfg_scale(fixtures):
    config = ExLlamaV2Config(str(fixtures / "quill-4m"))
    model = ExLlamaV2(config)
    model.load()
    cache, tokenizer = ExLlamaV2Cache(model, max_seq_len=256), ExLlamaV2Tokenizer(config)
    generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    for call in (
        lambda: generator.generate([("yes", "no")], max_new_tokens=2),
        lambda: generator.generate(("yes", "no"), max_new_tokens=2),
        lambda: generator.enqueue(ExLlamaV2DynamicJob(([[1]], [[2]]), max_new_tokens=2)),
    ):
        with pytest.raises(ExloraError, match="negative_prompt is given and no cfg_scale") as caught:
            call()
        assert caught.value.code == "request_invalid"
