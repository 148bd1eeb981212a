"""How long a sequence may be: what config.json means, as vLLM derives it, what is asked for, and what errors say."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from exlora import Engine, ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExloraError
from support import tiny
from support.compare import distance

POSITIONS = 64
LONG = [(7 * i * i + 3 * i) % tiny.VOCAB for i in range(200)]


@pytest.fixture
def model(tmp_path):
    """A Llama of 64 positions."""
    folder = tiny.write("llama-float32", tmp_path)
    change(folder, max_position_embeddings=POSITIONS)
    return folder


def change(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def code(function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(ExloraError) as caught:
        function(*arguments, **keywords)
    return caught.value.code


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": POSITIONS},
    ],
    ids=lambda scaling: str(scaling.get("type", "yarn")),
)
def test_scaled_positions_are_reached(scaling, model):
    change(model, rope_scaling=scaling, rope_theta=10000.0)
    assert ExLlamaV2Config(model).max_seq_len == 4 * POSITIONS
    engine = Engine(model, threads=1, kv_dtype="f32")
    want = tiny.logits(tiny.load(model), LONG)
    assert distance(engine.logits(LONG), want) < 1e-4
    assert code(engine.logits, [1] * 257) == "prompt_too_long"


def test_a_longer_sequence_can_be_asked_for(model):
    engine = Engine(model, threads=1, kv_dtype="f32", max_seq_len=256)
    want = tiny.logits(tiny.load(model), LONG)
    assert distance(engine.logits(LONG), want) < 1e-4
    done = engine.generate(LONG[:60], max_new_tokens=500, stop_at_eos=False)
    # The last token is never computed, so it needs no position.
    assert len(done.token_ids) == 256 - 60 + 1


def test_a_shorter_sequence_can_be_asked_for(model):
    engine = Engine(model, threads=1, max_seq_len=10)
    assert code(engine.logits, [1] * 11) == "prompt_too_long"
    assert len(engine.logits([1] * 10)) == 10


def test_the_default_cache_holds_what_was_asked_for(model):
    assert Engine(model, threads=1, max_seq_len=10_000).stats()["kv_pages_total"] * 32 >= 10_000


def test_a_config_of_exllamav2_sets_the_length(model):
    config = ExLlamaV2Config(model)
    config.max_seq_len = 256
    config.kv_dtype = "f32"
    loaded = ExLlamaV2(config)
    loaded.load()
    got = loaded.forward(np.array([LONG]), ExLlamaV2Cache(loaded))
    want = tiny.logits(tiny.load(model), LONG)
    assert distance(np.asarray(got)[0], want) < 1e-4


def test_an_error_names_the_limit_and_how_to_raise_it(model):
    with pytest.raises(ExloraError, match="max_seq_len") as caught:
        Engine(model, threads=1).logits(LONG)
    assert "kv_tokens" not in str(caught.value)
    with pytest.raises(ExloraError, match="kv_tokens") as caught:
        Engine(model, threads=1, max_seq_len=512, kv_tokens=64).logits(LONG)
    assert "max_seq_len" not in str(caught.value)


def test_dynamic_scaling_is_refused_where_it_would_act(model):
    change(model, rope_scaling={"type": "dynamic", "factor": 4.0}, rope_theta=10000.0)
    engine = Engine(model, threads=1, kv_dtype="f32")
    want = tiny.logits(tiny.load(model), LONG[:POSITIONS])
    assert distance(engine.logits(LONG[:POSITIONS]), want) < 1e-4
    with pytest.raises(ExloraError, match="dynamic") as caught:
        engine.logits(LONG)
    assert caught.value.code == "prompt_too_long"
    assert code(Engine, model, max_seq_len=65) == "model_feature_unsupported"


@pytest.mark.parametrize("length", [0, -1, 2**40])
def test_an_impossible_length_is_refused(length, model):
    assert code(Engine, model, max_seq_len=length) == "request_invalid"
