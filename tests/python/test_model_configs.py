"""config.json means to exlora what it means to transformers: seeded variants of every family's config against
`AutoModelForCausalLM`, parsed by both and some of them run."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from exlora import Engine, ExLlamaV2Config, ExloraError
from safetensors.torch import save_file
from support import config_variants
from support.config_variants import FULL_FAMILIES, SLIDING, UNIFORM_FAMILIES, Description, Refused

REFUSALS = {"model_config_invalid", "model_feature_unsupported", "model_architecture_unsupported"}


def exloras(folder: pathlib.Path) -> Description | ExloraError:
    """What exlora makes of a folder's config.json, or its refusal."""
    try:
        config = vars(ExLlamaV2Config(folder))
    except ExloraError as error:
        return error
    return Description(**{name: tuples(config[name]) for name in Description.__dataclass_fields__})


def tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def is_refused_on_purpose(text: str, code: str) -> bool:
    """Whether exlora refuses what transformers runs: by the name of what it lacks, or because the result is nothing."""
    config = json.loads(text)
    if code == "model_architecture_unsupported":
        return True
    family, types = config["model_type"], config.get("layer_types")
    if code == "model_feature_unsupported":
        # A Llama ignores its layer types, except in its cache, which then contradicts its mask.
        has_layer_types = family in (*FULL_FAMILIES, *UNIFORM_FAMILIES) and types
        activation = config.get("hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act")
        is_served = activation in (None, "silu", "swish", "gelu", "gelu_pytorch_tanh")
        return has_layer_types or not is_served or config.get("use_bidirectional_attention")
    if family == "smollm3" and types and SLIDING in types and not config.get("use_sliding_window"):
        # Its mask has a window, its layers have none.
        return True
    # A head of one channel cannot be rotated, and a model without width or positions computes nothing.
    is_empty = 0 in (config.get("max_position_embeddings"), config["intermediate_size"], config["hidden_size"])
    # Without an epsilon, the norm of a row of zeros is not a number; positions cannot be divided by a factor of 0.
    divides_by_zero = config.get("rms_norm_eps") == 0.0 or 0 in rope_factors(config)
    return is_empty or divides_by_zero or config.get("head_dim") in (1, True)


def rope_factors(config: dict[str, Any]) -> list[float]:
    """The factors of a config's rope scaling, which may be one for each type of layers."""
    scalings = [config.get("rope_scaling"), config.get("rope_parameters")]
    scalings += [value for scaling in scalings if isinstance(scaling, dict) for value in scaling.values()]
    return [scaling["factor"] for scaling in scalings if isinstance(scaling, dict) and "factor" in scaling]


def check(text: str, folder: pathlib.Path) -> Any:
    """Compares what both make of a config; returns the oracle's model where both accept it."""
    (folder / "config.json").write_text(text)
    found = exloras(folder)
    try:
        model = config_variants.build(folder)
    except Refused as refused:
        is_refused = isinstance(found, ExloraError) and found.code in REFUSALS
        if not is_refused:
            pytest.fail(f"{text}\n{found}\ntransformers refuses: {refused}")
        return None
    want = config_variants.describe(model)
    if isinstance(found, ExloraError):
        assert is_refused_on_purpose(text, found.code), f"{text}\n{want}\n{found}"
        return None
    assert not want.differences(found), text
    return model


def check_logits(model: torch.nn.Module, folder: pathlib.Path) -> None:
    """Runs the oracle's model and the folder of its config with the same random weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.ndim == 2 and not ("embed" in name or "norm" in name)
            center = 0.0 if is_matrix or name.endswith("bias") or "gemma" in model.config.model_type else 1.0
            parameter.copy_(center + noise * (parameter.shape[1] ** -0.5 if is_matrix else 0.2))
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.lm_head.weight is model.model.embed_tokens.weight:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    want = config_variants.logits(model).numpy()
    tokens = [token % want.shape[1] for token in config_variants.PROMPT]
    # A factor below 1 shortens the context, which transformers does not know.
    limit = 64
    if config_variants.is_longrope(model.config):
        limit = min(limit, ExLlamaV2Config(folder).max_seq_len)
        if limit < len(tokens):
            # Beyond that, exlora refuses.
            return
    engine = Engine(folder, threads=1, kv_dtype="f32", max_seq_len=limit)
    got = np.asarray(engine.logits(tokens))
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max(), (folder / "config.json").read_text()


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_variants_mean_what_they_mean_to_transformers(first, tmp_path):
    accepted = 0
    for seed in range(first, first + 50):
        model = check(config_variants.variant(seed), tmp_path)
        if model is not None:
            accepted += 1
            if accepted % 5 == 0:
                check_logits(model, tmp_path)
    assert 10 < accepted < 45


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1500, 50))
def test_many_variants_mean_what_they_mean_to_transformers(first, tmp_path):
    for seed in range(first, first + 50):
        model = check(config_variants.variant(seed), tmp_path)
        if model is not None and seed % 3 == 0:
            check_logits(model, tmp_path)


def llama(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    config = {**config_variants.base("llama"), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("number", [10**5, 2**31, 10**9, 2**32 - 1, 10**12, 2**62, 2**64, 10**30], ids=str)
@pytest.mark.parametrize("name", ["num_hidden_layers", "head_dim", "num_attention_heads", "num_key_value_heads"])
def test_a_huge_number_is_refused_before_it_sizes_anything(name, number, tmp_path):
    with pytest.raises(ExloraError) as caught:
        ExLlamaV2Config(llama(tmp_path, **{name: number}))
    assert caught.value.code == "model_config_invalid"
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 2**40, "head_dim": 8},
        {"vocab_size": 2**62},
        {"intermediate_size": 10**18},
        {"max_position_embeddings": 2**62},
        {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 1e300}},
        {"layer_types": ["full_attention"] * 100_000},
        {"num_hidden_layers": 8000, "layer_types": ["sliding_attention"] * 8000},
    ],
    ids=lambda changes: f"{changes}"[:60],
)
def test_other_huge_sizes_are_refused_or_cost_nothing(changes, tmp_path):
    with pytest.raises(ExloraError) as caught:
        Engine(llama(tmp_path, **changes))
    assert caught.value.code in {*REFUSALS, "checkpoint_not_found"}


def test_the_first_end_id_is_that_of_config_json(tmp_path):
    llama(tmp_path, eos_token_id=[40, 30, 50])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [20, 40]}')
    config = ExLlamaV2Config(tmp_path)
    assert (config.eos_token_id, config.eos_token_ids) == (40, [40, 30, 50, 20])
