"""An HTTP server on asyncio: each request names its adapters, all run in one batch. Standard library only.

    python examples/asyncio_server.py            (at the root of the repository)
    curl -N localhost:8000 -d '{"prompt": "The file", "adapter": {"sqlite": 0.7}, "max_new_tokens": 24}'

The body is a JSON object with the arguments of `exlora.Request`. The answer is one JSON object per line, sent as tokens
are generated; the last one has a `finish_reason`. Errors are `{"error": code, "message": text}`. A client that
disconnects ends its request. With FastAPI, the same loop is the body of a `StreamingResponse`.

While clients wait for chunks, one thread computes steps for all of their requests; `async for` does not block the event
loop and needs no thread of its own.
"""

import asyncio
import contextlib
import json

from exlora import Engine, ExloraError, Request

MODEL = "tests/fixtures/quill-4m-gptq-4bit-g128-sym"
ADAPTERS = {
    "jargon": "tests/fixtures/adapters/jargon-lora-r8",
    "sqlite": "tests/fixtures/adapters/sqlite-rslora-r16",
}
MAX_BODY = 1 << 20


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """The body of an HTTP request with a Content-Length."""
    headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:]
    lengths = [line.split(":", 1)[1] for line in headers if line.lower().startswith("content-length:")]
    length = int(lengths[0]) if lengths else 0
    if length > MAX_BODY:
        raise ValueError("the body is too large")
    return await reader.readexactly(length)


async def answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one connection."""

    async def send(line: object, status: str | None = None) -> None:
        if status is not None:
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n".encode()
            )
        writer.write(json.dumps(line).encode() + b"\n")
        await writer.drain()  # raises if the client is gone

    try:
        request = Request(**json.loads(await read_body(reader)))
        async with engine.stream(request) as stream:
            status: str | None = "200 OK"
            async for chunk in stream:
                await send(chunk.to_dict(), status)
                status = None
    except ExloraError as error:
        await send({"error": error.code, "message": str(error)}, "400 Bad Request")
    except (TypeError, ValueError) as error:
        await send({"error": "request_invalid", "message": str(error)}, "400 Bad Request")
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client is gone, and leaving the `async with` block ended its request
    finally:
        writer.close()


async def serve(engine: Engine, port: int = 8000) -> asyncio.Server:
    """Starts listening; port 0 takes a free one."""
    return await asyncio.start_server(lambda reader, writer: answer(engine, reader, writer), "127.0.0.1", port)


async def main() -> None:
    """Loads the model and serves until Ctrl-C."""
    engine = await asyncio.to_thread(Engine, MODEL, adapters=ADAPTERS)
    async with await serve(engine) as server:
        print("listening on http://127.0.0.1:8000")
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
