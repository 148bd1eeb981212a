"""Every family in packed weights: GPTQ and EXL2, as quantizers write them, projections fused and apart, wrapped.

The oracle is transformers, with PEFT for an adapter, on the dequantized copy of the folder. The bound is that of the
adapters, 2e-5 of the largest logit. Of EXL2 there are two copies: the reference device rounds every weight to float16,
as the format says; kernels scale sums, where no single weight is left to round.
"""

import functools
import re

import pytest
from exlora import Engine, ExloraError
from support import adapters, collection, exl2, families, family_files, gptq, tiny
from support.adapter_specs import Spec
from support.compare import bits, distance
from support.families import LONG_PROMPT, PROMPT
from support.family_files import SPELLINGS, SPLIT_CASES, WRAPPERS, split_folder

TOLERANCE = 2e-5
ADAPTERS = {
    "all-linear": Spec(targets="all-linear"),
    "other-rank": Spec({"use_rslora": True}, targets="all-linear", r=6, lora_alpha=5),
}
MIXTURE = {"all-linear": 0.75, "other-rank": -0.5}
QUICK = families.some(["gemma3", "phi3", "starcoder2"])


def open_engine(folder, **options):
    return Engine(folder, **{"threads": 1, "kv_dtype": "f32", "prefix_cache": False, **options})


@pytest.fixture(scope="module")
def adapters_of(models, tmp_path_factory):
    """The adapters of a family, written on first use."""
    root = tmp_path_factory.mktemp("adapters")

    @functools.cache
    def write(name):
        dense, specs = families.write(name, models), ADAPTERS.items()
        return {kind: collection.write(spec, root / f"{name}-{kind}", dense, seed=6) for kind, spec in specs}

    return write


def assert_equals(packed, meant, folders, **options):
    """Alone, with an adapter of all linears, and with a mixture, whose deltas are added to the copy by hand."""
    engine = open_engine(packed, adapters=folders, **options)
    assert distance(engine.logits(PROMPT), families.logits(meant)) < TOLERANCE
    want = tiny.logits(collection.load(ADAPTERS["all-linear"], folders["all-linear"], meant), PROMPT)
    assert distance(engine.logits(PROMPT, adapter="all-linear"), want) < TOLERANCE
    want = tiny.logits(adapters.load_sum(meant, [(folders[name], weight) for name, weight in MIXTURE.items()]), PROMPT)
    assert distance(engine.logits(PROMPT, adapter=MIXTURE), want) < TOLERANCE


@pytest.mark.parametrize("name", QUICK)
def test_a_gptq_model_equals_its_dequantized_copy(name, adapters_of, models, tmp_path):
    scheme = gptq.Scheme(sym=False, desc_act=True)
    meant = gptq.quantize(families.write(name, models), tmp_path / "packed", scheme)
    assert_equals(tmp_path / "packed", meant, adapters_of(name))


@pytest.mark.parametrize("device", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", QUICK)
def test_an_exl2_model_equals_its_dequantized_copy(name, device, adapters_of, models, tmp_path):
    """Its head is one of its own, whether or not the model's is; fused projections have one order of inputs."""
    copies = exl2.quantize(families.write(name, models), tmp_path / "packed")
    meant = copies.rounded if device == "reference" else copies.exact
    assert_equals(tmp_path / "packed", meant, adapters_of(name), device=device)


def test_the_roundings_of_exl2_can_be_told_apart(models, tmp_path):
    """So that the comparisons above would fail with the other copy."""
    copies = exl2.quantize(families.write("phi3", models), tmp_path / "packed")
    assert distance(families.logits(copies.exact), families.logits(copies.rounded)) > 2 * TOLERANCE


@pytest.mark.parametrize("name", families.some(["gemma2", "phi3"]))
def test_a_packed_row_has_the_same_bits_in_chunks_a_batch_and_the_prefix_cache(name, adapters_of, models, tmp_path):
    dense, folders = families.write(name, models), adapters_of(name)
    gptq.quantize(dense, tmp_path / "gptq", gptq.Scheme(sym=False, desc_act=True))
    exl2.quantize(dense, tmp_path / "exl2")
    settings = {"max_new_tokens": 6, "temperature": 0.0, "logprobs": 3, "stop_at_eos": False}
    mixtures = [None, "all-linear", MIXTURE]
    for packed in (tmp_path / "gptq", tmp_path / "exl2"):
        plain, caching = (open_engine(packed, adapters=folders, prefix_cache=cache) for cache in (False, True))
        chunked = open_engine(packed, adapters=folders, prefill_chunk=5, threads=2)
        alone = [plain.generate([LONG_PROMPT], adapters=[mixture], **settings)[0] for mixture in mixtures]
        caching.generate([LONG_PROMPT] * len(mixtures), adapters=mixtures, **settings)
        for engine in (plain, chunked, caching):
            together = engine.generate([LONG_PROMPT] * len(mixtures), adapters=mixtures, **settings)
            assert [bits(out) for out in together] == [bits(out) for out in alone]
            assert all((out.usage.cached_tokens > 0) == (engine is caching) for out in together)


@pytest.mark.parametrize("desc_act", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("name", "parts"), SPLIT_CASES, ids=str)
def test_a_split_gptq_model_equals_its_dequantized_copy(name, parts, desc_act, adapters_of, models, tmp_path):
    split = split_folder(name, parts, models, tmp_path / "split")
    meant = gptq.quantize(split, tmp_path / "packed", gptq.Scheme(sym=False, desc_act=desc_act))
    assert_equals(tmp_path / "packed", fused_copy(meant, parts), adapters_of(name))


@pytest.mark.parametrize(("name", "parts"), SPLIT_CASES, ids=str)
def test_a_split_exl2_model_equals_its_dequantized_copy(name, parts, adapters_of, models, tmp_path):
    """As exllamav2 writes fused ones; each part has an order of inputs of its own."""
    copies = exl2.quantize(split_folder(name, parts, models, tmp_path / "split"), tmp_path / "packed")
    assert_equals(tmp_path / "packed", fused_copy(copies.exact, parts), adapters_of(name))


def fused_copy(split, parts):
    """What transformers reads of a folder with split projections."""
    tensors = family_files.fuse(families.tensors(split), *parts)
    return families.copy(split, split.with_name(f"{split.name}-fused"), families.read_config(split), tensors)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_padded_columns_of_exl2_are_left_out(device, models, tmp_path):
    """Of keys and values of 24 channels with biases, and of a vocabulary of 83."""
    members = families.config("glm", num_key_value_heads=1, head_dim=24, vocab_size=83)
    dense = families.build("glm", tmp_path / "dense", members)
    assert families.tensors(dense)["model.layers.0.self_attn.k_proj.bias"].shape == (24,)
    copies = exl2.quantize(dense, tmp_path / "packed")
    meant = copies.rounded if device == "reference" else copies.exact
    tokens = [token % 83 for token in PROMPT]
    got = open_engine(tmp_path / "packed", device=device).logits(tokens)
    assert distance(got, families.logits(meant, tokens)) < TOLERANCE


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("packing", ["gptq", "exl2"])
@pytest.mark.parametrize("name", ["gemma3", pytest.param("mistral3-ministral3", marks=pytest.mark.slow)])
def test_a_packed_multimodal_folder_is_its_packed_text_model(name, packing, spelling, models, tmp_path):
    text, dense = tmp_path / "text", families.write(WRAPPERS[name][0], models)
    if packing == "gptq":
        meant = gptq.quantize(dense, text, gptq.Scheme(desc_act=True))
    else:
        meant = exl2.quantize(dense, text).exact
    folder = family_files.wrap(name, text, tmp_path / "wrapped", spelling)
    assert distance(open_engine(folder).logits(PROMPT), families.logits(meant)) < TOLERANCE


# How tensors are named -> what the names that GPTQModel matched may have begun with, and what they did not. Since
# transformers 4.52, both spellings of a multimodal folder are loaded under the newer names, and only GPTQModel's files
# have the older ones again.
OLDER, NEWER = SPELLINGS
ANCHORS = [
    (None, "model.", "model.language_model."),
    (None, "model.", "language_model.model."),
    (NEWER, "model.language_model.", "model.layers."),
    (NEWER, "model.language_model.", "language_model."),
    (OLDER, "language_model.model.", "model.layers."),
    (OLDER, "model.language_model.", "model.layers."),
]


def write_with_rules(spelling, prefix, rules, models, folder):
    """gemma3 in GPTQ with these rules of `dynamic`, on names with that prefix; also its dequantized copy."""
    text = folder / "text"
    meant = gptq.quantize(
        families.write("gemma3", models), text, gptq.Scheme(dynamic=rules, desc_act=True), prefix=prefix
    )
    return (family_files.wrap("gemma3", text, folder / "wrapped", spelling) if spelling else text), meant


@pytest.mark.parametrize(("spelling", "prefix", "other"), ANCHORS, ids=str)
def test_rules_of_gptqmodel_are_on_the_names_that_it_had(spelling, prefix, other, models, tmp_path):
    """Anchored rules of both kinds; those that begin like names it did not have would read other layers wrongly."""
    anchor, decoy = re.escape(prefix), re.escape(other)
    rules = {
        rf"-:^{anchor}layers\.1\.": {},
        rf"-:^{decoy}": {},
        rf"+:^{decoy}": {"bits": 2},
        rf"+:^{anchor}layers\.0\..*": {"bits": 8, "group_size": 64},
        rf"{anchor}layers\.2\.mlp\.": {"bits": 3},
    }
    folder, meant = write_with_rules(spelling, prefix, rules, models, tmp_path)
    tensors = families.tensors(folder)
    quantized = {int(re.search(r"layers\.(\d)", name)[1]) for name in tensors if name.endswith("qweight")}
    assert quantized == {0, 2, 3}
    assert distance(open_engine(folder).logits(PROMPT), families.logits(meant)) < TOLERANCE


def test_a_rule_for_all_that_is_not_the_text_model_leaves_that_quantized(models, tmp_path):
    """In a file with the older names, which the rule takes for something else."""
    rules = {r"-:^(?!model\.language_model\.)": {}, r"+:.*\.layers\.3\.": {"bits": 8}}
    folder, meant = write_with_rules(OLDER, "model.language_model.", rules, models, tmp_path)
    assert distance(open_engine(folder).logits(PROMPT), families.logits(meant)) < TOLERANCE


def test_a_quantized_module_that_the_rules_leave_dense_is_refused(models, tmp_path):
    folder, _ = write_with_rules(None, "model.", {}, models, tmp_path)
    config = families.read_config(folder)
    config["quantization_config"]["dynamic"] = {r"-:model\.layers\.2\.": {}}
    families.write_config(folder, config)
    with pytest.raises(ExloraError) as caught:
        open_engine(folder)
    assert caught.value.code == "quant_config_invalid"
    assert "model.layers.2." in str(caught.value)
