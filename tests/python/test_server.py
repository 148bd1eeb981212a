"""The HTTP server: what it answers is what the engine generates, and nobody keeps it from answering."""

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from exlora import Engine, ExloraError, Server
from openapi_spec_validator import validate
from support.threads import run_together

PROMPT = "Once upon a time"

#: Only there to fail instead of hanging, in seconds.
LIMIT = 60


@pytest.fixture(scope="module")
def folders(fixtures):
    return {"sql": fixtures / "adapters/sqlite-rslora-r16", "wit": fixtures / "adapters/jargon-lora-r8"}


@pytest.fixture(scope="module")
def engine(fixtures, folders):
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters=folders, kv_tokens=16384)


@pytest.fixture(scope="module")
def server(engine):
    with Server(engine, port=0, served_model_name=["quill", "other"]) as server:
        yield server


def send(server, method, path, body=None, **headers):
    """The status, the headers, and the body, as JSON if it is some."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
    with contextlib.closing(connection):
        text = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, text, {"Content-Type": "application/json", **names})
        response = connection.getresponse()
        answer = response.read().decode()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, response.headers, json.loads(answer) if is_json else answer


def post(server, path, **fields):
    status, _, answer = send(server, "POST", path, fields)
    assert status == 200, answer
    return answer


def refusal(server, path, body, **headers):
    status, _, answer = send(server, "POST", path, body, **headers)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["code"], error["param"]


def events(server, path, **fields):
    """The data of the events of a stream; the last one is [DONE]."""
    status, headers, text = send(server, "POST", path, {**fields, "stream": True})
    assert status == 200, text
    assert headers.get_content_type() == "text/event-stream"
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def is_idle(engine):
    stats = engine.stats()
    return (stats["rows_running"], stats["rows_waiting"], stats["leases"]) == (0, 0, 0)


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_streams_of_many_clients_have_the_texts_of_generate(server, engine):
    mixtures = [None, "sql", "wit", {"sql": 0.3, "wit": 0.7}]
    keywords = [{"adapter": mixtures[i % 4], "temperature": 0.9 * (i % 3), "seed": i} for i in range(64)]
    expected = [engine.generate(f"{PROMPT} {i}", max_new_tokens=12, **one).text for i, one in enumerate(keywords)]
    found = [None] * 64

    def complete(i):
        fields = {"prompt": f"{PROMPT} {i}", "max_tokens": 12, **keywords[i]}
        adapter = fields.pop("adapter")
        if adapter is not None:
            fields["model" if isinstance(adapter, str) else "adapters"] = adapter
        chunks = events(server, "/v1/completions", **fields)
        found[i] = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])

    run_together(*[lambda i=i: complete(i) for i in range(64)])
    assert found == expected
    wait_until(lambda: is_idle(engine))


def test_a_completion_has_openais_fields(server, engine):
    out = engine.generate(PROMPT, adapter="sql", max_new_tokens=6, logprobs=2)
    answer = post(server, "/v1/completions", prompt=PROMPT, model="sql", max_tokens=6, logprobs=2)
    assert (answer["object"], answer["model"]) == ("text_completion", "sql")
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == (out.text, "length", 0)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(out.logprobs, abs=1e-6)
    assert "".join(choice["logprobs"]["tokens"]) == out.text
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2] * 6
    usage = answer["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (6, usage["prompt_tokens"] + 6)


def test_prompts_are_texts_or_ids_and_each_has_n_choices(server, engine):
    ids = engine.tokenizer.encode(PROMPT)
    both = post(server, "/v1/completions", prompt=[ids, ids], max_tokens=4, n=2, temperature=1, seed=7)
    texts = [choice["text"] for choice in both["choices"]]
    expected = [out.text for out in engine.generate(PROMPT, max_new_tokens=4, n=2, temperature=1, seed=7)]
    assert texts == expected * 2
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    echoed = post(server, "/v1/completions", prompt=PROMPT, max_tokens=4, echo=True)["choices"][0]["text"]
    assert echoed == PROMPT + engine.generate(PROMPT, max_new_tokens=4).text
    assert len(post(server, "/v1/completions", prompt="a", ignore_eos=True)["choices"]) == 1


def test_a_stop_ends_the_text_and_is_named(server, engine):
    text = engine.generate(PROMPT, max_new_tokens=12).text
    stop = text[5:8]
    [choice] = post(server, "/v1/completions", prompt=PROMPT, max_tokens=12, stop=stop)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[: text.find(stop)], "stop", stop)
    [choice] = post(server, "/v1/completions", prompt=PROMPT, max_tokens=12, choices=["yes", "no"])["choices"]
    assert choice["text"] in ("yes", "no")


def test_a_chat_is_answered_as_a_whole_and_as_a_stream(server, engine):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    out = engine.generate([{"role": "user", "content": "Hello"}], adapter="wit", max_new_tokens=8)
    fields = {"messages": messages, "model": "wit", "max_completion_tokens": 8}
    whole = post(server, "/v1/chat/completions", **fields)
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": out.text, "refusal": None}
    options = {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "n": 2}
    chunks = events(server, "/v1/chat/completions", **fields, **options)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 16
    for index in range(2):
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == out.text
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["length"]
        tokens = [token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
        text = bytes(byte for token in tokens for byte in token["bytes"]).decode()
        # Special tokens have no part in the text.
        assert text.replace("<|im_start|>", "").replace("<|im_end|>", "") == out.text
        assert all(len(token["top_logprobs"]) == 2 for token in tokens)


def test_models_are_the_base_and_each_adapter(server, engine):
    _, _, listed = send(server, "GET", "/v1/models")
    models = {model["id"]: model for model in listed["data"]}
    assert list(models) == ["quill", "other", "base", "sql", "wit"]
    assert all(model["loaded"] for model in models.values())
    info = next(info for info in engine.adapters() if info.name == "sql")
    assert (models["sql"]["parent"], models["sql"]["rank"]) == ("quill", 16)
    assert models["sql"]["content_hash"] == info.content_hash
    assert send(server, "GET", "/v1/models/sql")[2] == models["sql"]
    status, _, answer = send(server, "GET", "/v1/models/a/b:c")
    assert (status, answer["error"]["code"]) == (404, "adapter_not_found")


def test_texts_are_tokenized_and_back(server, engine):
    answer = post(server, "/tokenize", prompt=PROMPT, return_token_strs=True)
    assert answer["tokens"] == list(engine.tokenizer.encode(PROMPT))
    assert (answer["count"], len(answer["token_strs"])) == (len(answer["tokens"]), len(answer["tokens"]))
    assert post(server, "/detokenize", tokens=answer["tokens"])["prompt"] == PROMPT
    assert post(server, "/tokenize", messages=[{"role": "user", "content": "Hello"}])["count"] > 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temprature": 1}, (400, "request_invalid", "temprature")),
        ({"temperature": "hot"}, (400, "request_invalid", "temperature")),
        ({"temperature": -1}, (400, "sampling_invalid", "temperature")),
        ({"max_tokens": 0}, (400, "request_invalid", "max_tokens")),
        ({"max_tokens": 100_000}, (400, "request_invalid", "max_tokens")),
        ({"stop": [1.5]}, (400, "request_invalid", "stop")),
        ({"suffix": "x"}, (400, "setting_unsupported", "suffix")),
        ({"best_of": 3}, (400, "setting_unsupported", "best_of")),
        ({"probs": 3}, (400, "setting_unsupported", "probs")),
        ({"prompt": {}}, (400, "request_invalid", "prompt")),
        ({"prompt": ""}, (400, "prompt_empty", "prompt")),
        ({"prompt": [10**9]}, (400, "token_out_of_range", "prompt")),
        ({"model": "nobody"}, (404, "adapter_not_found", "model")),
        ({"stream_options": {"usage": True}}, (400, "request_invalid", "stream_options.usage")),
        ({"stream_options": {"include_usage": True}}, (400, "request_invalid", "stream_options")),
        ({"n": 100000}, (400, "request_invalid", "n")),
        ({"regex": "("}, (400, "constraint_invalid", "regex")),
        ({"guided_regex": "("}, (400, "constraint_invalid", "guided_regex")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_refused_by_its_name(server, fields, expected):
    assert refusal(server, "/v1/completions", {"prompt": PROMPT, **fields}) == expected


def test_fields_that_change_no_answer_are_accepted(server):
    post(server, "/v1/completions", prompt=PROMPT, max_tokens=1, user="me", metadata={"a": "b"}, suffix=None)


def test_bodies_that_are_no_json_are_refused(server):
    assert refusal(server, "/v1/completions", "{")[0] == 400
    assert refusal(server, "/v1/completions", "[]")[0] == 400
    assert refusal(server, "/v1/completions", b"\xff\xfe")[0] == 400
    assert refusal(server, "/v1/completions", "{}", Content_Type="text/plain")[0] == 415
    assert refusal(server, "/v1/completions", "[" * 100_000)[0] == 400
    assert refusal(server, "/v1/completions", '"' + "x" * (17 << 20) + '"')[:2] == (413, "request_too_large")
    assert refusal(server, "/nope", "{}")[:2] == (404, "route_not_found")
    assert send(server, "DELETE", "/v1/models")[0] == 405


def test_a_page_of_elsewhere_does_not_reach_a_server_of_this_machine(server, engine):
    assert send(server, "GET", "/v1/models", Host="evil.example")[0] == 403
    assert send(server, "GET", "/v1/models", Host="localhost:1")[0] == 200
    assert "access-control-allow-origin" not in send(server, "GET", "/v1/models", Origin="https://a.example")[1]
    with Server(engine, port=0, cors_origin="https://a.example") as open_to_a:
        allowed = send(open_to_a, "GET", "/v1/models", Origin="https://a.example")[1]
        assert allowed["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in send(open_to_a, "GET", "/health", Origin="https://b.example")[1]
    with pytest.raises(ExloraError, match="CORS origin"):
        Server(engine, port=0, cors_origin="a.example")


def test_keys_open_the_routes(engine):
    with Server(engine, port=0, api_key=["one", "two"], admin_key="admin") as server:
        for key in ("one", "two", "admin"):
            assert send(server, "GET", "/v1/models", Authorization=f"Bearer {key}")[0] == 200
        assert send(server, "GET", "/v1/models", X_Api_Key="one")[0] == 200
        status, headers, answer = send(server, "GET", "/v1/models", Authorization="Bearer three")
        assert (status, headers["www-authenticate"], answer["error"]["code"]) == (401, "Bearer", "unauthorized")
        assert send(server, "GET", "/v1/models")[0] == 401
        assert send(server, "GET", "/health")[0] == send(server, "GET", "/ready")[0] == 200


def test_beyond_this_machine_a_key_is_needed(engine):
    with pytest.raises(ExloraError, match="no key"):
        Server(engine, host="0.0.0.0", port=0)
    for options in ({"api_key": "one"}, {"no_auth": True}):
        Server(engine, host="0.0.0.0", port=0, **options).stop()


def test_what_a_request_does_not_say_is_the_servers_default(engine):
    with Server(engine, port=0, temperature=1.0, seed=3, max_new_tokens=5) as server:
        expected = engine.generate(PROMPT, temperature=1.0, seed=3, max_new_tokens=5).text
        assert post(server, "/v1/completions", prompt=PROMPT)["choices"][0]["text"] == expected
        expected = engine.generate(PROMPT, temperature=0.0, max_new_tokens=5).text
        assert post(server, "/v1/completions", prompt=PROMPT, temperature=0)["choices"][0]["text"] == expected
    wrong = {"temprature": 1.0, "temperature": -1, "top_p": float("nan"), "max_new_tokens": 0, "min_p": "much"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            Server(engine, port=0, **{name: value})


def test_a_limit_of_waiting_is_a_number_of_seconds(engine):
    with Server(engine, port=0) as server:
        assert not server.wait(-1)
        with pytest.raises(ValueError, match="seconds"):
            server.wait(float("nan"))


@contextlib.contextmanager
def stream(server, **fields):
    """The response of a long stream that has begun. At the end of the block, the client goes away."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
    body = {"prompt": PROMPT, "stream": True, "max_tokens": 900, "ignore_eos": True, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    with contextlib.closing(connection), connection.getresponse() as response:
        assert response.status == 200
        assert response.readline().startswith(b"data: ")
        yield response


def test_clients_that_go_away_leave_no_lease_and_no_page(server, engine):
    wait_until(lambda: is_idle(engine))
    free = engine.stats()["kv_pages_free"]
    for model in ("sql", "wit", "base"):
        with stream(server, model=model, n=2, temperature=1):
            assert engine.stats()["rows_running"] > 0
    wait_until(lambda: is_idle(engine) and engine.stats()["kv_pages_free"] == free)
    connection = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "model": "sql"})
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode())
    wait_until(lambda: engine.stats()["leases"] > 0)
    connection.close()
    wait_until(lambda: is_idle(engine) and engine.stats()["kv_pages_free"] == free)


def test_requests_beyond_the_queue_are_refused(fixtures):
    engine = Engine(fixtures / "quill-4m", max_batch_size=1)
    with Server(engine, port=0, max_queue=1, shutdown_timeout=0) as server:
        rest = threading.Thread(target=lambda: send(server, "POST", "/v1/completions", {"prompt": PROMPT}))
        with stream(server):
            rest.start()
            wait_until(lambda: engine.stats()["rows_waiting"] == 1)
            status, headers, answer = send(server, "POST", "/v1/completions", {"prompt": PROMPT})
            assert (status, headers["retry-after"], answer["error"]["code"]) == (429, "1", "queue_full")
        rest.join(LIMIT)
        post(server, "/v1/completions", prompt=PROMPT, max_tokens=1)


def test_a_stopped_server_ends_what_runs_and_answers_nothing_more(fixtures):
    engine = Engine(fixtures / "quill-4m")
    server = Server(engine, port=0, shutdown_timeout=0.2)
    with stream(server, max_tokens=1000):
        server.stop()
        with pytest.raises(ConnectionError):
            send(server, "GET", "/health")
    assert is_idle(engine)
    assert server.wait(0)
    server.stop()


def test_the_openapi_document_is_valid(server):
    _, _, document = send(server, "GET", "/openapi.json")
    validate(document)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models/{id}", "/tokenize"} <= set(document["paths"])


@contextlib.contextmanager
def command(fixtures, *options, **environment):
    """The command's process, and the port that it listens on."""
    arguments = [sys.executable, "-m", "exlora", "serve", "-m", str(fixtures / "quill-4m"), "--port", "0", *options]
    variables = {**os.environ, **environment}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        line = process.stdout.readline()
        yield process, line
    finally:
        process.kill()
        process.wait(LIMIT)
        process.stdout.close()
        process.stderr.close()


class At:
    """Where a server of another process listens."""

    def __init__(self, line):
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line).group(1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end(fixtures, folders, number):
    with command(fixtures, "--adapter", f"sql={folders['sql']}") as (process, line):
        assert line.startswith("listening on http://127.0.0.1:")
        assert line.endswith(f", model quill-4m ({fixtures / 'quill-4m'}), adapters: sql\n")
        with stream(At(line), max_tokens=200) as response:
            process.send_signal(number)
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(LIMIT) == 0


def test_the_ready_line_can_be_json_and_keys_come_from_the_environment(fixtures):
    with command(fixtures, "--json", "--served-model-name", "q", EXLORA_API_KEY="k") as (_, line):
        ready = json.loads(line)
        assert (ready["adapters"], ready["served_model_name"]) == ([], "q")
        server = At(ready["url"])
        assert send(server, "GET", "/v1/models")[0] == 401
        status, _, models = send(server, "GET", "/v1/models", Authorization="Bearer k")
        assert (status, models["data"][0]["id"]) == (200, "q")


@pytest.mark.parametrize("number", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_silent_connections_leave_the_server_serving(fixtures, number):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number + 200:
        pytest.skip(f"the process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 200), hard))
    silent = []
    try:
        with command(fixtures) as (_, line):
            server = At(line)
            for _ in range(number):
                silent.append(socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT))
            post(server, "/v1/completions", prompt=PROMPT, max_tokens=2)
            assert send(server, "GET", "/health")[0] == 200
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
