"""`exlora.Engine`: its arguments, its results, threads, pickling, progress and interruption."""

import inspect
import pickle
import signal
import subprocess
import sys
import threading

import exlora
import numpy as np
import pytest
from exlora import Engine, ExloraError, Tokenizer

PROMPT = "The table"


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=adapters)


def test_one_prompt_gives_one_completion_and_a_list_gives_a_list(engine):
    one = engine.generate(PROMPT, max_new_tokens=8)
    [listed] = engine.generate([PROMPT], max_new_tokens=8)
    assert (one.text, one.token_ids) == (listed.text, listed.token_ids)
    assert engine.generate([]) == []


def test_text_ids_and_arrays_are_the_same_prompt(engine):
    ids = engine.tokenizer.encode(PROMPT)
    expected = engine.generate(PROMPT, max_new_tokens=8).token_ids
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16)):
        assert engine.generate(prompt, max_new_tokens=8).token_ids == expected
    rows = engine.generate(np.array([ids, ids]), max_new_tokens=8)
    assert [row.token_ids for row in rows] == [expected] * 2


def test_torch_tensors_are_prompts_too(engine):
    torch = pytest.importorskip("torch")
    ids = engine.tokenizer.encode(PROMPT)
    assert (
        engine.generate(torch.tensor(ids), max_new_tokens=4).token_ids
        == engine.generate(ids, max_new_tokens=4).token_ids
    )


def test_a_chat_is_rendered_by_the_models_template(engine):
    messages = [{"role": "user", "content": "What is a table?"}]
    text = engine.tokenizer.apply_chat_template(messages)
    assert text == "<|im_start|>user\nWhat is a table?<|im_end|>\n<|im_start|>assistant\n"
    of_chat, of_text = engine.generate([messages, text], max_new_tokens=8)
    assert of_chat.token_ids == of_text.token_ids
    assert of_chat.usage.prompt_tokens == len(engine.tokenizer.encode(text))


def test_each_prompt_may_have_its_own_adapter_and_settings(engine):
    mixtures = ["sql", {"sql": 0.5, "wit": 0.5}, None, {"wit": 0.3}]
    lengths = [3, 5, 7, 9]
    outs = engine.generate([PROMPT] * 4, adapters=mixtures, max_new_tokens=lengths, stop_at_eos=False)
    assert [len(out.token_ids) for out in outs] == lengths
    assert [out.adapter for out in outs] == mixtures
    assert [out.finish_reason for out in outs] == ["length"] * 4
    for out, mixture, length in zip(outs, mixtures, lengths, strict=True):
        alone = engine.generate(PROMPT, adapter=mixture, max_new_tokens=length, stop_at_eos=False)
        assert alone.token_ids == out.token_ids
    assert len({tuple(out.token_ids[:3]) for out in outs}) > 1


def test_a_list_of_another_length_than_the_prompts_is_refused(engine):
    for settings in ({"temperature": [0.5]}, {"adapters": ["sql", None, None]}, {"max_new_tokens": [1, 2, 3]}):
        with pytest.raises(ExloraError, match="another length") as caught:
            engine.generate(["a", "b"], **settings)
        assert caught.value.code == "request_invalid"


def test_stop_is_per_prompt_only_as_a_list_of_lists(engine):
    free = engine.generate(PROMPT, max_new_tokens=8, stop_at_eos=False)
    first, second = free.token_ids[:2]
    both = engine.generate([PROMPT, PROMPT], max_new_tokens=8, stop=[second, "no such text"], stop_at_eos=False)
    assert [out.token_ids for out in both] == [[first, second]] * 2
    each = engine.generate([PROMPT, PROMPT], max_new_tokens=8, stop=[[first], None], stop_at_eos=False)
    assert [out.token_ids for out in each] == [[first], free.token_ids]
    assert (each[0].finish_reason, each[0].stop_match) == ("stop", first)


def test_a_stop_string_is_not_in_the_text(engine):
    text = engine.generate(PROMPT, max_new_tokens=16).text
    stop = text[3:6]
    out = engine.generate(PROMPT, max_new_tokens=16, stop=stop)
    assert (out.text, out.stop_match) == (text[: text.index(stop)], stop)


def test_logit_bias_forbids_and_forces(engine):
    free = engine.generate(PROMPT, max_new_tokens=1).token_ids
    assert engine.generate(PROMPT, max_new_tokens=1, logit_bias={free[0]: float("-inf")}).token_ids != free
    forced = engine.generate([PROMPT] * 2, max_new_tokens=2, logit_bias=[{77: 1e4}, None])
    assert forced[0].token_ids == [77, 77] != forced[1].token_ids


def test_a_seed_determines_the_text(engine):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "stop_at_eos": False}
    first, again, other = engine.generate([PROMPT] * 3, seed=[1, 1, 2], **settings)
    assert first.token_ids == again.token_ids != other.token_ids


def test_logprobs_match_the_logits(engine):
    out = engine.generate(PROMPT, max_new_tokens=6, logprobs=3, return_logits=True)
    assert out.logprobs.shape == (6,)
    assert out.logprobs.dtype == np.float32
    assert out.logits.shape == (6, 2048)
    logits = out.logits.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(out.logprobs, expected[np.arange(6), out.token_ids], atol=1e-5)
    for step, top in enumerate(out.top_logprobs):
        assert [i for i, _ in top] == np.argsort(-expected[step])[:3].tolist()
    plain = engine.generate(PROMPT, max_new_tokens=6)
    assert (plain.logprobs, plain.top_logprobs, plain.logits) == (None, None, None)


def test_logits_are_a_float32_row_for_each_token(engine):
    ids = engine.tokenizer.encode("SELECT name FROM people")
    logits = engine.logits(ids, adapter={"sql": 0.5})
    assert (logits.shape, logits.dtype) == ((len(ids), 2048), np.float32)
    out = engine.generate(ids, adapter={"sql": 0.5}, max_new_tokens=1, return_logits=True)
    assert np.array_equal(out.logits[0], logits[-1])


def test_the_texts_of_a_stream_joined_are_the_text_of_the_completion(engine):
    settings = {"max_new_tokens": 24, "temperature": 0.9, "seed": 5, "stop": ["\n\n"]}
    out = engine.generate(PROMPT, adapters="wit", **settings)
    chunks = list(engine.stream(PROMPT, adapter="wit", **settings))
    assert "".join(chunk.text for chunk in chunks) == out.text
    assert [i for chunk in chunks for i in chunk.token_ids] == out.token_ids
    assert chunks[-1].finish_reason == out.finish_reason
    assert chunks[-1].usage.completion_tokens == out.usage.completion_tokens
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks[:-1])


def test_stream_takes_what_generate_takes():
    def keywords(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    of_a_batch = {"adapter", "n", "return_errors", "progress"}
    generate = {name: value for name, value in keywords(Engine.generate).items() if name not in of_a_batch}
    assert keywords(Engine.stream) == generate


@pytest.mark.parametrize("leave", ["close", "with", "forget"])
def test_leaving_a_stream_ends_its_request(engine, leave):
    stream = engine.stream(PROMPT, adapter="sql", max_new_tokens=900, stop_at_eos=False)
    next(stream)
    assert (engine.stats()["rows_running"], engine.stats()["leases"]) == (1, 1)
    if leave == "close":
        stream.close()
        assert list(stream) == []
    elif leave == "with":
        with stream:
            pass
    else:
        del stream
    assert (engine.stats()["rows_running"], engine.stats()["leases"]) == (0, 0)


def test_stats_are_exactly_these(engine):
    names = """weights_bytes adapters_bytes adapters_resident leases kv_bytes kv_pages_total kv_pages_free prefix_pages
    rows_running rows_waiting tokens_prompt tokens_generated steps accepted_draft_tokens rejected_draft_tokens"""
    assert list(engine.stats()) == names.split()
    assert all(isinstance(value, int) for value in engine.stats().values())


def test_adapters_are_described(engine):
    info = {info.name: info for info in engine.adapters()}["sql"]
    assert (info.rank, info.sites, info.leases) == (16, 28, 0)
    assert info.path.endswith("sqlite-rslora-r16")
    assert info.bytes > 0
    assert len(info.content_hash) == 64
    assert "sql" in repr(info)


def test_an_unknown_adapter_is_an_error_and_never_the_base(engine):
    for adapter in ("nope", {"sql": 0.5, "nope": 0.5}):
        with pytest.raises(ExloraError, match="nope") as caught:
            engine.generate(PROMPT, adapter=adapter)
        assert caught.value.code == "adapter_not_found"


@pytest.mark.parametrize(
    "arguments",
    [{"prompts": 3}, {"prompts": PROMPT, "adapter": 3}, {"prompts": [1.5]}, {"prompts": PROMPT, "temperature": "hot"}],
    ids=str,
)
def test_a_wrong_type_is_a_type_error(engine, arguments):
    with pytest.raises(TypeError):
        engine.generate(**arguments)


def test_an_engine_is_pickled_by_its_arguments(engine):
    copy = pickle.loads(pickle.dumps(engine))
    assert [info.name for info in copy.adapters()] == ["sql", "wit"]
    assert copy.generate(PROMPT, adapter="wit").text == engine.generate(PROMPT, adapter="wit").text
    tokenizer = pickle.loads(pickle.dumps(engine.tokenizer))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode(PROMPT) == engine.tokenizer.encode(PROMPT)


def test_a_closed_engine_raises(fixtures):
    with Engine(fixtures / "quill-4m") as engine:
        stream = engine.stream(PROMPT, max_new_tokens=4, stop_at_eos=False)
    with pytest.raises(ExloraError, match="closed"):
        engine.generate(PROMPT)
    assert len(list(stream)) == 4
    assert "closed" in repr(engine)


def test_the_tokenizer_encodes_and_decodes(engine):
    tokenizer = engine.tokenizer
    text = "naïve café, 日本: SELECT <|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids), skip_special_tokens=True) == text.removesuffix("<|im_end|>")
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.bos_token_id) == (2048, 0, None)
    assert tokenizer.id_of("<|im_end|>") == 2
    assert len(tokenizer.encode("<|im_end|>", parse_special_tokens=False)) > 1


def test_threads_share_an_engine(engine):
    prompts = [f"The {word}" for word in ["king", "queen", "hacker", "table"]]
    expected = [engine.generate(prompt, adapter="sql", max_new_tokens=24).text for prompt in prompts]
    found = [None] * len(prompts)

    def work(i):
        found[i] = [engine.generate(prompts[i], adapter="sql", max_new_tokens=24).text for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[text] * 3 for text in expected]


def test_progress_is_reported_and_its_exception_stops_loading(quill):
    seen = []
    Engine(quill, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]

    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Engine(quill, progress=stop)


class Alarm(Exception):
    """Raised by the signal handler below."""


@pytest.fixture
def alarm():
    """Sets a timer whose signal handler raises, like Ctrl-C."""

    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.15)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("run", ["generate", "stream"])
def test_a_signal_interrupts_and_all_requests_are_released(engine, alarm, run):
    settings = {"max_new_tokens": 1000, "stop_at_eos": False}
    with pytest.raises(Alarm):  # noqa: PT012 - the interrupted call is a loop
        alarm()
        while True:
            if run == "generate":
                engine.generate([PROMPT] * 32, adapters="sql", **settings)
            else:
                list(engine.stream(PROMPT, adapter="sql", **settings))
    stats = engine.stats()
    assert (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0)
    assert stats["kv_pages_free"] == stats["kv_pages_total"]
    assert engine.generate(PROMPT, max_new_tokens=2).finish_reason == "length"


class Interrupting:
    """A callback of a request that is interrupted by its fourth call: by Ctrl-C, or by what it raises itself."""

    def __init__(self, raised):
        self.raised, self.calls = raised, 0

    def called(self, *_):
        self.calls += 1
        if self.calls == 4:
            if self.raised is None:
                signal.raise_signal(signal.SIGINT)
            raise self.raised

    begin = feed = lambda self, _: None

    def next(self):
        self.called()
        return None, []


@pytest.fixture
def _interruptible():
    """Ctrl-C interrupts, also where the tests run in the background of a shell, whose jobs ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("run", ["generate", "stream", "as_completed"])
@pytest.mark.parametrize("raised", [None, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["hook", "filter"])
def test_ctrl_c_in_a_callback_reaches_the_caller(engine, kind, raised, run):
    callback = Interrupting(raised)
    callbacks = {"post_sampling_hooks": [callback.called]} if kind == "hook" else {"filters": [callback]}
    settings = {"max_new_tokens": 1000, "stop_at_eos": False, "adapter" if run == "stream" else "adapters": "sql"}
    with pytest.raises(raised or KeyboardInterrupt):  # noqa: PT012 - two of the three are loops
        if run == "generate":
            engine.generate([PROMPT] * 8, **callbacks, **settings)
        elif run == "stream":
            list(engine.stream(PROMPT, **callbacks, **settings))
        else:
            list(engine.as_completed([PROMPT] * 8, **callbacks, **settings))
    # Those of the other requests of its step at most.
    assert callback.calls < 20
    stats = engine.stats()
    assert (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0)
    assert engine.generate(PROMPT, max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize(
    ("setting", "value"), [("kv_tokens", 0), ("max_batch_size", 0), ("prefill_chunk", 0), ("num_draft_tokens", 10**6)]
)
def test_an_engine_of_nothing_is_refused(fixtures, setting, value):
    with pytest.raises(ValueError, match=setting) as caught:
        Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", **{setting: value})
    assert (caught.value.code, caught.value.found) == ("request_invalid", str(value))


def test_wrong_numbers_of_samples_and_stops_are_named(engine):
    with pytest.raises(ValueError, match="n is negative"):
        engine.generate(PROMPT, n=-1)
    with pytest.raises(TypeError, match=r"what ends a text is a string.*, not bytes"):
        engine.generate(PROMPT, stop=b"x")


def test_the_command_runs_as_a_module():
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "exlora", *arguments], capture_output=True, text=True, check=False)

    version = run("--version")
    assert (version.returncode, version.stdout.split()) == (0, ["exlora", exlora.__version__])
    assert run("no-such-command").returncode == 2
