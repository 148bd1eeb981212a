"""What no family has is refused by its name, before weights are read: never computed as something else."""

import pytest
import transformers
from exlora import ExLlamaV2Config, ExloraError
from support import families
from support.families import FULL, SLIDING

# Model type -> what the refusal has to name.
REFUSED = {
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
    "granitemoe": "GraniteMoe",
    "granitemoehybrid": "GraniteMoeHybrid",
    "gpt_oss": "GptOss",
    "glm4_moe": "Glm4Moe",
    "llama4_text": "Llama4",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "gemma3n_text": "Gemma3n",
    "gemma4_text": "Gemma4",
    "qwen3_next": "Qwen3Next",
    "falcon_h1": "FalconH1",
    "lfm2": "Lfm2",
    "jamba": "Jamba",
    "mamba2": "Mamba2",
    "gpt2": "GPT2",
}


def refusal(folder, members):
    families.write_config(folder, members)
    with pytest.raises(ExloraError) as caught:
        ExLlamaV2Config(folder)
    return caught.value


@pytest.mark.parametrize("model_type", REFUSED)
def test_another_architecture_is_refused_by_name(model_type, tmp_path):
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(transformers.AutoConfig.for_model(model_type))]
    error = refusal(tmp_path, families.config("mistral", model_type=model_type, architectures=[kind.__name__]))
    assert error.code == "model_architecture_unsupported"
    assert REFUSED[model_type] in str(error)


@pytest.mark.parametrize("kind", ["linear_attention", "chunked_attention", "mamba"])
@pytest.mark.parametrize("name", ["ministral", "gemma2", "gemma3", "cohere2", "olmo3", "smollm3"])
def test_a_kind_of_layer_that_no_family_has_is_refused_by_name(name, kind, tmp_path):
    error = refusal(tmp_path, families.config(name, layer_types=[SLIDING, FULL, kind, FULL]))
    assert error.code in {"model_feature_unsupported", "model_config_invalid"}
    assert kind in str(error)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_attention_in_both_directions_is_refused_by_name(name, tmp_path):
    error = refusal(tmp_path, families.config(name, use_bidirectional_attention=True))
    assert error.code == "model_feature_unsupported"
    assert "use_bidirectional_attention" in str(error)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("gemma2", {"hidden_activation": "relu"}),
        ("starcoder2", {"hidden_act": "relu"}),
        ("granite", {"hidden_act": "relu"}),
    ],
)
def test_another_activation_is_refused_by_name(name, members, tmp_path):
    error = refusal(tmp_path, families.config(name, **members))
    assert error.code == "model_feature_unsupported"
    assert "relu" in str(error)
