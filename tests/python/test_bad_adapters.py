"""Honest failure: damaged, foreign and hostile adapters end in a typed error that says what and where.

Each is loaded beside a good one, under a new name and under its: the engine then shows the same bits, names and bytes.

Each case names the code it must end in, and of `path`, `tensor`, `expected` and `found` those that apply.
"""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from exlora import Engine, ExloraError
from safetensors.numpy import load_file, save_file
from support import adapters, tiny
from support.corruption import edit_config, edit_tensors, no_file, refused

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


def weights(adapter):
    return adapter / "adapter_model.safetensors"


def unloadable(code, engine, folder):
    """The error that loading must raise, whether or not the name is in use."""
    refused(code, engine.load_adapter, "new", folder)
    return refused(code, engine.load_adapter, "good", folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_adapter_with_values_that_are_not_finite(value, adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors[B].__setitem__((3, 1), value))
    error = unloadable("adapter_not_finite", serving, adapter)
    assert (error.path, error.tensor) == (str(weights(adapter)), B)


def test_a_rank_that_contradicts_the_config(adapter, serving):
    edit_config(adapter, "adapter_config.json", r=8)
    error = unloadable("adapter_rank_mismatch", serving, adapter)
    assert error.path == str(weights(adapter))
    assert error.tensor.startswith("base_model.model.model.layers.0.")
    assert "8" in error.expected
    assert "4" in error.found


def test_an_adapter_for_a_model_of_another_width(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.update({A: np.ones((4, 48), np.float32)}))
    error = unloadable("adapter_shape_mismatch", serving, adapter)
    assert (error.path, error.tensor) == (str(weights(adapter)), A)
    assert (error.expected, error.found) == ("[4, 64]", "[4, 48]")


def test_an_adapter_that_lacks_one_factor_of_a_pair(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.pop(B))
    error = unloadable("adapter_tensor_missing", serving, adapter)
    assert error.tensor == B


def test_an_adapter_with_an_unknown_tensor(adapter, serving):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"
    edit_tensors(weights(adapter), lambda tensors: tensors.update({name: np.ones((4, 4), np.float32)}))
    assert unloadable("adapter_tensor_unexpected", serving, adapter).tensor == name


def test_an_adapter_for_a_deeper_model(adapter, serving):
    def deepen(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            tensors[name.replace(".layers.1.", ".layers.31.")] = tensors.pop(name)

    edit_tensors(weights(adapter), deepen)
    assert ".layers.31." in str(unloadable("adapter_site_not_found", serving, adapter))


def test_all_problems_of_an_adapter_are_reported_at_once(adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: (tensors[A].fill(np.nan), tensors.pop(B)))
    with pytest.raises(ExloraError) as caught:
        serving.load_adapter("good", adapter)
    assert A in str(caught.value)
    assert B in str(caught.value)


def test_an_adapter_whose_header_claims_ten_gigabytes(adapter, serving):
    weights(adapter).write_bytes(struct.pack("<Q", 10**10) + weights(adapter).read_bytes()[8:])
    error = unloadable("checkpoint_too_large", serving, adapter)
    assert error.path == str(weights(adapter))


def test_a_truncated_adapter(adapter, serving):
    weights(adapter).write_bytes(weights(adapter).read_bytes()[:-7])
    error = unloadable("checkpoint_truncated", serving, adapter)
    assert error.path == str(weights(adapter))


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("adapter_tensor_missing", {"use_dora": True}),
        ("adapter_tensor_missing", {"lora_bias": True}),
        ("adapter_tensor_missing", {"modules_to_save": ["lm_head"]}),
        ("adapter_tensor_missing", {"trainable_token_indices": [1, 2]}),
        ("adapter_tensor_missing", {"kasa_config": {"beta": 1e-3}}),
        (
            "adapter_rank_mismatch",
            {"use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["q_proj"], "match_strict": False}},
        ),
        ("adapter_config_invalid", {"layer_replication": [[0, 2], [1, 99]]}),
        ("adapter_config_invalid", {"alora_invocation_tokens": [5, 10**6]}),
    ],
    ids=str,
)
def test_a_feature_that_the_files_contradict_is_refused(code, change, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    error = unloadable(code, serving, adapter)
    assert next(iter(change)) in str(error) or error.tensor


@pytest.mark.parametrize(
    "change",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"arrow_config": {"top_k": 2}},
        {"use_tomorrows_variant": True},
    ],
    ids=str,
)
def test_an_unsupported_peft_feature_is_refused_by_name(change, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    error = unloadable("adapter_feature_unsupported", serving, adapter)
    assert next(iter(change)) in str(error)


def test_a_dora_norm_of_zero_is_refused_with_its_module(models, tmp_path):
    """peft divides by it and computes NaN."""
    base = shutil.copytree(tiny.write("llama", models), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] = 0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = shutil.copytree(adapters.write("plain", base), tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    for name in list(factors):
        if name.endswith("lora_B.weight"):
            magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
            factors[magnitude] = np.ones(len(factors[name]), dtype=np.float32)
    factors[B][3] = 0
    save_file(factors, adapter / "adapter_model.safetensors")
    edit_config(adapter, "adapter_config.json", use_dora=True)
    error = refused("adapter_scale_invalid", Engine(base).load_adapter, "it", adapter)
    assert "'model.layers.1.mlp.up_proj'" in str(error)
    assert (error.found, error.path) == ("0 at output 3", str(adapter))


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "lora", "PROMPT_TUNING"])
def test_another_peft_type_is_refused_by_name(kind, adapter, serving):
    edit_config(adapter, "adapter_config.json", peft_type=kind)
    assert kind in str(unloadable("adapter_type_unsupported", serving, adapter))


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_16", "olora", "loftq", "corda"])
def test_an_adapter_whose_initialization_changed_its_base_is_refused(kind, adapter, serving):
    edit_config(adapter, "adapter_config.json", init_lora_weights=kind)
    assert kind in str(unloadable("adapter_base_changed", serving, adapter))


@pytest.mark.parametrize("change", [{"r": 0}, {"r": "8"}, {"lora_alpha": "sixteen"}, {"bias": "some"}], ids=str)
def test_an_adapter_config_with_invalid_values(change, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    error = unloadable("adapter_config_invalid", serving, adapter)
    assert error.path == str(adapter / "adapter_config.json")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_adapter_is_never_executed(adapter, tmp_path, serving):
    sprung = tmp_path / "sprung"
    weights(adapter).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({A: Trap(sprung)}))
    error = unloadable("adapter_format_unsupported", serving, adapter)
    assert "pickle" in str(error)
    assert not sprung.exists()
    pickle.loads((adapter / "adapter_model.bin").read_bytes())[A].close()
    assert sprung.exists(), "the trap works"


def convert(error, folder):
    """Runs the one-line remedy of a message, in the adapter's folder."""
    line = re.search(r'python -c "(.*)"$', error.hint)[1]
    subprocess.run([sys.executable, "-c", line], cwd=folder, check=True, timeout=300)


def test_a_pickled_adapter_loads_once_converted_as_the_message_says(adapter, tmp_path, engine, serving):
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(adapter, tmp_path / "pickled")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(weights(folder)).items()}
    torch.save(tensors, folder / "adapter_model.bin")
    weights(folder).unlink()
    convert(unloadable("adapter_format_unsupported", serving, folder), folder)
    assert same_logits(engine, folder, adapter)


def test_an_mlx_adapter_loads_once_converted_as_the_message_says(adapter, tmp_path, engine, serving):
    folder = tmp_path / "mlx"
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    parameters = {"rank": config["r"], "scale": config["lora_alpha"] / config["r"], "dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters}))
    rename = str.maketrans({"A": "a", "B": "b"})
    tensors = {
        name.removeprefix("base_model.model.").removesuffix(".weight").translate(rename): tensor.T.copy()
        for name, tensor in load_file(weights(adapter)).items()
    }
    save_file(tensors, folder / "adapters.safetensors")
    error = unloadable("adapter_format_unsupported", serving, folder)
    assert "mlx-lm" in str(error)
    convert(error, folder)
    assert same_logits(engine, folder, adapter)


def same_logits(engine, *folders):
    """Whether two adapters give the same bits."""
    logits = set()
    for folder in folders:
        engine.load_adapter("converted", folder)
        logits.add(engine.logits(tiny.PROMPT, "converted").tobytes())
    engine.unload_adapter("converted")
    return len(logits) == 1


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("pytorch_lora_weights.safetensors", "unet.mid_block.to_q.lora.down.weight"),
        ("style.safetensors", "lora_unet_mid_block_proj.lora_down.weight"),
        ("style.safetensors", "lora_te1_text_model_proj.lora_up.weight"),
    ],
)
def test_an_adapter_for_an_image_model_is_refused_by_name(file, tensor, tmp_path, serving):
    save_file({tensor: np.ones((4, 4), np.float32)}, tmp_path / file)
    error = unloadable("adapter_format_unsupported", serving, tmp_path)
    assert file in str(error)
    assert "kohya" in str(error)
    assert "lora_down to lora_A" in error.hint


def test_an_adapter_without_weights(adapter, serving):
    weights(adapter).unlink()
    unloadable("adapter_weights_not_found", serving, adapter)


def test_a_folder_without_an_adapter(tmp_path, serving):
    unloadable("adapter_config_not_found", serving, tmp_path)
    unloadable("adapter_config_not_found", serving, tmp_path / "nowhere")


# Files that are not what they seem.


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "link to itself"])
@pytest.mark.parametrize(
    ("name", "code"),
    [("adapter_config.json", "adapter_config_invalid"), ("adapter_model.safetensors", "checkpoint_unreadable")],
)
def test_a_special_file_is_refused_at_once(name, code, kind, adapter, serving):
    no_file(kind, adapter / name)
    assert unloadable(code, serving, adapter).path == str(adapter / name)


def test_links_into_a_cache_are_followed(adapter, tmp_path, engine, serving):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in adapter.iterdir():
        (linked / file.name).symlink_to(file)
    assert same_logits(engine, linked, adapter)


@pytest.mark.parametrize("shape", [(0,), (0, 64), (4, 0), (256,)], ids=str)
def test_empty_factors_are_explained_as_not_gathered(shape, adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.update({A: np.ones(shape, np.float32)}))
    error = unloadable("adapter_shape_mismatch", serving, adapter)
    assert error.tensor == A
    assert "ZeRO-3" in error.hint


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.float64, np.bool_])
def test_factors_of_another_type_are_refused(dtype, adapter, serving):
    edit_tensors(weights(adapter), lambda tensors: tensors.update({A: np.ones((4, 64), dtype)}))
    assert unloadable("adapter_dtype_unsupported", serving, adapter).tensor == A


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"r": 2**20}, "adapter_rank_mismatch"),
        ({"r": 2**63}, "adapter_config_invalid"),
        ({"rank_pattern": {"q_proj": 2**20}}, "adapter_rank_mismatch"),
        ({"lora_alpha": 1e300}, "adapter_scale_invalid"),
        ({"alpha_pattern": {"q_proj": -1e300}}, "adapter_scale_invalid"),
        ({"target_modules": r"(?:(?=(.*))(?:.|.)*)*Z\1"}, "adapter_pattern_invalid"),
        ({"rank_pattern": {r"(?:\w{1000}){1000}": 4}}, "adapter_pattern_invalid"),
        ({"alpha_pattern": {"(" * 500 + ")" * 500: 4}}, "adapter_pattern_invalid"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_absurd_numbers_and_patterns(change, code, adapter, serving):
    edit_config(adapter, "adapter_config.json", **change)
    unloadable(code, serving, adapter)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"peft_type": "LORA", "r": 4, "r": 8}', "'r' is there twice"),
        (b'{"peft_type": "LORA", "eva_config": ' + b"[" * 200 + b"]" * 200 + b"}", "recursion limit"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "line 1 column"),
        (b'{"peft_type": "LORA",}', "trailing comma"),
        (b'{"peft_type": "\xff"}', "not UTF-8"),
        (b"", "EOF"),
    ],
)
def test_invalid_json_is_refused_with_the_position(text, said, adapter, serving):
    (adapter / "adapter_config.json").write_bytes(text)
    error = unloadable("adapter_config_invalid", serving, adapter)
    assert said in str(error)
    assert error.path == str(adapter / "adapter_config.json")


def raw(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, shape=(1, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "checkpoint_truncated"),
        (raw({A: entry(0, 8)}), "checkpoint_truncated"),
        (raw({A: entry(0, 2**42, (2**40,))}), "checkpoint_truncated"),
        (raw({A: entry(0, 8), B: entry(4, 12)}, bytes(12)), "checkpoint_header_invalid"),
        (raw({A: entry(0, 8), B: entry(12, 20)}, bytes(20)), "checkpoint_header_invalid"),
        (raw({A: entry(8, 0)}, bytes(8)), "checkpoint_header_invalid"),
        (raw({A: entry(0, 8, (2**32, 2**32, 4))}, bytes(8)), "checkpoint_header_invalid"),
        (raw({A: entry(0, 8)}, bytes(9)), "checkpoint_header_invalid"),
        (raw({A: entry(0, 8, dtype="F33")}, bytes(8)), "checkpoint_header_invalid"),
        (struct.pack("<Q", 4) + b"null", "checkpoint_header_invalid"),
        (struct.pack("<Q", 99_999_999) + b"{", "checkpoint_truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "checkpoint_header_invalid"),
    ],
    ids=["empty", "no data", "4 TB", "overlap", "hole", "backwards", "overflow", "more", "dtype", "null", "cap", "lfs"],
)
def test_damaged_weights(content, code, adapter, serving):
    weights(adapter).write_bytes(content)
    assert unloadable(code, serving, adapter).path == str(weights(adapter))


def test_a_sparse_file_of_four_terabytes_is_not_read(adapter, serving):
    header = raw({A: entry(0, 2**42, (2**40,))})
    weights(adapter).write_bytes(header)
    os.truncate(weights(adapter), len(header) + 2**42)
    unloadable("memory_exhausted", serving, adapter)


# Files that change under an engine.


@pytest.mark.parametrize("change", ["truncated", "overwritten", "replaced", "deleted"])
def test_a_loaded_adapter_does_not_need_its_files(change, models, tmp_path):
    base = tiny.write("llama", models)
    folder = shutil.copytree(adapters.write("plain", base), tmp_path / "adapter")
    engine = Engine(base, adapters={"a": folder})
    before = engine.logits(tiny.PROMPT, "a")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if change == "truncated":
            os.truncate(folder / name, 0)
        elif change == "overwritten":
            with (folder / name).open("r+b") as file:
                file.write(b"\xff" * (folder / name).stat().st_size)
        else:
            (folder / name).unlink()
            if change == "replaced":
                (folder / name).write_bytes(b"other")
    assert engine.logits(tiny.PROMPT, "a").tobytes() == before.tobytes()
