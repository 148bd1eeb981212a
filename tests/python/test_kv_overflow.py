"""A key beyond float16 fails its request by name, and no other; a float32 cache computes it as transformers does."""

import shutil

import pytest
import torch
from exlora import Engine, ExloraError
from safetensors.torch import load_file, save_file
from support import tiny
from support.compare import bits, gap

# Its key in the first layer is beyond 65504; those of all other tokens are well within.
LOUD = 5
QUIET = [token for token in (*tiny.PROMPT, *tiny.PROMPT) if token != LOUD]
PROMPT = [*QUIET[:34], LOUD, *QUIET[34:]]
SETTINGS = {"max_new_tokens": 6, "temperature": 0.0, "logprobs": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model in float32 with one loud token."""
    folder = tiny.write("llama-float32", tmp_path_factory.mktemp("kv"))
    tensors = load_file(folder / "model.safetensors")
    embedding, key = tensors["model.embed_tokens.weight"], tensors["model.layers.0.self_attn.k_proj.weight"]
    embedding[:, 0] = 0.01
    embedding[LOUD] *= 0.01
    embedding[LOUD, 0] = 30.0
    key[:, 0] = 0
    # The channel pair that rotates slowest.
    key[7, 0] = 20_000.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def failure(call):
    with pytest.raises(ExloraError) as caught:
        call()
    return caught.value


def test_a_float32_cache_holds_what_transformers_computes(base):
    assert gap(Engine(base, kv_dtype="f32").logits(PROMPT), tiny.logits(tiny.load(base), PROMPT)) < 5e-4


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("chunk", [512, 7])
def test_a_request_with_the_token_fails_by_name(base, device, chunk):
    engine = Engine(base, device=device, prefill_chunk=chunk)
    for call in (lambda: engine.generate(PROMPT, **SETTINGS), lambda: engine.logits(PROMPT)):
        error = failure(call)
        assert error.code == "kv_overflow"
        assert "position 34" in str(error)
        assert "f32" in error.hint


@pytest.mark.parametrize(("chunk", "shared"), [(16, 1), (512, 0)])
def test_its_pages_are_no_prefix_of_another_request(base, chunk, shared):
    """Only a page that was whole in an earlier step, before the token came, is shared."""
    engine = Engine(base, prefill_chunk=chunk)
    for _ in range(2):
        assert failure(lambda: engine.generate(PROMPT, **SETTINGS)).code == "kv_overflow"
        assert engine.stats()["prefix_pages"] == shared
    expected = Engine(base).generate(QUIET, **SETTINGS)
    assert bits(engine.generate(QUIET, **SETTINGS)) == bits(expected)


def test_the_requests_beside_it_keep_their_bits(base):
    engine = Engine(base, prefix_cache=False)
    alone = engine.generate(QUIET, **SETTINGS)
    streams = [engine.stream(prompt, **SETTINGS) for prompt in (QUIET, PROMPT, QUIET)]
    assert failure(lambda: list(streams[1])).code == "kv_overflow"
    for stream in (streams[0], streams[2]):
        assert [token for chunk in stream for token in chunk.token_ids] == list(alone.token_ids)


def test_a_token_that_was_generated_fails_its_request_too(base, tmp_path):
    """The model itself chooses the loud token: the head has no other row, and that one points along the last state."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    tensors = load_file(base / "model.safetensors")
    with torch.no_grad():
        state = tiny.load(base)(torch.tensor([QUIET]), output_hidden_states=True).hidden_states[-1][0, -1]
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][LOUD] = state
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    engine = Engine(tmp_path)
    assert list(engine.generate(QUIET, max_new_tokens=1, temperature=0.0).token_ids) == [LOUD]
    assert failure(lambda: engine.generate(QUIET, **SETTINGS)).code == "kv_overflow"
