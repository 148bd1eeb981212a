"""DoRA where B A nearly cancels the weight: as close to the truth as peft itself, which is computed in float64.

With V = W + s B A of a hundredth or a thousandth of W's size, rounding in float32 grows by a hundred or a thousand in
any implementation. What must not be added to it is an error of the norms, which would grow by the square.
"""

import json
import warnings

import peft
import pytest
import torch
from exlora import Engine
from safetensors.torch import save_file
from support import collection, tiny
from support.compare import gap

TARGETS = ("q_proj", "v_proj")
SCALE = 2.0


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.write("llama-float32", tmp_path_factory.mktemp("dora"))


def cancelling(folder, dense, ratio):
    """An adapter of full rank: A is the identity, s B is -W up to `ratio` of W's size."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(1), {}
    for index, layer in enumerate(collection.base_model(dense).model.layers):
        for name in TARGETS:
            weight = getattr(layer.self_attn, name).weight.detach()
            noise = torch.randn(weight.shape, generator=generator) * weight.norm(dim=1, keepdim=True) / 8
            path = f"base_model.model.model.layers.{index}.self_attn.{name}."
            tensors[path + "lora_A.weight"] = torch.eye(tiny.HIDDEN)
            tensors[path + "lora_B.weight"] = (ratio * noise - weight) / SCALE
            tensors[path + "lora_magnitude_vector"] = weight.norm(dim=1)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": tiny.HIDDEN, "lora_alpha": SCALE * tiny.HIDDEN}
    config |= {"use_dora": True, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("ratio", [1.0, 1e-2, 3e-3, 1e-3])
def test_logits_are_as_close_to_the_truth_as_pefts(ratio, device, dense, tmp_path):
    folder = cancelling(tmp_path / "adapter", dense, ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(collection.base_model(dense), folder).eval()
    theirs = tiny.logits(model, tiny.PROMPT)
    truth = tiny.logits(model.double(), tiny.PROMPT)
    engine = Engine(dense, adapters={"it": folder}, kv_dtype="f32", device=device)
    ours = gap(engine.logits(tiny.PROMPT, adapter="it"), truth)
    assert ours < max(2e-5, 5 * gap(theirs, truth))
