"""The oracles themselves: what the other tests compare against agrees with a second opinion."""

import copy
import importlib.util
import json

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
from support import adapter_specs, adapters, gptq, manual_merge, tiny
from support.compare import distance

# float32 in another order, of the largest logit; large deltas through two layers round by about 1e-5.
SAME = 3e-5

# Left out together with its partner, and training state that no forward pass reads.
IDLE = {"A", "embedding_A", "velora_embed", "monteclora_sampler"}

BY_PEFT = [case for case in adapter_specs.CASES if adapter_specs.spec(case[1]).peft]
ONE_EACH = [(spec.bases[0], name) for name, spec in adapter_specs.SPECS.items()]
SCALABLE = [(spec.bases[0], name) for name, spec in adapter_specs.SPECS.items() if spec.scalable and spec.peft]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write("llama", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", adapters.SPECS)
def test_deltas_summed_by_hand_equal_peft(name, base):
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
def test_packed_weights_decode_to_their_dequantized_copy(bits, version, base, fixtures, tmp_path):
    """`make/gptq_format.py` agrees with gptqmodel's own dequantization on every fixture."""
    spec = importlib.util.spec_from_file_location("gptq_format", fixtures / "make" / "gptq_format.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    scheme = gptq.Scheme(bits=bits, format=version, group_size=128, sym=False, desc_act=True)
    dequantized = gptq.quantize(base, tmp_path / "packed", scheme)
    packed, expected = (
        load_file(tmp_path / "packed" / "model.safetensors"),
        load_file(dequantized / "model.safetensors"),
    )
    modules = [name.removesuffix(".qweight") for name in packed if name.endswith(".qweight")]
    assert len(modules) == 7 * tiny.LAYERS
    for module in modules:
        parts = [packed[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")]
        assert np.array_equal(reader.dequantise(*parts, bits, version == 1), expected[f"{module}.weight"])


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(BY_PEFT))
def test_the_manual_merge_equals_peft(base, name, collection):
    """The manual merge starts from the base's own vocabulary: added rows come from the adapter's files."""
    dense = collection.dense(base)
    ours = tiny.logits(collection.by_hand(dense, [(collection.read(base, name), 1.0)]), adapter_specs.prompt(name))
    assert distance(ours, collection.oracle(dense, base, name)) < SAME


@pytest.mark.parametrize("base", ["llama-biases", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_the_manual_merge_equals_peft_for_every_pair_of_features(base, collection):
    names = collection.pairs(base)
    assert len(names) >= 40
    worst = {}
    for name in names:
        dense = collection.dense(base)
        ours = tiny.logits(collection.by_hand(dense, [(collection.read(base, name), 1.0)]), adapter_specs.PROMPT)
        worst[name] = distance(ours, collection.oracle(dense, base, name))
    assert max(worst.values()) < SAME, max(worst, key=worst.get)


@pytest.mark.parametrize(("base", "name"), ONE_EACH, ids=adapter_specs.ids(ONE_EACH))
def test_leaving_out_any_kind_of_tensor_moves_the_logits_far_beyond_the_tolerances(base, name, collection):
    dense, whole = collection.dense(base), collection.read(base, name)
    kinds = {kind for tensors in whole.modules.values() for kind in tensors} - IDLE
    if adapter_specs.spec(name).scalable or adapter_specs.spec(name).growth:
        kinds -= {"weight"}  # copies of the base's own, or rows the prompt cannot do without
    expected = tiny.logits(collection.by_hand(dense, [(whole, 1.0)]), adapter_specs.PROMPT)
    for kind in sorted(kinds):
        part = copy.deepcopy(whole)
        for tensors in part.modules.values():
            for left_out in {"B": ("A", "B"), "embedding_B": ("embedding_A", "embedding_B")}.get(kind, (kind,)):
                tensors.pop(left_out, None)
        ours = tiny.logits(collection.by_hand(dense, [(part, 1.0)]), adapter_specs.PROMPT)
        assert np.abs(ours - expected).max() > 0.05, kind


@pytest.mark.parametrize(("base", "name"), adapter_specs.grid(SCALABLE))
def test_a_request_weight_equals_rescaling_the_adapter_in_peft(base, name, collection):
    dense, adapter = collection.dense(base), collection.read(base, name)
    model = collection.by_peft(dense, base, name)
    for weight in (0.0, 0.5, -0.3, 2.0):
        with peft.helpers.rescale_adapter_scale(model, weight):
            theirs = tiny.logits(model, adapter_specs.PROMPT)
        ours = tiny.logits(collection.by_hand(dense, [(adapter, weight)]), adapter_specs.PROMPT)
        assert distance(ours, theirs) < SAME, weight


@pytest.mark.parametrize("mixture", adapter_specs.MIXTURES, ids="+".join)
@pytest.mark.parametrize("base", ["llama-biases", "qwen2"])
def test_adapters_merged_in_order_equal_peft_with_the_list(base, mixture, collection):
    dense = collection.dense(base)
    ours = tiny.logits(
        collection.by_hand(dense, [(collection.read(base, name), 1.0) for name in mixture]), adapter_specs.PROMPT
    )
    assert distance(ours, tiny.logits(collection.list_by_peft(dense, base, mixture), adapter_specs.PROMPT)) < SAME


def test_a_trained_dora_merged_by_hand_gives_its_stored_logits_at_both_weights(fixtures, quill):
    reference = json.loads((fixtures / "reference" / "reference.json").read_text())
    stored = load_file(fixtures / "reference" / "logits.safetensors")
    adapter, model = manual_merge.read(fixtures / "adapters" / "devil-dora-r8"), tiny.load(quill)
    items = [item for item in reference["items"] if item["model"] == quill.name and item["logits_key"]]
    items = [item for item in items if item["adapter"] == "devil-dora-r8"]
    assert {item["lora_scaling"] for item in items} == {1.0, 0.5}
    for item in items:
        tokens = reference["prompts"][item["prompt"]]["ids"]
        ours = tiny.logits(manual_merge.fold(model, [(adapter, item["lora_scaling"])]), tokens)
        assert distance(ours[-1], stored[item["logits_key"]]) < SAME, item["logits_key"]
