"""Scripts of the kinds that exllamav2 has as examples: they say `import exllamav2`, and run on exlora.

Each runs as a whole, with torch's tensors; what it prints or leaves in its variables is compared with `exlora.Engine`.
"""

import builtins
import importlib.util
import json
import runpy
import sys
import textwrap
import typing

import exlora.compat
import pytest
from exlora import Engine

pytest.importorskip("torch")

PROMPTS = ["The table is used to", "Once there was a king", "A bug is"]

LOAD = """
    import sys
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Lora, ExLlamaV2Tokenizer, Timer
    from exllamav2.generator import *

    config = ExLlamaV2Config(sys.argv[1])
    config.arch_compat_overrides()
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, max_seq_len=2048, lazy=True)
    model.load_autosplit(cache, progress=False)
    tokenizer = ExLlamaV2Tokenizer(config)
    greedy = ExLlamaV2Sampler.Settings.greedy()
"""


@pytest.fixture(scope="module")
def folder(fixtures):
    return fixtures / "quill-4m-gptq-4bit-g128-sym"


@pytest.fixture(scope="module")
def engine(folder, fixtures):
    return Engine(folder, adapters={"sqlite": fixtures / "adapters/sqlite-rslora-r16"})


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs a script under exllamav2's name, after `LOAD`, and returns its variables. Lines of input end with Ctrl-D."""
    exlora.compat.install()

    def read(lines):
        def readline(prompt=""):
            if not lines:
                raise EOFError
            return lines.pop(0)

        return readline

    def run_script(script, *arguments, load=LOAD, lines=()):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(load) + textwrap.dedent(script))
        monkeypatch.setattr(sys, "argv", [str(path), str(folder), *map(str, arguments)])
        monkeypatch.setattr(builtins, "input", read(list(lines)))
        return runpy.run_path(str(path), run_name="__main__")

    yield run_script
    exlora.compat.uninstall()


def text_of(engine, prompt, adapter=None, tokens=16, **keywords):
    return engine.generate(prompt, adapter, max_new_tokens=tokens, stop_at_eos=False, **keywords).text


def test_a_list_of_prompts_in_one_call(run, engine):
    found = run(f"""
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        generator.warmup()
        with Timer() as timer:
            outputs = generator.generate(
                prompt={PROMPTS!r}, max_new_tokens=16, gen_settings=greedy, completion_only=True, add_bos=True
            )
        speed = 16 * len(outputs) / timer.interval
    """)
    assert found["outputs"] == [text_of(engine, prompt) for prompt in PROMPTS]
    assert found["speed"] > 0


def test_jobs_whose_results_are_printed_as_they_come(run, engine):
    found = run(f"""
        generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer, max_batch_size=2, max_chunk_size=256)
        texts, last, stages = {{}}, {{}}, set()
        for number, prompt in enumerate({PROMPTS!r}):
            ids = tokenizer.encode(prompt, encode_special_tokens=True)
            generator.enqueue(ExLlamaV2DynamicJob(
                input_ids=ids, max_new_tokens=16, gen_settings=greedy, identifier=number, token_healing=False,
                filters=None, filter_prefer_eos=True, banned_strings=None,
            ))
        while generator.num_remaining_jobs():
            for result in generator.iterate():
                stages.add(result["stage"])
                number = result["identifier"]
                texts[number] = texts.get(number, "") + result.get("text", "")
                if "token_ids" in result:
                    assert result["token_ids"].dim() == 2
                if result["eos"]:
                    last[number] = result
    """)
    assert [found["texts"][i] for i in range(3)] == [text_of(engine, prompt) for prompt in PROMPTS]
    assert found["stages"] == {"started", "prefill", "streaming"}
    assert all(result["full_completion"] == found["texts"][i] for i, result in found["last"].items())
    assert {"time_enqueued", "time_prefill", "time_generate", "new_tokens", "cached_tokens"} <= set(found["last"][0])


def test_tasks_that_iterate_over_jobs(run, engine):
    found = run(f"""
        import asyncio

        async def main():
            generator = ExLlamaV2DynamicGeneratorAsync(model=model, cache=cache, tokenizer=tokenizer)

            async def complete(prompt):
                job = ExLlamaV2DynamicJobAsync(
                    generator, input_ids=tokenizer.encode(prompt), max_new_tokens=16, gen_settings=greedy
                )
                return "".join([result.get("text", "") async for result in job])

            texts = await asyncio.gather(*[complete(prompt) for prompt in {PROMPTS!r}])
            await generator.close()
            return texts

        texts = asyncio.run(main())
    """)
    assert found["texts"] == [text_of(engine, prompt) for prompt in PROMPTS]


def test_an_adapter_that_is_set_and_unset(run, engine, fixtures):
    found = run(
        f"""
        lora = ExLlamaV2Lora.from_directory(model, sys.argv[2])
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        texts = []
        for loras in (None, lora, None):
            generator.set_loras(loras)
            texts.append(generator.generate({PROMPTS[0]!r}, 16, gen_settings=greedy, completion_only=True))
        """,
        fixtures / "adapters/sqlite-rslora-r16",
    )
    plain, adapted = text_of(engine, PROMPTS[0]), text_of(engine, PROMPTS[0], "sqlite")
    assert found["texts"] == [plain, adapted, plain]
    assert plain != adapted


def test_prompts_with_a_common_beginning_use_it_once(run):
    found = run("""
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        beginning = tokenizer.encode("It was written in the book that the king went out. " * 12)
        import torch
        last = []
        for number in range(3):
            ids = torch.cat([beginning, tokenizer.encode(f"Number {number}")], dim=-1)
            job = ExLlamaV2DynamicJob(input_ids=ids, max_new_tokens=4, gen_settings=greedy)
            generator.enqueue(job)
            while generator.num_remaining_jobs():
                last += [result for result in generator.iterate() if result["eos"]]
    """)
    cached = [result["cached_tokens"] for result in found["last"]]
    assert cached[0] == 0
    assert min(cached[1:]) > 100
    assert min(result["cached_pages"] for result in found["last"][1:]) > 0


def test_strings_that_are_banned(run, engine):
    banned = text_of(engine, PROMPTS[0]).split()[1]
    found = run(f"""
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        job = ExLlamaV2DynamicJob(
            input_ids=tokenizer.encode({PROMPTS[0]!r}), max_new_tokens=16, gen_settings=greedy,
            banned_strings=[{banned!r}],
        )
        generator.enqueue(job)
        text, suppressed = "", ""
        while generator.num_remaining_jobs():
            for result in generator.iterate():
                text += result.get("text", "")
                suppressed += result.get("suppressed_text", "")
    """)
    assert banned not in found["text"]
    assert banned in found["suppressed"]
    assert found["text"] == text_of(engine, PROMPTS[0], banned_strings=[banned])


@pytest.mark.parametrize("options", ["draft_model=draft, draft_cache=draft_cache", "use_ngram_draft=True"])
def test_drafts_that_change_no_token(run, engine, options):
    found = run(f"""
        draft = ExLlamaV2(ExLlamaV2Config(sys.argv[1]))
        draft_cache = ExLlamaV2Cache(draft, max_seq_len=2048, lazy=True)
        draft.load_autosplit(draft_cache)
        generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer, num_draft_tokens=5, {options})
        texts, last = generator.generate(
            {PROMPTS!r}, 32, gen_settings=greedy, completion_only=True, return_last_results=True
        )
    """)
    assert found["texts"] == [text_of(engine, prompt, tokens=32) for prompt in PROMPTS]
    assert sum(result["accepted_draft_tokens"] for result in found["last"]) > 0


def test_prompts_and_the_ones_that_their_texts_are_guided_away_from(run, engine):
    pairs = [(prompt, "The end of the story") for prompt in PROMPTS]
    found = run(f"""
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        settings = ExLlamaV2Sampler.Settings.greedy()
        settings.cfg_scale = 2.0
        texts = generator.generate(
            prompt={pairs!r}, max_new_tokens=16, gen_settings=settings, completion_only=True, add_bos=True
        )
        job = ExLlamaV2DynamicJob(
            input_ids=[tokenizer.encode(text, add_bos=True) for text in {pairs[0]!r}], max_new_tokens=16,
            gen_settings=settings,
        )
        generator.enqueue(job)
        while generator.num_remaining_jobs():
            generator.iterate()

        older = ExLlamaV2StreamingGenerator(model, ExLlamaV2Cache(model, batch_size=2, max_seq_len=512), tokenizer)
        older.set_stop_conditions([])
        ids, offsets = tokenizer.encode(list({pairs[0]!r}), return_offsets=True, add_bos=True)
        older.begin_stream_ex(ids, settings, input_mask=tokenizer.padding_mask(ids), position_offsets=offsets)
        streamed = "".join(older.stream_ex()["chunk"] for _ in range(16))
    """)
    expected = [text_of(engine, prompt, negative_prompt=away, cfg_scale=2.0) for prompt, away in pairs]
    assert found["texts"] == expected
    assert found["job"].full_completion == expected[0]
    assert found["streamed"] == expected[0]


@pytest.mark.parametrize(("cache", "kv_dtype"), [("Q4", "q4"), ("Q6", "q6"), ("Q8", "q8"), ("8bit", "q8")])
def test_a_quantized_cache_under_a_generator(run, folder, cache, kv_dtype):
    found = run(f"""
        from exllamav2 import ExLlamaV2Cache_{cache}
        small = ExLlamaV2Cache_{cache}(model, max_seq_len=1024, lazy=True)
        generator = ExLlamaV2DynamicGenerator(model=model, cache=small, tokenizer=tokenizer)
        outputs = generator.generate(
            prompt={PROMPTS!r}, max_new_tokens=16, gen_settings=greedy, completion_only=True, add_bos=True
        )
    """)
    quantized = Engine(folder, kv_dtype=kv_dtype)
    assert found["outputs"] == [text_of(quantized, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["Cache", "Cache_Q4"])
def test_a_prompt_that_is_computed_once_and_asked_twice(run, folder, kind):
    found = run(f"""
        import torch
        import exllamav2

        prompt = tokenizer.encode("Once there was a king, and the king had a book.", add_bos=True)
        questions = [tokenizer.encode(text) for text in (" The king", " The book")]
        cache = exllamav2.ExLlamaV2{kind}(model, max_seq_len=256)
        model.forward(prompt, cache, preprocess_only=True)

        def answer(cache, ids):
            answered = []
            for _ in range(8):
                logits = model.forward(ids, cache, last_id_only=True)
                ids = torch.argmax(logits[:, -1:], dim=-1)
                answered.append(ids)
            return torch.cat(answered, dim=-1)

        answers = [answer(cache.clone(), question) for question in questions]

        # The same by rows of one cache.
        batch = exllamav2.ExLlamaV2{kind}(model, batch_size=2, max_seq_len=256)
        length = cache.current_seq_len
        cache.copy_states(batch, 0, length, 0, length, 0, 1, 0, 2)
        batch.current_seq_len = length
        together = answer(batch, torch.cat(questions))
        untouched = cache.current_seq_len == prompt.shape[-1]
    """)
    engine = Engine(folder, kv_dtype="q4" if kind == "Cache_Q4" else "f16")
    prompt, questions = found["prompt"][0].tolist(), [ids[0].tolist() for ids in found["questions"]]
    expected = [
        list(engine.generate([[*prompt, *ids]], max_new_tokens=8, stop_at_eos=False)[0].token_ids) for ids in questions
    ]
    assert [answer[0].tolist() for answer in found["answers"]] == expected
    assert found["together"].tolist() == expected
    assert expected[0] != expected[1]
    assert found["untouched"]


def test_vectors_that_a_prompt_names_by_an_alias(run, engine):
    found = run("""
        import torch
        from exllamav2.generator import ExLlamaV2MMEmbedding

        torch.manual_seed(1)
        features = torch.randn(7, config.hidden_size) * 0.3
        image = ExLlamaV2MMEmbedding(model=model, embeddings=features, text_alias="{{EMBED_HERE}}")
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        output = generator.generate(
            prompt="A {{EMBED_HERE}} is", max_new_tokens=16, gen_settings=greedy, embeddings=[image],
            completion_only=True,
        )
        ids = tokenizer.encode("A {{EMBED_HERE}} is", embeddings=[image])
    """)
    parts = [found["features"] if token == 1_000_000_000 else token for token in _without_runs(found["ids"])]
    assert found["output"] == text_of(engine, {"prompt_embeds": parts})


def _without_runs(ids):
    """Ids, with those of vectors replaced by one of 1000000000."""
    tokens = [min(token, 1_000_000_000) for token in ids[0].tolist()]
    return [token for i, token in enumerate(tokens) if token < 1_000_000_000 or i == tokens.index(1_000_000_000)]


def test_a_token_that_is_healed(run):
    found = run("""
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        text = generator.generate("The kin", 4, gen_settings=greedy, token_healing=True)
    """)
    assert found["text"].startswith("The kin")


SCHEMA = {"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}}, "required": ["name"]}


def test_json_by_lm_format_enforcer(run):
    pytest.importorskip("lmformatenforcer")
    found = run(f"""
        from exllamav2.generator.filters import ExLlamaV2PrefixFilter
        from lmformatenforcer import JsonSchemaParser
        from lmformatenforcer.integrations.exllamav2 import ExLlamaV2TokenEnforcerFilter

        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        parser = JsonSchemaParser({SCHEMA!r})
        beginning = ExLlamaV2PrefixFilter(model, tokenizer, ["{{", " {{"])
        filters = [ExLlamaV2TokenEnforcerFilter(parser, tokenizer), beginning]
        free, bound = generator.generate(
            {PROMPTS[:2]!r}, 60, gen_settings=greedy, filters=[None, filters], filter_prefer_eos=True,
            stop_conditions=[tokenizer.eos_token_id], completion_only=True,
        )
    """)
    assert json.loads(found["bound"])["name"] in ("Ann", "Bob")
    assert "{" not in found["free"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_template_by_formatron(run, monkeypatch):
    if importlib.util.find_spec("formatron") is None:
        pytest.skip("formatron is not installed")
    # formatron 0.5.0 takes names of `typing` from a module of pydantic that newer versions of it empty.
    emptied = vars(importlib.import_module("pydantic.typing"))
    for name in typing.__all__:
        monkeypatch.setitem(emptied, name, getattr(typing, name))
    found = run(f"""
        from formatron.formatter import FormatterBuilder
        from formatron.integrations.exllamav2 import create_formatter_filter

        builder = FormatterBuilder()
        builder.append_str(f"My name is {{builder.choose('Ann', 'Bob', capture_name='name')}}.")
        generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)
        free, bound = generator.generate(
            {PROMPTS[:2]!r}, 60, gen_settings=greedy,
            filters=[None, [create_formatter_filter(model, tokenizer, builder)]],
            stop_conditions=[tokenizer.eos_token_id], completion_only=True,
        )
    """)
    assert found["bound"] in ("My name is Ann.", "My name is Bob.")
    assert "My name" not in found["free"]


def test_a_chat_whose_context_is_made_of_tensors(run, capsys):
    found = run(
        """
        import torch
        generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
        context = torch.empty((1, 0), dtype=torch.long)
        while True:
            try:
                line = input("User: ")
            except EOFError:
                break
            context = torch.cat([context, tokenizer.encode(f"{line}\\n", add_bos=True)], dim=-1)
            generator.enqueue(ExLlamaV2DynamicJob(
                input_ids=context, max_new_tokens=8, gen_settings=greedy, stop_conditions=[tokenizer.eos_token_id]
            ))
            eos = False
            while not eos:
                for result in generator.iterate():
                    if result["stage"] == "streaming":
                        eos = result["eos"]
                        print(result.get("text", ""), end="")
                        if "token_ids" in result:
                            context = torch.cat([context, result["token_ids"]], dim=-1)
        """,
        lines=["Who is the king?", "And the queen?"],
    )
    assert found["context"].shape[1] > 16
    assert capsys.readouterr().out.strip()


def test_a_chat_that_continues_the_generators_sequence(run):
    found = run(
        """
        import torch
        generator = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
        generator.set_stop_conditions([tokenizer.eos_token_id])
        lengths = []
        for line in ("Who is the king?", "And the queen?"):
            ids = tokenizer.encode(line, add_bos=True)
            if generator.sequence_ids is not None:
                ids = torch.cat([generator.sequence_ids, ids], dim=-1)
            lengths.append(ids.shape[-1])
            generator.begin_stream_ex(ids, greedy)
            for _ in range(8):
                if generator.stream_ex()["eos"]:
                    break
            lengths.append(generator.sequence_ids.shape[-1])
        """
    )
    first, after, second, end = found["lengths"]
    assert first < after < second < end


def test_a_chat_with_the_options_of_model_init(run, folder, capsys):
    """As chat.py: options on the command line, drafts from the text, turns that are dropped to make room."""
    run(
        """
        import argparse
        import sys
        import torch
        from exllamav2 import ExLlamaV2Cache, ExLlamaV2Cache_TP, model_init
        from exllamav2.generator import ExLlamaV2Sampler, ExLlamaV2StreamingGenerator

        parser = argparse.ArgumentParser()
        parser.add_argument("-ngram", action="store_true")
        model_init.add_args(parser)
        args = parser.parse_args(sys.argv[2:])
        model_init.check_args(args)
        model_init.print_options(args)
        model, tokenizer = model_init.init(args, allow_auto_split=True, max_output_len=16, skip_load=True)
        model_init.post_init_load(model, args, allow_auto_split=True)
        assert model.tp_context is None
        cache = ExLlamaV2Cache(model, lazy=not model.loaded)
        if not model.loaded:
            model.load_autosplit(cache)
        generator = ExLlamaV2StreamingGenerator(model, cache, tokenizer, None, None, num_speculative_tokens=5)
        generator.speculative_ngram = args.ngram
        generator.set_stop_conditions([tokenizer.eos_token_id])
        settings = ExLlamaV2Sampler.Settings(temperature=0.95, top_k=50, min_temp=0.0, skew=0.0, dry_multiplier=0.0)
        turns, answers, restarts = [], [], 0

        def context(limit):
            while True:
                ids = torch.cat([part for pair in zip(turns, answers + [turns[-1][:, :0]]) for part in pair], dim=-1)
                if ids.shape[-1] < limit:
                    return ids
                del turns[0], answers[0]

        for number in range(6):
            line = input()
            turns.append(tokenizer.encode(line, add_bos=True))
            generator.begin_stream_ex(context(model.config.max_seq_len - 40), settings)
            generator.reset_sd_stats()
            answers.append(turns[-1][:, :0])
            for count in range(60):
                result = generator.stream_ex()
                answers[-1] = torch.cat([answers[-1], result["chunk_token_ids"]], dim=-1)
                if generator.full():
                    restarts += 1
                    break
                if result["eos"] or count == 59 and tokenizer.eos_token_id in generator.stop_tokens:
                    answers[-1] = torch.cat([answers[-1], tokenizer.single_token(tokenizer.eos_token_id)], dim=-1)
                    break
            efficiency, accuracy, tokens, drafts, accepted = generator.get_sd_stats()
            assert tokens > 0
        assert len(turns) < 6
        """,
        "-m",
        folder,
        "-l",
        "256",
        "-gs",
        "auto",
        "-ngram",
        load="",
        lines=["Who is the king of the land?"] * 6,
    )
    assert "length: 256" in capsys.readouterr().out
