"""The oracles themselves: what the other tests compare against agrees with a second opinion."""

import importlib.util

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
from support import adapters, gptq, tiny
from support.compare import distance


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write("llama", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", adapters.SPECS)
def test_the_sum_of_deltas_added_by_hand_is_what_peft_computes(name, base):
    adapter = adapters.write(name, base)
    model = adapters.load_peft(base, adapter)
    assert (
        distance(tiny.logits(adapters.load_sum(base, [(adapter, 1.0)]), tiny.PROMPT), tiny.logits(model, tiny.PROMPT))
        < 5e-6
    )
    with peft.helpers.rescale_adapter_scale(model, 0.5):
        scaled = tiny.logits(model, tiny.PROMPT)
    assert distance(tiny.logits(adapters.load_sum(base, [(adapter, 0.5)]), tiny.PROMPT), scaled) < 5e-6


@pytest.mark.parametrize("name", adapters.SPECS)
def test_every_adapter_moves_the_logits_far_beyond_the_tolerances(name, base):
    moved = tiny.logits(adapters.load_peft(base, adapters.write(name, base)), tiny.PROMPT)
    assert distance(moved, tiny.logits(tiny.load(base), tiny.PROMPT)) > 0.1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_packed_weights_mean_their_twin_to_the_reader_checked_against_gptqmodel(
    bits, version, base, fixtures, tmp_path
):
    """`make/gptq_format.py` agrees with gptqmodel's own dequantisation on every fixture."""
    spec = importlib.util.spec_from_file_location("gptq_format", fixtures / "make" / "gptq_format.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    scheme = gptq.Scheme(bits=bits, format=version, group_size=128, sym=False, desc_act=True)
    twin = gptq.quantise(base, tmp_path / "packed", scheme)
    packed, expected = load_file(tmp_path / "packed" / "model.safetensors"), load_file(twin / "model.safetensors")
    modules = [name.removesuffix(".qweight") for name in packed if name.endswith(".qweight")]
    assert len(modules) == 7 * tiny.LAYERS
    for module in modules:
        parts = [packed[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")]
        assert np.array_equal(reader.dequantise(*parts, bits, version == 1), expected[f"{module}.weight"])
