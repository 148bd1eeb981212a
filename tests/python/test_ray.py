"""The examples on Ray, with two replicas on this machine."""

import http.client
import importlib.util
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exlora import Engine

ray = pytest.importorskip("ray", reason="ray is not installed; `make test-python-slow` installs it")

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = "The truth is"

pytestmark = [
    pytest.mark.slow,
    # Ray's own: of its dependencies, and of sockets and processes that it leaves to the interpreter's end.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def example(name):
    """An example as a module, which workers import by its name."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray on this machine, with nothing that reports or listens for others."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ray.init(
        num_cpus=4,  # two replicas and two workers, also where there are fewer cores
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def adapters(fixtures, tmp_path_factory):
    """A folder of adapters under short names; only the test of the routing asks for `rare` and `seldom`."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, source in (
        ("sqlite", "sqlite-rslora-r16"),
        ("devil", "devil-dora-r8"),
        ("rare", "jargon-lora-r8"),
        ("seldom", "jargon-lora-r8"),
    ):
        (folder / name).symlink_to(fixtures / "adapters" / source)
    return folder


@pytest.fixture(scope="module")
def served(cluster, fixtures, adapters):
    """A function that sends a request to the served routes and returns status and body."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    module = example("ray_serve")
    serve.run(module.app({"model": str(fixtures / "quill-4m-gptq-4bit-g128-sym"), "adapters": str(adapters)}))

    def ask(path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    yield ask
    serve.shutdown()


@pytest.fixture(scope="module")
def engine(fixtures, adapters):
    return Engine(fixtures / "quill-4m-gptq-4bit-g128-sym", adapters={path.name: path for path in adapters.iterdir()})


def events(text):
    """The data of server-sent events, whose last one ends the stream."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def test_two_replicas_answer_with_the_adapter_that_each_request_names(served, engine):
    status, text = served("/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(text)["data"]] == ["base", "devil", "rare", "seldom", "sqlite"]

    names = ("base", "sqlite", "devil")
    bodies = [{"model": name, "prompt": f"{PROMPT} {turn}", "max_tokens": 12} for turn in range(4) for name in names]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = list(threads.map(lambda body: served("/v1/completions", body), bodies))
    for body, (status, text) in zip(bodies, answers, strict=True):
        assert status == 200, text
        adapter = None if body["model"] == "base" else body["model"]
        alone = engine.generate(body["prompt"], adapter=adapter, max_new_tokens=12)
        answer = json.loads(text)
        assert answer["choices"][0]["text"] == alone.text
        assert answer["choices"][0]["finish_reason"] == alone.finish_reason
        assert answer["usage"]["completion_tokens"] == len(alone.token_ids)
    assert len({json.loads(text)["system_fingerprint"] for _, text in answers}) == 2


def test_requests_go_to_the_replica_that_has_their_adapter(served):
    for name in ("rare", "seldom"):
        replicas = set()
        for turn in range(6):
            status, text = served("/v1/completions", {"model": name, "prompt": f"{PROMPT} {turn}", "max_tokens": 1})
            assert status == 200, text
            replicas.add(json.loads(text)["system_fingerprint"])
            if turn == 0:
                time.sleep(3)  # replicas tell the routes what they have ten times a second
        assert len(replicas) == 1


def test_a_mixture_streams_as_server_sent_events(served, engine):
    mixture = {"sqlite": 0.5, "devil": 0.5}
    body = {"adapters": mixture, "prompt": PROMPT, "max_tokens": 12, "stream": True}
    status, text = served("/v1/completions", body)
    assert status == 200
    pieces = events(text)
    alone = engine.generate(PROMPT, adapter=mixture, max_new_tokens=12)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == alone.text
    assert pieces[-1]["choices"][0]["finish_reason"] == alone.finish_reason


def test_a_conversation_streams_or_comes_at_once(served, engine):
    messages = [{"role": "user", "content": "What is a bug?"}]
    body = {"model": "devil", "messages": messages, "max_tokens": 8}
    status, text = served("/v1/chat/completions", body)
    assert status == 200, text
    alone = engine.generate(messages, adapter="devil", max_new_tokens=8)
    assert json.loads(text)["choices"][0]["message"] == {"role": "assistant", "content": alone.text}
    pieces = events(served("/v1/chat/completions", {**body, "stream": True})[1])
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == alone.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nope", "prompt": PROMPT}, 404, "adapter_not_found"),
        ({"model": "../adapters/sqlite", "prompt": PROMPT}, 404, "adapter_not_found"),
        ({"model": "base", "prompt": PROMPT, "temprature": 1}, 400, "request_invalid"),
        ({"model": "base"}, 400, "request_invalid"),
        (["no object"], 400, "request_invalid"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(served, body, status, code):
    found, text = served("/v1/completions", body)
    assert (found, json.loads(text)["error"]["code"]) == (status, code)


def test_a_file_of_requests_is_completed_in_order(cluster, fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    module = example("ray_data")
    lines = [
        {"prompt": f"{PROMPT} {i}", "max_new_tokens": 6, **({} if adapter is None else {"adapter": adapter})}
        for i in range(4)
        for adapter in (None, "sqlite", {"sqlite": 0.5, "devil": 0.5}, "nope")
    ]
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    module.run(requests, results, batch_size=4)

    engine = Engine(module.MODEL, adapters=module.ADAPTERS)
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [{key: line[key] for key in given} for line, given in zip(found, lines, strict=True)] == lines
    for line in found:
        if line.get("adapter") == "nope":
            assert line["error"]["code"] == "adapter_not_found"
        else:
            alone = engine.generate(line["prompt"], adapter=line.get("adapter"), max_new_tokens=6)
            assert line["completion"] == alone.text
