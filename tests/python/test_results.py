"""Requests and results as objects: they pickle, copy, compare, and become plain dicts."""

import copy
import inspect
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from exlora import (
    AdapterInfo,
    Chunk,
    Completion,
    Engine,
    ExLlamaV2,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    Request,
    SamplingParams,
    Usage,
)
from exlora.types import OneRequestKeywords, RequestKeywords, SamplingKeywords

PROMPT = "The table"


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=adapters)


def objects(engine):
    """One of each kind, and another one that differs."""
    rich, plain = engine.generate(
        [PROMPT, PROMPT],
        adapters=[{"sql": 0.3, "wit": 0.7}, None],
        max_new_tokens=3,
        logprobs=2,
        return_logits=[True, False],
    )
    chunks = list(engine.stream(PROMPT, adapter="sql", max_new_tokens=2, logprobs=1, return_logits=True))
    request = Request(
        [{"role": "user", "content": "Hi"}],
        {"sql": 0.3, "wit": 0.7},
        sampling=SamplingParams(temperature=0.8, logit_bias={5: float("-inf")}),
        stop=[7, "\n"],
    )
    return {
        Completion: (rich, plain),
        Chunk: (chunks[-1], chunks[0]),
        Usage: (rich.usage, Usage(prompt_tokens=1)),
        AdapterInfo: tuple(engine.adapters()),
        SamplingParams: (SamplingParams(temperature=0.1, top_k=5, seed=-1), SamplingParams()),
        Request: (request, Request([1, 2, 3], "sql", max_new_tokens=5)),
    }


@pytest.mark.parametrize("kind", [Completion, Chunk, Usage, AdapterInfo, SamplingParams, Request])
def test_objects_pickle_copy_compare_and_become_dicts(engine, kind):
    one, other = objects(engine)[kind]
    assert type(one) is kind
    for same in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(same) is kind
        assert same == one
        assert same != other
        assert repr(same) == repr(one)
    assert pickle.loads(pickle.dumps(other)) == other
    assert one != "something else"
    assert (one == other) is False
    as_dict = one.to_dict()
    assert json.loads(json.dumps(as_dict)) is not None
    assert as_dict == pickle.loads(pickle.dumps(one)).to_dict()
    assert as_dict != other.to_dict()


def test_a_completion_keeps_its_arrays(engine):
    out = objects(engine)[Completion][0]
    same = pickle.loads(pickle.dumps(out))
    assert np.array_equal(same.logits, out.logits)
    assert np.array_equal(same.logprobs, out.logprobs)
    assert same.logits.dtype == np.float32
    as_dict = out.to_dict()
    assert as_dict["logits"] == out.logits.tolist()
    drafts = {"accepted_draft_tokens": 0, "rejected_draft_tokens": 0}
    assert as_dict["usage"] == {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 3} | drafts | {
        "prompt_tokens": out.usage.prompt_tokens
    }
    assert as_dict["adapter"] == {"sql": 0.3, "wit": 0.7}


def test_a_request_is_what_its_dict_says(engine):
    for request in objects(engine)[Request]:
        assert Request(**request.to_dict()) == request
    request = objects(engine)[Request][0]
    assert request.prompt == [{"role": "user", "content": "Hi"}]
    assert (request.adapter, request.stop) == ({"sql": 0.3, "wit": 0.7}, [7, "\n"])
    assert request.sampling == SamplingParams(temperature=0.8, logit_bias={5: float("-inf")})
    assert (request.max_new_tokens, request.stop_at_eos, request.logprobs) == (128, True, 0)


def test_values_come_back_as_they_were_written():
    assert SamplingParams(temperature=0.3).temperature == 0.3
    assert repr(SamplingParams(temperature=0.3, seed=2)) == "SamplingParams(temperature=0.3, seed=2)"
    assert repr(Request("a", {"sql": 0.3})) == (
        "Request('a', adapter={'sql': 0.3}, max_new_tokens=128, sampling=SamplingParams())"
    )


def test_keywords_change_the_sampling_they_are_given_with():
    request = Request("a", sampling=SamplingParams(temperature=0.8, top_k=40), temperature=0.5)
    assert request.sampling == SamplingParams(temperature=0.5, top_k=40)
    with pytest.raises(TypeError, match="temprature"):
        Request("a", temprature=0.5)


def test_a_request_with_an_adapter_object_is_not_pickled(fixtures):
    model = ExLlamaV2(ExLlamaV2Config(str(fixtures / "quill-4m")))
    model.load()
    lora = ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/jargon-lora-r8"))
    request = Request("a", lora)
    assert request == Request("a", lora) != Request("a", "jargon-lora-r8")
    assert copy.deepcopy(request) == request
    with pytest.raises(TypeError, match="use a name"):
        pickle.dumps(request)


def test_objects_give_what_keywords_give(engine):
    settings = {"temperature": 0.9, "top_p": 0.95, "seed": 3}
    expected = engine.generate(PROMPT, adapter="sql", max_new_tokens=12, **settings)
    sampling = SamplingParams(**settings)
    request = Request(PROMPT, "sql", sampling=sampling, max_new_tokens=12)
    assert engine.generate(PROMPT, adapter="sql", max_new_tokens=12, sampling=sampling) == expected
    assert engine.generate(request).token_ids == expected.token_ids
    assert [out.token_ids for out in engine.generate([request, request])] == [expected.token_ids] * 2
    assert "".join(chunk.text for chunk in engine.stream(request)) == expected.text
    each = engine.generate([PROMPT] * 2, adapters="sql", max_new_tokens=12, sampling=[sampling, SamplingParams()])
    assert each[0].token_ids == expected.token_ids != each[1].token_ids


def test_a_request_takes_no_settings_beside_it(engine):
    request = Request(PROMPT)
    for arguments in ({"temperature": 1.0}, {"adapter": "sql"}, {"sampling": SamplingParams()}):
        with pytest.raises(TypeError, match="own adapters and settings"):
            engine.generate([request], **arguments)
        with pytest.raises(TypeError, match="own adapters and settings"):
            engine.stream(request, **arguments)


def test_the_keywords_are_those_of_request_and_sampling_params():
    def keywords(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    sampling = keywords(SamplingParams)
    request = {**keywords(Request), **sampling}
    of_a_batch = {"adapter": None, "n": None, "return_errors": False}
    assert keywords(Engine.generate) == {**of_a_batch, "progress": None, **request}
    assert keywords(Engine.as_completed) == {**of_a_batch, **request}
    assert keywords(Engine.stream) == request
    assert set(SamplingKeywords.__annotations__) == set(sampling)
    assert set(RequestKeywords.__annotations__) | {"sampling"} == set(request)
    assert set(OneRequestKeywords.__annotations__) == set(RequestKeywords.__annotations__)
    # What an object says of itself has the same names.
    assert set(SamplingParams().to_dict()) == set(sampling)
    assert set(Request("a").to_dict()) == {"prompt", "adapter", *request} - {"sampling"}


def test_the_dict_of_a_completion_is_what_the_command_writes(engine, fixtures, tmp_path):
    request = {"prompt": PROMPT, "adapter": {"sql": 0.3}, "max_new_tokens": 4, "logprobs": 2}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request))
    model, adapter = fixtures / "quill-4m-gptq-4bit-g128-sym", fixtures / "adapters/sqlite-rslora-r16"
    command = [sys.executable, "-m", "exlora", "--json", "generate", "--model", model, "--adapter", f"sql={adapter}"]
    done = subprocess.run(
        [*command, "--requests", tmp_path / "requests.jsonl"], capture_output=True, text=True, check=True
    )
    written = json.loads(done.stdout.splitlines()[0])
    as_dict = json.loads(json.dumps(engine.generate(Request(**request)).to_dict()))
    assert set(as_dict) == set(written) - {"index"}
    arrays = {"logprobs", "top_logprobs"}
    assert {name: as_dict[name] for name in set(as_dict) - arrays - {"usage"}} == {
        name: written[name] for name in set(as_dict) - arrays - {"usage"}
    }
    assert np.allclose(written["logprobs"], as_dict["logprobs"])
    assert np.allclose(written["top_logprobs"], as_dict["top_logprobs"])
