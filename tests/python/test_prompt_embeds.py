"""Vectors in place of token ids: natively against transformers' and peft's `inputs_embeds`, and in exllamav2's API."""

import copy
import pickle

import exlora
import numpy as np
import pytest
import torch
from exlora import (
    Engine,
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExLlamaV2Tokenizer,
    ExloraError,
    Request,
)
from exlora.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2MMEmbedding,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)
from support import adapter_specs, tiny
from support.compare import gap

TOLERANCE = 2e-4
GREEDY = ExLlamaV2Sampler.Settings.greedy()
SETTINGS = {"max_new_tokens": 8, "stop_at_eos": False}


def vectors(seed, tokens, width):
    return (torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * 0.3).numpy()


@torch.no_grad()
def oracle_logits(model, before, embeds, after):
    """What transformers and peft compute from `inputs_embeds`: vectors as they are, between those of ids."""
    table = model.get_input_embeddings()
    parts = [table(torch.tensor(before)), torch.from_numpy(embeds), table(torch.tensor(after))]
    return model(inputs_embeds=torch.cat(parts)[None]).logits[0].float().numpy()


@pytest.mark.parametrize(
    "name", [None, "dora", "embedding", "saved-embedding", "tokens", "both-ends", "embedding-dora"]
)
@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_logits_are_those_of_inputs_embeds_under_every_kind_of_adapter(base, name, engines, collection):
    engine, folder = engines.engine(base, False, *([name] if name else []))
    oracle = collection.by_peft(folder, base, name) if name else tiny.load(folder)
    before, after = adapter_specs.PROMPT[:5], adapter_specs.PROMPT[5:9]
    embeds = vectors(1, 6, tiny.HIDDEN)
    ours = engine.logits({"prompt_embeds": [*before, embeds, *after]}, adapter=name)
    assert gap(ours, oracle_logits(oracle, before, embeds, after)) < TOLERANCE


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def engine(folder, fixtures):
    return Engine(folder, adapters={"wit": fixtures / "adapters/jargon-lora-r8"})


@pytest.fixture(scope="module")
def width(folder):
    return ExLlamaV2Config(folder).hidden_size


def test_a_prompt_of_vectors_may_be_any_array_and_runs_in_a_batch(engine, width):
    array = vectors(2, 40, width)
    prompts = [
        {"prompt_embeds": array},
        {"prompt_embeds": torch.from_numpy(array)},
        {"prompt_embeds": array.tolist()},
        {"prompt_embeds": [array[:10], torch.from_numpy(array[10:])]},
        "The table",
        {"prompt_embeds": [5, array, 7]},
    ]
    out = engine.generate(prompts, adapters={"wit": 0.5}, **SETTINGS)
    assert len({tuple(one.token_ids) for one in out[:4]}) == 1
    assert [one.usage.prompt_tokens for one in out[:4]] == [40] * 4
    assert out[5].usage.prompt_tokens == 42
    alone = engine.generate(prompts[5], adapters={"wit": 0.5}, return_logits=True, **SETTINGS)
    again = engine.generate(prompts, adapters={"wit": 0.5}, return_logits=True, **SETTINGS)[5]
    assert np.array_equal(alone.logits, again.logits)
    assert "".join(chunk.text for chunk in engine.stream(prompts[0], {"wit": 0.5}, **SETTINGS)) == out[0].text


def test_a_request_of_vectors_is_a_value(width):
    request = Request({"prompt_embeds": [3, vectors(3, 2, width), 4]})
    same = Request(**request.to_dict())
    assert same == request == pickle.loads(pickle.dumps(request)) == copy.deepcopy(request)
    assert request != Request({"prompt_embeds": [3, vectors(4, 2, width), 4]})
    [first, array, last] = request.prompt["prompt_embeds"]
    assert (first, array.shape, last) == (3, (2, width), 4)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda array: array[:, :-1], "another width"),
        (lambda array: array[0], "another shape"),
        (lambda array: array[None], "another shape"),
        (lambda array: array.astype(np.int64), "no floats"),
        (lambda array: array[:0], "no whole vectors"),
        (lambda array: np.where(array == array.max(), np.nan, array), "not finite"),
        (lambda array: np.where(array == array.max(), np.inf, array), "not finite"),
        (lambda array: [5, array[:, :-1]], "another width"),
        (lambda array: "text", "no floats"),
    ],
)
def test_what_is_no_array_of_vectors_is_refused(engine, width, make, expected):
    with pytest.raises(ExloraError, match=expected) as caught:
        engine.generate({"prompt_embeds": make(vectors(5, 3, width))})
    assert caught.value.code == "prompt_embeds_invalid"


@pytest.fixture(scope="module")
def model(folder):
    model = ExLlamaV2(ExLlamaV2Config(folder))
    model.load()
    return model


@pytest.fixture(scope="module")
def tokenizer(model):
    return ExLlamaV2Tokenizer(model.config)


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    return ExLlamaV2DynamicGenerator(model, ExLlamaV2Cache(model, max_seq_len=1024), tokenizer)


def native_text(engine, ids, embedding, adapter=None):
    """What the engine makes of ids, some of which stand for vectors."""
    array, parts = np.asarray(embedding.embeddings), []
    for token in ids:
        place = token - embedding.first_index
        parts.append(array[place : place + 1] if 0 <= place < embedding.length else token)
    return engine.generate({"prompt_embeds": parts}, adapters=adapter, **SETTINGS).text


def test_an_alias_stands_for_vectors_in_texts_and_jobs(model, tokenizer, generator, engine, fixtures, width):
    image = ExLlamaV2MMEmbedding(model, torch.from_numpy(vectors(6, 12, width)), text_alias="{{EMBED_1}}")
    other = ExLlamaV2MMEmbedding(model, torch.from_numpy(vectors(7, 3, width)))
    assert other.first_index >= image.first_index + image.length == image.get_ids()[-1] + 1
    assert (image.get_size_in_bytes(), tuple(image.get_ids_tensor().shape)) == (12 * width * 4, (1, 12))
    text = "The {{EMBED_1}} table <not>"
    ids = tokenizer.encode(text, embeddings=[image, other])[0].tolist()
    before, after = (tokenizer.encode(part)[0].tolist() for part in text.split("{{EMBED_1}}"))
    assert ids == [*before, *image.get_ids(), *after]
    lora = ExLlamaV2Lora.from_directory(model, fixtures / "adapters/jargon-lora-r8", 0.5)
    for loras, adapter in ((None, None), (lora, {"wit": 0.5})):
        found = generator.generate(
            [text, "The table"], 8, gen_settings=GREEDY, embeddings=[[image], None], completion_only=True, loras=loras
        )
        assert found == [
            native_text(engine, ids, image, adapter),
            engine.generate("The table", adapters=adapter, add_special_tokens=False, **SETTINGS).text,
        ]
    job = ExLlamaV2DynamicJob(torch.tensor([ids]), 8, gen_settings=GREEDY, embeddings=[other, image])
    generator.enqueue(job)
    while generator.num_remaining_jobs():
        generator.iterate()
    assert job.full_completion == native_text(engine, ids, image)
    assert job.sequences[0].input_ids.torch()[0].tolist() == ids
    with pytest.raises(ExloraError, match="not given") as caught:
        generator.enqueue(ExLlamaV2DynamicJob(torch.tensor([ids]), 8, embeddings=[other]))
    assert caught.value.code == "token_out_of_range"
    with pytest.raises(ExloraError) as caught:
        ExLlamaV2MMEmbedding(model, torch.zeros(3, width + 1))
    assert caught.value.code == "prompt_embeds_invalid"


def test_the_older_generators_take_an_array_of_vectors(model, tokenizer, engine, width):
    array = torch.from_numpy(vectors(8, 5, width))[None]
    prompt, cache = "The {{EMBED_HERE}} table", ExLlamaV2Cache(model, max_seq_len=512)
    base = ExLlamaV2BaseGenerator(model, cache, tokenizer)
    ids = [*tokenizer.encode("The")[0].tolist(), *range(1_000_000_000, 1_000_000_005)]
    ids += tokenizer.encode("table")[0].tolist()
    marked = exlora.indexed_embeddings.IndexedEmbeddings(1_000_000_000, array[0])
    expected = native_text(engine, ids, marked)
    found = base.generate_simple(prompt, GREEDY, 8, stop_token=None, input_embeddings=array, completion_only=True)
    assert found == expected
    assert int(base.sequence_ids.max()) < 2048
    with pytest.raises(ExloraError, match="one marker"):
        base.generate_simple("The table", GREEDY, 8, input_embeddings=array)
    streaming = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
    streaming.set_stop_conditions([])
    streaming.begin_stream_ex(torch.tensor([ids]), GREEDY, input_embeddings=array)
    assert "".join(streaming.stream_ex()["chunk"] for _ in range(8)).strip() == expected.strip()


def test_the_forward_pass_takes_vectors_and_gives_the_last_state(models_dir, width):
    folder = tiny.write("llama", models_dir)
    model = ExLlamaV2(ExLlamaV2Config(folder))
    model.config.kv_dtype = "f32"
    model.load()
    oracle = tiny.load(folder)
    embeds = vectors(9, 4, tiny.HIDDEN)
    before, after = adapter_specs.PROMPT[:3], adapter_specs.PROMPT[3:6]
    ids = torch.tensor([[*before, *range(1_000_000_000, 1_000_000_004), *after]])
    expected = oracle_logits(oracle, before, embeds, after)
    image = ExLlamaV2MMEmbedding(model, torch.from_numpy(embeds))
    by_name = torch.tensor([[*before, *image.get_ids(), *after]])
    for found in (
        model.forward(ids, indexed_embeddings=torch.from_numpy(embeds)[None]),
        model.forward(ids, input_embeddings=torch.from_numpy(embeds)[None]),
        model.forward(by_name, indexed_embeddings=[image]),
    ):
        assert gap(found[0].numpy(), expected) < TOLERANCE
    states = []
    oracle.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0].detach().numpy()))
    plain = torch.tensor([adapter_specs.PROMPT])
    oracle(input_ids=plain)
    for chunk in (2048, 3):
        model.config.max_input_len = chunk
        logits, state = model.forward(plain, return_last_state=True)
        assert tuple(state.shape) == (1, plain.shape[1], tiny.HIDDEN)
        assert gap(state[0].numpy(), states[0]) < TOLERANCE
        assert torch.equal(logits, model.forward(plain))
    result = model.forward_chunk(plain, last_id_only=True, return_last_state=True)
    assert set(result) == {"logits", "last_state"}
    assert result["logits"].shape[1] == 1


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    "settings", [{"scale_pos_emb": 2.0}, {"scale_alpha_value": 2.5}, {"rotary_embedding_base": 5e4}]
)
def test_rope_scaling_of_the_config_is_that_of_transformers(models_dir, settings):
    folder = tiny.write("llama", models_dir)
    config = ExLlamaV2Config(folder)
    assert (config.scale_pos_emb, config.scale_alpha_value) == (1.0, 1.0)
    vars(config).update(settings, kv_dtype="f32")
    model = ExLlamaV2(config)
    model.load()
    oracle = tiny.load(folder)
    rotary = oracle.model.rotary_emb
    base = settings.get("rotary_embedding_base", config._read["rotary_embedding_base"])
    dim = tiny.HIDDEN // tiny.HEADS
    base *= settings.get("scale_alpha_value", 1.0) ** (dim / (dim - 2))
    frequencies = base ** -(torch.arange(0, dim, 2).float() / dim)
    rotary.inv_freq = frequencies / settings.get("scale_pos_emb", 1.0)
    prompt = adapter_specs.PROMPT
    assert gap(model.forward(torch.tensor([prompt]))[0].numpy(), tiny.logits(oracle, prompt)) < TOLERANCE
    plain = ExLlamaV2(ExLlamaV2Config(folder))
    plain.load()
    assert gap(plain.forward(torch.tensor([prompt]))[0].numpy(), tiny.logits(oracle, prompt)) > 1e-2


def test_ids_written_into_a_config_precede_those_of_the_tokenizer(folder):
    config = ExLlamaV2Config(folder)
    own = ExLlamaV2Tokenizer(config)
    config.eos_token_id, config.bos_token_id = 7, 9
    changed = ExLlamaV2Tokenizer(config)
    assert (own.eos_token_id, changed.eos_token_id, changed.bos_token_id) == (0, 7, 9)
    assert changed.encode("a", add_bos=True, add_eos=True)[0].tolist()[::2] == [9, 7]
    ExLlamaV2(config).load()
