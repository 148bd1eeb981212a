"""Adapters as found in practice: configs of other tools and versions, unusual modules, misbehaving rows in a batch.

The oracle is peft in float32 on the adapter's own files, absolute 5e-4; where bits are promised, the row alone.
"""

import shutil
import zlib

import numpy as np
import pytest
from exlora import Engine, ExloraError
from safetensors.torch import load_file, save_file
from support import adapter_specs, tiny
from support import collection as peft_files
from support.adapter_specs import Spec
from support.adapters import ALL_LINEAR
from support.compare import bits, gap

TOLERANCE = 5e-4

_OLD = ("r", "lora_alpha", "target_modules", "peft_type", "bias", "fan_in_fan_out", "lora_dropout", "modules_to_save")
_UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj))"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
_GROWN = Spec(growth=adapter_specs.GROWTH, targets=(*ALL_LINEAR, "embed_tokens", "lm_head"))


def _keep(*keys, **more):
    return lambda tensors, config: (tensors, {**{key: config[key] for key in keys}, **more})


def _spoil_pattern_order(tensors, config):
    """Two patterns cover q_proj of layer 0; the first of the file decides, which is not the first of the alphabet."""
    return tensors, {**config, "alpha_pattern": {"q_proj": 1, "layers.0.self_attn.q_proj": 100}}


WILD = {
    "peft-0.2": Spec(edit=_keep(*_OLD, enable_lora=None, merge_weights=False)),
    "torchtune": Spec(edit=_keep("r", "lora_alpha", "target_modules", "peft_type")),
    "unsloth": Spec(targets=_UNSLOTH),
    "full-paths": Spec(
        targets=("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "layers.0.mlp.up_proj")
    ),
    "patterns-in-file-order": Spec(edit=_spoil_pattern_order),
    "saved-layer": Spec({"modules_to_save": ["layers.0", "q_proj"]}, targets=("up_proj",)),
    "saved-by-a-tail": Spec({"modules_to_save": ["_proj"]}, targets=("lm_head",), save_embeddings=False),
    "saved-and-not-there": Spec({"modules_to_save": ["nonesuch", "lm_head"]}, targets=("q_proj",)),
    # Where biases are trained too, peft saves a block's twice, once with the adapter's name inside.
    "saved-block-bias-all": Spec({"modules_to_save": ["self_attn", "mlp"], "bias": "all"}, targets=("lm_head",)),
    "copies-that-differ": Spec(targets=("q_proj",), save_embeddings=True, stray_copies=True),
    "every-row": Spec({"trainable_token_indices": list(range(tiny.VOCAB - 1, -1, -1))}),
    "rank-above-all-widths": Spec({"use_dora": True}, r=300),
}


def write(spec, name, base, collection, parent):
    folder = parent / name
    return peft_files.write(spec, folder, collection.dense(base), zlib.crc32(name.encode()))


@pytest.mark.parametrize("base", ["llama-biases", "qwen2"])
@pytest.mark.parametrize("name", WILD)
def test_an_adapter_of_another_tool_or_version_equals_peft(name, base, engines, collection, tmp_path):
    engine, dense = engines.engine(base, False)
    folder = write(WILD[name], name, base, collection, tmp_path)
    engine.load_adapter(f"wild-{name}", folder)
    expected = tiny.logits(peft_files.load(WILD[name], folder, dense), adapter_specs.PROMPT)
    assert gap(engine.logits(adapter_specs.PROMPT, adapter=f"wild-{name}"), expected) < TOLERANCE
    engine.unload_adapter(f"wild-{name}")


def test_a_dangling_link_is_reported_as_one(collection, tmp_path):
    """A folder of a download cache, copied without the targets of its links."""
    engine = Engine(collection.dense("llama"))
    for name, code in (
        ("adapter_config.json", "adapter_config_not_found"),
        ("adapter_model.safetensors", "adapter_weights_not_found"),
    ):
        folder = shutil.copytree(collection.adapter("llama", "uninitialized"), tmp_path / name)
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/0123")
        with pytest.raises(ExloraError) as caught:
            engine.load_adapter("it", folder)
        assert (caught.value.code, "link" in str(caught.value)) == (code, True)


@pytest.mark.parametrize("base", ["llama", "qwen2-tied"])
def test_a_row_with_a_larger_vocabulary_generates_new_tokens_beside_base_rows(base, collection, tmp_path):
    folder = write(_GROWN, "grown", base, collection, tmp_path)
    engine = Engine(collection.dense(base), adapters={"grown": folder}, kv_dtype="f32")
    prompts, rows = [[*adapter_specs.PROMPT, 98, 97], adapter_specs.PROMPT], ["grown", None]
    settings = {"max_new_tokens": 60, "temperature": 3.0, "seed": 3, "logprobs": 1}
    ours, beside = engine.generate(prompts, adapters=rows, **settings)
    said = list(ours.token_ids)
    assert any(token >= tiny.VOCAB for token in said)
    assert max(beside.token_ids) < tiny.VOCAB
    assert bits(beside) == bits(engine.generate(prompts[1:], **settings)[0])
    oracle = tiny.logits(peft_files.load(_GROWN, folder, collection.dense(base)), [*prompts[0], *said])
    assert gap(engine.logits([*prompts[0], *said], adapter="grown"), oracle) < TOLERANCE


def test_an_adapter_that_overflows_fails_alone(collection, tmp_path):
    """Finite in the file, infinite in the product, as in peft: its row fails, the other rows keep their tokens."""
    huge = shutil.copytree(collection.adapter("llama", "uninitialized"), tmp_path / "huge")
    tensors = load_file(huge / "adapter_model.safetensors")
    save_file({key: 1e30 * value for key, value in tensors.items()}, huge / "adapter_model.safetensors")
    engine = Engine(collection.dense("llama"), adapters={"huge": huge, "dora": collection.adapter("llama", "dora")})
    assert not np.isfinite(engine.logits(adapter_specs.PROMPT, adapter="huge")).all()
    settings = {"max_new_tokens": 8, "temperature": 0.0}
    alone = {row: engine.generate(adapter_specs.PROMPT, adapter=row, **settings).token_ids for row in (None, "dora")}
    streams = {row: engine.stream(adapter_specs.PROMPT, adapter=row, **settings) for row in (None, "huge", "dora")}
    with pytest.raises(ExloraError) as caught:
        next(streams.pop("huge"))
    assert caught.value.code == "logits_not_finite"
    for row, stream in streams.items():
        assert [token for chunk in stream for token in chunk.token_ids] == list(alone[row])
    assert engine.stats()["leases"] == 0


def test_rows_of_every_kind_complete_in_a_cache_too_small_for_all_of_them(collection):
    """Rows that are preempted and resumed generate what they generate alone."""
    names = ["activated", "replicated", "dora", "tokens", "saved-head", "embedding-dora"]
    adapters = {name: collection.adapter("llama", name) for name in names}
    rows = [*names, None, {"activated": 0.5, "dora": -0.5}]
    prompts = [adapter_specs.PROMPT[: 30 + at] for at in range(len(rows))]
    settings = {"max_new_tokens": 80, "temperature": 0.9, "seed": 5, "logprobs": 1}
    wide = Engine(collection.dense("llama"), adapters=adapters)
    narrow = Engine(collection.dense("llama"), adapters=adapters, kv_tokens=256, prefill_chunk=9, threads=1)
    together = narrow.generate(prompts, adapters=rows, **settings)
    for prompt, row, out in zip(prompts, rows, together, strict=True):
        assert bits(wide.generate([prompt], adapters=[row], **settings)[0]) == bits(out), row


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_factors_of_a_resized_vocabulary_without_its_weights_are_refused_with_the_remedy(target, collection, tmp_path):
    spec = Spec(growth=adapter_specs.GROWTH, targets=(target,), save_embeddings=False)
    with pytest.raises(ExloraError) as caught:
        Engine(collection.dense("llama"), adapters={"it": write(spec, "it", "llama", collection, tmp_path)})
    assert caught.value.code == "adapter_shape_mismatch"
    assert "save_embedding_layers=True" in caught.value.hint
