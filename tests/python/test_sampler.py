"""Every sampler setting against its definition, through the native settings and exllamav2's."""

import math

import numpy as np
import pytest
import torch
from exlora import Engine, ExloraError, PostSampling, Request, SamplingParams
from exlora._exlora import Tokenizer
from support import sampling
from transformers.generation import logits_process

VOCAB = 300
#: One value for each setting that is neither off nor extreme.
SETTINGS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "top_a": {"top_a": 0.4},
    "min_p": {"min_p": 0.08},
    "tfs": {"tfs": 0.9},
    "typical": {"typical": 0.6},
    "mirostat": {"mirostat": True, "mirostat_tau": 2.0},
    "mirostat_mu": {"mirostat": True, "mirostat_mu": 3.0},
    "smoothing": {"smoothing_factor": 0.3},
    "dynamic": {"min_temp": 0.4, "max_temp": 2.0, "temp_exponent": 0.8},
    "temperature_last": {"temperature": 0.6, "temperature_last": True},
    "xtc": {"xtc_probability": 0.4, "xtc_threshold": 0.05, "xtc_ignore_tokens": [3, 5]},
    "repetition": {"repetition_penalty": 1.4},
    "repetition_range": {"repetition_penalty": 1.4, "repetition_range": 8},
    "repetition_decay": {"repetition_penalty": 1.6, "repetition_range": 4, "repetition_decay": 9},
    "frequency": {"frequency_penalty": 0.4},
    "presence": {"presence_penalty": 0.8},
    "penalize_prompt": {
        "frequency_penalty": 0.4,
        "presence_penalty": 0.3,
        "penalize_prompt": True,
        "repetition_range": 6,
        "repetition_decay": 5,
    },
    "dry": {"dry_multiplier": 0.8, "dry_sequence_breakers": [2]},
    "dry_length": {"dry_multiplier": 0.5, "dry_base": 1.3, "dry_allowed_length": 1, "dry_max_ngram": 3},
    "dry_range": {"dry_multiplier": 0.5, "dry_range": 12, "dry_sequence_breakers": []},
    "logit_bias": {"logit_bias": {1: 3.0, 2: -math.inf}},
    "allowed": {"allowed_token_ids": [1, 5, 9, 200]},
    "greedy": {"temperature": 0.0, "presence_penalty": 1.0},
}


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, list[int], int]:
    """Logits, some equal, and tokens that repeat themselves."""
    logits = rng.normal(0, rng.choice([1.0, 3.0, 6.0]), VOCAB)
    if rng.random() < 0.5:
        logits = np.round(logits * 4) / 4
    tokens = rng.integers(0, 6, rng.integers(1, 40)).tolist()
    return logits.astype(np.float32), tokens, int(rng.integers(0, len(tokens) + 1))


def check(logits, tokens, prompt_len, settings):
    """Our probabilities are those of the definition, but where a cut falls on equal sums to the last bits."""
    params = SamplingParams(**{"temperature": 1.0, **settings})
    found = params.distribution(logits.tolist(), tokens, prompt_len)
    # Settings are float32.
    rounded = {name: float(np.float32(v)) if isinstance(v, float) else v for name, v in settings.items()}
    want = sampling.distribution(logits, tokens, prompt_len, **rounded)
    assert found.dtype == np.float32
    assert found.shape == (VOCAB,)
    np.testing.assert_allclose(found, want, atol=2e-6, err_msg=str(settings))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_does_what_its_definition_says(name):
    rng = np.random.default_rng(list(SETTINGS).index(name))
    for _ in range(25):
        check(*drawn(rng), SETTINGS[name])


def test_settings_together_act_in_their_order():
    rng = np.random.default_rng(7)
    for _ in range(300):
        chosen = rng.choice(list(SETTINGS), rng.integers(2, 7), replace=False)
        settings = {key: value for name in chosen for key, value in SETTINGS[name].items()}
        check(*drawn(rng), settings)


@pytest.mark.parametrize(
    ("setting", "warper"),
    [
        ({"typical": 0.7}, logits_process.TypicalLogitsWarper(0.7)),
        ({"top_p": 0.7}, logits_process.TopPLogitsWarper(0.7)),
        ({"top_k": 9}, logits_process.TopKLogitsWarper(9)),
        ({"min_p": 0.1}, logits_process.MinPLogitsWarper(0.1)),
        ({"repetition_penalty": 1.3}, logits_process.RepetitionPenaltyLogitsProcessor(1.3)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_filters_are_those_of_transformers(setting, warper):
    rng = np.random.default_rng(1)
    for _ in range(20):
        logits = rng.normal(0, 3, VOCAB)
        tokens = rng.integers(0, VOCAB, 20).tolist()
        want = warper(torch.tensor([tokens]), torch.tensor(logits[None])).softmax(-1)[0]
        found = SamplingParams(temperature=1.0, **setting).distribution(logits.tolist(), tokens)
        np.testing.assert_allclose(found, want.numpy(), atol=2e-6)


def test_a_number_decides_the_draw():
    params = SamplingParams(temperature=1.0, top_k=4)
    logits = np.log([0.1, 0.4, 0.2, 0.3]).tolist()
    draws = [params.draw(logits, [], random, 2) for random in (0.0, 0.39, 0.41, 0.69, 0.71, 0.95)]
    assert [token for token, *_ in draws] == [1, 1, 3, 3, 2, 0]
    assert [round(prob, 5) for _, prob, _, _ in draws] == [0.4, 0.4, 0.3, 0.3, 0.2, 0.1]
    assert all([token for token, _ in top] == [1, 3] for _, _, top, _ in draws)


def test_mirostat_follows_its_recurrence():
    rng = np.random.default_rng(3)
    mu, tau, eta = None, 2.5, 0.3
    for _ in range(30):
        logits = rng.normal(0, 3, VOCAB)
        params = SamplingParams(temperature=1.0, mirostat=True, mirostat_tau=tau, mirostat_eta=eta, mirostat_mu=mu)
        token, prob, _, after = params.draw(logits.tolist(), [], rng.random())
        want = sampling.distribution(logits.astype(np.float32), [], mirostat=True, mirostat_tau=tau, mirostat_mu=mu)
        assert prob == pytest.approx(want[token], abs=1e-5)
        limit = 2 * tau if mu is None else mu
        assert after == pytest.approx(limit + eta * (tau + math.log2(prob)), abs=1e-4)
        mu = after


# In an engine


@pytest.fixture(scope="module")
def engine(fixtures):
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", kv_tokens=4096)


def test_reported_probabilities_are_those_of_the_distribution(engine):
    settings = {"temperature": 0.9, "top_p": 0.9, "mirostat": True, "mirostat_tau": 4.0, "repetition_penalty": 1.2}
    prompt = engine.tokenizer.encode("The truth is")
    out = engine.generate(prompt, max_new_tokens=12, probs=3, logprobs=1, return_logits=True, seed=4, **settings)
    assert out.probs.shape == (12,)
    assert out.probs.dtype == np.float32
    mu = None
    for step, (token, prob, top) in enumerate(zip(out.token_ids, out.probs, out.top_probs, strict=True)):
        tokens = [*prompt, *out.token_ids[:step]]
        params = SamplingParams(**settings, mirostat_mu=mu)
        want = params.distribution(out.logits[step].tolist(), tokens, len(prompt))
        assert prob == pytest.approx(want[token], rel=1e-4)
        assert [float(p) for _, p in top] == pytest.approx(sorted(want, reverse=True)[:3], rel=1e-4, abs=1e-9)
        mu = (2 * 4.0 if mu is None else mu) + 0.1 * (4.0 + math.log2(prob))
    assert engine.generate(prompt, max_new_tokens=2).probs is None


def test_rows_of_a_batch_are_sampled_as_alone(engine):
    settings = [{"max_new_tokens": 20, "seed": i, "temperature": 1.0} for i in range(len(SETTINGS))]
    requests = [
        Request("Once upon a time", **{**own, **setting})
        for own, setting in zip(settings, SETTINGS.values(), strict=True)
    ]
    together = engine.generate(requests)
    assert [out.token_ids for out in together] == [engine.generate(request).token_ids for request in requests]


def test_the_default_sets_of_tokens_are_those_of_the_tokenizer(engine, fixtures):
    tokenizer = Tokenizer(fixtures / "quill-4m-gptq-4bit-g128-sym")
    text = "a b. a b. a b. a b"
    tokens = tokenizer.encode(text)
    logits = [0.0] * tokenizer.vocab_size
    params = SamplingParams(temperature=1.0, dry_multiplier=2.0, dry_allowed_length=1)
    broken = params.distribution(logits, tokens, tokenizer=tokenizer)
    whole = params.distribution(logits, tokens)
    full_stop = tokens[tokens.index(tokenizer.encode("a b")[-1]) + 1]
    assert "." in tokenizer.decode([full_stop])
    assert whole[full_stop] < broken[full_stop], "a full stop may end every sentence"


def test_hooks_see_and_replace_tokens(engine):
    seen = []

    def watch(result):
        assert isinstance(result, PostSampling)
        seen.append((result.token, result.prob, result.top_probs, result.logits.shape))

    def replace(result):
        if len(seen) == 3:
            result.token = 77

    plain = engine.generate("The truth is", max_new_tokens=6)
    out = engine.generate("The truth is", max_new_tokens=6, post_sampling_hooks=[watch, replace], probs=2, logprobs=1)
    assert out.token_ids[:2] == plain.token_ids[:2]
    assert out.token_ids[2] == 77
    assert (out.probs[2], out.probs[1]) == (0.0, 1.0)
    assert len(seen) == 6
    assert seen[2][0] == plain.token_ids[2]
    assert all(shape == (2048,) and len(top) == 2 for _, _, top, shape in seen)


def test_an_exception_of_a_hook_ends_its_request_alone(engine):
    def fail(result):
        raise ValueError(f"no more of {result.token}")

    prompts = ["The truth is", "Once upon"]
    good, bad = engine.generate(prompts, max_new_tokens=4, post_sampling_hooks=[[], [fail]], return_errors=True)
    assert good.token_ids == engine.generate(prompts[0], max_new_tokens=4).token_ids
    assert isinstance(bad, ExloraError)
    assert bad.code == "hook_failed"
    assert "ValueError: no more of" in str(bad)
    with pytest.raises(ExloraError) as caught:
        engine.generate(prompts[0], post_sampling_hooks=[lambda result: setattr(result, "token", 10**6)])
    assert caught.value.code == "token_out_of_range"


def test_a_hook_cannot_make_its_engine_wait_for_itself(engine):
    def ask(result):
        engine.generate("x", max_new_tokens=1)

    with pytest.raises(ExloraError, match="asked to compute by a function that a step calls") as caught:
        engine.generate("The truth is", post_sampling_hooks=[ask])
    assert caught.value.code == "hook_failed"
    assert engine.generate("x", max_new_tokens=1).token_ids


def test_hooks_are_part_of_a_request(engine):
    def keep(result):
        pass

    request = Request("x", post_sampling_hooks=[keep])
    assert request.post_sampling_hooks == [keep]
    assert request == Request("x", post_sampling_hooks=[keep]) != Request("x")
    assert Request(**request.to_dict()) == request
    with pytest.raises(TypeError, match="callables, not int"):
        Request("x", post_sampling_hooks=[3])
