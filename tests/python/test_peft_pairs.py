"""Every pair of features of a LoRA config: built by PEFT and computed alike here, or refused by both."""

import copy
import itertools
import json
import warnings

import numpy as np
import peft
import pytest
import torch
from exlora import Engine, ExloraError
from peft.tuners.lora.gptq import GPTQLoraLinear
from safetensors.torch import load_file, save_file
from support import adapter_specs, collection, tiny
from support.adapter_specs import Spec
from support.compare import gap

BASE = "llama-biases"
TOLERANCE = 5e-4
TARGETS = ("q_proj", "v_proj")
_BD = {"target_modules_bd_a": ["v_proj"], "target_modules_bd_b": ["q_proj"], "nblocks": 2, "match_strict": False}

# Fields of the config, and further target modules.
FEATURES = {
    "dora": ({"use_dora": True}, ()),
    "rslora": ({"use_rslora": True}, ()),
    "activated": ({"alora_invocation_tokens": adapter_specs.INVOCATION}, ()),
    "block-diagonal": ({"use_bdlora": _BD}, ()),
    "kasa": ({"kasa_config": {}}, ()),
    "velora": ({"velora_config": {"num_groups": 4}}, ()),
    "monteclora": ({"monteclora_config": {}}, ()),
    "mica": ({"init_lora_weights": "mica"}, ()),
    "gaussian": ({"init_lora_weights": "gaussian"}, ()),
    "no-init": ({"init_lora_weights": False}, ()),
    # peft reads it on GPTQ layers alone.
    "qalora": ({"use_qalora": True, "qalora_group_size": 16}, ()),
    "lora-bias": ({"lora_bias": True}, ()),
    "bias-all": ({"bias": "all"}, ()),
    "tokens": ({"trainable_token_indices": [7, 3, 69]}, ()),
    "saved-embedding": ({"modules_to_save": ["embed_tokens"]}, ()),
    "replicated": ({"layer_replication": [[0, 2], [1, 2]]}, ()),
    "patterns": ({"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"q_proj": 3}}, ()),
    "one-layer": ({"layers_to_transform": [1]}, ()),
    "layer-names": ({"layers_to_transform": [0], "layers_pattern": "layers"}, ()),
    "excluded": ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, ()),
    "embedding": ({}, ("embed_tokens",)),
    "head": ({}, ("lm_head",)),
}
# A pair that sets one field twice is no pair.
PAIRS = [(a, b) for a, b in itertools.combinations(FEATURES, 2) if not set(FEATURES[a][0]) & set(FEATURES[b][0])]
REGEX = r".*\.(q|v)_proj"


def spec(*names, targets=TARGETS):
    options = {key: value for name in names for key, value in FEATURES[name][0].items()}
    further = tuple(target for name in names for target in FEATURES[name][1])
    return Spec(options, targets=targets + further if isinstance(targets, tuple) else targets, save_embeddings=False)


def loads(engine, folder, name="it"):
    """The error of loading, or None."""
    try:
        engine.load_adapter(name, folder)
    except ExloraError as error:
        return error
    return None


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.write(BASE, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def engine(dense):
    return Engine(dense, kv_dtype="f32", prefix_cache=False)


def build(spec, folder, dense):
    """The adapter as peft writes it and the logits as peft computes them, or why it does not."""
    try:
        folder = collection.write(spec, folder, dense, seed=len(folder.name))
        return folder, tiny.logits(collection.load(spec, folder, dense), adapter_specs.PROMPT), None
    except (TypeError, ValueError) as error:
        return folder, None, error


def verdict(engine, pair, folder, dense):
    """What is wrong with a pair."""
    folder, theirs, refusal = build(spec(*pair), folder, dense)
    if refusal is None:
        error = loads(engine, folder)
        if error:
            return f"peft computes it; here: {error}"
        distance = gap(engine.logits(adapter_specs.PROMPT, adapter="it"), theirs)
        return None if distance < TOLERANCE else distance
    if not folder.exists():
        union(pair, folder, dense)
    error = loads(engine, folder)
    if error is None:
        return f"peft refuses it: {refusal}"
    return None if "PEFT" in str(error) else f"peft refuses it: {refusal}; here: {error}"


@pytest.mark.parametrize("feature", FEATURES)
def test_a_pair_is_refused_as_in_peft_or_equals_it(feature, dense, engine, tmp_path):
    pairs = [pair for pair in PAIRS if pair[0] == feature]
    verdicts = {pair: verdict(engine, pair, tmp_path / "+".join(pair), dense) for pair in pairs}
    wrong = {pair: verdict for pair, verdict in verdicts.items() if verdict is not None}
    assert not wrong, wrong


def union(pair, folder, dense):
    """A file that peft would not write: the tensors and the fields of both features."""
    tensors, fields = {}, {}
    for name in pair:
        alone = collection.write(spec(name), folder / name, dense, seed=0)
        tensors = load_file(alone / "adapter_model.safetensors") | tensors
        config = json.loads((alone / "adapter_config.json").read_text())
        fields = config | fields | FEATURES[name][0] if fields else config
    fields["target_modules"] = [*TARGETS, *FEATURES[pair[0]][1], *FEATURES[pair[1]][1]]
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("fields", [{"layers_to_transform": [1]}, {"layers_pattern": "layers"}], ids=str)
def test_a_pattern_of_targets_is_never_limited_to_layers(fields, dense, engine, tmp_path):
    with pytest.raises(ValueError, match="cannot be used when `target_modules` is a str"):
        peft.LoraConfig(target_modules=REGEX, **fields)
    folder = collection.write(spec(targets=REGEX), tmp_path / "regex", dense, seed=0)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    error = loads(engine, folder)
    assert (error.code, "as in PEFT" in str(error)) == ("adapter_config_invalid", True)


# QA-LoRA's pooled factors, which only peft's GPTQ layer computes.


def pooled(folder, seed=0, **fields):
    """An adapter with a pooled A on q_proj and v_proj, by hand: peft needs a GPTQ kernel to write one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (name, outputs) in itertools.product(range(tiny.LAYERS), (("q_proj", 64), ("v_proj", 32))):
        path = f"base_model.model.model.layers.{layer}.self_attn.{name}."
        tensors[path + "lora_A.weight"] = 0.3 * torch.randn(4, tiny.HIDDEN // 16, generator=generator)
        tensors[path + "lora_B.weight"] = 0.3 * torch.randn(outputs, 4, generator=generator)
        if fields.get("lora_bias"):
            tensors[path + "lora_B.bias"] = torch.randn(outputs, generator=generator)
        if fields.get("use_dora"):
            tensors[path + "lora_magnitude_vector"] = torch.ones(outputs)
        if "kasa_config" in fields:
            tensors[path + "lora_diag"] = torch.ones(4)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)}
    config |= {"use_qalora": True, "qalora_group_size": 16, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, tensors, config


def on_gptq_layers(dense, tensors, **fields):
    """peft's GPTQ layer around the base's linears, with those factors."""
    model = copy.deepcopy(collection.base_model(dense))
    config = peft.LoraConfig(r=4, lora_alpha=8, use_qalora=True, qalora_group_size=16, **fields)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer, name in itertools.product(model.model.layers, TARGETS):
            wrapped = GPTQLoraLinear(getattr(layer.self_attn, name), "default", config=config, r=4, lora_alpha=8)
            index = layer.self_attn.layer_idx
            for key, value in tensors.items():
                prefix = f"base_model.model.model.layers.{index}.self_attn.{name}."
                if key.startswith(prefix):
                    part, kind = key.removeprefix(prefix).split(".")
                    getattr(getattr(wrapped, part)["default"], kind).copy_(value)
            setattr(layer.self_attn, name, wrapped)
    return model.eval()


@pytest.mark.parametrize("fields", [{}, {"lora_bias": True}, {"use_rslora": True}, {"monteclora_config": {}}], ids=str)
def test_pooled_factors_equal_pefts_gptq_layer(fields, dense, engine, tmp_path):
    folder, tensors, _ = pooled(tmp_path / "pooled", **fields)
    expected = tiny.logits(on_gptq_layers(dense, tensors, **fields), adapter_specs.PROMPT)
    assert loads(engine, folder) is None
    assert gap(engine.logits(adapter_specs.PROMPT, adapter="it"), expected) < TOLERANCE
    assert np.abs(expected - tiny.logits(collection.base_model(dense), adapter_specs.PROMPT)).max() > 0.1


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"velora_config": {"num_groups": 4}},
        {"alora_invocation_tokens": [1, 2]},
        {"kasa_config": {}},
        {"init_lora_weights": "mica"},
    ],
    ids=str,
)
def test_pooled_factors_of_another_variant_are_refused(fields, dense, engine, tmp_path):
    folder, tensors, _ = pooled(tmp_path / "pooled", **fields)
    if not {"kasa_config", "alora_invocation_tokens", "init_lora_weights"} & set(fields):
        with pytest.raises(ValueError, match="does not support"):
            on_gptq_layers(dense, tensors, **fields)
    error = loads(engine, folder)
    assert (error.code, "exclude each other, as in PEFT" in str(error)) == ("adapter_config_invalid", True)
