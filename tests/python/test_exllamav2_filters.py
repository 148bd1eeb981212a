"""exllamav2's filters and token healing, in each of its generators."""

import numpy as np
import pytest
from exlora import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer, ExloraError
from exlora.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)
from exlora.generator.base import ExLlamaV2Filter as FilterOfBase
from exlora.generator.filters import ExLlamaV2Filter, ExLlamaV2PrefixFilter, ExLlamaV2SelectFilter

PROMPT = "The table is used to"
GREEDY = ExLlamaV2Sampler.Settings.greedy()
RANDOM = ExLlamaV2Sampler.Settings(temperature=3.0, top_k=0, top_p=0.0)
OPTIONS = ["create", "createdb", "read a row", "Übung"]


@pytest.fixture(scope="module")
def model(fixtures):
    model = ExLlamaV2(ExLlamaV2Config(str(fixtures / "quill-4m-gptq-4bit-g128-sym")))
    model.load()
    return model


@pytest.fixture(scope="module")
def tokenizer(model):
    return ExLlamaV2Tokenizer(model.config)


@pytest.fixture
def generator(model, tokenizer):
    return ExLlamaV2DynamicGenerator(model, ExLlamaV2Cache(model, max_seq_len=512), tokenizer)


def completion(generator, *filters, settings=RANDOM, tokens=24, **keywords):
    return generator.generate(
        PROMPT,
        tokens,
        gen_settings=settings,
        filters=list(filters),
        completion_only=True,
        return_last_results=True,
        **keywords,
    )


class Own(ExLlamaV2Filter):
    """Allows the ids of some text pieces; ends after three tokens."""

    def __init__(self, model, tokenizer, in_background=False):
        super().__init__(model, tokenizer)
        self.in_background = in_background
        self.ids = [i for i, piece in enumerate(tokenizer.get_id_to_piece_list()) if set(piece) & set("aeiou")]
        self.fed = []

    def begin(self, prefix_str):
        assert prefix_str == ""
        self.fed = []

    def feed(self, token):
        self.fed.append(int(token[0][0]))

    def next(self):
        return self.ids, (set(self.ids) if len(self.fed) == 2 else set())

    def use_background_worker(self):
        return self.in_background


def test_the_filters_have_their_old_names():
    assert FilterOfBase is ExLlamaV2Filter
    assert issubclass(ExLlamaV2PrefixFilter, ExLlamaV2Filter)
    assert issubclass(ExLlamaV2SelectFilter, ExLlamaV2Filter)


@pytest.mark.parametrize("prefixes", [" find the", [" zebra", " Zürich (", "日本"]])
def test_a_prefix_filter_begins_the_text(generator, model, tokenizer, prefixes):
    given = [prefixes] if isinstance(prefixes, str) else prefixes
    for seed in range(6):
        text, last = completion(generator, ExLlamaV2PrefixFilter(model, tokenizer, prefixes), seed=seed)
        assert text.startswith(tuple(given))
        assert last["eos_reason"] == "max_new_tokens"


def test_a_select_filter_is_the_text(generator, model, tokenizer):
    seen = set()
    for seed in range(12):
        text, last = completion(generator, ExLlamaV2SelectFilter(model, tokenizer, OPTIONS), seed=seed)
        # An option that another one begins with ends the text, if a token does.
        assert text in OPTIONS
        assert last["eos_reason"] == "end_filter"
        seen.add(text)
    assert len(seen) > 1


def test_a_select_filter_may_ignore_case(generator, model, tokenizer):
    texts = [
        completion(generator, ExLlamaV2SelectFilter(model, tokenizer, OPTIONS, case_insensitive=True), seed=seed)[0]
        for seed in range(16)
    ]
    options = [option.lower() for option in OPTIONS]
    assert all(text.lower() in options for text in texts)
    assert any(text not in OPTIONS and text not in options for text in texts)


@pytest.mark.parametrize("in_background", [False, True])
def test_an_own_filter_is_fed_arrays_of_one_id(generator, model, tokenizer, in_background):
    own = Own(model, tokenizer, in_background)
    _, last = completion(generator, own)
    assert last["eos_reason"] == "end_filter"
    assert (last["new_tokens"], len(own.fed)) == (3, 3)
    assert set(own.fed) <= set(own.ids)


def test_filters_are_settings_too_and_survive_a_clone(generator, model, tokenizer):
    settings = ExLlamaV2Sampler.Settings(temperature=3.0)
    settings.filters = [ExLlamaV2SelectFilter(model, tokenizer, OPTIONS)]
    assert settings.clone().filters == settings.filters
    text = generator.generate(PROMPT, 24, gen_settings=settings.clone(), completion_only=True)
    assert text in OPTIONS


def test_a_filter_that_masks_logits_is_asked_for_its_mask(generator, tokenizer):
    class Masking:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def begin(self, prefix_str): ...

        def feed(self, token): ...

        def can_mask_logits(self):
            return True

        def use_background_worker(self):
            return True

        def prepare_logit_mask(self):
            self.prepared = True
            return True

        def mask_logits(self, logits):
            assert self.prepared
            logits[:] = -np.inf
            logits[40:44] = 0.0
            return logits

    job = ExLlamaV2DynamicJob(tokenizer.encode(PROMPT), 6, gen_settings=RANDOM, filters=[Masking(tokenizer)])
    generator.enqueue(job)
    ids = [int(i) for result in _run(generator) for i in np.asarray(result.get("token_ids", [[]]))[0]]
    assert len(ids) == 6
    assert set(ids) <= {40, 41, 42, 43}


def _run(generator):
    results = []
    while generator.num_remaining_jobs():
        results += generator.iterate()
    return results


def test_the_end_is_preferred_where_the_filters_allow_it(generator, model, tokenizer):
    class WithEos(Own):
        def next(self):
            return [*self.ids, self.tokenizer.eos_token_id], []

    own = WithEos(model, tokenizer)
    _, last = completion(generator, own, filter_prefer_eos=True, stop_conditions=[tokenizer.eos_token_id])
    assert (last["eos_reason"], last["new_tokens"]) == ("stop_token", 1)


def test_each_prompt_has_its_filters_and_a_filter_that_raises_fails_alone(generator, model, tokenizer):
    prompts = [PROMPT] * 3
    select = [[ExLlamaV2SelectFilter(model, tokenizer, [option])] for option in ("one", "two")]
    texts = generator.generate(prompts, 8, gen_settings=GREEDY, filters=[*select, None], completion_only=True)
    assert texts[:2] == ["one", "two"]
    assert texts[2] == generator.generate(PROMPT, 8, gen_settings=GREEDY, completion_only=True)
    with pytest.raises(ExloraError, match="for each prompt") as caught:
        generator.generate(prompts, 8, filters=select)
    assert caught.value.code == "request_invalid"

    class Broken(Own):
        def feed(self, token):
            raise KeyError("broken")

    with pytest.raises(ExloraError, match="the filter Broken raised KeyError") as caught:
        completion(generator, Broken(model, tokenizer))
    assert caught.value.code == "constraint_failed"
    assert completion(generator, settings=GREEDY)[0]


def test_a_filter_is_cloned(model, tokenizer):
    own = Own(model, tokenizer)
    own.fed = [1]
    assert own.clone().fed == [1]
    into = Own.__new__(Own)
    assert own.clone(into) is into
    assert into.ids == own.ids


def test_the_sampler_itself_takes_filters_and_a_token_to_heal(model, tokenizer):
    pieces = tokenizer.get_id_to_piece_list()
    logits = np.random.default_rng(3).normal(size=(1, 1, len(pieces))).astype(np.float32)
    select = ExLlamaV2SelectFilter(model, tokenizer, ["read a row", "x"])
    select.begin("")
    allowed, ending = select.next()
    for number in (0.0, 0.3, 0.6, 0.9):
        arguments = (logits, RANDOM, np.array([[5]]), number, tokenizer)
        token, *_, ended = ExLlamaV2Sampler.sample(*arguments, filters=[select])
        assert int(token[0, 0]) in allowed
        assert ended == (int(token[0, 0]) in ending)
        prefix = tokenizer.single_id("s")
        token, *_, ended = ExLlamaV2Sampler.sample(*arguments, prefix_token=np.array([[prefix]]))
        assert pieces[int(token[0, 0])].startswith("s")
        assert not ended


# Token healing.


def healed_by_hand(generator, tokenizer, text, tokens):
    """The most likely token that begins with the last token's text, then greedy tokens."""
    ids = tokenizer.encode_list(text)
    pieces = tokenizer.get_id_to_piece_list()
    allowed = [i for i, piece in enumerate(pieces) if piece.startswith(pieces[ids[-1]])]
    logits = np.asarray(generator.model.forward(np.array([ids[:-1]])))[0, -1]
    first = max(allowed, key=lambda i: logits[i])
    job = ExLlamaV2DynamicJob([[*ids[:-1], first]], tokens, gen_settings=GREEDY)
    generator.enqueue(job)
    _run(generator)
    return pieces[first][len(pieces[ids[-1]]) :] + job.full_completion


@pytest.mark.parametrize("text", ["The databa", "SELECT na", "http:", "This is a sma"])
def test_every_generator_heals_the_last_token(generator, model, tokenizer, text):
    expected = healed_by_hand(generator, tokenizer, text, 8)
    job = ExLlamaV2DynamicJob(tokenizer.encode(text), 8, gen_settings=GREEDY, token_healing=True)
    generator.enqueue(job)
    last = _run(generator)[-1]
    assert job.full_completion == expected
    assert (last["new_tokens"], last["prompt_tokens"]) == (8, len(tokenizer.encode_list(text)))
    assert generator.generate(text, 8, gen_settings=GREEDY, token_healing=True) == text + expected
    base = ExLlamaV2BaseGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)
    assert base.generate_simple(text, GREEDY, 8, token_healing=True, completion_only=True) == expected
    streaming = ExLlamaV2StreamingGenerator(model, ExLlamaV2Cache(model, max_seq_len=256), tokenizer)
    streaming.begin_stream_ex(tokenizer.encode(text), GREEDY, token_healing=True)
    streamed = ""
    while len(streamed) < len(expected):
        streamed += streaming.stream_ex()["chunk"]
    assert streamed.startswith(expected)
