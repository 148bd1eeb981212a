"""Faithful: each architecture, each packing and each kind of PEFT LoRA against transformers and peft in float32.

The bound is 2e-4 of the oracle's largest logit, at every position. Caches hold float32 here, so that only arithmetic
differs.
"""

import itertools

import numpy as np
import pytest
from exlora import Engine
from support import adapters, gptq, tiny
from support.compare import distance, log_softmax

TOLERANCE = 2e-4

# Group size, symmetry, format, act-order: short last groups, one group per column, and no g_idx at all.
LAYOUTS = {
    "g32-sym-v1": {"group_size": 32},
    "g48-asym-v2": {"group_size": 48, "sym": False, "format": 2},
    "g64-asym-v1-actorder": {"group_size": 64, "sym": False, "desc_act": True},
    "g128-asym-v2-without-g_idx": {"group_size": 128, "sym": False, "format": 2, "trivial_g_idx": False},
    "column-sym-v2": {"group_size": -1, "format": 2},
    "g32-asym-v2-actorder": {"group_size": 32, "sym": False, "format": 2, "desc_act": True},
    "column-asym-v1-actorder": {"group_size": -1, "sym": False, "desc_act": True},
}

SCHEMES = {
    f"{bits}bit-{layout}": gptq.Scheme(bits=bits, **LAYOUTS[layout])
    for bits, layout in itertools.product((2, 3, 4, 8), LAYOUTS)
} | {
    "4bit-quantized-head": gptq.Scheme(lm_head=True),
    "4bit-separate-config": gptq.Scheme(sym=False, format=2, separate_config=True),
    "4bit-dynamic": gptq.Scheme(
        dynamic={
            r"-:model\.layers\.0\.self_attn\.o_proj": {},
            r".*\.layers\.1\..*down_proj": {"bits": 8, "group_size": 64},
            r"+:.*\.up_proj": {"bits": 2, "sym": False},
            r".*\.k_proj": {"bits": 3, "desc_act": True},
        }
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def computes_as(engine, oracle, adapter=None):
    return distance(engine.logits(tiny.PROMPT, adapter=adapter), tiny.logits(oracle, tiny.PROMPT)) < TOLERANCE


@pytest.mark.parametrize("name", tiny.SPECS)
def test_an_architecture_equals_transformers(name, models):
    folder = tiny.write(name, models)
    assert computes_as(Engine(folder, kv_dtype="f32"), tiny.load(folder))


@pytest.mark.parametrize("name", tiny.SPECS)
def test_decoding_token_by_token_equals_one_forward_pass_of_transformers(name, models):
    folder = tiny.write(name, models)
    [out] = Engine(folder, kv_dtype="f32").generate([tiny.PROMPT], max_new_tokens=24, temperature=0.0, logprobs=1)
    assert len(out.token_ids) == 24
    oracle = tiny.logits(tiny.load(folder), [*tiny.PROMPT, *out.token_ids])[len(tiny.PROMPT) - 1 : -1]
    theirs = log_softmax(oracle)[np.arange(24), out.token_ids]
    assert np.abs(np.asarray(out.logprobs) - theirs).max() < 2 * TOLERANCE * np.abs(oracle).max()


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_half_precision_caches_stay_within_their_rounding(name, models):
    """Keys and values rounded to 11 bits: 2e-3 of the largest logit, the bound of the real models."""
    folder = tiny.write(name, models)
    assert distance(Engine(folder).logits(tiny.PROMPT), tiny.logits(tiny.load(folder), tiny.PROMPT)) < 2e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_packed_model_equals_its_dequantized_copy(scheme, models):
    packed = models / scheme
    dequantized = gptq.quantize(tiny.write("llama", models), packed, SCHEMES[scheme])
    assert computes_as(Engine(packed, kv_dtype="f32"), tiny.load(dequantized))


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "llama-biases", "llama-tied", "qwen2-tied", "llama-bfloat16"])
def test_every_architecture_runs_packed(name, models):
    packed = models / f"{name}-packed"
    dequantized = gptq.quantize(tiny.write(name, models), packed, gptq.Scheme(sym=False, desc_act=True))
    assert computes_as(Engine(packed, kv_dtype="f32"), tiny.load(dequantized))


@pytest.mark.parametrize("adapter", adapters.SPECS)
def test_an_adapter_equals_peft(adapter, models):
    base = tiny.write("llama", models)
    folder = adapters.write(adapter, base)
    engine = Engine(base, adapters={"it": folder}, kv_dtype="f32")
    assert computes_as(engine, adapters.load_peft(base, folder), adapter="it")


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "llama-biases", "llama-tied", "llama-float32"])
def test_an_adapter_on_every_architecture_equals_peft(name, models):
    base = tiny.write(name, models)
    folder = adapters.write("patterns", base)
    engine = Engine(base, adapters={"it": folder}, kv_dtype="f32")
    assert computes_as(engine, adapters.load_peft(base, folder), adapter="it")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_adapter_on_a_packed_base_equals_peft_on_the_dequantized_copy(bits, models):
    packed = models / f"{bits}bit-with-adapter"
    dequantized = gptq.quantize(
        tiny.write("llama", models), packed, gptq.Scheme(bits=bits, sym=False, desc_act=True, lm_head=True)
    )
    folder = adapters.write("with-head", dequantized)
    engine = Engine(packed, adapters={"it": folder}, kv_dtype="f32")
    assert computes_as(engine, adapters.load_peft(dequantized, folder), adapter="it")
