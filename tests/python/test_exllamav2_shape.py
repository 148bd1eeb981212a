"""The exllamav2-compatible API: names, argument orders, defaults, results, and correct adapters.

The independent oracle of most tests is `exlora.Engine`, which other tests compare with transformers and peft.
"""

import asyncio
import inspect
import subprocess
import sys
import textwrap
import threading
import time

import exlora
import exlora.generator
import numpy as np
import pytest
from exlora import (
    Engine,
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_8bit,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExLlamaV2Tokenizer,
    ExloraError,
    SamplingParams,
)
from exlora.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicGeneratorAsync,
    ExLlamaV2DynamicJob,
    ExLlamaV2DynamicJobAsync,
    ExLlamaV2PostSamplingResult,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)

PROMPT = "The table is used to"
GREEDY = ExLlamaV2Sampler.Settings.greedy()


def to_numpy(array):
    """The values, whether this process has imported torch or not."""
    return np.asarray(array)


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def engine(folder, fixtures):
    adapters = {"sqlite": fixtures / "adapters/sqlite-rslora-r16", "jargon": fixtures / "adapters/jargon-lora-r8"}
    return Engine(folder, adapters=adapters)


@pytest.fixture(scope="module")
def config(folder):
    return ExLlamaV2Config(str(folder))


@pytest.fixture(scope="module")
def model(config):
    model = ExLlamaV2(config)
    model.load()
    return model


@pytest.fixture(scope="module")
def tokenizer(config):
    return ExLlamaV2Tokenizer(config)


@pytest.fixture(scope="module")
def lora(model, fixtures):
    return ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/sqlite-rslora-r16"))


@pytest.fixture(scope="module")
def jargon(model, fixtures):
    return ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/jargon-lora-r8"), 0.5)


@pytest.fixture
def generator(model, tokenizer):
    return ExLlamaV2DynamicGenerator(model, ExLlamaV2Cache(model, max_seq_len=512), tokenizer)


def text_of(engine, adapter=None, tokens=16):
    return PROMPT + engine.generate(PROMPT, adapter=adapter, max_new_tokens=tokens, stop_at_eos=False).text


# Scripts


def test_the_script_of_the_inference_lora_example(folder, fixtures, engine):
    """Its steps, in its order; only the imports differ."""
    config = ExLlamaV2Config(str(folder))
    config.arch_compat_overrides()
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, max_seq_len=1024, lazy=True)
    model.load_autosplit(cache, progress=True)
    tokenizer = ExLlamaV2Tokenizer(config)
    lora = ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/sqlite-rslora-r16"))
    generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)

    def generate():
        return generator.generate(
            prompt=PROMPT,
            max_new_tokens=16,
            add_bos=True,
            stop_conditions=[tokenizer.eos_token_id],
            gen_settings=ExLlamaV2Sampler.Settings.greedy(),
        )

    generator.warmup()
    before = generate()
    generator.set_loras(lora)
    adapted = generate()
    generator.set_loras(None)
    after = generate()
    assert before == after == text_of(engine)
    assert adapted == text_of(engine, "sqlite") != before


def test_the_script_of_the_deprecated_lora_example(folder, fixtures, engine):
    """One streaming and one base generator over one cache, the same prompt without and with the adapter."""
    config = ExLlamaV2Config()
    config.model_dir = str(folder)
    config.prepare()
    model = ExLlamaV2(config)
    model.load()
    tokenizer = ExLlamaV2Tokenizer(config)
    cache = ExLlamaV2Cache(model)
    lora = ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/sqlite-rslora-r16"))
    streaming = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
    simple = ExLlamaV2BaseGenerator(model, cache, tokenizer)

    def stream_with(prompt, settings, max_new_tokens, loras):
        text, generated = "", 0
        streaming.set_stop_conditions([])
        streaming.begin_stream(tokenizer.encode(prompt), settings, loras=loras)
        while generated < max_new_tokens:
            chunk, eos, _ = streaming.stream()
            text += chunk
            generated += 1
            if eos:
                break
        return prompt + text

    for loras, name in ((None, None), (lora, "sqlite"), ([], None)):
        assert stream_with(PROMPT, GREEDY, 16, loras) == text_of(engine, name)
        assert simple.generate_simple(PROMPT, GREEDY, 16, loras=loras, stop_token=None) == text_of(engine, name)


SIGNATURES = {
    "ExLlamaV2.load": "gpu_split=None, lazy=False, stats=False, callback=None, callback_gen=None, progress=False",
    "ExLlamaV2.load_autosplit": "cache, reserve_vram=None, last_id_only=False, callback=None, callback_gen=None, "
    "progress=False",
    "ExLlamaV2.forward": "input_ids, cache=None, input_mask=None, preprocess_only=False, last_id_only=False, "
    "loras=None, return_last_state=False, position_offsets=None, abort_event=None, cpu_logits=False",
    "ExLlamaV2Cache": "model, batch_size=1, max_seq_len=-1, copy_from=None, lazy=False, num_key_value_heads=None, "
    "fixed_device=None",
    "ExLlamaV2Cache.copy_states": "target, from_column, from_columns, to_column, to_columns, from_row, from_rows, "
    "to_row, to_rows",
    "ExLlamaV2Cache.get_kv_state": "layer_idx, batch_size, offset, width, page_size=0, cache_seqlens=None, "
    "block_table=None",
    "ExLlamaV2Config": "model_dir=None",
    "ExLlamaV2Tokenizer": "config, lazy_init=True, force_json=False, force_spm=False",
    "ExLlamaV2Tokenizer.encode": "text, add_bos=False, add_eos=False, encode_special_tokens=False, "
    "return_offsets=False, embeddings=None",
    "ExLlamaV2Lora": "model, lora_config_path, lora_path, lora_scaling=1.0",
    "ExLlamaV2Lora.from_directory": "model, directory, lora_scaling=1.0",
    "generator.ExLlamaV2DynamicGenerator": "model, cache, tokenizer, max_batch_size=None, max_seq_len=None, "
    "max_chunk_size=None, max_q_size=8, draft_model=None, draft_cache=None, num_draft_tokens=4, use_ngram_draft=False, "
    "max_ngram=4, max_sampling_threads=16, min_sampling_threads=3, paged=True, filter_background_eval=True",
    "generator.ExLlamaV2DynamicGenerator.generate": "prompt, max_new_tokens, min_new_tokens=0, seed=None, "
    "gen_settings=None, token_healing=False, encode_special_tokens=False, decode_special_tokens=False, "
    "stop_conditions=None, add_bos=False, abort_event=None, completion_only=False, filters=None, "
    "filter_prefer_eos=False, return_last_results=False, embeddings=None, banned_strings=None",
    "generator.ExLlamaV2DynamicJob": "input_ids, max_new_tokens, min_new_tokens=0, max_skips=4, gen_settings=None, "
    "seed=None, stop_conditions=None, decode_special_tokens=False, return_top_tokens=0, return_logits=False, "
    "return_probs=False, filters=None, filter_prefer_eos=False, token_healing=False, identifier=None, "
    "banned_strings=None, embeddings=None",
    "generator.ExLlamaV2BaseGenerator.generate_simple": "prompt, gen_settings, num_tokens, seed=None, "
    "token_healing=False, encode_special_tokens=False, decode_special_tokens=False, loras=None, stop_token=-1, "
    "add_bos=False, abort_event=None, input_embeddings=None, completion_only=False, filters=None, "
    "filter_prefer_eos=False",
    "generator.ExLlamaV2StreamingGenerator": "model, cache, tokenizer, draft_model=None, draft_cache=None, "
    "num_speculative_tokens=5",
    "generator.ExLlamaV2StreamingGenerator.begin_stream": "input_ids, gen_settings, token_healing=False, loras=None, "
    "input_mask=None, position_offsets=None, abort_event=None",
    "generator.ExLlamaV2Sampler.sample": "logits, settings, sequence_ids, random, tokenizer, prefix_token=None, "
    "return_top_tokens=0, blocked_tokens=None, filters=None, filter_prefer_eos=False, sync=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_have_exllamav2s_order_and_defaults(name):
    found = exlora
    for part in name.split("."):
        found = getattr(found, part)
    parameters = [p for p in inspect.signature(found).parameters.values() if p.kind is not p.VAR_KEYWORD]
    spelled = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters if p.name != "self"]
    expected = SIGNATURES[name].split(", ")
    assert spelled[: len(expected)] == expected
    assert all("=" in extra for extra in spelled[len(expected) :])


def test_sampler_settings_have_exllamav2s_defaults():
    settings = ExLlamaV2Sampler.Settings()
    assert (settings.token_repetition_penalty, settings.temperature) == (1.025, 0.8)
    assert (settings.top_k, settings.top_p, settings.min_p) == (50, 0.8, 0)
    assert (GREEDY.top_k, GREEDY.top_p, GREEDY.temperature, GREEDY.token_repetition_penalty) == (1, 0.0, 1.0, 1.0)
    assert isinstance(settings.clone(), ExLlamaV2Sampler.Settings)


# Adapters


def test_an_adapter_has_exllamav2s_attributes(model, fixtures, lora, jargon):
    assert (lora.lora_r, lora.lora_alpha, lora.lora_scaling) == (16, 64.0, 4.0)  # rsLoRA: alpha times the root of r
    assert (jargon.lora_r, jargon.lora_alpha, jargon.lora_scaling) == (8, 16.0, 1.0)  # 0.5 * 16 / 8
    assert set(jargon.target_modules) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    directory = fixtures / "adapters/jargon-lora-r8"
    assert jargon.lora_path == str(directory / "adapter_model.safetensors")
    assert jargon.lora_config_path == str(directory / "adapter_config.json")
    assert jargon.model is model
    assert jargon.config is model.config
    by_files = ExLlamaV2Lora(model, jargon.lora_config_path, jargon.lora_path, 0.5)
    assert by_files.content_hash == jargon.content_hash


def test_a_model_that_is_not_loaded_takes_no_adapter(config, fixtures):
    with pytest.raises(ExloraError) as caught:
        ExLlamaV2Lora.from_directory(ExLlamaV2(config), str(fixtures / "adapters/jargon-lora-r8"))
    assert caught.value.code == "model_not_loaded"


def test_a_cached_prefix_is_never_shared_between_mixtures(generator, engine, lora, jargon):
    """exllamav2 looks pages up by their tokens alone. The prompt is long enough to fill pages."""
    prompt = " ".join([PROMPT] * 16)
    for loras, adapter in (
        (None, None),
        (lora, "sqlite"),
        ([lora, jargon], {"sqlite": 1.0, "jargon": 0.5}),
        (None, None),
    ):
        generator.set_loras(loras)
        [text] = generator.generate([prompt], 12, gen_settings=GREEDY, completion_only=True)
        assert text == engine.generate(prompt, adapter=adapter, max_new_tokens=12, stop_at_eos=False).text


def test_jobs_of_one_batch_have_their_own_adapters(generator, tokenizer, engine, lora, jargon):
    generator.set_loras(jargon)
    ids = tokenizer.encode(PROMPT)
    loras = {"as set": {}, "base": {"loras": None}, "empty": {"loras": []}, "one": {"loras": lora}}
    loras["mixture"] = {"loras": [(lora, 0.5), jargon]}
    jobs = [ExLlamaV2DynamicJob(ids, 16, gen_settings=GREEDY, identifier=key, **loras[key]) for key in loras]
    generator.enqueue(jobs)
    generator.set_loras(None)  # has no effect on jobs that are enqueued
    ended = {}
    while generator.num_remaining_jobs():
        ended |= {r["identifier"]: r["full_completion"] for r in generator.iterate() if r["eos"]}
    mixtures = {"as set": {"jargon": 0.5}, "base": None, "empty": None, "one": "sqlite"}
    mixtures["mixture"] = {"sqlite": 0.5, "jargon": 0.5}
    assert {key: PROMPT + text for key, text in ended.items()} == {
        key: text_of(engine, mixture) for key, mixture in mixtures.items()
    }


def test_an_unloaded_adapter_is_kept_by_its_jobs_and_refused_to_new_ones(generator, tokenizer, model, engine, fixtures):
    lora = ExLlamaV2Lora.from_directory(model, str(fixtures / "adapters/sqlite-rslora-r16"))
    job = ExLlamaV2DynamicJob(tokenizer.encode(PROMPT), 16, gen_settings=GREEDY, loras=lora)
    generator.enqueue(job)
    lora.unload()
    assert not lora.is_loaded
    while generator.num_remaining_jobs():
        generator.iterate()
    assert PROMPT + job.full_completion == text_of(engine, "sqlite")
    generator.set_loras(lora)
    with pytest.raises(ExloraError, match="unloaded") as caught:
        generator.generate(PROMPT, 4)
    assert caught.value.code == "adapter_not_found"


def test_an_adapter_of_another_model_is_refused(config, generator, fixtures):
    other = ExLlamaV2(config)
    other.load()
    foreign = ExLlamaV2Lora.from_directory(other, str(fixtures / "adapters/jargon-lora-r8"))
    with pytest.raises(ExloraError) as caught:
        generator.generate(PROMPT, 4, loras=foreign)
    assert caught.value.code == "adapter_model_mismatch"


# Forward


@pytest.mark.parametrize("adapter", [None, "sqlite", {"sqlite": 0.25, "jargon": 0.5}], ids=str)
def test_forward_returns_the_engines_logits_bit_by_bit(model, tokenizer, engine, lora, jargon, adapter):
    loras = {None: None, "sqlite": lora}.get(adapter if isinstance(adapter, str) else None)
    loras = [(lora, 0.25), jargon] if isinstance(adapter, dict) else loras
    logits = to_numpy(model.forward(tokenizer.encode(PROMPT), loras=loras))
    assert (logits.dtype, logits.shape[0], logits.shape[2]) == (np.float32, 1, 2048)
    assert np.array_equal(logits[0], engine.logits(PROMPT, adapter=adapter))


def test_a_cache_continues_from_its_length_and_can_be_set_back(model, tokenizer, lora):
    ids = to_numpy(tokenizer.encode(PROMPT))
    whole = to_numpy(model.forward(ids, loras=lora))
    cache = ExLlamaV2Cache(model, max_seq_len=64)
    assert model.forward(ids[:, :2], cache, preprocess_only=True, loras=lora) is None
    parts = [to_numpy(model.forward(ids[:, i : i + 1], cache, loras=lora)) for i in range(2, ids.shape[1])]
    assert cache.current_seq_len == ids.shape[1]
    assert np.array_equal(np.concatenate(parts, axis=1), whole[:, 2:])
    cache.current_seq_len = 2
    assert np.array_equal(to_numpy(model.forward(ids[:, 2:], cache, last_id_only=True, loras=lora)), whole[:, -1:])


def test_a_long_prompt_in_chunks_is_bit_identical(folder, tokenizer):
    config = ExLlamaV2Config(str(folder))
    config.max_input_len = 16
    chunked = ExLlamaV2(config)
    chunked.load()
    ids = tokenizer.encode(PROMPT * 8)
    in_chunks = to_numpy(chunked.forward(ids))
    config.max_input_len = 2048
    assert np.array_equal(in_chunks, to_numpy(chunked.forward(ids)))


def test_padded_rows_are_bit_identical_to_single_rows(model, tokenizer, lora):
    texts = [PROMPT, "A cat", "SELECT a FROM b WHERE c"]
    ids, offsets = tokenizer.encode(texts, return_offsets=True)
    cache = ExLlamaV2Cache(model, batch_size=3, max_seq_len=64)
    mask = tokenizer.padding_mask(ids)
    logits = to_numpy(model.forward(ids, cache, input_mask=mask, position_offsets=offsets, loras=lora))
    next_ids = np.array([[11], [12], [13]])
    following = to_numpy(model.forward(next_ids, cache, input_mask=mask, position_offsets=offsets, loras=lora))
    for row, text in enumerate(texts):
        alone = to_numpy(tokenizer.encode(text))
        alone = np.concatenate([alone, next_ids[row : row + 1]], axis=1)
        expected = to_numpy(model.forward(alone, loras=lora))[0]
        padding = -int(offsets[row])
        assert np.array_equal(logits[row, padding:], expected[:-1])
        assert not logits[row, :padding].any()
        assert np.array_equal(following[row], expected[-1:])


def test_forward_refuses_what_it_cannot_compute(model, tokenizer):
    ids = to_numpy(tokenizer.encode(PROMPT))
    small = ExLlamaV2Cache(model, max_seq_len=2)
    hole = np.ones(ids.shape, dtype=bool)
    hole[0, 1] = False
    for code, arguments in {
        "prompt_too_long": (ids, small),
        "request_invalid": (np.concatenate([ids, ids]), small),
        "setting_unsupported": (ids, None, hole),
        "token_out_of_range": (ids + 5000,),
    }.items():
        with pytest.raises(ExloraError) as caught:
            model.forward(*arguments)
        assert caught.value.code == code
    stop = threading.Event()
    stop.set()
    assert model.forward(ids, abort_event=stop) is None


# Generators


def test_results_have_exllamav2s_keys(generator, tokenizer):
    ids = tokenizer.encode(PROMPT)
    job = ExLlamaV2DynamicJob(
        ids, 3, gen_settings=GREEDY, return_logits=True, return_probs=True, return_top_tokens=2, identifier="mine"
    )
    assert generator.enqueue(job) == 0
    results = []
    while generator.num_remaining_jobs():
        results += generator.iterate()
    assert [r["stage"] for r in results] == ["started", "prefill", "streaming", "streaming", "streaming"]
    for result in results:
        assert result["job"] is job
        assert (result["serial"], result["identifier"]) == (0, "mine")
        assert result["eos"] is (result is results[-1])
    assert results[1]["curr_progress"] == results[1]["max_progress"] == ids.shape[-1]
    shapes = {"token_ids": (1, 1), "token_probs": (1, 1), "top_k_tokens": (1, 1, 2), "top_k_probs": (1, 1, 2)}
    for result in results[2:]:
        assert {key: tuple(result[key].shape) for key in shapes} == shapes
        logits = to_numpy(result["logits"])
        assert (logits.shape, logits.dtype) == ((1, 1, 2048), np.float32)
        assert logits.argmax() == result["token_ids"] == result["top_k_tokens"][0, 0, 0]
    last = results[-1]
    assert last["eos_reason"] == "max_new_tokens"
    assert last["full_completion"] == "".join(r.get("text", "") for r in results)
    assert (last["new_tokens"], last["prompt_tokens"], last["cached_tokens"]) == (3, ids.shape[-1], 0)
    assert all(last[key] >= 0 for key in ("time_enqueued", "time_prefill", "time_generate", "cached_pages"))


def test_results_name_the_stop_condition(generator, engine):
    free = engine.generate(PROMPT, max_new_tokens=8, stop_at_eos=False)
    settings = {"gen_settings": GREEDY, "completion_only": True, "return_last_results": True}
    token = free.token_ids[3]
    text, last = generator.generate(PROMPT, 8, stop_conditions=[token], **settings)
    assert (last["eos_reason"], last["eos_triggering_token_id"]) == ("stop_token", token)
    assert to_numpy(last["held"]["token_ids"]).tolist() == [[token]]
    assert "token_ids" not in last
    assert text == engine.tokenizer.decode(free.token_ids[:3])
    string = free.text[5:8]
    text, last = generator.generate(PROMPT, 8, stop_conditions=[None, string], **settings)
    assert (last["eos_reason"], last["eos_triggering_string"]) == ("stop_string", string)
    assert text == free.text[: free.text.index(string)]
    with pytest.raises(ValueError, match="stop conditions"):
        generator.generate(PROMPT, 8, stop_conditions=[1.5])


def test_a_single_stop_condition_needs_no_list(generator, engine):
    settings = {"gen_settings": GREEDY, "completion_only": True}
    free = engine.generate(PROMPT, max_new_tokens=8, stop_at_eos=False)
    for stop in (free.text[5:8], free.token_ids[3], 0):
        assert generator.generate(PROMPT, 8, stop_conditions=stop, **settings) == generator.generate(
            PROMPT, 8, stop_conditions=[stop], **settings
        )
    assert len(free.text[5:8]) == 3, "as an iterable it would be three stop strings"
    with pytest.raises(ExloraError, match="empty"):
        generator.generate(PROMPT, 8, stop_conditions="", **settings)


def test_generate_takes_and_returns_lists(generator, engine):
    prompts = [PROMPT, "A cat"]
    texts = generator.generate(prompts, 8, gen_settings=[GREEDY, GREEDY])
    outs = engine.generate(prompts, max_new_tokens=8, stop_at_eos=False)
    assert texts == [prompt + out.text for prompt, out in zip(prompts, outs, strict=True)]
    sampled = ExLlamaV2Sampler.Settings(temperature=1.0)
    assert (
        generator.generate(PROMPT, 8, gen_settings=sampled, seed=1)
        == generator.generate([PROMPT], 8, gen_settings=sampled, seed=1).pop()
    )


def test_a_job_that_fails_leaves_the_others_running(generator, tokenizer, engine, lora):
    """Its weights are so large that its logits are not finite."""
    bad, *good = (
        ExLlamaV2DynamicJob(tokenizer.encode(PROMPT), 16, gen_settings=GREEDY, loras=loras)
        for loras in ([(lora, 1e38)], None, lora)
    )
    generator.enqueue([good[0], bad, good[1]])
    results, errors = [], []
    while generator.num_remaining_jobs():
        try:
            results += generator.iterate()
        except ExloraError as error:
            errors.append(error.code)
    assert errors == ["logits_not_finite"]
    assert [PROMPT + job.full_completion for job in good] == [text_of(engine), text_of(engine, "sqlite")]
    assert {result["job"] for result in results if result["eos"]} == set(good)
    with pytest.raises(ExloraError, match="not finite"):
        generator.generate([PROMPT, PROMPT], 16, gen_settings=GREEDY, loras=[(lora, 1e38)])
    assert generator.num_remaining_jobs() == 0


def test_an_async_job_that_fails_leaves_the_others_running(model, tokenizer, engine, lora):
    async def run():
        generator = ExLlamaV2DynamicGeneratorAsync(model, ExLlamaV2Cache(model, max_seq_len=512), tokenizer)

        async def text(loras):
            job = ExLlamaV2DynamicJobAsync(generator, tokenizer.encode(PROMPT), 16, gen_settings=GREEDY, loras=loras)
            return PROMPT + "".join([r.get("text", "") async for r in job])

        results = await asyncio.gather(text(None), text([(lora, 1e38)]), text(lora), return_exceptions=True)
        await generator.close()
        return results

    one, error, other = asyncio.run(run())
    assert error.code == "logits_not_finite"
    assert [one, other] == [text_of(engine), text_of(engine, "sqlite")]


def test_jobs_can_be_cancelled_and_aborted(generator, tokenizer):
    jobs = [ExLlamaV2DynamicJob(tokenizer.encode(PROMPT), 400, gen_settings=GREEDY) for _ in range(3)]
    generator.enqueue(jobs)
    with pytest.raises(ExloraError, match="enqueued before"):
        generator.enqueue(jobs[0])
    generator.iterate()
    generator.cancel(jobs[0])
    assert generator.num_remaining_jobs() == 2
    assert all(r["job"] is not jobs[0] for r in generator.iterate())
    generator.clear_queue()
    assert (generator.num_remaining_jobs(), generator.iterate()) == (0, [])
    stop = threading.Event()
    stop.set()
    assert generator.generate(PROMPT, 400, abort_event=stop) is None
    assert generator.num_remaining_jobs() == 0


def test_streaming_returns_what_was_asked_for(model, tokenizer, engine, lora):
    streaming = ExLlamaV2StreamingGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)
    streaming.begin_stream_ex(
        tokenizer.encode(PROMPT), GREEDY, loras=[(lora, 0.5)], return_probabilities=True, return_logits=True
    )
    text = PROMPT
    for _ in range(8):
        chunk, eos, ids, probs, logits = streaming.stream()
        text += chunk
        assert not eos
        assert (tuple(ids.shape), tuple(probs.shape), tuple(logits.shape)) == ((1, 1), (1, 1), (1, 1, 2048))
    assert text == text_of(engine, {"sqlite": 0.5}, 8)
    stop = engine.generate(PROMPT, max_new_tokens=1, stop_at_eos=False).token_ids[0]
    streaming.set_stop_conditions([stop])
    streaming.begin_stream_ex(tokenizer.encode(PROMPT), GREEDY, return_top_tokens=2)
    for _ in range(2):
        result = streaming.stream_ex()
        assert (result["chunk"], result["eos"]) == ("", True)
        assert tuple(result["chunk_token_ids"].shape) == (1, 0)


def test_a_base_generator_truncates_a_long_prompt_on_the_left(model, tokenizer, engine):
    simple = ExLlamaV2BaseGenerator(model, ExLlamaV2Cache(model, max_seq_len=32), tokenizer)
    ids = to_numpy(tokenizer.encode(PROMPT * 10))[0, -24:].tolist()
    text = simple.generate_simple(PROMPT * 10, GREEDY, 8, stop_token=None)
    out = engine.generate(ids, max_new_tokens=8, stop_at_eos=False)
    assert text == engine.tokenizer.decode(ids) + out.text


def test_async_jobs_run_together(model, tokenizer, engine, lora):
    async def run():
        generator = ExLlamaV2DynamicGeneratorAsync(model, ExLlamaV2Cache(model, max_seq_len=512), tokenizer)

        async def text(loras):
            job = ExLlamaV2DynamicJobAsync(generator, tokenizer.encode(PROMPT), 16, gen_settings=GREEDY, loras=loras)
            return PROMPT + "".join([r.get("text", "") async for r in job])

        cancelled = ExLlamaV2DynamicJobAsync(generator, tokenizer.encode(PROMPT), 400, gen_settings=GREEDY)
        texts = await asyncio.gather(text(None), text(lora))
        await cancelled.cancel()
        assert not generator.jobs
        await generator.close()
        return texts

    assert asyncio.run(run()) == [text_of(engine), text_of(engine, "sqlite")]


def test_a_sampler_follows_its_settings(model, tokenizer):
    ids = tokenizer.encode(PROMPT)
    logits = model.forward(ids, last_id_only=True)
    order = np.argsort(-to_numpy(logits)[0, 0])
    tokens, top, probs, chosen, ended = ExLlamaV2Sampler.sample(
        logits, GREEDY, ids, 0.5, tokenizer, return_top_tokens=3
    )
    assert to_numpy(tokens).tolist() == [[order[0]]]
    assert to_numpy(top).tolist() == [[order[:3].tolist()]]
    assert float(chosen[0, 0]) == pytest.approx(float(probs[0, 0, 0]))
    assert not ended
    blocked, *_ = ExLlamaV2Sampler.sample(logits, GREEDY, ids, 0.5, tokenizer, blocked_tokens=[int(order[0])])
    assert to_numpy(blocked).tolist() == [[order[1]]]
    settings = ExLlamaV2Sampler.Settings(top_k=5, top_p=0, token_repetition_penalty=1.0, temperature=1.0)
    drawn = {int(ExLlamaV2Sampler.sample(logits, settings, ids, i / 40, tokenizer)[0][0, 0]) for i in range(40)}
    assert len(drawn) > 1
    assert drawn <= set(order[:5].tolist())


def test_tokens_can_be_allowed_and_disallowed(generator, tokenizer, engine):
    first = engine.generate(PROMPT, max_new_tokens=1).token_ids[0]
    settings = ExLlamaV2Sampler.Settings.greedy()
    settings.disallow_tokens(tokenizer, [first])
    other = ExLlamaV2Sampler.Settings.greedy()
    other.allow_tokens(tokenizer, [77, 78])
    _, without = generator.generate(PROMPT, 1, gen_settings=settings, return_last_results=True)
    _, only = generator.generate(PROMPT, 1, gen_settings=other, return_last_results=True)
    assert int(without["token_ids"][0, 0]) != first
    assert int(only["token_ids"][0, 0]) in (77, 78)


# Tokenizer, loading, settings


def test_ids_are_arrays_padded_on_the_left(tokenizer):
    ids, offsets = tokenizer.encode([PROMPT, "A cat"], return_offsets=True)
    assert to_numpy(ids).dtype == np.int64
    width, short = ids.shape[1], tokenizer.num_tokens("A cat")
    assert to_numpy(offsets).tolist() == [0, short - width]
    assert to_numpy(ids)[1, : width - short].tolist() == [tokenizer.pad_token_id] * (width - short)
    assert tokenizer.decode(ids) == [PROMPT, "A cat"]
    assert tokenizer.decode(ids[0]) == PROMPT
    special = to_numpy(tokenizer.encode("a<|im_end|>", encode_special_tokens=True))[0]
    assert special[-1] == tokenizer.single_id("<|im_end|>") == 2
    assert tokenizer.decode(special) == "a"
    assert tokenizer.decode(special, decode_special_tokens=True) == "a<|im_end|>"
    assert tokenizer.num_tokens("<|im_end|>") > 1
    pieces = tokenizer.get_id_to_piece_list(include_special_tokens=True)
    assert (len(pieces), pieces[2]) == (2048, "<|im_end|>")


def test_loading_reports_progress(config):
    seen = []
    model = ExLlamaV2(config)
    model.load(callback=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1]
    by_generator = ExLlamaV2(config)
    steps = list(by_generator.load_gen(callback_gen=lambda done, total: iter([(done, total)])))
    assert steps == seen
    assert by_generator.loaded
    stopped = ExLlamaV2(config)
    loading = stopped.load_gen(callback_gen=lambda done, total: iter([done]))
    next(loading)
    loading.close()
    assert not stopped.loaded
    # Also where the thread that loads was done before the generator was closed.
    loading = stopped.load_gen(callback_gen=lambda done, total: iter([done]))
    next(loading)
    while not stopped.loaded:
        time.sleep(0.001)
    loading.close()
    assert not stopped.loaded


@pytest.mark.parametrize(
    ("setting", "native"),
    [
        ({"top_k": 9, "top_p": 0.8, "top_a": 0.1, "min_p": 0.05}, None),
        ({"tfs": 0.9}, None),
        ({"typical": 0.7}, None),
        ({"tfs": 0.0, "typical": 0.0, "top_p": 0.0}, {}),
        ({"smoothing_factor": 0.2}, None),
        ({"temperature": 0.5, "temperature_last": True, "min_p": 0.1}, None),
        ({"max_temp": 2.0, "min_temp": 0.5, "temp_exponent": 0.7}, None),
        ({"max_temp": 1.0, "min_temp": 1.0}, {}),
        ({"mirostat": True, "mirostat_tau": 2.0}, None),
        ({"mirostat": True, "mirostat_mu": [0.0]}, {"mirostat": True}),
        ({"mirostat": True, "mirostat_mu": [2.5]}, {"mirostat": True, "mirostat_mu": 2.5}),
        (
            {"xtc_probability": 0.5, "xtc_ignore_tokens": frozenset({3, 1})},
            {"xtc_probability": 0.5, "xtc_ignore_tokens": [1, 3]},
        ),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": {5}}, {"dry_multiplier": 0.8, "dry_sequence_breakers": [5]}),
        (
            {"token_repetition_penalty": 1.3, "token_repetition_range": 5, "token_repetition_decay": 3},
            {"repetition_penalty": 1.3, "repetition_range": 5, "repetition_decay": 3},
        ),
        (
            {"token_frequency_penalty": 0.5, "token_presence_penalty": 0.2, "token_repetition_range": 4},
            {"frequency_penalty": 0.5, "presence_penalty": 0.2, "repetition_range": 4, "penalize_prompt": True},
        ),
        ({"token_repetition_decay": 4}, {}),
    ],
    ids=lambda value: next(iter(value)) if value else "",
)
def test_a_sampling_setting_is_that_of_the_native_sampler(tokenizer, setting, native):
    off = {"token_repetition_penalty": 1.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0}
    settings = ExLlamaV2Sampler.Settings(**{**off, **setting})
    logits = np.random.default_rng(5).normal(0, 3, (2, 1, 2048)).astype(np.float32)
    ids = np.array([[9, 5, 7, 9, 5, 7, 9, 5], [1, 2, 3, 4, 5, 6, 7, 8]])
    params = SamplingParams(**{"temperature": 1.0, **(setting if native is None else native)})
    want = [params.distribution(row[0].tolist(), line) for row, line in zip(logits, ids.tolist(), strict=True)]
    tokens, top, probs, chosen, _ = ExLlamaV2Sampler.sample(
        logits, settings, ids, 0.4, tokenizer, return_top_tokens=2048
    )
    for row in range(2):
        found = np.zeros(2048, np.float32)
        found[to_numpy(top)[row, 0]] = to_numpy(probs)[row, 0]
        np.testing.assert_allclose(found, want[row], rtol=1e-5, atol=1e-8)
        assert to_numpy(chosen)[row, 0] == pytest.approx(want[row][to_numpy(tokens)[row, 0]])
    if settings.mirostat:
        assert len(settings.mirostat_mu) == 2


def test_hooks_get_exllamav2s_results_and_may_replace_the_token(generator, model, tokenizer):
    seen = []

    def hook(result):
        assert isinstance(result, ExLlamaV2PostSamplingResult)
        seen.append(result)
        if len(seen) == 2:
            result.sampled_token = np.array([[77]])

    settings = ExLlamaV2Sampler.Settings.greedy(post_sampling_hooks=[hook])
    job = ExLlamaV2DynamicJob(
        tokenizer.encode(PROMPT), 3, gen_settings=settings, return_top_tokens=2, return_probs=True
    )
    generator.enqueue(job)
    ids = []
    while generator.num_remaining_jobs():
        ids += [int(i) for r in generator.iterate() if "token_ids" in r for i in to_numpy(r["token_ids"])[0]]
    assert (len(ids), ids[1]) == (3, 77)
    for result in seen:
        assert tuple(result.sampled_prob.shape) == (1, 1)
        assert tuple(result.candidate_tokens.shape) == tuple(result.candidate_probs.shape) == (1, 1, 2)
        assert tuple(result.logits.shape) == (1, 1, 2048)
        assert to_numpy(result.logits).argmax() == to_numpy(result.candidate_tokens)[0, 0, 0]
    base = ExLlamaV2BaseGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)
    seen.clear()
    prompt = to_numpy(tokenizer.encode(PROMPT))[0].tolist()
    assert base.generate_simple(PROMPT, settings, 3, seed=1) == tokenizer.decode(np.array([*prompt, *ids]))
    assert seen[0].candidate_tokens is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_attention_factor", 2.0),
        ("sliding_window", 64),
        ("num_experts_per_token", 3),
        ("head_dim", 7),
        ("norm_eps", 0.5),
    ],
)
def test_a_config_changed_after_it_was_read_is_refused(folder, name, value):
    config = ExLlamaV2Config(folder)
    setattr(config, name, value)
    with pytest.raises(ExloraError, match=name) as caught:
        ExLlamaV2(config).load()
    assert caught.value.code == "setting_unsupported"


def test_a_stream_bans_tokens_for_the_next_one(model, tokenizer):
    streaming = ExLlamaV2StreamingGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)
    streaming.set_stop_conditions([])
    ids = tokenizer.encode(PROMPT)

    def tokens(banned):
        """Five greedy tokens and the best two of each; `banned` by place."""
        streaming.begin_stream_ex(ids, GREEDY, return_logits=True)
        results = [streaming.stream_ex(ban_tokens=banned.get(place)) for place in range(5)]
        best = [np.argsort(to_numpy(result["logits"])[0, 0])[::-1][:2].tolist() for result in results]
        return [int(to_numpy(result["chunk_token_ids"])[0, 0]) for result in results], best

    free, best = tokens({})
    assert free == [first for first, _ in best]
    found, _ = tokens({2: [free[2]]})
    assert found[:2] == free[:2]
    assert found[2] == best[2][1]
    # What is banned once is not banned for good.
    assert tokens({1: [free[2]]})[0] == free
    streaming.speculative_ngram = True
    streaming.begin_stream(ids, GREEDY)
    with pytest.raises(ExloraError, match="ban_tokens"):
        streaming.stream_ex(ban_tokens=[3])


def test_empty_embeddings_change_nothing_and_several_prompts_need_a_list_each(generator):
    assert generator.generate(PROMPT, 1, gen_settings=GREEDY, embeddings=[])
    with pytest.raises(ExloraError, match="embeddings has no list") as caught:
        generator.generate([PROMPT] * 2, 1, gen_settings=GREEDY, embeddings=[[]])
    assert caught.value.code == "request_invalid"


@pytest.mark.parametrize(
    ("cache_class", "part", "most"),
    [
        (ExLlamaV2Cache_Q8, 0.54, 0.02),
        (ExLlamaV2Cache_8bit, 0.54, 0.02),
        (ExLlamaV2Cache_Q6, 0.41, 0.1),
        (ExLlamaV2Cache_Q4, 0.29, 0.2),
    ],
)
def test_a_quantized_cache_takes_less_memory_and_computes_nearly_the_same(model, tokenizer, cache_class, part, most):
    ids = tokenizer.encode(PROMPT, add_bos=True)
    plain, quantized = ExLlamaV2Cache(model, max_seq_len=512), cache_class(model, max_seq_len=512)
    expected, found = (to_numpy(model.forward(ids, cache)) for cache in (plain, quantized))
    assert 0.0 < abs(found - expected).max() / abs(expected).max() < most
    assert quantized.footprint()[0] <= part * plain.footprint()[0]
    assert quantized.clone().kv_dtype == quantized.kv_dtype


def test_generator_and_engine_quantize_alike(model, tokenizer, folder):
    generator = ExLlamaV2DynamicGenerator(model, ExLlamaV2Cache_Q4(model, max_seq_len=512), tokenizer)
    assert generator.generate(PROMPT, 16, gen_settings=GREEDY) == text_of(Engine(folder, kv_dtype="q4"))
    with pytest.raises(ValueError, match="q8, q6, q4"):
        Engine(folder, kv_dtype="q5")


def test_unknown_settings_are_logged(generator, caplog):
    generator.generate(PROMPT, 1, no_such_setting=1)
    assert "no_such_setting" in caplog.text


@pytest.mark.parametrize("first", ["numpy", "torch"])
def test_arrays_are_tensors_only_where_torch_was_imported(folder, first):
    pytest.importorskip(first)
    script = f"""
        import {first}, sys
        from exlora import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Tokenizer
        config = ExLlamaV2Config({str(folder)!r})
        model = ExLlamaV2(config)
        model.load()
        ids = ExLlamaV2Tokenizer(config).encode("A cat")
        logits = model.forward(ids)
        print(type(ids).__module__, type(logits).__module__, "torch" in sys.modules, logits.dtype, *logits.shape)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found[:3] == [first, first, str(first == "torch")]
    assert found[3].endswith("float32")
    assert found[-1] == "2048"
