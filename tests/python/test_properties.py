"""What holds for any text, any token ids and any mixture, on random ones."""

import os

import pytest
from exlora import Engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compare import bits

settings.register_profile(
    "fast",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("slow", settings.get_profile("fast"), max_examples=1500, derandomize=False)
settings.load_profile(os.environ.get("EXLORA_HYPOTHESIS", "fast"))

# `make test-slow` runs them with more examples.
pytestmark = [pytest.mark.property, pytest.mark.timeout(600)]

SPECIAL = ["<|endoftext|>", "\ufeff", "\u200d", "é", "e\u0301", "👩‍💻", "\r\n", "  ", "\x00"]
TEXT = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPECIAL)), max_size=6).map("".join)
WEIGHT = st.floats(-2, 2, allow_subnormal=False).filter(lambda weight: abs(weight) > 1e-3)
MIXTURE = st.one_of(
    st.none(), st.sampled_from(["sql", "wit"]), st.dictionaries(st.sampled_from(["sql", "wit"]), WEIGHT)
)


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": "sqlite-rslora-r16", "wit": "jargon-lora-r8"}
    folders = {name: fixtures / "adapters" / folder for name, folder in adapters.items()}
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=folders, kv_tokens=4096, prefill_chunk=16)


@st.composite
def rows(draw):
    """A prompt, as text or as ids, with its mixture and sampling."""
    ids = st.lists(st.integers(3, 2000), min_size=1, max_size=40)
    text = TEXT.filter(str.strip)
    sampling = {
        "max_new_tokens": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 2**32)),
        "temperature": draw(st.sampled_from([0.0, 1.0])),
    }
    return draw(st.one_of(ids, text)), draw(MIXTURE), sampling


def run(engine, batch):
    sampling = {name: [row[2][name] for row in batch] for name in batch[0][2]}
    prompts, mixtures = [row[0] for row in batch], [row[1] for row in batch]
    return engine.generate(prompts, adapters=mixtures, logprobs=2, **sampling)


def test_a_row_in_any_batch_is_the_row_alone(engine):
    @given(st.lists(rows(), min_size=2, max_size=5))
    def check(batch):
        together = [bits(out) for out in run(engine, batch)]
        engine.clear_prefix_cache()
        assert together == [bits(run(engine, [row])[0]) for row in batch]

    check()


def test_the_texts_of_a_stream_joined_are_the_text_of_generate(engine):
    @given(rows())
    def check(row):
        prompt, mixture, sampling = row
        [whole] = run(engine, [row])
        chunks = list(engine.stream(prompt, mixture, **sampling))
        assert "".join(chunk.text for chunk in chunks) == whole.text

    check()


def test_text_survives_the_tokenizer(engine):
    @given(TEXT)
    def check(text):
        ids = engine.tokenizer.encode(text, add_special_tokens=False)
        assert engine.tokenizer.decode(ids, skip_special_tokens=False) == text

    check()
