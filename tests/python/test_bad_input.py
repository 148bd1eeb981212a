"""Honest failure: damaged, foreign and hostile input ends in a typed error that says what and where.

The engine serves on, with the same answers and the same resident bytes.

Each case names the code it must end in, and of `path`, `tensor`, `expected` and `found` those that apply.
"""

import json
import shutil
import struct

import numpy as np
import pytest
from exlora import Engine, ExloraError
from safetensors.numpy import load_file, save_file
from support import adapters, gptq, tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def model(models, tmp_path):
    """A sharded model folder of one's own to spoil."""
    return shutil.copytree(tiny.write("llama-sharded", models), tmp_path / "model")


@pytest.fixture
def packed(models, tmp_path):
    """A GPTQ model folder of one's own to spoil."""
    gptq.quantise(tiny.write("llama", models), models / "packed", gptq.Scheme(desc_act=True))
    return shutil.copytree(models / "packed", tmp_path / "packed")


@pytest.fixture
def adapter(models, tmp_path):
    """An adapter folder of one's own to spoil."""
    return shutil.copytree(adapters.write("plain", tiny.write("llama", models)), tmp_path / "adapter")


@pytest.fixture(scope="module")
def engine(models):
    base = tiny.write("llama", models)
    return Engine(base, adapters={"good": adapters.write("other", base)})


@pytest.fixture
def serving(engine):
    """Holds the engine to the same answers and resident bytes before and after whatever the test does to it."""
    before = answers(engine)
    yield engine
    assert answers(engine) == before


def answers(engine):
    outs = engine.generate([tiny.PROMPT] * 2, adapters=[None, "good"], max_new_tokens=4, temperature=0.0)
    stats = engine.stats()
    names = [(info.name, info.generation) for info in engine.adapters()]
    return [out.token_ids for out in outs], stats["adapters_bytes"], stats["leases"], stats["rows_running"], names


def refused(code, call, /, *args, **kwargs):
    """The error with that code which the call must end in."""
    with pytest.raises(ExloraError) as caught:
        call(*args, **kwargs)
    error = caught.value
    assert error.code == code, str(error)
    assert f"[{code}]" in str(error)
    return error


def edit_config(folder, name="config.json", /, **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def edit_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# Models.


def shard_with(folder, tensor):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor]


def test_a_truncated_shard(model):
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert refused("checkpoint_truncated", Engine, model).path == str(shard)


def test_a_missing_tensor(model):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(shard_with(model, name), lambda tensors: tensors.pop(name))
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"].pop(name)
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused("checkpoint_tensor_missing", Engine, model).tensor == name


def test_a_tensor_of_the_wrong_shape(model):
    name = "model.layers.0.self_attn.k_proj.weight"
    shard = shard_with(model, name)
    edit_tensors(shard, lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name][:16])}))
    error = refused("checkpoint_shape_mismatch", Engine, model)
    assert (error.path, error.tensor, error.expected, error.found) == (str(shard), name, "[32, 64]", "[16, 64]")


def test_a_missing_shard(model):
    shard = min(model.glob("*.safetensors"))
    shard.unlink()
    assert refused("checkpoint_not_found", Engine, model).path == str(shard)


def test_a_header_that_announces_ten_gigabytes(model):
    shard = min(model.glob("*.safetensors"))
    shard.write_bytes(struct.pack("<Q", 10**10) + shard.read_bytes()[8:])
    assert refused("checkpoint_too_large", Engine, model).path == str(shard)


def test_a_header_that_is_no_header(model):
    shard = min(model.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[8:40] = b"\xff" * 32
    shard.write_bytes(data)
    assert refused("checkpoint_header_invalid", Engine, model).path == str(shard)


def test_weights_that_are_stored_as_integers(model):
    name = "model.norm.weight"
    edit_tensors(shard_with(model, name), lambda tensors: tensors.update({name: np.ones(tiny.HIDDEN, np.int32)}))
    assert refused("checkpoint_dtype_unsupported", Engine, model).tensor == name


def test_a_folder_that_is_not_there(tmp_path):
    assert refused("checkpoint_not_found", Engine, tmp_path / "nowhere").path == str(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architectures": ["LlamaForCausalLM"]}'])
def test_a_config_that_is_none(text, model):
    (model / "config.json").write_text(text)
    refused("model_config_invalid", Engine, model)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": -64},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 0},
        {"vocab_size": 2**40},
        {"rms_norm_eps": "small"},
    ],
    ids=str,
)
def test_a_config_whose_numbers_cannot_be(change, model):
    edit_config(model, **change)
    with pytest.raises(ExloraError) as caught:
        Engine(model)
    assert caught.value.code in {"model_config_invalid", "checkpoint_shape_mismatch"}


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "DeepseekV3ForCausalLM", "NobodysForCausalLM"])
def test_an_unknown_architecture_is_refused_by_name(name, model):
    edit_config(model, architectures=[name])
    assert name in str(refused("model_architecture_unsupported", Engine, model))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "nobodys", "rope_theta": 1e4, "factor": 2.0}}, "nobodys"),
    ],
    ids=str,
)
def test_an_unknown_option_of_a_known_architecture_is_refused_by_name(change, named, model):
    edit_config(model, **change)
    assert named in str(refused("model_feature_unsupported", Engine, model))


@pytest.mark.parametrize(
    "method",
    ["awq", "bitsandbytes", "fp8", "exl3", "hqq", "aqlm", "compressed-tensors", "gguf", "nobodys"],
)
def test_a_foreign_quantisation_is_refused_by_name(method, packed):
    edit_config(packed, quantization_config={"quant_method": method, "bits": 4})
    assert method in str(refused("quant_format_unsupported", Engine, packed))


@pytest.mark.parametrize("layout", ["marlin", "bitblas", "gptq_p", "gptq_v9"])
def test_a_foreign_layout_of_gptq_is_refused_by_name(layout, packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "checkpoint_format": layout})
    assert layout in str(refused("quant_format_unsupported", Engine, packed))


@pytest.mark.parametrize("bits", [0, 1, 5, 7, 16, -4, "four"])
def test_a_width_that_gptq_does_not_have(bits, packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "bits": bits})
    with pytest.raises(ExloraError) as caught:
        Engine(packed)
    assert caught.value.code in {"quant_config_invalid", "quant_format_unsupported"}


def test_bits_that_the_packed_shapes_contradict(packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "bits": 8})
    error = refused("quant_shape_mismatch", Engine, packed)
    assert error.tensor.startswith("model.layers.0.")
    assert error.expected != error.found


def test_a_group_index_that_points_nowhere(packed):
    name = "model.layers.0.mlp.down_proj.g_idx"
    edit_tensors(packed / "model.safetensors", lambda tensors: tensors[name].__setitem__(5, 4000))
    error = refused("quant_value_invalid", Engine, packed)
    assert error.tensor == name
    assert "4000" in error.found


# Adapters. Each is loaded beside a good one and under its name: neither may the good one change.

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


def weights(adapter):
    return adapter / "adapter_model.safetensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_adapter_with_values_that_are_no_numbers(value, adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors[B].__setitem__((3, 1), value))
    error = refused("adapter_not_finite", serving.load_adapter, "good", adapter)
    assert (error.path, error.tensor) == (str(weights(adapter)), B)


def test_a_rank_that_the_config_contradicts(adapter, serving):
    edit_config(adapter, "adapter_config.json", r=8)
    error = refused("adapter_rank_mismatch", serving.load_adapter, "good", adapter)
    assert error.path == str(weights(adapter))
    assert error.tensor.startswith("base_model.model.model.layers.0.")
    assert "8" in error.expected
    assert "4" in error.found


def test_an_adapter_of_another_width(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.update({A: np.ones((4, 48), np.float32)}))
    error = refused("adapter_shape_mismatch", serving.load_adapter, "good", adapter)
    assert (error.path, error.tensor) == (str(weights(adapter)), A)
    assert (error.expected, error.found) == ("[4, 64]", "[4, 48]")


def test_an_adapter_with_half_a_pair(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.pop(B))
    error = refused("adapter_tensor_missing", serving.load_adapter, "good", adapter)
    assert error.tensor == B


def test_an_adapter_with_a_tensor_nobody_knows(adapter, serving):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"
    edit_tensors(weights(adapter), lambda tensors: tensors.update({name: np.ones((4, 4), np.float32)}))
    assert refused("adapter_tensor_unexpected", serving.load_adapter, "good", adapter).tensor == name


def test_an_adapter_for_a_deeper_model(adapter, serving):
    def deepen(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            tensors[name.replace(".layers.1.", ".layers.31.")] = tensors.pop(name)

    edit_tensors(weights(adapter), deepen)
    assert ".layers.31." in str(refused("adapter_site_not_found", serving.load_adapter, "good", adapter))


def test_all_problems_of_an_adapter_are_told_at_once(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: (tensors[A].fill(np.nan), tensors.pop(B)))
    with pytest.raises(ExloraError) as caught:
        serving.load_adapter("good", adapter)
    assert A in str(caught.value)
    assert B in str(caught.value)


def test_an_adapter_whose_header_announces_ten_gigabytes(adapter, serving):
    weights(adapter).write_bytes(struct.pack("<Q", 10**10) + weights(adapter).read_bytes()[8:])
    error = refused("checkpoint_too_large", serving.load_adapter, "good", adapter)
    assert error.path == str(weights(adapter))


def test_a_truncated_adapter(adapter, serving):
    weights(adapter).write_bytes(weights(adapter).read_bytes()[:-7])
    error = refused("checkpoint_truncated", serving.load_adapter, "good", adapter)
    assert error.path == str(weights(adapter))


def test_a_dora_adapter_is_refused_by_name(engine, fixtures, serving):
    error = refused(
        "adapter_feature_unsupported", serving.load_adapter, "good", fixtures / "adapters" / "devil-dora-r8"
    )
    assert "use_dora" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"trainable_token_indices": [1, 2]},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"alora_invocation_tokens": [5, 6]},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"kasa_config": {"beta": 1e-3}},
        {"arrow_config": {"top_k": 2}},
        {"use_tomorrows_variant": True},
    ],
    ids=str,
)
def test_a_peft_feature_that_is_not_served_is_refused_by_name(change, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    error = refused("adapter_feature_unsupported", serving.load_adapter, "good", adapter)
    assert next(iter(change)) in str(error)


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "lora", "PROMPT_TUNING"])
def test_another_peft_type_is_refused_by_name(kind, adapter, serving):
    edit_config(adapter, "adapter_config.json", peft_type=kind)
    assert kind in str(refused("adapter_type_unsupported", serving.load_adapter, "good", adapter))


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_16", "olora", "loftq", "corda"])
def test_an_adapter_whose_initialisation_changed_its_base_is_refused(kind, adapter, serving):
    edit_config(adapter, "adapter_config.json", init_lora_weights=kind)
    assert kind in str(refused("adapter_base_changed", serving.load_adapter, "good", adapter))


@pytest.mark.parametrize("change", [{"r": 0}, {"r": "8"}, {"lora_alpha": "sixteen"}, {"bias": "some"}], ids=str)
def test_an_adapter_config_that_means_nothing(change, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    error = refused("adapter_config_invalid", serving.load_adapter, "good", adapter)
    assert error.path == str(adapter / "adapter_config.json")


def test_a_pickled_adapter_is_not_opened(adapter, serving):
    weights(adapter).rename(adapter / "adapter_model.bin")
    refused("adapter_format_unsupported", serving.load_adapter, "good", adapter)


def test_an_adapter_without_weights(adapter, serving):
    weights(adapter).unlink()
    refused("adapter_weights_not_found", serving.load_adapter, "good", adapter)


def test_a_folder_without_an_adapter(tmp_path, serving):
    refused("adapter_config_not_found", serving.load_adapter, "good", tmp_path)
    refused("adapter_config_not_found", serving.load_adapter, "good", tmp_path / "nowhere")


# Requests.


def test_an_adapter_that_is_not_loaded_is_never_the_base(serving):
    for call in (
        lambda: serving.generate([tiny.PROMPT], adapters="nobody"),
        lambda: serving.generate([tiny.PROMPT], adapters=[{"good": 0.5, "nobody": 0.5}]),
        lambda: next(serving.stream(tiny.PROMPT, adapter="nobody")),
        lambda: serving.logits(tiny.PROMPT, adapter="nobody"),
        lambda: serving.unload_adapter("nobody"),
    ):
        assert "nobody" in str(refused("adapter_not_found", call))


def test_one_refused_request_runs_none_of_its_batch(serving):
    before = serving.stats()["tokens_generated"]
    refused("adapter_not_found", serving.generate, [tiny.PROMPT] * 3, adapters=[None, "good", "nobody"])
    assert serving.stats()["tokens_generated"] == before


def test_a_prompt_longer_than_the_model(serving):
    error = refused("prompt_too_long", serving.generate, [[1] * (tiny.POSITIONS + 1)])
    assert str(tiny.POSITIONS) in error.expected
    assert str(tiny.POSITIONS + 1) in error.found


def test_a_text_that_reaches_the_end_of_the_model_ends_there(serving):
    """The last position may be filled, and the one token it predicts is the last there is."""
    outs = serving.generate([[1] * (tiny.POSITIONS - 1), [1] * tiny.POSITIONS], max_new_tokens=5, temperature=0.0)
    assert [(out.finish_reason, len(out.token_ids)) for out in outs] == [("length", 2), ("length", 1)]


def test_logits_of_more_positions_than_the_model_has(serving):
    assert serving.logits([1] * tiny.POSITIONS).shape == (tiny.POSITIONS, tiny.VOCAB)
    refused("prompt_too_long", serving.logits, [1] * (tiny.POSITIONS + 1))


@pytest.mark.parametrize("token", [tiny.VOCAB, 2**31, 2**32 - 1])
def test_a_token_outside_the_vocabulary(token, serving):
    error = refused("token_out_of_range", serving.generate, [[1, token, 2]])
    assert str(token) in error.found
    refused("token_out_of_range", serving.logits, [1, token, 2])


def test_an_empty_prompt(serving):
    refused("prompt_empty", serving.generate, [[]])


def test_text_without_a_tokenizer(serving):
    refused("tokenizer_not_found", serving.generate, ["text"])


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_a_sampling_setting_out_of_range(setting, serving):
    assert next(iter(setting)) in str(refused("sampling_invalid", serving.generate, [tiny.PROMPT], **setting))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(weight, serving):
    refused("adapter_weight_invalid", serving.generate, [tiny.PROMPT], adapters=[{"good": weight}])


def test_lists_of_different_lengths(serving):
    refused("request_invalid", serving.generate, [tiny.PROMPT] * 2, adapters=["good"] * 3)
    refused("request_invalid", serving.generate, [tiny.PROMPT] * 2, max_new_tokens=[1, 2, 3])


def test_an_adapter_whose_name_is_none(adapter, serving):
    refused("adapter_name_invalid", serving.load_adapter, "", adapter)
    refused("adapter_name_invalid", serving.load_adapter, "a\nb", adapter)
