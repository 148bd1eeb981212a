"""Grammars: what comes out is checked by Python's own `json` and `re`, and masks by trying every token."""

import asyncio
import itertools
import json
import pickle
import re
import resource
import subprocess
import sys
import time

import pytest
from exlora import Engine, ExloraError, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROMPT = "The table"
#: Draws that end: a tiny model seldom ends a text itself.
DRAW = {"temperature": 1.0, "max_new_tokens": 160}

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(fixtures):
    adapters = {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=adapters)


def is_valid(value, schema):
    """Whether a value is valid under a schema of the keywords that these tests use."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        known = schema.get("properties", {})
        return (
            isinstance(value, dict)
            and all(name in value for name in schema.get("required", ()))
            and all(name in known and is_valid(item, known[name]) for name, item in value.items())
        )
    if kind == "array":
        lengths = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return isinstance(value, list) and lengths and all(is_valid(item, schema["items"]) for item in value)
    if kind == "integer":
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema.get("maxLength", len(value))
    return isinstance(value, {"boolean": bool, "null": type(None)}[kind])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_text_is_valid_under_its_json_schema(engine, temperature):
    texts = engine.generate(
        [PROMPT] * 4, json_schema=PERSON, seed=[1, 2, 3, 4], temperature=temperature, max_new_tokens=400
    )
    for done in texts:
        assert done.finish_reason == "stop"
        assert is_valid(json.loads(done.text), PERSON)


def test_a_schema_is_a_dict_its_text_or_a_class_that_has_one(engine):
    class Model:
        @staticmethod
        def model_json_schema():
            return PERSON

    same = [
        engine.generate(PROMPT, json_schema=schema, seed=5, **DRAW).text
        for schema in (PERSON, json.dumps(PERSON), Model)
    ]
    assert len(set(same)) == 1


def test_any_json_object_is_one(engine):
    for seed in range(4):
        done = engine.generate(PROMPT, json_object=True, seed=seed, temperature=1.5, max_new_tokens=60)
        assert done.text.lstrip()[:1] in ("{", "")
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.text), dict)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-z]{3,8}-\d{2}",
        r"(yes|no|maybe)!?",
        r"^(\d{3}) \d{4}$",
        r"[^a-zA-Z]{5}",
        r"é+ü",
        r"a/b\n?c",
        r"(SELECT|DELETE) \w+;",
    ],
)
def test_a_text_matches_its_regex(engine, pattern):
    for seed in range(5):
        done = engine.generate(PROMPT, regex=pattern, seed=seed, stop_at_eos=seed % 2 == 0, **DRAW)
        assert done.finish_reason == "stop" or pattern.startswith("é+") or "+" in pattern
        if done.finish_reason == "stop":
            assert re.fullmatch(pattern, done.text), done.text


def test_a_text_is_one_of_the_choices(engine):
    choices = ["apple", "apple pie", "Bär", "日本", 'say "hi"', "a\\b", "two\nlines", "f(x) = [1, 2]"]
    seen = set()
    for seed in range(24):
        done = engine.generate(PROMPT, choices=choices, seed=seed, temperature=5.0, max_new_tokens=40)
        assert done.text in choices
        assert done.finish_reason == "stop"
        seen.add(done.text)
    assert len(seen) > 2


def test_a_text_is_in_the_language_of_its_grammar(engine):
    grammar = """
        start: sum
        sum: term ("+" term)*
        term: NUMBER | "(" sum ")"
        NUMBER: /[1-9][0-9]?/
    """
    for seed in range(6):
        done = engine.generate(PROMPT, grammar=grammar, seed=seed, **DRAW)
        if done.finish_reason == "stop":
            assert isinstance(eval(done.text, {"__builtins__": {}}), int)
        assert re.fullmatch(r"[0-9+()]*", done.text)


#: GBNF grammars without recursion, and what they mean as regular expressions of Python's.
GBNF = {
    r"""root ::= word ("-" word){1,2} # a comment
        word ::= [a-z]+""": r"[a-z]+(-[a-z]+){1,2}",
    r"""root ::= ("yes" | "no" |
          "may" "be"?) "!"?""": r"(yes|no|may(be)?)!?",
    r'''root ::= [^a-zA-Z\n]{3} "\"" [\]\\-] "\x41\u00e9"''': r"[^a-zA-Z\n]{3}\"[\]\\-]A\u00e9",
    r'''root ::= a_rule{2,} "."
        a_rule ::= [0-9]? " "''': r"([0-9]? ){2,}\.",
    r'''root ::= . "é" [あ-ん]{0,2} "/"''': r"(?s:.)é[あ-ん]{0,2}/",
    # Words before an end that they could contain: matched as a whole, nothing is lost.
    r'''root ::= [a-e]+ "end"''': r"[a-e]+end",
}

#: A recursive grammar in llama.cpp's syntax.
JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize("grammar", GBNF)
def test_a_text_matches_its_gbnf_grammar(engine, grammar):
    ended = 0
    for seed in range(6):
        done = engine.generate(PROMPT, gbnf=grammar, seed=seed, **DRAW)
        if done.finish_reason == "stop":
            assert re.fullmatch(GBNF[grammar], done.text), done.text
            ended += 1
    assert ended, "no text ended"


def test_a_recursive_gbnf_grammar_gives_json(engine):
    kinds = set()
    for seed in range(12):
        done = engine.generate(PROMPT, gbnf=JSON_GBNF, seed=seed, temperature=1.5, max_new_tokens=120)
        assert done.text.startswith("{")
        if done.finish_reason == "stop":
            kinds.update(type(value) for value in json.loads(done.text).values())
    # The end of a text is found among what a JSON text may go on with.
    done = engine.generate(PROMPT, gbnf=JSON_GBNF, logit_bias={engine.tokenizer.encode("}")[0]: 30.0}, max_new_tokens=9)
    assert json.loads(done.text) == {}
    # Every value that Python writes is in the language.
    for value in ({"a": [1, -2.5e10, True, None, {"b": "c\n\u00e9"}]}, {"": {}}, {"x": []}):
        text = json.dumps(value)
        ids = engine.tokenizer.encode(text)
        written = engine.generate(PROMPT, gbnf=JSON_GBNF, filters=[Following(ids)], max_new_tokens=len(ids))
        assert written.token_ids == ids, text


class Following:
    """A filter that allows only given tokens, one after another."""

    def __init__(self, ids):
        self.left = list(ids)

    def begin(self, prefix): ...

    def next(self):
        return self.left[:1], []

    def feed(self, token):
        self.left.pop(0)


def test_the_mask_of_every_step_is_what_trying_each_token_gives(engine):
    """A bias that asks for one token gets it exactly where it is allowed."""
    tokenizer = engine.tokenizer
    strings = ["ab", "abc", "acd", "b"]
    beginnings = {string[:end] for string in strings for end in range(len(string) + 1)}
    for start in ("", "a", "ab", "ac"):
        pieces = {
            token: tokenizer.piece(token) for token in range(tokenizer.vocab_size) if not tokenizer.is_special(token)
        }
        allowed = {token for token, piece in pieces.items() if piece and start + piece in beginnings}
        # The letters of `start` are forced first, by a grammar that begins with them.
        pattern = "|".join(string[len(start) :] for string in strings if string.startswith(start) and string != start)
        probe = sorted(allowed) + [token for token in range(0, 2048, 41) if token not in allowed]
        requests = [
            Request(PROMPT, regex=f"({pattern})", max_new_tokens=1, logit_bias={token: 1e4}, stop_at_eos=False)
            for token in probe
        ]
        chosen = {
            token for token, done in zip(probe, engine.generate(requests), strict=True) if done.token_ids == [token]
        }
        assert chosen == allowed, start


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "integer", "minimum": 0, "maximum": 99},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["x", 1, None]},
        ]
    )
    | st.integers(0, 4).map(lambda length: {"type": "string", "maxLength": length}),
    lambda schema: (
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, schema, st.integers(0, 2))
        | st.dictionaries(st.sampled_from(["a", "b", "key"]), schema, max_size=3).map(
            lambda items: {
                "type": "object",
                "properties": items,
                "required": sorted(items)[:2],
                "additionalProperties": False,
            }
        )
    ),
    max_leaves=4,
)


@pytest.mark.property
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_texts_are_valid_under_random_schemas(engine, schema, seed):
    done = engine.generate(PROMPT, json_schema=schema, seed=seed, temperature=1.0, max_new_tokens=120)
    if done.finish_reason == "stop":
        assert is_valid(json.loads(done.text), schema)


ATOMS = st.sampled_from(["a", "[bc]", "1", r"\d", "ä", "[^x]", "(ab|c)"])
PATTERNS = st.lists(st.tuples(ATOMS, st.sampled_from(["", "?", "{2}", "{0,2}"])), min_size=1, max_size=4).map(
    lambda parts: "".join(atom + times for atom, times in parts)
)


@pytest.mark.property
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(pattern=PATTERNS, seed=st.integers(0, 1000))
def test_texts_match_random_regexes(engine, pattern, seed):
    done = engine.generate(PROMPT, regex=f"x{pattern}", seed=seed, temperature=2.0, max_new_tokens=40)
    assert done.finish_reason == "stop"
    assert re.fullmatch(f"x{pattern}", done.text, re.DOTALL)


MIXED = [
    {"json_schema": PERSON},
    {"regex": "[a-z ]{20,30}", "adapter": "sql"},
    {"choices": ["one", "two", "three"], "adapter": {"sql": 0.5, "wit": 0.5}, "logprobs": 2},
    {"json_schema": PERSON, "adapter": "wit", "stop": ["age"]},
    {},
    {"adapter": "sql"},
]


def outcome(done):
    return (
        done.text,
        list(done.token_ids),
        done.finish_reason,
        done.stop_match,
        None if done.logprobs is None else done.logprobs.tolist(),
    )


def test_in_a_mixed_batch_each_is_bit_equal_to_alone(engine):
    requests = [Request(PROMPT, temperature=0.9, seed=i, max_new_tokens=70, **row) for i, row in enumerate(MIXED)]
    alone = [outcome(engine.generate(request)) for request in requests]
    assert [outcome(done) for done in engine.generate(requests)] == alone
    assert alone[3][3] == "age"
    assert alone[2][0] in ("one", "two", "three")


def test_drafts_change_nothing(engine):
    """Several tokens are verified in a step: the grammar goes along with each."""
    rows = [{"json_schema": PERSON}, {"regex": "(ab|cd){30}", "adapter": "sql"}, {"filters": [Letters(engine, "ab")]}]
    requests = [Request(PROMPT, max_new_tokens=60, **row) for row in rows]
    drafted = engine.generate([Request(PROMPT, max_new_tokens=60, ngram_draft=True, **row) for row in rows])
    assert [outcome(done) for done in drafted] == [outcome(done) for done in engine.generate(requests)]
    assert sum(done.usage.accepted_draft_tokens for done in drafted) > 10


def test_preemption_changes_nothing(fixtures, engine):
    requests = [
        Request([5, 6, 7 + i], regex="[a-z ]{150}", seed=i, temperature=1.0, max_new_tokens=90) for i in range(4)
    ]
    small = Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", kv_tokens=192, max_seq_len=160)
    assert [outcome(d) for d in small.generate(requests)] == [outcome(d) for d in engine.generate(requests)]


def test_samples_are_those_of_their_seeds(engine):
    samples = engine.generate(PROMPT, n=3, json_schema=PERSON, seed=3, temperature=1.0, max_new_tokens=400)
    assert len({done.text for done in samples}) > 1
    for done in samples:
        assert is_valid(json.loads(done.text), PERSON)
        again = engine.generate(PROMPT, json_schema=PERSON, seed=done.seed, temperature=1.0, max_new_tokens=400)
        assert again.text == done.text


def test_chunks_joined_are_the_text(engine):
    stream = engine.stream(PROMPT, json_schema=PERSON, seed=3, temperature=1.0, max_new_tokens=400)
    assert is_valid(json.loads("".join(chunk.text for chunk in stream)), PERSON)


def test_a_grammar_that_ends_ends_the_text_before_min_new_tokens(engine):
    done = engine.generate(PROMPT, choices=["yes"], min_new_tokens=20, max_new_tokens=30)
    assert (done.text, done.finish_reason, done.stop_match) == ("yes", "stop", None)


def test_the_end_token_is_allowed_only_where_the_grammar_may_end(engine):
    eos = engine.tokenizer.id_of("<|im_end|>")
    biased = {"logit_bias": {eos: 1e4}, "stop": eos, "max_new_tokens": 40}
    done = engine.generate(PROMPT, regex="ab+", **biased)
    assert (done.text, done.stop_match) == ("ab", eos)
    assert engine.generate(PROMPT, regex="a{3}", **biased).text == "aaa"
    done = engine.generate(PROMPT, regex="ab+", **biased | {"stop": "<|im_end|>", "stop_at_eos": False})
    assert (done.text, done.stop_match) == ("ab", "<|im_end|>")


@pytest.mark.parametrize("feature", [{"json_schema": PERSON}, {"filters": True}])
def test_a_cancelled_request_ends(engine, feature):
    if "filters" in feature:
        feature = {"filters": [Letters(engine, "ab")]}
    stream = engine.stream(PROMPT, **feature, max_new_tokens=200, temperature=1.0, seed=1)
    next(stream)
    stream.close()
    assert engine.generate(PROMPT, max_new_tokens=2).finish_reason == "length"


# Refusals.


DEEP = '{"type": "array", "items": ' * 90 + "true" + "}" * 90
HOSTILE = {
    "not JSON": {"json_schema": "{"},
    "no schema": {"json_schema": "3"},
    "unknown type": {"json_schema": {"type": "person"}},
    "contradiction": {"json_schema": {"type": "string", "minLength": 5, "maxLength": 2}},
    "too large": {"json_schema": {"enum": ["x" * 300_000]}},
    "too many": {"json_schema": {"enum": [f"{i:06}" for i in range(30_000)]}},
    "too deep": {"json_schema": "[" * 500},
    "unbalanced regex": {"regex": "(a"},
    "lookahead": {"regex": "(?=a)b"},
    "nested regex": {"regex": "(" * 300 + "a" + ")" * 300},
    "empty regex": {"regex": ""},
    "empty choices": {"choices": []},
    "empty choice": {"choices": ["a", ""]},
    "no start": {"grammar": "rule: 'a'"},
    "broken grammar": {"grammar": "start: ("},
    "endless grammar": {"grammar": "start: start"},
    "unknown rule": {"grammar": "start: other"},
    "no root": {"gbnf": 'rule ::= "a"'},
    "broken GBNF": {"gbnf": 'root ::= ("a"'},
    "endless GBNF": {"gbnf": "root ::= root"},
    "tokens in GBNF": {"gbnf": "root ::= <think>"},
    "nested GBNF": {"gbnf": "root ::= " + "(" * 5000},
    "a chain of rules": {"gbnf": "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(4000))},
    "too many rules": {"gbnf": "".join(f'r{i} ::= "a"\n' for i in range(9000))},
    "too large GBNF": {"gbnf": "root ::= " + '"a" ' * 80_000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_ends_its_request_alone_in_bounded_time(engine, name):
    begin = time.perf_counter()
    broken, healthy = engine.generate(
        [Request(PROMPT, max_new_tokens=8, **HOSTILE[name]), Request(PROMPT, max_new_tokens=8)], return_errors=True
    )
    assert time.perf_counter() - begin < 20
    assert isinstance(broken, ExloraError)
    assert broken.code in ("constraint_invalid", "constraint_failed")
    assert "backtrace" not in str(broken)
    assert healthy.token_ids == engine.generate(PROMPT, max_new_tokens=8).token_ids


EXPENSIVE = {
    "nested counts": "(((a{1,300}){1,300}){1,300}){1,300}",
    "many alternatives": "(" + "|".join(f".*{i}.*{i}.*" for i in range(400)) + "){100}",
    "many stars": "(.*a.*b.*c.*d.*){10}",
    "many options": "(a?){200}a{200}",
    "counted windows": "(.{0,50}x){0,50}y",
    "any letter": "[a-z]{1,4000}",
    "a late decision": "(.*[aeiou ].{60})+q",
}


@pytest.mark.parametrize("pattern", EXPENSIVE.values(), ids=EXPENSIVE)
def test_an_expensive_regex_works_or_fails_in_bounded_time_and_memory(engine, pattern):
    begin, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [done] = engine.generate([Request(PROMPT, regex=pattern, max_new_tokens=8)], return_errors=True)
    assert time.perf_counter() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1 << 20, "a GiB, in KiB"
    assert not isinstance(done, ExloraError) or done.code in ("constraint_invalid", "constraint_failed")


def test_two_grammars_are_refused(engine):
    pairs = {
        "json_schema": PERSON,
        "json_object": True,
        "regex": "a",
        "grammar": "start: /a/",
        "gbnf": "root ::= .",
        "choices": ["a"],
    }
    for one, other in itertools.combinations(pairs, 2):
        with pytest.raises(ExloraError, match="one grammar") as caught:
            engine.generate(PROMPT, **{one: pairs[one], other: pairs[other]})
        assert caught.value.code == "request_invalid"
    with pytest.raises(TypeError, match="JSON schema"):
        engine.generate(PROMPT, json_schema=3)


def test_a_request_keeps_its_grammar():
    request = Request(PROMPT, json_schema=PERSON, token_healing=False)
    assert json.loads(request.json_schema) == PERSON
    for one in (
        request,
        Request(PROMPT, choices=["a"]),
        Request(PROMPT, gbnf="root ::= ."),
        Request(PROMPT, json_object=True, token_healing=True),
    ):
        assert pickle.loads(pickle.dumps(one)) == one
        assert Request(**one.to_dict()) == one


def test_several_prompts_have_their_own_grammars(engine):
    texts = engine.generate(["a", "b", "c"], choices=[["x"], ["y"], None], regex=[None, None, "z"], max_new_tokens=4)
    assert [done.text for done in texts] == ["x", "y", "z"]
    assert [done.text for done in engine.generate(["a", "b"], choices=["same"], max_new_tokens=8)] == ["same", "same"]


def test_the_command_and_its_json_lines_take_grammars(fixtures, tmp_path):
    command = [sys.executable, "-m", "exlora", "generate", "-m", str(fixtures / "quill-4m"), "--max-new-tokens", "40"]
    out = subprocess.run(
        [*command, "--prompt", PROMPT, "--choices", "red", "--choices", "green"], capture_output=True, text=True
    )
    assert out.stdout.strip() in ("red", "green"), out.stderr
    lines = [
        {"prompt": PROMPT, "json_schema": {"enum": [[1, 2]]}},
        {"prompt": PROMPT, "regex": "[0-9]{4}"},
        {"prompt": PROMPT, "grammar": 'start: "x" "y"'},
        {"prompt": PROMPT, "regex": "a", "json_object": True},
        {"prompt": PROMPT, "gbnf": 'root ::= "x" [y]{2}'},
    ]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = subprocess.run([*command, "--requests", str(requests), "--json"], capture_output=True, text=True)
    results = sorted((json.loads(line) for line in out.stdout.splitlines()), key=lambda result: result["index"])
    assert json.loads(results[0]["text"]) == [1, 2]
    assert re.fullmatch("[0-9]{4}", results[1]["text"])
    assert results[2]["text"] == "xy"
    assert results[3]["error"]["code"] == "request_invalid"
    assert results[4]["text"] == "xyy"


# Filters.


class Letters:
    """Allows the tokens whose text has only some letters; `|` in them ends the text."""

    def __init__(self, engine, letters, ending=""):
        tokenizer = engine.tokenizer
        pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self.allowed = {token for token, piece in enumerate(pieces) if piece and set(piece) <= set(letters + ending)}
        self.ending = {token for token in self.allowed if set(ending) & set(pieces[token])}
        self.calls = []

    def begin(self, prefix):
        self.calls.append(("begin", prefix))

    def next(self):
        self.calls.append("next")
        return self.allowed, self.ending

    def feed(self, token):
        self.calls.append(("feed", token))


class Raising(Letters):
    def next(self):
        raise LookupError("no idea")


@pytest.mark.parametrize("background", [False, True])
def test_a_filter_chooses_the_allowed_tokens_and_the_end(engine, background):
    letters = Letters(engine, "abcdefgh", ending="xyz")
    letters.use_background_worker = lambda: background
    done = engine.generate(PROMPT, filters=[letters], temperature=2.0, seed=3, max_new_tokens=60)
    assert set(done.text) <= set("abcdefghxyz")
    assert done.finish_reason == "stop"
    assert done.token_ids[-1] in letters.ending
    assert letters.calls[0] == ("begin", "")
    assert letters.calls[1:] == [call for token in done.token_ids for call in ("next", ("feed", token))]


def test_filters_and_a_grammar_allow_what_all_allow(engine):
    filters = [Letters(engine, "abc"), Letters(engine, "bcd")]
    done = engine.generate(PROMPT, filters=filters, regex="[a-d]{6}", temperature=1.0, seed=1, max_new_tokens=10)
    assert re.fullmatch("[bc]{6}", done.text)
    exclusive = Request(PROMPT, filters=[Letters(engine, "a"), Letters(engine, "b")])
    [error] = engine.generate([exclusive], return_errors=True)
    assert error.code == "constraint_failed"


def test_a_filter_that_raises_ends_its_request_alone(engine):
    requests = [Request(PROMPT, filters=[Raising(engine, "a")]), Request(PROMPT, max_new_tokens=5)]
    error, healthy = engine.generate(requests, return_errors=True)
    assert error.code == "constraint_failed"
    assert "Raising raised LookupError: no idea" in str(error)
    assert healthy.token_ids == engine.generate(PROMPT, max_new_tokens=5).token_ids
    with pytest.raises(TypeError, match="method feed"):
        Request(PROMPT, filters=[type("Half", (), {"begin": print, "next": print})()])
    with pytest.raises(ExloraError, match="one text"):
        engine.generate(PROMPT, filters=[Letters(engine, "a")], n=2)


def test_filters_run_beside_other_threads_of_python(engine):
    async def run():
        async def one(seed):
            filters = [Letters(engine, "abcd")]
            stream = engine.stream(PROMPT, filters=filters, max_new_tokens=12, temperature=1.0, seed=seed)
            return "".join([chunk.text async for chunk in stream])

        return await asyncio.gather(*map(one, range(6)))

    assert all(text and set(text) <= set("abcd") for text in asyncio.run(run()))


# Token healing.


def test_healing_continues_the_text_of_the_last_token(engine):
    tokenizer = engine.tokenizer
    ids = tokenizer.encode("SELECT na")
    last = tokenizer.piece(ids[-1])
    longer = [t for t in range(tokenizer.vocab_size) if tokenizer.piece(t).startswith(last) and t != ids[-1]]
    assert longer, "the vocabulary has a longer token"
    for token in (*longer[:5], ids[-1]):
        done = engine.generate(ids, token_healing=True, max_new_tokens=1, logit_bias={token: 1e4})
        assert done.token_ids == [token]
        assert done.text == tokenizer.piece(token)[len(last) :]
        assert done.usage.prompt_tokens == len(ids) - 1
    forbidden = next(t for t in range(3, 2048) if not tokenizer.piece(t).startswith(last))
    assert engine.generate(ids, token_healing=True, max_new_tokens=1, logit_bias={forbidden: 1e4}).token_ids != [
        forbidden
    ]


def test_healing_by_the_same_token_is_the_text_without_healing(engine):
    ids = engine.tokenizer.encode("SELECT name FROM ")
    plain = engine.generate(ids, max_new_tokens=8, adapter="sql")
    healed = engine.generate(ids, max_new_tokens=9, adapter="sql", token_healing=True, logit_bias={ids[-1]: 0})
    if healed.token_ids[0] == ids[-1]:
        assert healed.text == plain.text
    assert healed.finish_reason == "length"


def test_a_prompt_without_a_token_to_heal_stays_whole(engine):
    end = engine.tokenizer.id_of("<|im_end|>")
    for ids in ([5], [5, end]):
        healed, plain = (engine.generate(ids, max_new_tokens=4, token_healing=heal) for heal in (True, False))
        assert (healed.text, healed.usage.prompt_tokens) == (plain.text, len(ids))
    with pytest.raises(ExloraError, match="token_healing and a grammar"):
        engine.generate(PROMPT, token_healing=True, regex="a")
