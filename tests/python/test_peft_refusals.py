"""Adapters that this engine does not support are refused by name, with a stable code, before anything changes."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from exlora import Engine, ExloraError
from support import adapter_specs, tiny
from support.collection import base_model
from support.compare import gap
from transformers import LlamaForSequenceClassification

# Real files of methods other than LoRA.
OTHER_TYPES = {
    "ADALORA": lambda: peft.AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=["q_proj", "v_proj"]),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOHA": lambda: peft.LoHaConfig(target_modules=["q_proj"]),
    "LOKR": lambda: peft.LoKrConfig(target_modules=["q_proj"]),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    "VERA": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}

# Fields of a LoRA config that are refused whatever the files hold.
FEATURES = [
    {"arrow_config": {"top_k": 2}},
    {"target_parameters": ["mlp.experts.gate_up_proj"]},
    {"task_type": "SEQ_CLS"},
    {"task_type": "TOKEN_CLS"},
    {"task_type": "SEQ_2_SEQ_LM"},
    {"use_tomorrows_variant": True},
]

# Initializations that subtract something from the base which the files do not contain. All but one can be converted.
_CONVERT = "path_initial_model_for_weight_conversion"
CHANGED_BASES = dict.fromkeys(["pissa", "pissa_niter_16", "olora", "corda", "lora_ga"], _CONVERT) | {"loftq": "merge"}


@pytest.fixture(scope="module")
def engine(collection):
    return Engine(collection.dense("llama"), kv_dtype="f32")


@pytest.fixture
def adapter(collection, tmp_path):
    """A copy of a plain adapter, to be damaged."""
    return shutil.copytree(collection.adapter("llama", "uninitialized"), tmp_path / "adapter")


def refused(engine, folder):
    """The error that loading must raise; nothing stays loaded."""
    before = [(info.name, info.generation) for info in engine.adapters()], engine.stats()["adapters_bytes"]
    with pytest.raises(ExloraError) as caught:
        engine.load_adapter("it", folder)
    assert ([(info.name, info.generation) for info in engine.adapters()], engine.stats()["adapters_bytes"]) == before
    return caught.value


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_file_of_another_method_is_refused_by_its_type(kind, engine, collection, tmp_path):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(base_model(collection.dense("llama")), OTHER_TYPES[kind]()).save_pretrained(tmp_path)
    error = refused(engine, tmp_path)
    assert error.code == "adapter_type_unsupported"
    assert kind in str(error)


@pytest.mark.parametrize("change", FEATURES, ids=str)
def test_an_unsupported_feature_is_refused_by_its_field(change, engine, adapter):
    edit(adapter, **change)
    error = refused(engine, adapter)
    assert error.code == "adapter_feature_unsupported"
    assert next(iter(change)) in str(error)


def test_a_classifier_is_refused_by_its_task(engine, collection, tmp_path):
    """peft saves the `score` head of one as a module of its own."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(base_model(collection.dense("llama")).config)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    error = refused(engine, tmp_path)
    assert error.code == "adapter_feature_unsupported"
    assert "SEQ_CLS" in str(error)


@pytest.mark.parametrize("kind", CHANGED_BASES)
def test_an_initialization_that_changed_the_base_is_refused_by_name(kind, engine, adapter):
    edit(adapter, init_lora_weights=kind)
    error = refused(engine, adapter)
    assert error.code == "adapter_base_changed"
    assert kind in str(error)
    assert CHANGED_BASES[kind] in error.hint


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_such_an_adapter_converted_to_the_original_base_equals_the_trained_model(
    kind, rslora, engine, collection, tmp_path
):
    """Converted by peft it is plain LoRA of twice the rank; unconverted it is refused. Oracle: the model as trained."""
    torch.manual_seed(0)
    dense = collection.dense("llama")
    config = peft.LoraConfig(
        init_lora_weights=kind, r=4, lora_alpha=8, use_rslora=rslora, target_modules=["q_proj", "down_proj"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base_model(dense), config)
        # What peft converts against: the factors as initialized, under a config that changes no base.
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "initial")
        model.peft_config["default"].init_lora_weights = kind
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        expected = tiny.logits(model.eval(), adapter_specs.PROMPT)
        model.save_pretrained(tmp_path / "unconverted")
        model.save_pretrained(
            tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    assert refused(engine, tmp_path / "unconverted").code == "adapter_base_changed"
    engine.load_adapter(f"{kind}-{rslora}", tmp_path / "converted")
    assert gap(engine.logits(adapter_specs.PROMPT, adapter=f"{kind}-{rslora}"), expected) < 5e-4
