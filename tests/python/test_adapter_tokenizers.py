"""Adapters that bring a tokenizer: their requests use it, all others the base's."""

import json
import shutil

import exlora
import pytest
import transformers

ADAPTER = "sqlite-rslora-r16"
WORD = "<answer>"
# A token of the base that is an end token of the adapter.
END_TEXT = "he"


@pytest.fixture(scope="module")
def base_tokenizer(quill):
    return transformers.AutoTokenizer.from_pretrained(quill)


@pytest.fixture
def engine(quill):
    with exlora.Engine(str(quill), threads=1, kv_tokens=1024) as engine:
        yield engine


@pytest.fixture
def adapter(fixtures, tmp_path):
    """Copies of a bundled adapter, with further files."""

    def write(name="adapter", tokenizer=None, template=None, generation=None):
        folder = tmp_path / name
        shutil.copytree(fixtures / "adapters" / ADAPTER, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return str(folder)

    return write


@pytest.fixture
def own_tokenizer(quill):
    """The base's with other special tokens: no ids beyond the model's, so that any adapter can use it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(quill)
    tokenizer.add_special_tokens({"eos_token": END_TEXT})
    return tokenizer


@pytest.fixture(scope="module")
def end(base_tokenizer):
    return base_tokenizer.convert_tokens_to_ids(END_TEXT)


def force(token, **more):
    return {"max_new_tokens": 4, "logit_bias": {token: 1e4}, **more}


def test_its_requests_are_encoded_decoded_and_ended_by_it(engine, adapter, own_tokenizer, base_tokenizer, end):
    engine.load_adapter("own", adapter(tokenizer=own_tokenizer))
    prompt = "The file <|im_end|>"
    ids = own_tokenizer(prompt).input_ids
    assert ids != base_tokenizer(prompt).input_ids
    assert engine.generate(prompt, adapter="own", max_new_tokens=1).usage.prompt_tokens == len(ids)
    assert engine.generate(prompt, max_new_tokens=1).usage.prompt_tokens == len(base_tokenizer(prompt).input_ids)
    (logits, same) = (engine.logits(text, adapter="own") for text in (prompt, ids))
    assert (logits == same).all()
    out = engine.generate("The file", adapter="own", **force(end))
    assert (out.finish_reason, out.token_ids, out.text) == ("stop", [end], "")
    out = engine.generate("The file", adapter="own", **force(end, stop_at_eos=False))
    assert (out.finish_reason, out.text) == ("length", "")
    out = engine.generate("The file", **force(end))
    assert (out.finish_reason, out.text) == ("length", base_tokenizer.decode([end] * 4))
    assert engine.tokenizer.eos_token_id != end
    assert engine.tokenizer_for("own").eos_token_id == end
    assert "".join(chunk.text for chunk in engine.stream("The file", adapter="own", **force(end))) == ""


def test_new_tokens_work_where_the_adapter_has_embeddings_for_them(quill, base_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer = transformers.AutoTokenizer.from_pretrained(quill)
    tokenizer.add_tokens([WORD])
    model = transformers.AutoModelForCausalLM.from_pretrained(quill, dtype="float32")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
    )
    folder = tmp_path / "wider"
    peft.get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    new = tokenizer.convert_tokens_to_ids(WORD)
    with exlora.Engine(str(quill), adapters={"wider": str(folder)}, threads=1, kv_tokens=1024) as engine:
        out = engine.generate(f"The{WORD} file", adapter="wider", **force(new))
        assert (out.token_ids, out.text) == ([new] * 4, WORD * 4)
        assert out.usage.prompt_tokens == len(tokenizer(f"The{WORD} file").input_ids)
        assert engine.generate(f"The{WORD}", max_new_tokens=1).usage.prompt_tokens == len(
            base_tokenizer(f"The{WORD}").input_ids
        )


def test_a_prompt_with_tokens_beyond_the_adapters_embeddings_is_refused(engine, adapter, quill):
    tokenizer = transformers.AutoTokenizer.from_pretrained(quill)
    tokenizer.add_tokens([WORD])
    engine.load_adapter("own", adapter(tokenizer=tokenizer))
    assert engine.generate("The file", adapter="own", max_new_tokens=1).token_ids
    with pytest.raises(exlora.ExloraError) as caught:
        engine.generate(f"The {WORD}", adapter="own", max_new_tokens=1)
    assert caught.value.code == "token_out_of_range"


def test_its_chat_template_renders_its_chats(engine, adapter, base_tokenizer):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    engine.load_adapter("own", adapter(tokenizer=base_tokenizer, template=template))
    chat = [{"role": "user", "content": "hi"}]
    tokens = engine.generate(chat, adapter="own", max_new_tokens=1).usage.prompt_tokens
    assert tokens == len(base_tokenizer("[user]hi").input_ids)
    assert engine.generate(chat, max_new_tokens=1).usage.prompt_tokens != tokens


def test_the_end_tokens_of_its_generation_config_end_its_texts(engine, adapter, base_tokenizer):
    for ids, name in (([40, 41], "list"), (41, "number")):
        engine.load_adapter(name, adapter(name, base_tokenizer, generation={"eos_token_id": ids}))
        assert engine.generate("The file", adapter=name, **force(41)).token_ids == [41]
    assert len(engine.generate("The file", **force(41)).token_ids) == 4


def test_a_copy_of_the_bases_tokenizer_changes_nothing(engine, adapter, base_tokenizer, own_tokenizer):
    engine.load_adapter("copy", adapter("copy", base_tokenizer))
    engine.load_adapter("plain", adapter("plain"))
    for prompt in ("The king<|im_end|>", [{"role": "user", "content": "hi"}]):
        one, other = (engine.generate(prompt, adapter=name, max_new_tokens=8) for name in ("copy", "plain"))
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
    assert repr(engine.tokenizer_for("copy")) == repr(engine.tokenizer)
    engine.generate("The king", adapter={"copy": 1.0, "plain": 0.5}, max_new_tokens=1)


def test_a_mixture_uses_the_first_tokenizer_and_refuses_different_ones(
    engine, adapter, base_tokenizer, own_tokenizer, end
):
    engine.load_adapter("own", adapter("own", own_tokenizer))
    engine.load_adapter("same", adapter("same", own_tokenizer))
    engine.load_adapter("copy", adapter("copy", base_tokenizer))
    engine.load_adapter("plain", adapter("plain"))
    for mixture in ({"own": 0.5, "plain": 0.5}, {"plain": 0.5, "own": 0.5}, {"own": 0.5, "same": 0.5}):
        assert engine.generate("The file", adapter=mixture, **force(end)).token_ids == [end]
    with pytest.raises(exlora.ExloraError, match="'own' and 'copy'") as caught:
        engine.generate("The file", adapter={"own": 0.5, "copy": 0.5}, max_new_tokens=1)
    assert caught.value.code == "adapter_mixture_invalid"


def test_a_running_request_keeps_it(engine, adapter, own_tokenizer, end):
    engine.load_adapter("own", adapter("own", own_tokenizer))
    stream = engine.stream("The file", adapter="own", **force(end, stop_at_eos=False, skip_special_tokens=False))
    chunks = [next(stream)]
    engine.load_adapter("own", adapter("plain"))
    assert engine.generate("The file", adapter="own", **force(end)).finish_reason == "length"
    engine.unload_adapter("own")
    chunks += stream
    assert "".join(chunk.text for chunk in chunks) == END_TEXT * 4


def test_a_tokenizer_that_cannot_be_read_refuses_the_adapter(engine, adapter):
    folder = adapter()
    with open(f"{folder}/tokenizer.json", "w") as file:
        file.write("{")
    with pytest.raises(exlora.ExloraError, match="adapter 'own'") as caught:
        engine.load_adapter("own", folder)
    assert caught.value.code == "tokenizer_invalid"
    assert not engine.adapters()


def test_generators_of_exllamav2_use_it(quill, adapter, own_tokenizer, base_tokenizer):
    from exlora import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Lora, ExLlamaV2Tokenizer
    from exlora.generator import ExLlamaV2BaseGenerator, ExLlamaV2DynamicGenerator, ExLlamaV2Sampler

    config = ExLlamaV2Config(str(quill))
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, max_seq_len=256, lazy=True)
    model.load_autosplit(cache)
    tokenizer = ExLlamaV2Tokenizer(config)
    settings = ExLlamaV2Sampler.Settings.greedy()
    lora = ExLlamaV2Lora.from_directory(model, adapter(tokenizer=own_tokenizer))
    prompt = "The file"
    generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    options = {
        "max_new_tokens": 3,
        "gen_settings": settings,
        "encode_special_tokens": True,
        "return_last_results": True,
    }
    (_, last) = generator.generate(prompt, loras=[lora], stop_conditions=[END_TEXT], **options)
    assert last["prompt_tokens"] == len(own_tokenizer(prompt).input_ids)
    (_, last) = generator.generate(prompt, **options)
    assert last["prompt_tokens"] == len(base_tokenizer(prompt).input_ids)
    text = ExLlamaV2BaseGenerator(model, cache, tokenizer).generate_simple(prompt, settings, 3, loras=[lora])
    assert text.startswith(prompt)
