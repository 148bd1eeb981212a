"""OpenAI's routes over replicas of the engine, with Ray Serve: a request goes to a replica that has its adapter.

    pip install '.[ray]'                    (at the root of the repository)
    python examples/ray_serve.py
    curl localhost:8000/v1/completions -d '{"model": "sqlite-rslora-r16", "prompt": "The file", "max_tokens": 24}'
    curl -N localhost:8000/v1/chat/completions -d '{"model": "jargon-lora-r8", "stream": true, "messages":
        [{"role": "user", "content": "What is a bug?"}]}'

Every folder below `ADAPTERS` is a model by its name, loaded when a request first names it; `base` is the model without
an adapter. The field `adapters`, an object of names and weights, asks for a mixture. Serve's model multiplexing
remembers which replica has which adapters and sends requests there; when a replica has `MAX_ADAPTERS`, the least
recently used one leaves. `serve run examples.ray_serve:app model=… adapters=… replicas=4` deploys the same on a
cluster, whose machines must all have these folders.
"""

import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import exlora
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = "tests/fixtures/adapters"
MAX_ADAPTERS = 8
CPUS = 1  # of a replica

# A request's fields under the names that the engine has for them. Others are refused rather than ignored.
SETTINGS = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")}
SETTINGS |= {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
OTHER_FIELDS = {"model", "adapters", "prompt", "messages", "stream", "user"}


class LoadedAdapter:
    """An adapter in a replica's engine. Serve calls `__del__` when another one takes its place."""

    def __init__(self, engine: exlora.Engine, name: str) -> None:
        self.engine = engine
        self.name = name

    def __del__(self) -> None:
        self.engine.unload_adapter(self.name)  # running requests keep it


@serve.deployment(max_ongoing_requests=32, ray_actor_options={"num_cpus": CPUS})
class EngineReplica:
    """One engine, in a process of its own."""

    def __init__(self, model: str, adapters: str) -> None:
        self.engine = exlora.AsyncEngine(model, threads=CPUS)
        self.folders = {path.name: path for path in Path(adapters).iterdir() if (path / "adapter_config.json").exists()}
        self.loads = itertools.count()
        self.id = serve.get_replica_context().replica_id.unique_id

    @serve.multiplexed(max_num_models_per_replica=MAX_ADAPTERS)
    async def load(self, name: str) -> LoadedAdapter:
        """Loads an adapter. Serve calls this once for a name, and again after the adapter has left."""
        # Each loading has a name of its own: the end of an earlier one doesn't unload the next.
        loaded = f"{name} #{next(self.loads)}"
        await self.engine.load_adapter(loaded, self.folders[name])
        return LoadedAdapter(self.engine.engine, loaded)

    async def models(self) -> list[str]:
        """The names that a request may have as its model."""
        return ["base", *sorted(self.folders)]

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a completion, `{text, finish_reason, usage, replica}` each, or one `{error, status}`."""
        try:
            weights = weights_of(body)
            unknown = [name for name in weights if name not in self.folders]
            if unknown:
                yield error(404, "adapter_not_found", f"there is no adapter {unknown[0]!r} among {list(self.folders)}")
                return
            loaded = {name: await self.load(name) for name in weights}
            mixture = {loaded[name].name: weight for name, weight in weights.items()}
            async with self.engine.stream(request_of(body, mixture)) as chunks:
                async for chunk in chunks:
                    usage = chunk.usage and {
                        "prompt_tokens": chunk.usage.prompt_tokens,
                        "completion_tokens": chunk.usage.completion_tokens,
                        "total_tokens": chunk.usage.prompt_tokens + chunk.usage.completion_tokens,
                    }
                    piece = {"text": chunk.text, "finish_reason": chunk.finish_reason, "usage": usage}
                    yield {**piece, "replica": self.id}
        except exlora.ExloraError as failed:
            yield error(400 if isinstance(failed, ValueError) else 500, failed.code, str(failed))
        except (TypeError, ValueError) as wrong:
            yield error(400, "request_invalid", str(wrong))


def weights_of(body: dict[str, Any]) -> dict[str, float]:
    """The names and weights of a request's adapters, in the order of the mixture."""
    if "adapters" in body:
        return dict(body["adapters"])
    model = body.get("model", "base")
    return {} if model == "base" else {model: 1.0}


def request_of(body: dict[str, Any], mixture: dict[str, float]) -> exlora.Request:
    """A request of the engine for a body in OpenAI's form."""
    unknown = body.keys() - SETTINGS.keys() - OTHER_FIELDS
    if unknown:
        raise ValueError(f"the field {min(unknown)!r} is not known")
    settings = {SETTINGS[name]: value for name, value in body.items() if name in SETTINGS and value is not None}
    return exlora.Request(body["messages"] if "messages" in body else body["prompt"], mixture or None, **settings)


def error(status: int, code: str, message: str) -> dict[str, Any]:
    """An error in OpenAI's form, with its HTTP status."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}, "status": status}


routes = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress(routes)
class OpenAIRoutes:
    """The HTTP routes, in front of the replicas."""

    def __init__(self, engines: serve.handle.DeploymentHandle) -> None:
        self.engines = engines

    @routes.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The base and every adapter."""
        names = await self.engines.models.remote()
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "exlora"} for name in names]}

    @routes.post("/v1/completions")
    async def completions(self, request: Request) -> Any:
        """Continues a prompt."""
        return await self.answer(request, "prompt", "text_completion", lambda text, _: {"text": text})

    @routes.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Any:
        """Answers a conversation."""

        def message(text: str, is_piece: bool) -> dict[str, Any]:
            return {"delta" if is_piece else "message": {"role": "assistant", "content": text}}

        return await self.answer(request, "messages", "chat.completion", message)

    async def answer(self, request: Request, needed: str, kind: str, content: Any) -> Any:
        """The answer to a request: one object, or server-sent events."""
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None
        if not isinstance(body, dict) or needed not in body:
            wrong = error(400, "request_invalid", f"the body has to be a JSON object with {needed!r}")
            return JSONResponse({"error": wrong["error"]}, 400)

        names = list(weights_of(body))
        engines = self.engines.options(stream=True, multiplexed_model_id=names[0] if names else "")
        pieces = engines.stream.remote(body)
        first = await anext(pieces)  # what is wrong with the request is known here, before a status is sent
        if "error" in first:
            return JSONResponse({"error": first["error"]}, first["status"])

        head = {
            "id": f"cmpl-{time.time_ns():x}",
            "created": int(time.time()),
            "model": body.get("model", "base"),
            "system_fingerprint": first["replica"],
        }

        def response(piece: dict[str, Any], is_piece: bool) -> dict[str, Any]:
            object_name = "chat.completion.chunk" if is_piece and needed == "messages" else kind
            choice = {"index": 0, "finish_reason": piece["finish_reason"], **content(piece["text"], is_piece)}
            usage = {} if piece["usage"] is None else {"usage": piece["usage"]}
            return {**head, "object": object_name, "choices": [choice], **usage}

        async def events() -> AsyncIterator[str]:
            yield f"data: {json.dumps(response(first, True))}\n\n"
            async for piece in pieces:
                data = {"error": piece["error"]} if "error" in piece else response(piece, True)
                yield f"data: {json.dumps(data)}\n\n"
            yield "data: [DONE]\n\n"

        if body.get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream")
        text, last = first["text"], first
        async for last in pieces:
            if "error" in last:
                return JSONResponse({"error": last["error"]}, last["status"])
            text += last["text"]
        return response({**last, "text": text}, False)


def app(options: dict[str, str]) -> serve.Application:
    """The application: routes before as many replicas as `replicas` says, of a model with the adapters of a folder."""
    model = str(Path(options.get("model", MODEL)).absolute())
    adapters = str(Path(options.get("adapters", ADAPTERS)).absolute())
    engines = EngineReplica.options(num_replicas=int(options.get("replicas", 2)))
    return OpenAIRoutes.bind(engines.bind(model, adapters))


if __name__ == "__main__":
    serve.run(app({}), blocking=True)
