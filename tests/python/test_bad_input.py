"""Honest failure: damaged and hostile models and requests end in a typed error that says what and where.

The engine serves on, with the same answers and the same resident bytes.

Each case names the code it must end in, and of `path`, `tensor`, `expected` and `found` those that apply.
"""

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from exlora import Engine, ExloraError
from support import gptq, tiny
from support.corruption import edit_config, edit_tensors, no_file, refused


@pytest.fixture
def model(models, tmp_path):
    """A copy of a sharded model folder, to be corrupted."""
    return shutil.copytree(tiny.write("llama-sharded", models), tmp_path / "model")


@pytest.fixture
def packed(models, tmp_path):
    """A copy of a GPTQ model folder, to be corrupted."""
    gptq.quantize(tiny.write("llama", models), models / "packed", gptq.Scheme(desc_act=True))
    return shutil.copytree(models / "packed", tmp_path / "packed")


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


def test_a_header_that_claims_ten_gigabytes(model):
    shard = min(model.glob("*.safetensors"))
    shard.write_bytes(struct.pack("<Q", 10**10) + shard.read_bytes()[8:])
    assert refused("checkpoint_too_large", Engine, model).path == str(shard)


def test_an_invalid_header(model):
    shard = min(model.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[8:40] = b"\xff" * 32
    shard.write_bytes(data)
    assert refused("checkpoint_header_invalid", Engine, model).path == str(shard)


def test_weights_that_are_stored_as_integers(model):
    name = "model.norm.weight"
    edit_tensors(shard_with(model, name), lambda tensors: tensors.update({name: np.ones(tiny.HIDDEN, np.int32)}))
    assert refused("checkpoint_dtype_unsupported", Engine, model).tensor == name


def test_a_missing_folder(tmp_path):
    assert refused("checkpoint_not_found", Engine, tmp_path / "nowhere").path == str(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"architectures": ["LlamaForCausalLM"]}',
        "\ufeff{}",
        '{"a": ' + "[" * 200 + "]" * 200 + "}",
        '{"a": NaN}',
    ],
)
def test_a_config_that_is_not_a_json_object(text, model):
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
        {"rms_norm_eps": 0.0},
        {"rms_norm_eps": -1e-5},
        {"rope_scaling": {"rope_type": "yarn", "factor": 0.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": -4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": -1}},
    ],
    ids=str,
)
def test_a_config_with_impossible_numbers(change, model):
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
        ({"hidden_act": "relu"}, "relu"),
        ({"layer_types": ["linear_attention"] * 2}, "linear_attention"),
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
def test_an_unsupported_quantization_is_refused_by_name(method, packed):
    edit_config(packed, quantization_config={"quant_method": method, "bits": 4})
    assert method in str(refused("quant_format_unsupported", Engine, packed))


@pytest.mark.parametrize("layout", ["marlin", "bitblas", "gptq_p", "gptq_v9"])
def test_an_unsupported_gptq_layout_is_refused_by_name(layout, packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "checkpoint_format": layout})
    assert layout in str(refused("quant_format_unsupported", Engine, packed))


@pytest.mark.parametrize("bits", [0, 1, 5, 7, 16, -4, "four"])
def test_a_bit_width_that_gptq_does_not_have(bits, packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "bits": bits})
    with pytest.raises(ExloraError) as caught:
        Engine(packed)
    assert caught.value.code in {"quant_config_invalid", "quant_format_unsupported"}


def test_bits_that_contradict_the_packed_shapes(packed):
    edit_config(packed, quantization_config={**gptq.Scheme().config(), "bits": 8})
    error = refused("quant_shape_mismatch", Engine, packed)
    assert error.tensor.startswith("model.layers.0.")
    assert error.expected != error.found


def test_a_group_index_out_of_range(packed):
    name = "model.layers.0.mlp.down_proj.g_idx"
    edit_tensors(packed / "model.safetensors", lambda tensors: tensors[name].__setitem__(5, 4000))
    error = refused("quant_value_invalid", Engine, packed)
    assert error.tensor == name
    assert "4000" in error.found


MEMORY_LIMITED = """
import resource, sys
from exlora import Engine, ExloraError
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[2]),) * 2)
try:
    Engine(sys.argv[1], threads=1, kv_tokens=int(sys.argv[3]))
except ExloraError as error:
    print(error.code)
"""


def load_within_limits(folder, kv_tokens=256):
    """The error code of loading in a process that may allocate 256 MiB more; empty if it loads."""
    command = [sys.executable, "-c", MEMORY_LIMITED, str(folder), str(256 << 20), str(kv_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "spoil",
    [
        {"vocab_size": 2**30},
        {"hidden_size": 2**20, "num_attention_heads": 4},
        {"intermediate_size": 2**30},
        {"num_hidden_layers": 2**20},
        {"num_attention_heads": 2**20, "num_key_value_heads": 2**20},
        {"max_position_embeddings": 2**31 - 1, "rope_parameters": {"rope_type": "nobodys"}},
    ],
    ids=str,
)
def test_a_config_with_huge_sizes_costs_no_memory_that_its_weights_do_not_justify(spoil, model):
    edit_config(model, **spoil)
    assert load_within_limits(model) in {
        "checkpoint_shape_mismatch",
        "checkpoint_tensor_missing",
        "model_config_invalid",
        "model_feature_unsupported",
    }


def test_the_memory_limit_is_effective(models):
    """The tests above can fail: a valid model loads within the limit, and a cache of a gigabyte does not."""
    folder = tiny.write("llama", models)
    assert load_within_limits(folder) == ""
    assert load_within_limits(folder, kv_tokens=1 << 22) == "memory_exhausted"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_weights_in_a_special_file_are_refused_at_once(kind, model):
    shard = min(model.glob("*.safetensors"))
    no_file(kind, shard)
    assert refused("checkpoint_unreadable", Engine, model).path == str(shard)
    index = model / "model.safetensors.index.json"
    no_file(kind, index)
    assert refused("checkpoint_unreadable", Engine, model).path == str(index)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "generation_config.json is not a JSON object"), ('{"eos_token_id": "a"}', "'eos_token_id'")],
)
def test_a_generation_config_that_is_none_is_called_by_its_name(text, said, model):
    path = model / "generation_config.json"
    path.write_text(text)
    error = refused("model_config_invalid", Engine, model)
    assert error.path == str(path)
    assert said in str(error)
    assert " config.json" not in str(error)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_config_in_a_special_file_is_refused_at_once(kind, name, model):
    no_file(kind, model / name)
    assert refused("checkpoint_unreadable", Engine, model).path == str(model / name)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_tokenizer_in_a_special_file_is_refused(kind, name, quill, tmp_path):
    model = shutil.copytree(quill, tmp_path / "model")
    (model / name).touch()
    no_file(kind, model / name)
    assert refused("tokenizer_invalid", Engine, model).path == str(model / name)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ('{"model.norm.weight": "../elsewhere.safetensors"}', "points outside"),
        ('{"model.norm.weight": "/etc/passwd"}', "points outside"),
        ('{"a": "x.safetensors", "a": "y.safetensors"}', "listed twice"),
        ("[" * 200 + "]" * 200, "not valid"),
        ("{}", "names no tensor"),
    ],
)
def test_an_index_that_cannot_be_trusted(weight_map, said, model):
    (model / "model.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}')
    assert said in str(refused("checkpoint_index_invalid", Engine, model))


def test_an_index_of_missing_tensors(model):
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused("checkpoint_index_invalid", Engine, model).tensor == "model.ghost.weight"


@pytest.mark.parametrize("shape", [(0,), (0, 64)], ids=str)
def test_a_tensor_of_no_size(shape, model):
    name = "model.layers.0.self_attn.k_proj.weight"
    edit_tensors(shard_with(model, name), lambda tensors: tensors.update({name: np.ones(shape, np.float16)}))
    assert refused("checkpoint_shape_mismatch", Engine, model).tensor == name


def test_a_loaded_model_does_not_need_its_files(model):
    engine = Engine(model)
    before = engine.logits(tiny.PROMPT)
    for shard in model.glob("*.safetensors"):
        os.truncate(shard, 0)
    assert engine.logits(tiny.PROMPT).tobytes() == before.tobytes()


def test_a_model_that_fails_to_load_leaves_another_engine_as_it_was(model, serving):
    shard = min(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused("checkpoint_truncated", Engine, model)


# Requests.


def test_an_adapter_that_is_not_loaded_never_falls_back_to_the_base(serving):
    for call in (
        lambda: serving.generate([tiny.PROMPT], adapters="nobody"),
        lambda: serving.generate([tiny.PROMPT], adapters=[{"good": 0.5, "nobody": 0.5}]),
        lambda: next(serving.stream(tiny.PROMPT, adapter="nobody")),
        lambda: serving.logits(tiny.PROMPT, adapter="nobody"),
        lambda: serving.unload_adapter("nobody"),
    ):
        assert "nobody" in str(refused("adapter_not_found", call))


def test_one_refused_request_refuses_its_whole_batch(serving):
    before = serving.stats()["tokens_generated"]
    refused("adapter_not_found", serving.generate, [tiny.PROMPT] * 3, adapters=[None, "good", "nobody"])
    assert serving.stats()["tokens_generated"] == before


def test_a_prompt_longer_than_the_model(serving):
    error = refused("prompt_too_long", serving.generate, [[1] * (tiny.POSITIONS + 1)])
    assert str(tiny.POSITIONS) in error.expected
    assert str(tiny.POSITIONS + 1) in error.found


def test_a_text_that_reaches_the_context_limit_ends_there(serving):
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
def test_a_weight_that_is_not_finite(weight, serving):
    refused("adapter_weight_invalid", serving.generate, [tiny.PROMPT], adapters=[{"good": weight}])


def test_lists_of_different_lengths(serving):
    refused("request_invalid", serving.generate, [tiny.PROMPT] * 2, adapters=["good"] * 3)
    refused("request_invalid", serving.generate, [tiny.PROMPT] * 2, max_new_tokens=[1, 2, 3])


def test_an_invalid_adapter_name(adapter, serving):
    refused("adapter_name_invalid", serving.load_adapter, "", adapter)
    refused("adapter_name_invalid", serving.load_adapter, "a\nb", adapter)
