"""An HTTP server on FastAPI: each request names its adapters, all run in one batch.

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_server:app            (at the root of the repository)
    curl localhost:8000/generate -d '{"prompt": "The file", "adapter": {"sqlite": 0.7}, "max_new_tokens": 24}'
    curl -N localhost:8000/stream -d '{"prompt": "The file", "adapter": "sqlite"}'
    curl -X PUT localhost:8000/adapters/devil -d '{"path": "tests/fixtures/adapters/devil-dora-r8"}'

The body of a request is a JSON object with the arguments of `exlora.Request`. /stream answers with one JSON object per
line as tokens are generated. A client that disconnects ends its request.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import exlora
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {
    "jargon": "tests/fixtures/adapters/jargon-lora-r8",
    "sqlite": "tests/fixtures/adapters/sqlite-rslora-r16",
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model when the server starts, and frees it when it stops."""
    async with await exlora.AsyncEngine.load(MODEL, adapters=ADAPTERS) as engine:
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(exlora.ExloraError)
async def failed(_: Request, error: exlora.ExloraError) -> JSONResponse:
    """An error with its stable code."""
    status = 404 if isinstance(error, exlora.NotFoundError) else 400 if isinstance(error, ValueError) else 500
    return JSONResponse({"error": error.code, "message": str(error)}, status)


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object in a request, whatever its content type."""
    try:
        body = json.loads(await request.body())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is no JSON object")
    return body


async def request_of(request: Request) -> exlora.Request:
    """The body as a request of the engine."""
    try:
        return exlora.Request(**await body_of(request))
    except TypeError as error:  # an unknown argument
        raise HTTPException(400, str(error)) from None


@app.post("/generate")
async def generate(request: Request) -> dict[str, Any]:
    """The whole text, once it is complete."""
    completion = await request.app.state.engine.generate(await request_of(request))
    return completion.to_dict()


@app.post("/stream")
async def stream(request: Request) -> StreamingResponse:
    """The text as it is generated."""
    chunks = request.app.state.engine.stream(await request_of(request))
    first = await anext(chunks)  # what is wrong with the request is raised here, before a status is sent

    async def lines() -> AsyncIterator[str]:
        async with chunks:  # a client that disconnects cancels this, which ends the request
            yield json.dumps(first.to_dict()) + "\n"
            async for chunk in chunks:
                yield json.dumps(chunk.to_dict()) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@app.get("/adapters")
async def adapters(request: Request) -> list[dict[str, Any]]:
    """The loaded adapters."""
    return [{"name": info.name, "rank": info.rank} for info in request.app.state.engine.adapters()]


@app.put("/adapters/{name}")
async def load_adapter(name: str, request: Request) -> dict[str, Any]:
    """Loads an adapter, or replaces it, while requests run."""
    info = await request.app.state.engine.load_adapter(name, (await body_of(request))["path"])
    return {"name": info.name, "rank": info.rank}


@app.delete("/adapters/{name}")
async def unload_adapter(name: str, request: Request) -> None:
    """Unloads an adapter; running requests keep it."""
    await request.app.state.engine.unload_adapter(name)
