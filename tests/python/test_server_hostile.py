"""Hostile requests: each gets an error of OpenAI's form, and the server goes on answering others."""

import http.client
import json
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
from support.server import MESSAGES, TOOLS, serving

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
ROUTES = [COMPLETIONS, CHAT, RESPONSES, "/tokenize", "/detokenize"]

# The smallest requests that work.
BODIES = {
    COMPLETIONS: {"model": "base", "prompt": "Once", "max_tokens": 1},
    CHAT: {"model": "base", "messages": MESSAGES, "max_tokens": 1},
    RESPONSES: {"model": "base", "input": "Once", "max_output_tokens": 1},
    "/tokenize": {"prompt": "Once"},
    "/detokenize": {"tokens": [5]},
}


@pytest.fixture(scope="module")
def url(quill):
    with serving(quill) as url:
        yield url
        # Whatever was sent before, the server still answers.
        for route, body in BODIES.items():
            assert ask(url, route, body)[0] == 200, route


def send(url, route, body: bytes, content_type="application/json"):
    """Status and body of the answer to bytes."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("POST", route, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask(url, route, body):
    """Status and JSON of the answer to JSON."""
    status, answer = send(url, route, json.dumps(body).encode())
    return status, json.loads(answer)


def refused(status, answer, statuses=(400,)):
    """The error of an answer, which has OpenAI's form."""
    assert status in statuses, answer
    error = (json.loads(answer) if isinstance(answer, bytes) else answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"] != "internal"
    return error


NOT_OBJECTS = {
    "empty": b"",
    "cut off": b'{"model": "base", "prompt": "On',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "NaN": b'{"model": "base", "temperature": NaN}',
    "infinity": b'{"model": "base", "temperature": 1e999}',
    "invalid UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate": b'{"model": "\\ud800"}',
    "a byte of zero": b'{"model": "base"\x00}',
    "deeply nested": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deeply nested objects": b'{"a":' * 50_000,
    "twice": b'{"model": "base"} {"model": "base"}',
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("what", NOT_OBJECTS)
def test_a_body_that_is_no_json_object_is_refused(url, route, what):
    refused(*send(url, route, NOT_OBJECTS[what]))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_to_be_json_is_refused(url, route, content_type):
    refused(*send(url, route, json.dumps(BODIES[route]).encode(), content_type), statuses=(415,))


# Sampling, and what else all routes that generate have.
SHARED = ["model", "temperature", "top_p", "n", "seed", "stream", "logit_bias", "adapters", "top_k", "json_schema"]

FIELDS = {
    COMPLETIONS: [*SHARED, "prompt", "max_tokens", "stop", "logprobs", "stream_options", "presence_penalty", "echo"],
    CHAT: [
        *SHARED,
        *("messages", "max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs", "documents"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "chat_template", "chat_template_kwargs"),
    ],
    RESPONSES: [
        *SHARED,
        *("input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "parallel_tool_calls"),
        *("metadata", "include", "truncation", "background"),
    ],
    "/tokenize": ["prompt"],
    "/detokenize": ["tokens"],
}

# What types and parts of types are called in Rust, and not in JSON.
RUST_WORDS = re.compile(r"\b([iu](8|16|32|64|128|size)|f32|f64|struct|enum|variant|sequence)\b")

# Each is of the wrong type, or out of range, for every field but those named.
VALUES = {
    "a list of objects": [{"x": 1}],
    "an object": {"x": {"y": []}},
    "a negative number": -1,
    "a huge number": 10**30,
    "a fraction": 0.3,
    "a text": "x\x00\u202e",
    "a flag": True,
    "a list in a list": [[[[]]]],
}


@pytest.mark.parametrize(("route", "field"), [(route, field) for route, fields in FIELDS.items() for field in fields])
def test_wrong_values_of_a_field_are_refused_or_harmless(url, route, field):
    # Another name for the same setting would contradict it.
    both = ("max_tokens", "max_completion_tokens")
    body = {name: value for name, value in BODIES[route].items() if (name, field) != both}
    for value in VALUES.values():
        status, answer = send(url, route, json.dumps(body | {field: value}).encode())
        if status == 200:
            continue
        error = refused(status, answer, statuses=(400, 404))
        assert len(error["message"]) < 2000
        assert re.split(r"[.[]", error["param"])[0] == field, error
        assert not RUST_WORDS.search(error["message"]), error


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT, RESPONSES])
def test_an_unknown_field_is_refused_by_its_name(url, route):
    error = refused(*ask(url, route, BODIES[route] | {"temprature": 1}))
    assert error["param"] == "temprature"
    assert "temperature" in error["message"]


HOSTILE_SCHEMAS = {
    "a keyword that is not kept": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
    "no JSON schema": {"type": "nothing"},
    "a reference to nothing": {"$ref": "#/$defs/nothing"},
    "nothing is valid": {"enum": []},
    "an endless pattern": {"type": "string", "pattern": "(((a{1,200}){1,200}){1,200}){1,200}"},
    "a hundred properties in each of a hundred": {
        "type": "object",
        "properties": {
            str(i): {
                "type": "object",
                "properties": {str(j): {"type": "string"} for j in range(100)},
                "required": ["0"],
            }
            for i in range(400)
        },
    },
    "large": {"enum": ["x" * 300_000]},
}


@pytest.mark.parametrize("what", HOSTILE_SCHEMAS)
def test_a_hostile_schema_ends_its_own_request_alone(url, what):
    schema = HOSTILE_SCHEMAS[what]
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    status, answer = ask(url, CHAT, BODIES[CHAT] | {"response_format": named})
    if status != 200:
        assert refused(status, answer)["code"] in ("constraint_invalid", "constraint_failed")
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    status, answer = ask(url, RESPONSES, BODIES[RESPONSES] | {"text": text})
    if status != 200:
        assert refused(status, answer)["code"] in ("constraint_invalid", "constraint_failed")
    parameters = schema if schema.get("type") == "object" else {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    status, answer = ask(url, CHAT, BODIES[CHAT] | {"tools": [tool], "tool_choice": "required"})
    if status != 200:
        assert refused(status, answer)["code"] in ("constraint_invalid", "constraint_failed")


def test_a_schema_that_cannot_be_kept_is_refused_and_named(url):
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/nothing"}}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert refused(*ask(url, CHAT, BODIES[CHAT] | {"response_format": named}))["code"] == "constraint_invalid"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}, 3],
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}],
        [{"role": "assistant", "tool_calls": "x"}],
        [{"role": "user", "content": [[]]}],
    ],
)
def test_hostile_messages_are_refused_or_harmless(url, messages):
    for route, field in ((CHAT, "messages"), (RESPONSES, "input")):
        status, answer = ask(url, route, BODIES[route] | {field: messages})
        if status != 200:
            refused(status, answer)


def test_more_tools_than_there_may_be_are_refused(url):
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
    assert refused(*ask(url, CHAT, BODIES[CHAT] | {"tools": tools}))["param"] == "tools"


def test_a_body_beyond_the_limit_is_refused(url):
    error = refused(*ask(url, COMPLETIONS, BODIES[COMPLETIONS] | {"prompt": "x" * (17 << 20)}), statuses=(413,))
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("route", [*ROUTES, "/v1/nothing", "/v1/models/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"])
def test_other_methods_and_paths_are_refused(url, method, route):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, route)
        answer = connection.getresponse()
        body = answer.read()
        refused(answer.status, body, statuses=(404, 405))
    finally:
        connection.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_and_streams(url):
    def curl(route, body):
        command = ["curl", "--silent", "--no-buffer", "--noproxy", "*", "-H", "Content-Type: application/json"]
        command += [f"{url}{route}", "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout

    whole = json.loads(curl(CHAT, BODIES[CHAT] | {"max_tokens": 8, "temperature": 0}))
    text = whole["choices"][0]["message"]["content"]
    lines = curl(CHAT, BODIES[CHAT] | {"max_tokens": 8, "temperature": 0, "stream": True}).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    called = json.loads(curl(CHAT, BODIES[CHAT] | {"tools": TOOLS, "tool_choice": "required", "max_tokens": 400}))
    assert called["choices"][0]["message"]["tool_calls"][0]["type"] == "function"
    events = curl(RESPONSES, BODIES[RESPONSES] | {"stream": True}).split("\n\n")
    assert events[0].startswith("event: response.created\ndata: {")
