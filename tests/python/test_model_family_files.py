"""The same model in other files: fused and split projections, multimodal folders, and adapters of each.

Oracles are transformers and PEFT on the files that they read; the bounds are those of `test_model_families.py`.
"""

import numpy as np
import pytest
import torch
import transformers
from exlora import Engine, ExloraError
from support import adapters, collection, families, family_files, tiny
from support.adapter_specs import Spec
from support.compare import distance
from support.families import PROMPT
from support.family_files import ADAPTER_PREFIXES, ONE_WRAPPER, SPELLINGS, SPLIT_CASES, WRAPPERS, split_folder

TOLERANCE = 2e-5
VISIBLE = 1e-3

ON_FUSED = {
    "all-linear": Spec(targets="all-linear"),
    "dora": Spec({"use_dora": True}, targets="all-linear"),
    "lora-bias": Spec({"lora_bias": True}, targets="all-linear"),
}


def open_engine(folder, **folders):
    return Engine(folder, adapters=folders, threads=1, kv_dtype="f32", prefix_cache=False)


@pytest.mark.parametrize(("name", "parts"), SPLIT_CASES, ids=str)
def test_split_projections_are_the_fused_ones(name, parts, models, tmp_path):
    split = split_folder(name, parts, models, tmp_path / "split")
    want = families.logits(families.write(name, models))
    assert distance(open_engine(split).logits(PROMPT), want) < TOLERANCE


@pytest.mark.parametrize("kind", ["all-linear", "dora", pytest.param("lora-bias", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "parts"), SPLIT_CASES, ids=str)
def test_an_adapter_of_fused_projections_acts_on_split_ones_too(name, parts, kind, models, tmp_path):
    fused = families.write(name, models)
    adapter = collection.write(ON_FUSED[kind], tmp_path / "adapter", fused, seed=3)
    want = tiny.logits(collection.load(ON_FUSED[kind], adapter, fused), PROMPT)
    for folder in (fused, split_folder(name, parts, models, tmp_path / "split")):
        assert distance(open_engine(folder, it=adapter).logits(PROMPT, adapter="it"), want) < TOLERANCE


@pytest.mark.parametrize(("name", "parts"), SPLIT_CASES, ids=str)
def test_an_adapter_of_split_projections_acts_on_fused_ones_too(name, parts, models, tmp_path):
    """PEFT refuses such an adapter on the fused model; its deltas are added to the rows of each part."""
    fused = families.write(name, models)
    plain = collection.write(ON_FUSED["all-linear"], tmp_path / "fused", fused, seed=4)
    adapter = family_files.write_split_adapter(plain, tmp_path / "adapter", seed=5)
    model = family_files.add_to_fused(tiny.load(fused), adapters.deltas(adapter))
    want = tiny.logits(model, PROMPT)
    assert np.abs(want - families.logits(fused)).max() > VISIBLE
    for folder in (fused, split_folder(name, parts, models, tmp_path / "split")):
        assert distance(open_engine(folder, it=adapter).logits(PROMPT, adapter="it"), want) < TOLERANCE


@pytest.fixture(scope="module")
def wrapped(models):
    """The folder of a multimodal model in one spelling, and that of its text model."""

    def write(name, spelling):
        text = families.write(WRAPPERS[name][0], models)
        folder = models / f"{name}-{list(SPELLINGS).index(spelling)}"
        if not folder.exists():
            family_files.wrap(name, text, folder, spelling)
        return folder, text

    return write


def load_multimodal(folder):
    return transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_multimodal_folder_is_its_text_model(name, spelling, wrapped):
    folder, text = wrapped(name, spelling)
    want = families.logits(text)
    assert np.array_equal(tiny.logits(load_multimodal(folder), PROMPT), want)
    engine = open_engine(folder)
    assert distance(engine.logits(PROMPT), want) < TOLERANCE
    assert np.array_equal(engine.logits(PROMPT), open_engine(text).logits(PROMPT))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ONE_WRAPPER)
def test_a_text_model_with_the_prefixes_of_a_multimodal_folder_is_the_same(name, spelling, wrapped, tmp_path):
    """As when only the text model's config.json was kept, or only its weights were renamed."""
    folder, text = wrapped(name, spelling)
    texts_config = families.copy(folder, tmp_path / "texts-config", families.read_config(text))
    texts_names = families.copy(text, tmp_path / "texts-names", families.read_config(folder))
    want = open_engine(text).logits(PROMPT)
    for other in (texts_config, texts_names):
        assert np.array_equal(open_engine(other).logits(PROMPT), want)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_stored_head_is_the_head_of_a_multimodal_folder(spelling, wrapped, tmp_path):
    """Where config.json does not say whether it is tied: the multimodal config's default is not its text model's."""
    folder, text = wrapped("mistral3", spelling)
    config = families.read_config(folder)
    del config["tie_word_embeddings"]
    silent = families.copy(folder, tmp_path / "silent", config)
    assert np.array_equal(open_engine(silent).logits(PROMPT), open_engine(text).logits(PROMPT))


@pytest.mark.parametrize("prefix", ADAPTER_PREFIXES)
@pytest.mark.parametrize("name", ONE_WRAPPER)
def test_an_adapter_acts_with_the_prefix_of_any_class_it_was_trained_with(name, prefix, wrapped, tmp_path):
    spec = ON_FUSED["all-linear"]
    text = wrapped(name, next(iter(SPELLINGS)))[1]
    plain = collection.write(spec, tmp_path / "plain", text, seed=7)
    adapter = family_files.write_adapter_with_prefix(plain, tmp_path / "adapter", prefix)
    want = tiny.logits(collection.load(spec, plain, text), PROMPT)
    folders = [text, *(wrapped(name, spelling)[0] for spelling in SPELLINGS)]
    for folder in folders:
        assert distance(open_engine(folder, it=adapter).logits(PROMPT, adapter="it"), want) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_an_adapter_that_was_trained_with_the_multimodal_class_equals_peft(name, wrapped, tmp_path):
    """Its deltas of the vision tower cannot act on text, and are left out."""
    folder, text = wrapped(name, list(SPELLINGS)[1])
    adapter = family_files.write_multimodal_adapter(load_multimodal(folder), tmp_path / "adapter", seed=8)
    assert any("vision_tower" in key for key in family_files.read_adapter(adapter))
    want = tiny.logits(family_files.load_adapter(load_multimodal(folder), adapter), PROMPT)
    assert np.abs(want - families.logits(text)).max() > VISIBLE
    for other in (text, *(wrapped(name, spelling)[0] for spelling in SPELLINGS)):
        assert distance(open_engine(other, it=adapter).logits(PROMPT, adapter="it"), want) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_an_adapter_of_nothing_but_the_vision_tower_is_refused(name, wrapped, tmp_path):
    folder, _ = wrapped(name, list(SPELLINGS)[1])
    adapter = family_files.write_multimodal_adapter(
        load_multimodal(folder), tmp_path / "adapter", seed=9, targets=r".*vision_tower.*\.(q_proj|v_proj)"
    )
    with pytest.raises(ExloraError) as caught:
        open_engine(folder, it=adapter)
    assert caught.value.code.startswith("adapter_")


def test_an_adapter_with_two_prefixes_is_refused(wrapped, tmp_path):
    """A file has one; otherwise half of it would act twice, or not at all."""
    folder, text = wrapped("gemma3", list(SPELLINGS)[1])
    plain = collection.write(ON_FUSED["all-linear"], tmp_path / "plain", text, seed=7)
    other = family_files.write_adapter_with_prefix(plain, tmp_path / "other", ADAPTER_PREFIXES[2])
    both = family_files.write_adapter_with_prefix(
        plain, tmp_path / "both", ADAPTER_PREFIXES[0], family_files.read_adapter(other)
    )
    with pytest.raises(ExloraError) as caught:
        open_engine(folder, it=both)
    assert caught.value.code.startswith("adapter_")
