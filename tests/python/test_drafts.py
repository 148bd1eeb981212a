"""Drafts from the text and from a draft model: the same results in fewer steps, through every face."""

import json
import pickle
import subprocess
import sys

import exlora
import numpy as np
import pytest
from exlora import (
    Engine,
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Config,
    ExLlamaV2Tokenizer,
    ExloraError,
)
from exlora.generator import ExLlamaV2DynamicGenerator, ExLlamaV2Sampler, ExLlamaV2StreamingGenerator
from support import tiny

PROMPT = "la la la la la"
SETTINGS = {"max_new_tokens": 40, "stop_at_eos": False}


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def adapters(fixtures):
    return {"wit": fixtures / "adapters/jargon-lora-r8"}


@pytest.fixture(scope="module")
def plain(folder, adapters):
    return Engine(folder, adapters=adapters)


@pytest.fixture(scope="module")
def drafting(folder, adapters):
    return Engine(folder, adapters=adapters, draft_model=folder, draft_adapters={"wit too": adapters["wit"]})


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "sampled"])
def test_drafts_change_no_token_and_no_log_probability(plain, drafting, sampling):
    asked = {**SETTINGS, **sampling, "logprobs": 2, "adapters": ["wit", None], "n": 2}
    expected = plain.generate([PROMPT, "Emma was"], **asked)
    found = {
        "ngram": plain.generate([PROMPT, "Emma was"], ngram_draft=True, max_ngram=2, num_draft_tokens=6, **asked),
        "model": drafting.generate([PROMPT, "Emma was"], draft_adapters=["wit too", None], **asked),
        "other model": drafting.generate([PROMPT, "Emma was"], **asked),
    }
    for name, results in found.items():
        for samples, others in zip(expected, results, strict=True):
            for one, other in zip(samples, others, strict=True):
                assert (one.text, one.token_ids, one.top_logprobs) == (other.text, other.token_ids, other.top_logprobs)
                assert np.array_equal(one.logprobs, other.logprobs), name
        usages = [sample.usage for samples in results for sample in samples]
        if not (sampling and name == "ngram"):  # a sampled text repeats itself too seldom
            assert sum(usage.accepted_draft_tokens for usage in usages) > 10, name


@pytest.mark.parametrize("name", ["mistral-window", "llama"])
def test_drafts_change_nothing_beyond_an_attention_window(name, tmp_path):
    """Rows of a draft see different windows of one sequence, most of which the first of them no longer sees."""
    folder = tiny.write(name, tmp_path)
    windows = ExLlamaV2Config(folder).sliding_windows
    assert (windows[0] is not None) == (name == "mistral-window")
    prompts = [[5, 9, 40, 41] * 12, list(tiny.PROMPT)]
    asked = {**SETTINGS, "max_new_tokens": 60, "logprobs": 2}
    expected = Engine(folder).generate(prompts, **asked)
    assert any(len(prompt) > (windows[0] or 0) for prompt in prompts)
    found = {
        "ngram": Engine(folder).generate(prompts, ngram_draft=True, max_ngram=1, num_draft_tokens=8, **asked),
        "model": Engine(folder, draft_model=folder).generate(prompts, num_draft_tokens=8, **asked),
    }
    for results in found.values():
        for one, other in zip(expected, results, strict=True):
            assert one.token_ids == other.token_ids
            assert np.array_equal(one.logprobs, other.logprobs)
    assert all(one.usage.accepted_draft_tokens > 20 for one in found["model"])


def test_a_model_that_drafts_for_itself_takes_a_fifth_of_the_steps(drafting):
    before = drafting.stats()
    usage = drafting.generate(PROMPT, max_new_tokens=41, stop_at_eos=False).usage
    after = drafting.stats()
    assert (usage.accepted_draft_tokens, usage.rejected_draft_tokens) == (32, 0)
    assert after["steps"] - before["steps"] == 9
    assert after["accepted_draft_tokens"] - before["accepted_draft_tokens"] == 32
    assert drafting.generate(PROMPT, num_draft_tokens=0).usage.accepted_draft_tokens == 0


def test_adapters_of_the_draft_model_are_its_own(drafting, adapters):
    assert [info.name for info in drafting.draft_adapters()] == ["wit too"]
    drafting.load_draft_adapter("guest", adapters["wit"])
    drafting.generate(PROMPT, draft_adapters={"guest": 0.5}, max_new_tokens=2)
    drafting.unload_draft_adapter("guest")
    with pytest.raises(ExloraError, match="guest") as caught:
        drafting.generate(PROMPT, draft_adapters="guest")
    assert caught.value.code == "adapter_not_found"
    with pytest.raises(TypeError, match="draft_adapters is a mapping"):
        Engine("nowhere", draft_adapters=["wit"])


def test_an_engine_with_a_draft_model_can_be_pickled(drafting):
    copy = pickle.loads(pickle.dumps(drafting))
    assert [info.name for info in copy.draft_adapters()] == ["wit too"]
    assert copy.generate(PROMPT, max_new_tokens=11).usage.accepted_draft_tokens > 0


def test_a_request_keeps_its_drafts(plain):
    request = exlora.Request(
        PROMPT, ngram_draft=True, max_ngram=3, num_draft_tokens=5, draft_adapters={"a": 0.5}, max_new_tokens=3
    )
    assert (request.ngram_draft, request.max_ngram, request.num_draft_tokens) == (True, 3, 5)
    assert request.draft_adapters == {"a": 0.5}
    assert pickle.loads(pickle.dumps(request)) == request == exlora.Request(**request.to_dict())
    assert exlora.Request(PROMPT).num_draft_tokens is None
    with pytest.raises(ExloraError, match="max_ngram"):
        plain.generate(PROMPT, ngram_draft=True, max_ngram=0)
    with pytest.raises(ExloraError, match="the engine has none"):
        plain.generate(PROMPT, draft_adapters="wit")


def test_a_draft_model_with_another_vocabulary_is_refused_with_the_first_difference(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = (token for token, number in vocab.items() if number in (1000, 1001))
    vocab[one], vocab[other] = vocab[other], vocab[one]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExloraError, match="another vocabulary") as caught:
        Engine(folder, draft_model=tmp_path)
    assert caught.value.code == "draft_model_mismatch"
    assert "token 1000" in str(caught.value)


@pytest.fixture(scope="module")
def exllamav2(folder):
    config = ExLlamaV2Config(folder)
    model = ExLlamaV2(config)
    model.load()
    return model, ExLlamaV2Tokenizer(config)


def test_exllamav2s_generators_draft_and_count(exllamav2):
    model, tokenizer = exllamav2
    cache, draft_cache = (ExLlamaV2Cache(model, max_seq_len=512) for _ in range(2))
    greedy = ExLlamaV2Sampler.Settings.greedy()
    plain = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    expected = plain.generate(PROMPT, 40, gen_settings=greedy)
    for options in (
        {"use_ngram_draft": True, "max_ngram": 2},
        {"draft_model": model, "draft_cache": draft_cache, "num_draft_tokens": 3},
    ):
        generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer, **options)
        text, last = generator.generate(PROMPT, 40, gen_settings=greedy, return_last_results=True)
        assert text == expected
        assert last["accepted_draft_tokens"] > 0
        assert last["accepted_draft_tokens"] + last["rejected_draft_tokens"] < 200

    streaming = ExLlamaV2StreamingGenerator(model, cache, tokenizer, model, draft_cache, num_speculative_tokens=3)
    streaming.begin_stream_ex(tokenizer.encode(PROMPT), greedy)
    text, tokens = PROMPT, 0
    while tokens < 40:
        result = streaming.stream_ex()
        text += result["chunk"]
        tokens += result["chunk_token_ids"].shape[1]
    assert text == expected
    efficiency, accuracy, total, drafted, accepted = streaming.get_sd_stats()
    assert total >= 40
    assert (efficiency, accuracy) == (accepted / total, accepted / drafted)
    assert accuracy == 1
    streaming.reset_sd_stats()
    assert streaming.get_sd_stats() == (0, 0, 0, 0, 0)


def test_the_command_drafts(folder, adapters, tmp_path):
    def command(*options, request=None):
        (tmp_path / "requests.jsonl").write_text(json.dumps(request or {"prompt": PROMPT}))
        requests = tmp_path / "requests.jsonl"
        arguments = ["generate", "--json", "-m", folder, "--requests", requests, "--max-new-tokens", "20", *options]
        run = [sys.executable, "-m", "exlora", *map(str, arguments)]
        return json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    expected = command()
    draft = ["--draft-model", folder, "--draft-adapter", f"wit={adapters['wit']}"]
    for found in (
        command("--ngram-draft", "--max-ngram", "2", "--num-draft-tokens", "3"),
        command(request={"prompt": PROMPT, "ngram_draft": True}),
        command(*draft),
        command(*draft, "--draft-use", "wit*0.1"),
        command(*draft, request={"prompt": PROMPT, "draft_adapters": {"wit": 0.1}}),
    ):
        assert found["token_ids"] == expected["token_ids"]
        assert found["usage"]["accepted_draft_tokens"] > 0
    assert expected["usage"]["accepted_draft_tokens"] == 0
