"""Activations that quantized linears round to 8 bits."""

import numpy as np
import pytest
from exlora import Engine, ExLlamaV2, ExLlamaV2Config, ExloraError

PROMPT = list(range(40, 60))


@pytest.fixture
def base(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


def test_logits_move_by_a_few_percent_of_their_size_at_most(base):
    exact, rounded = (Engine(base, activations=activations).logits(PROMPT) for activations in ("f32", "int8"))
    moved = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < moved < 0.05


def test_exllamav2s_config_has_the_setting(base):
    config = ExLlamaV2Config(base)
    assert config.activations == "f32"
    config.activations = "int8"
    model = ExLlamaV2(config)
    model.load()
    rounded = Engine(base, activations="int8").logits(PROMPT)
    np.testing.assert_array_equal(np.asarray(model.forward(np.array([PROMPT])))[0], rounded)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activations": "int4"}, "f32 or int8"), ({"activations": "int8", "device": "reference"}, "only the CPU")],
)
def test_what_no_device_does_is_refused(base, options, message):
    with pytest.raises(ExloraError, match=message) as caught:
        Engine(base, **options)
    assert caught.value.code == "request_invalid"
