"""exllamav2's names with what cannot work: lengths that are none, and models that were unloaded."""

import pytest
from exlora import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer, ExloraError
from exlora.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)

GREEDY = ExLlamaV2Sampler.Settings.greedy()


@pytest.fixture
def config(fixtures):
    return ExLlamaV2Config(fixtures / "quill-4m")


@pytest.fixture
def model(config):
    model = ExLlamaV2(config)
    model.load()
    return model


@pytest.mark.parametrize("tokens", [0, -1, -2048, 2.5, "many", None], ids=repr)
def test_a_config_with_a_longest_sequence_that_is_none(tokens, config):
    config.max_seq_len = tokens
    with pytest.raises(ExloraError, match=r"config\.max_seq_len") as caught:
        ExLlamaV2(config).load()
    assert caught.value.found == repr(tokens)


@pytest.mark.parametrize("kind", [ExLlamaV2BaseGenerator, ExLlamaV2StreamingGenerator, ExLlamaV2DynamicGenerator])
@pytest.mark.parametrize("tokens", [0, -2, -2048])
def test_a_cache_with_a_longest_sequence_that_is_none(tokens, kind, model):
    with pytest.raises(ExloraError, match=r"max_seq_len.*at least 1"):
        kind(model, ExLlamaV2Cache(model, max_seq_len=tokens), ExLlamaV2Tokenizer(model.config))


@pytest.mark.parametrize("text", ["Once", ["Once", "Twice"]], ids=str)
def test_generators_of_an_unloaded_model_answer_nothing(text, model):
    tokenizer, cache = ExLlamaV2Tokenizer(model.config), ExLlamaV2Cache(model, max_seq_len=256)
    base, dynamic, streaming = (
        kind(model, cache, tokenizer)
        for kind in (ExLlamaV2BaseGenerator, ExLlamaV2DynamicGenerator, ExLlamaV2StreamingGenerator)
    )
    ids = tokenizer.encode("Once")
    job = ExLlamaV2DynamicJob(ids, 4, gen_settings=GREEDY)
    dynamic.enqueue(job)
    streaming.begin_stream_ex(ids, GREEDY)
    assert base.generate_simple(text, GREEDY, 2)
    model.unload()
    for call in (
        lambda: base.generate_simple(text, GREEDY, 2),
        base.warmup,
        lambda: dynamic.generate(text, 2, gen_settings=GREEDY),
        lambda: dynamic.enqueue(ExLlamaV2DynamicJob(ids, 4, gen_settings=GREEDY)),
        dynamic.iterate,
        dynamic.warmup,
        streaming.stream_ex,
        lambda: streaming.begin_stream_ex(ids, GREEDY),
    ):
        with pytest.raises(ExloraError) as caught:
            call()
        assert caught.value.code == "model_not_loaded"
    # What was begun can be ended, and goes on where the model is loaded again.
    model.load()
    results = []
    while dynamic.num_remaining_jobs():
        results += dynamic.iterate()
    assert results[-1]["eos"]
    assert results[-1]["job"] is job
