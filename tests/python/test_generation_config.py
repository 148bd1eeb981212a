"""generation_config.json as the defaults of requests, where it is asked for, against transformers' `generate`."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from exlora import Engine, ExloraError, Request, SamplingParams
from support import tiny

PROMPT = tiny.PROMPT[:12]


@pytest.fixture(scope="module")
def model(models) -> pathlib.Path:
    return tiny.write("llama-float32", models)


@pytest.fixture(scope="module")
def oracle(model):
    return tiny.load(model)


def written(folder: pathlib.Path, **settings: Any) -> pathlib.Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(settings))
    return path


def opened(model: pathlib.Path, source: Any) -> Engine:
    return Engine(model, threads=1, kv_dtype="f32", generation_config=source)


def generated(oracle: Any, path: pathlib.Path, **keywords: Any) -> list[int]:
    """The new tokens of transformers with the settings of a file."""
    settings = transformers.GenerationConfig.from_pretrained(path.parent, path.name)
    ids = torch.tensor([PROMPT])
    mask = torch.ones_like(ids)
    done = oracle.generate(ids, attention_mask=mask, generation_config=settings, pad_token_id=0, **keywords)
    return done[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.5},
        {"suppress_tokens": [3, 5, 8, 13, 21, 34, 55, 89]},
        {"bad_words_ids": [[3], [5], [8], [13]]},
        {"repetition_penalty": 1.3, "suppress_tokens": [1, 2], "temperature": 0.5, "top_k": 5},
        {"eos_token_id": list(range(0, 96, 3)), "min_new_tokens": 6},
        {"eos_token_id": list(range(0, 96, 3))},
        {"max_length": len(PROMPT) + 8},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_transformers(settings, model, oracle, tmp_path):
    settings = {"do_sample": False, "max_new_tokens": 20, **settings}
    if "max_length" in settings:
        del settings["max_new_tokens"]
    path = written(tmp_path, **settings)
    engine = Engine(
        model, threads=1, kv_dtype="f32", generation_config=path, max_seq_len=settings.get("max_length", 256)
    )
    done = engine.generate(PROMPT)
    want = generated(oracle, path)
    assert list(done.token_ids)[: len(want)] == want
    # A sequence as long as the engine's longest ends with one more token, which is never computed.
    assert len(done.token_ids) - len(want) in ((0, 1) if "max_length" in settings else (0,))


def test_nothing_is_used_unless_it_is_asked_for(model, tmp_path):
    plain = Engine(model, threads=1, kv_dtype="f32").generate(PROMPT)
    written(tmp_path, max_new_tokens=3)
    assert len(plain.token_ids) == 128
    # A model folder without the file sets nothing.
    folder = tiny.write("llama-float32", tmp_path / "model")
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert opened(folder, "auto").generate(PROMPT).token_ids == plain.token_ids


def test_auto_is_the_file_of_the_model_folder_and_a_path_that_of_another(tmp_path):
    folder = tiny.write("llama-float32", tmp_path)
    written(folder, max_new_tokens=3)
    written(tmp_path, max_new_tokens=4)
    for source, tokens in [("auto", 3), (folder, 3), (tmp_path, 4), (tmp_path / "generation_config.json", 4)]:
        assert len(opened(folder, source).generate(PROMPT).token_ids) == tokens


def test_what_a_request_sets_precedes_the_file(model, tmp_path):
    path = written(tmp_path, temperature=0.7, max_new_tokens=3, repetition_penalty=1.2, suppress_tokens=[7])
    engine = opened(model, path)
    assert len(engine.generate(PROMPT, max_new_tokens=5).token_ids) == 5
    plain = Engine(model, threads=1, kv_dtype="f32")
    # A request and its sampling set everything.
    whole = Request(PROMPT, max_new_tokens=6)
    assert engine.generate(whole).token_ids == plain.generate(whole).token_ids
    given = engine.generate(PROMPT, sampling=SamplingParams())
    assert given.token_ids == plain.generate(PROMPT, max_new_tokens=3).token_ids
    # A suppressed token stays so beside the request's own biases, unless the request names it.
    assert 7 not in engine.generate(PROMPT, temperature=0, max_new_tokens=40, logit_bias={5: 1e9, 7: 1e8}).token_ids
    biased = engine.generate(PROMPT, temperature=0, logit_bias={8: -1e9}, max_new_tokens=40)
    assert 7 not in biased.token_ids
    assert 7 in engine.generate(PROMPT, temperature=0, logit_bias={7: 1e9}).token_ids
    streamed = [token for chunk in engine.stream(PROMPT, temperature=0) for token in chunk.token_ids]
    assert streamed == list(engine.generate(PROMPT, temperature=0).token_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"eta_cutoff": 0.1},
        {"no_repeat_ngram_size": 3},
        {"begin_suppress_tokens": [1]},
        {"bad_words_ids": [[1, 2]]},
        {"max_length": 50},
        {"guidance_scale": 1.5},
        {"forced_eos_token_id": 0},
    ],
    ids=str,
)
def test_what_cannot_be_honored_is_refused_by_name(settings, model, tmp_path):
    path = written(tmp_path, **settings)
    with pytest.raises(ExloraError, match=next(iter(settings))) as caught:
        opened(model, path)
    assert caught.value.code == "setting_unsupported"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"temperature": "warm"}, "model_config_invalid"),
        ({"eos_token_id": "end"}, "model_config_invalid"),
        ({"top_p": 2.0}, "sampling_invalid"),
        ({"suppress_tokens": [10**6]}, "sampling_invalid"),
        ({"num_return_sequences": 0}, "request_invalid"),
        ({"stop_strings": ["x"] * 300}, "request_invalid"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(settings, code, model, tmp_path):
    path = written(tmp_path, **settings)
    with pytest.raises(ExloraError) as caught:
        opened(model, path)
    assert caught.value.code == code


def test_several_return_sequences_are_samples(model, tmp_path):
    path = written(tmp_path, num_return_sequences=3, do_sample=True, max_new_tokens=8)
    engine = opened(model, path)
    samples = engine.generate(PROMPT, seed=5)
    assert [sample.sample for sample in samples] == [0, 1, 2]
    assert len({tuple(sample.token_ids) for sample in samples}) == 3
    plain = Engine(model, threads=1, kv_dtype="f32")
    expected = plain.generate(PROMPT, n=3, seed=5, temperature=1.0, max_new_tokens=8)
    assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in expected]
    assert [len(samples) for samples in engine.generate([PROMPT, PROMPT])] == [3, 3]
    assert sorted(i for i, _ in engine.as_completed([PROMPT, PROMPT])) == [0, 0, 0, 1, 1, 1]
    # A request's own number precedes it, and a stream is one sample.
    assert len(engine.generate(PROMPT, n=2)) == 2
    streamed = [token for chunk in engine.stream(PROMPT, seed=5) for token in chunk.token_ids]
    assert streamed == list(samples[0].token_ids)
    # A file with one sample, as transformers writes it, changes no result's type.
    one = opened(model, written(tmp_path, num_return_sequences=1, max_new_tokens=8))
    assert len(one.generate(PROMPT).token_ids) == 8


def test_a_file_that_is_missing_is_an_error(model, tmp_path):
    with pytest.raises(ExloraError) as caught:
        opened(model, tmp_path / "nowhere.json")
    assert caught.value.code == "checkpoint_not_found"


def command(*arguments: Any) -> dict[str, Any]:
    """What the command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "exlora", "generate", *map(str, arguments), "--prompt", "Emma was a", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_takes_a_generation_config_and_a_length(quill, tmp_path):
    path = written(tmp_path, max_new_tokens=3)
    assert command("-m", quill, "--generation-config", path)["usage"]["completion_tokens"] == 3
    line = command("-m", quill, "--generation-config", path, "--max-new-tokens", 2)
    assert line["usage"]["completion_tokens"] == 2
    for flag in ("--max-seq-len", "--max-tokens"):
        error = command("-m", quill, flag, 1)["error"]
        assert (error["code"], error["expected"]) == ("prompt_too_long", "at most 1 tokens")
