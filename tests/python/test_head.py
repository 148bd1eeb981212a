"""An output head that is rounded to 8 bits at load."""

import numpy as np
import pytest
from exlora import Engine, ExLlamaV2, ExLlamaV2Config, ExloraError
from support import tiny


@pytest.fixture(scope="module", params=["llama", "llama-tied"])
def base(request, tmp_path_factory):
    return tiny.write(request.param, tmp_path_factory.mktemp("head"))


def test_logits_move_by_less_than_a_percent_of_their_size(base):
    stored, rounded = (Engine(base, head=head).logits(tiny.PROMPT) for head in ("stored", "int8"))
    moved = np.sqrt(np.mean((rounded - stored) ** 2) / np.mean(stored**2))
    assert 1e-4 < moved < 0.01


def test_exllamav2s_config_has_the_setting(base):
    config = ExLlamaV2Config(base)
    assert config.head == "stored"
    config.head = "int8"
    model = ExLlamaV2(config)
    model.load()
    rounded = Engine(base, head="int8").logits(tiny.PROMPT)
    np.testing.assert_array_equal(np.asarray(model.forward(np.array([tiny.PROMPT])))[0], rounded)


def test_another_type_is_refused(base):
    with pytest.raises(ExloraError) as caught:
        Engine(base, head="int4")
    assert caught.value.code == "request_invalid"
    assert "stored or int8" in str(caught.value)
