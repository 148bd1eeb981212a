"""Faithful: a tiny model of every family against transformers in float32, and every datum of its config.json.

The bound is 1e-5 of the largest logit, at every position. Caches hold float32. Every datum of a family is shown to
move transformers' logits by much more: those of config.json by other members, which exlora has to follow, those of the
code by leaving them out of transformers' model.
"""

import random

import numpy as np
import pytest
import torch
import transformers
from exlora import Engine
from support import dropped_data, families, family_shapes, tiny
from support.compare import distance, log_softmax
from support.families import FAMILIES, LONG_PROMPT, PROMPT

TOLERANCE = 1e-5
# Less than the smallest datum does, the approximation of gelu; the logits are of the order of 1 to 8.
VISIBLE = 1e-3
STEPS = 8

CHANGES = families.first_of_each(
    ((name, datum) for name, family in FAMILIES.items() for datum in family.changes),
    kind=lambda case: (case[1], *FAMILIES[case[0]].changes[case[1]]),
)
IGNORED = families.first_of_each((name, member) for name, family in FAMILIES.items() for member in family.ignored)
DROPPED = families.first_of_each(dropped_data.CASES)
VARIANTS = families.first_of_each(name.split("-", 1) for name in families.VARIANTS)
# Among them are windows, two rotations, layers without one, norms of heads and behind linears, layers in parallel.
SOME = ("mistral", "ministral3", "smollm3", "gemma3", "cohere2", "glm4", "olmo3", "phi3-longrope")


@pytest.fixture(scope="module")
def unchanged(models):
    """transformers' logits of a family's model, computed once."""
    known = {}

    def logits(name):
        if name not in known:
            known[name] = families.logits(families.write(name, models))
        return known[name]

    return logits


def open_engine(folder, **options):
    return Engine(folder, **{"threads": 1, "kv_dtype": "f32", "prefix_cache": False, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_equals_transformers(name, models, unchanged):
    assert distance(open_engine(families.write(name, models)).logits(PROMPT), unchanged(name)) < TOLERANCE


@pytest.mark.parametrize("name", families.some(SOME))
def test_a_family_on_the_reference_device_equals_transformers(name, models, unchanged):
    engine = open_engine(families.write(name, models), device="reference")
    assert distance(engine.logits(PROMPT), unchanged(name)) < TOLERANCE


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_variant_with_other_tensors_equals_transformers(name, variant, models):
    """Biases, tied and untied heads, optional norms, other numbers of heads."""
    folder = families.write(f"{name}-{variant}", models)
    assert distance(open_engine(folder).logits(PROMPT), families.logits(folder)) < TOLERANCE


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize("name", families.some(SOME))
def test_random_shapes_of_a_family_equal_transformers(name, seed, tmp_path):
    """Sizes, windows, factors, lengths of the prompt and of its chunks."""
    draw = random.Random(f"{name}-{seed}")
    members = family_shapes.draw_members(name, draw)
    folder = families.build(name, tmp_path / "model", families.config(name, **members))
    tokens = [draw.randrange(members["vocab_size"]) for _ in range(draw.choice([1, 2, 7, 23, 40, 65]))]
    options = {"prefill_chunk": draw.choice([1, 3, 16, 512]), "threads": draw.choice([1, 2])}
    engine = open_engine(folder, device=draw.choice(["cpu", "cpu", "reference"]), **options)
    assert distance(engine.logits(tokens), families.logits(folder, tokens)) < TOLERANCE, members


@pytest.mark.parametrize("name", families.some(SOME))
def test_a_prompt_of_several_pages_equals_transformers(name, models):
    folder = families.write(name, models)
    want = families.logits(folder, LONG_PROMPT)
    assert distance(open_engine(folder, prefill_chunk=24).logits(LONG_PROMPT), want) < TOLERANCE


@pytest.mark.parametrize("name", families.some(SOME))
def test_a_greedy_continuation_is_that_of_transformers(name, models):
    """Each token is the best of transformers' one pass over all, or no further from it than rounding."""
    folder = families.write(name, models)
    [out] = open_engine(folder).generate([PROMPT], max_new_tokens=STEPS, temperature=0.0, logprobs=1, stop_at_eos=False)
    assert len(out.token_ids) == STEPS
    oracle = families.logits(folder, [*PROMPT, *out.token_ids])[len(PROMPT) - 1 : -1]
    error = 2 * TOLERANCE * np.abs(oracle).max()
    chosen = oracle[np.arange(STEPS), out.token_ids]
    assert (oracle.max(axis=1) - chosen).max() < error
    assert np.abs(np.asarray(out.logprobs) - log_softmax(oracle)[np.arange(STEPS), out.token_ids]).max() < error


@pytest.mark.parametrize(("name", "datum"), CHANGES)
def test_each_datum_of_config_json_moves_the_logits_as_in_transformers(name, datum, models, unchanged, tmp_path):
    changes = FAMILIES[name].changes[datum]
    folder = families.changed(families.write(name, models), tmp_path / "changed", changes)
    want = families.logits(folder)
    assert np.abs(want - unchanged(name)).max() > VISIBLE
    assert distance(open_engine(folder).logits(PROMPT), want) < TOLERANCE


@pytest.mark.parametrize(("name", "member"), IGNORED)
def test_a_member_that_a_family_does_not_read_changes_nothing(name, member, models, unchanged, tmp_path):
    folder = families.write(name, models)
    other = families.changed(folder, tmp_path / "other", {member: FAMILIES[name].ignored[member]})
    assert np.array_equal(families.logits(other), unchanged(name))
    assert np.array_equal(open_engine(other).logits(PROMPT), open_engine(folder).logits(PROMPT))


@pytest.mark.parametrize(("name", "datum"), DROPPED)
def test_each_datum_that_is_not_in_config_json_shows_in_the_logits(name, datum, models, unchanged, monkeypatch):
    """So that the comparison with transformers above would fail without it."""
    model = tiny.load(families.write(name, models))
    with torch.no_grad():
        dropped_data.DROPS[name][datum](model, monkeypatch)
    assert np.abs(tiny.logits(model, PROMPT) - unchanged(name)).max() > VISIBLE


@pytest.mark.parametrize("name", families.some(SOME))
def test_a_config_as_transformers_writes_it_means_the_same(name, models, tmp_path):
    """With every member, in the spelling of transformers 5."""
    folder = families.write(name, models)
    config = transformers.AutoConfig.from_pretrained(folder)
    other = families.copy(folder, tmp_path / "other", config.to_dict())
    assert np.array_equal(open_engine(other).logits(PROMPT), open_engine(folder).logits(PROMPT))


@pytest.mark.parametrize("kv_dtype", ["f16", pytest.param("q8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", families.some(["gemma2", "cohere", "phi3"]))
def test_smaller_caches_stay_within_their_rounding(name, kv_dtype, models, unchanged):
    """Keys and values of 11 bits, or of 8 with a scale for every 16 or 32 of them, through four layers."""
    got = open_engine(families.write(name, models), kv_dtype=kv_dtype).logits(PROMPT)
    assert distance(got, unchanged(name)) < {"f16": 4e-3, "q8": 5e-2}[kv_dtype]


@pytest.mark.parametrize("name", families.some(["gemma3", "granite", "phi3"]))
def test_vectors_in_place_of_tokens_are_what_transformers_takes(name, models):
    """As the embedding layer returns them: with Gemma's factor, which is in that layer, without Granite's behind it."""
    folder = families.write(name, models)
    model = tiny.loaded(folder)
    before, after = PROMPT[:9], PROMPT[9:]
    table = model.get_input_embeddings()
    with torch.no_grad():
        vectors = 0.3 * torch.randn(5, families.HIDDEN, generator=torch.Generator().manual_seed(1))
        parts = [table(torch.tensor(before)), vectors, table(torch.tensor(after))]
        want = model(inputs_embeds=torch.cat(parts)[None]).logits[0].numpy()
    prompt = {"prompt_embeds": [*before, vectors.numpy(), *after]}
    assert distance(open_engine(folder).logits(prompt), want) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["gemma3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma", "gemma2"))]
)
def test_gemmas_embedding_factor_is_rounded_to_the_type_of_the_table(name, dtype, tmp_path):
    """As in training. No type holds the root of 96; the oracle is transformers in float32 with the rounded factor."""
    config = families.config(name, hidden_size=96, dtype=str(dtype).removeprefix("torch."))
    full = families.build(name, tmp_path / "full", config)
    tensors = {key: tensor.to(dtype) for key, tensor in families.tensors(full).items()}
    folder = families.copy(full, tmp_path / "stored", config, tensors)
    model = tiny.load(folder)
    factor = torch.tensor(96**0.5).to(dtype).float()
    model.model.embed_tokens.embed_scale.fill_(factor)
    assert distance(open_engine(folder).logits(PROMPT), tiny.logits(model, PROMPT)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_weights_of_16_bits_mean_their_values_in_float32(name, dtype, models, tmp_path):
    """The root of the hidden size, Gemma's embedding factor, is 8 in every type."""
    folder = families.write(name, models)
    tensors = {key: tensor.to(dtype) for key, tensor in families.tensors(folder).items()}
    config = families.config(name, dtype=str(dtype).removeprefix("torch."))
    stored = families.copy(folder, tmp_path / "stored", config, tensors)
    assert distance(open_engine(stored).logits(PROMPT), families.logits(stored)) < TOLERANCE


def test_longrope_has_the_long_factors_at_all_positions_of_longer_sequences(models):
    folder = families.write("phi3-longrope", models)
    original = families.config("phi3-longrope")["original_max_position_embeddings"]
    tokens = [7 * i % families.VOCAB for i in range(original + 9)]
    engine = open_engine(folder)
    for length in (original, original + 1, len(tokens)):
        assert distance(engine.logits(tokens[:length]), families.logits(folder, tokens[:length])) < TOLERANCE


def test_a_sequence_that_outgrows_the_original_length_equals_whole_passes(models):
    folder = families.write("phi3-longrope", models)
    original = families.config("phi3-longrope")["original_max_position_embeddings"]
    prompt = [7 * i % families.VOCAB for i in range(original - 3)]
    engine = open_engine(folder)
    found = engine.generate(prompt, max_new_tokens=8, stop_at_eos=False, return_logits=True)
    tokens = [*prompt, *found.token_ids]
    for step, row in enumerate(found.logits):
        want = families.logits(folder, tokens[: len(prompt) + step])
        assert distance(row, want[-1]) < TOLERANCE, step
