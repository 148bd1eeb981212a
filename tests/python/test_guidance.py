"""Classifier-free guidance: natively, by pairs of prompts in exllamav2's API, and on the command line."""

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
from exlora.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)

PROMPT = "Emma was very much"
NEGATIVE = "The old man had never been so"
SCALE = 2.0
SETTINGS = {"max_new_tokens": 10, "stop_at_eos": False}


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def engine(folder, fixtures):
    return Engine(folder, adapters={"wit": fixtures / "adapters/jargon-lora-r8"})


@pytest.fixture(scope="module")
def model(folder):
    config = ExLlamaV2Config(folder)
    model = ExLlamaV2(config)
    model.load()
    return model


@pytest.fixture(scope="module")
def tokenizer(model):
    return ExLlamaV2Tokenizer(model.config)


def guided_text(engine, **settings):
    return engine.generate(PROMPT, negative_prompt=NEGATIVE, cfg_scale=SCALE, **{**SETTINGS, **settings}).text


def log_softmax(logits):
    logits = logits.astype(np.float64)
    best = logits.max()
    return logits - best - np.log(np.exp(logits - best).sum())


@pytest.mark.parametrize("adapter", [None, {"wit": 0.5}])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0])
def test_the_tokens_are_those_of_two_forward_passes(engine, scale, adapter):
    settings = {**SETTINGS, "adapter": adapter, "return_logits": True}
    found = engine.generate(PROMPT, negative_prompt=NEGATIVE, cfg_scale=scale, **settings)
    prompts = [engine.tokenizer.encode(text) for text in (PROMPT, NEGATIVE)]
    for index, (token, logits) in enumerate(zip(found.token_ids, found.logits, strict=True)):
        output = found.token_ids[:index]
        one, other = (log_softmax(engine.logits([*ids, *output], adapter=adapter)[-1]) for ids in prompts)
        mixed = scale * one + (1 - scale) * other
        assert np.allclose(logits, mixed, rtol=1e-4, atol=1e-4)
        assert mixed[token] > mixed.max() - 1e-4


def test_the_definition_is_that_of_transformers(engine):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    one, other = (engine.logits(text)[-1] for text in (PROMPT, NEGATIVE))

    class Unconditional:
        def __call__(self, *args, **kwargs):
            logits = torch.from_numpy(other.copy())[None, None]
            return type("Output", (), {"logits": logits, "get": lambda *_: None})()

    processor = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(
        SCALE, Unconditional(), unconditional_ids=torch.tensor([[1]]), use_cache=False
    )
    expected = processor(torch.tensor([[1]]), torch.from_numpy(one.copy())[None])[0].numpy()
    found = engine.generate(
        PROMPT, negative_prompt=NEGATIVE, cfg_scale=SCALE, max_new_tokens=1, return_logits=True, stop_at_eos=False
    )
    assert np.allclose(found.logits[0], expected, rtol=1e-4, atol=1e-4)


def test_each_prompt_may_have_a_negative_prompt_of_its_own(engine):
    ids = engine.tokenizer.encode(NEGATIVE)
    found = engine.generate(
        [PROMPT, PROMPT, "la la"],
        negative_prompt=[NEGATIVE, None, ids],
        cfg_scale=[SCALE, None, 1.5],
        adapters=["wit", None, None],
        **SETTINGS,
    )
    assert found[0].text == guided_text(engine, adapter="wit")
    assert found[1].text == engine.generate(PROMPT, **SETTINGS).text
    for shared in (NEGATIVE, ids):
        both = engine.generate([PROMPT, "la la"], negative_prompt=shared, cfg_scale=SCALE, **SETTINGS)
        assert both[0].text == guided_text(engine)
    assert found[2].text == engine.generate("la la", negative_prompt=NEGATIVE, cfg_scale=1.5, **SETTINGS).text
    assert "".join(chunk.text for chunk in engine.stream(
        PROMPT, negative_prompt=NEGATIVE, cfg_scale=SCALE, **SETTINGS)) == guided_text(engine)  # fmt: skip


def test_a_request_keeps_its_negative_prompt():
    request = exlora.Request(PROMPT, negative_prompt=[3, 4], cfg_scale=1.5)
    assert (request.negative_prompt, request.sampling.cfg_scale) == ([3, 4], 1.5)
    assert exlora.Request(**request.to_dict()) == request == pickle.loads(pickle.dumps(request))
    assert exlora.Request(PROMPT).negative_prompt is None


@pytest.mark.parametrize("given", [{"negative_prompt": NEGATIVE}, {"cfg_scale": 1.5}])
def test_half_of_the_settings_is_refused(engine, given):
    with pytest.raises(ExloraError) as caught:
        engine.generate(PROMPT, **given)
    assert caught.value.code == "request_invalid"


@pytest.mark.parametrize("scale", [-1.0, 1.0, 2.0])
def test_the_generators_take_pairs_of_prompts(engine, model, tokenizer, scale):
    settings = ExLlamaV2Sampler.Settings.greedy(cfg_scale=scale)
    expected = engine.generate(PROMPT, negative_prompt=NEGATIVE, cfg_scale=scale, **SETTINGS).text
    plain = engine.generate(PROMPT, **SETTINGS).text
    cache = ExLlamaV2Cache(model, max_seq_len=512)
    dynamic = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    arguments = {"max_new_tokens": 10, "completion_only": True, "add_bos": True}
    greedy = ExLlamaV2Sampler.Settings.greedy()
    found = dynamic.generate([(PROMPT, NEGATIVE), PROMPT], gen_settings=[settings, greedy], **arguments)
    assert found == [expected, plain]
    assert dynamic.generate((PROMPT, NEGATIVE), 10, gen_settings=settings, add_bos=True) == PROMPT + expected
    pair = [tokenizer.encode(text, add_bos=True) for text in (PROMPT, NEGATIVE)]
    job = ExLlamaV2DynamicJob(pair, 10, gen_settings=settings)
    dynamic.enqueue(job)
    while dynamic.num_remaining_jobs():
        dynamic.iterate()
    assert job.full_completion == expected
    base = ExLlamaV2BaseGenerator(model, cache, tokenizer)
    text = base.generate_simple((PROMPT, NEGATIVE), settings, 10, add_bos=True, stop_token=None)
    assert text == PROMPT + expected
    streaming = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
    streaming.set_stop_conditions([])
    ids, offsets = tokenizer.encode([PROMPT, NEGATIVE], add_bos=True, return_offsets=True)
    streaming.begin_stream(ids, settings, input_mask=tokenizer.padding_mask(ids), position_offsets=offsets)
    assert "".join(streaming.stream()[0] for _ in range(10)) == expected


def test_the_sampler_chooses_one_token_from_the_logits_of_two(engine, tokenizer):
    one, other = (engine.logits(text)[-1] for text in (PROMPT, NEGATIVE))
    settings = ExLlamaV2Sampler.Settings.greedy(cfg_scale=SCALE)
    ids = np.array([[3], [4]])
    token = ExLlamaV2Sampler.sample(np.stack([one, other])[:, None], settings, ids, 0.0, tokenizer)[0]
    assert token.shape == (1, 1)
    assert int(token[0, 0]) == np.argmax(SCALE * log_softmax(one) + (1 - SCALE) * log_softmax(other))
    with pytest.raises(ExloraError, match="two prompts"):
        ExLlamaV2Sampler.sample(one[None, None], settings, ids[:1], 0.0, tokenizer)


def test_the_generators_refuse_what_is_no_pair(model, tokenizer):
    cache = ExLlamaV2Cache(model, max_seq_len=256)
    settings = ExLlamaV2Sampler.Settings.greedy(cfg_scale=SCALE)
    dynamic = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    for prompt, chosen in ((("a", "b", "c"), settings), (("a", "b"), ExLlamaV2Sampler.Settings.greedy())):
        with pytest.raises(ExloraError) as caught:
            dynamic.generate(prompt, 4, gen_settings=chosen)
        assert caught.value.code == "request_invalid"
    streaming = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
    with pytest.raises(ExloraError, match="one sequence"):
        streaming.begin_stream(np.array([[3], [4], [5]]), settings)


def test_the_command_and_its_requests_take_a_negative_prompt(engine, folder, tmp_path):
    command = [sys.executable, "-m", "exlora", "generate", "-m", str(folder), "--stop-at-eos", "false", "--json"]
    options = ["--max-new-tokens", "10", "--negative-prompt", NEGATIVE, "--cfg-scale", str(SCALE)]
    one = subprocess.run([*command, *options, "--prompt", PROMPT], capture_output=True, text=True, check=True)
    assert json.loads(one.stdout.splitlines()[-1])["text"] == guided_text(engine)
    lines = tmp_path / "requests.jsonl"
    request = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "cfg_scale": SCALE, "max_new_tokens": 10}
    lines.write_text(json.dumps(request) + "\n")
    found = subprocess.run([*command, "--requests", str(lines)], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[0])["text"] == guided_text(engine)
