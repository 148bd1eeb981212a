"""The HTTP server: OpenAI's routes over an engine, in which every adapter is a model."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from types import TracebackType
from typing import Any

import exlora._exlora as _exlora
from exlora.async_engine import AsyncEngine
from exlora.engine import Engine

__all__ = ["Server", "serve"]


class Server:
    """An HTTP server over an engine, in a thread of its own: OpenAI's routes, every adapter a model, and a page at `/`.

        with Server(engine, port=0) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")

    It answers requests from the moment when it is made until `stop`, or the end of the `with` block. The engine can be
    used beside it, and adapters that it loads are served at once.

    engine             the engine that answers
    host               address or host name to listen on; beyond this machine only with `api_key` or `no_auth`
    port               port to listen on; 0 for any that is free
    api_key            key that clients must show, or several
    admin_key          key of the routes that load and unload adapters, which are closed without one
    metrics_key        key for /metrics alone
    no_auth            whether everyone who can reach the server may use it, also from other machines
    cors_origin        origin of web pages that may send requests, or several; "*" for all
    served_model_name  name of the base model, or several, of which responses have the first
    adapters_dir       folder of adapters that are loaded when a request first names them
    pin                names of adapters that are never unloaded to make room for others
    tool_call_parser   how the model writes calls of tools: "hermes", "llama3" or "mistral"; by default what its chat
                       template teaches
    max_queue          requests that may wait beside those that run; more are refused with status 429
    max_connections    open connections; one more closes the one that has been idle longest, or is refused with status
                       503 if all have requests
    shutdown_timeout   longest time that running requests have to end when the server is stopped, in seconds
    defaults           what a request has where it says nothing, as keywords: those of `generate`, as in temperature=1
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | Iterable[str] | None = None,
        admin_key: str | None = None,
        metrics_key: str | None = None,
        no_auth: bool = False,
        cors_origin: str | Iterable[str] | None = None,
        served_model_name: str | Iterable[str] | None = None,
        adapters_dir: str | PathLike[str] | None = None,
        pin: str | Iterable[str] | None = None,
        tool_call_parser: str | None = None,
        max_queue: int = 256,
        max_connections: int = 1024,
        shutdown_timeout: float = 30.0,
        **defaults: Any,
    ) -> None:
        if isinstance(engine, AsyncEngine):
            engine = engine._engine
        self._server = _exlora.Server(
            engine._native,
            host=host,
            port=port,
            api_keys=_texts(api_key),
            admin_key=admin_key,
            metrics_key=metrics_key,
            no_auth=no_auth,
            cors_origins=_texts(cors_origin),
            served_model_names=_texts(served_model_name),
            adapters_dir=adapters_dir,
            pinned_adapters=_texts(pin),
            tool_call_parser=tool_call_parser,
            max_queue=max_queue,
            max_connections=max_connections,
            shutdown_timeout=shutdown_timeout,
            defaults=_defaults(defaults),
        )

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end: http://127.0.0.1:8000."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.port

    def stop(self) -> None:
        """Accepts no more requests, and waits until the running ones have ended, at most for `shutdown_timeout`."""
        self._server.begin_stop()
        self._server.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server has ended, at most for `timeout` seconds; whether it has."""
        return self._server.wait(timeout)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.url!r})"


def serve(engine: Engine | AsyncEngine, **options: Any) -> None:
    """Serves an engine until Ctrl-C or SIGTERM. Options are those of `Server`."""
    with Server(engine, **options) as server, _stopped_by_sigterm(server):
        print(f"listening on {server.url}", flush=True)
        with suppress(KeyboardInterrupt):
            server.wait()


@contextmanager
def _stopped_by_sigterm(server: Server) -> Iterator[None]:
    """SIGTERM stops the server, where this thread is the one that Python handles signals in."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: server._server.begin_stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _texts(value: str | Iterable[str] | None) -> list[str]:
    """One text, or several."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _defaults(keywords: Mapping[str, Any]) -> str:
    """Settings of requests as a JSON object, which has no infinities and no NaN."""
    for name, value in keywords.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _exlora.error("sampling_invalid", f"{name} is not finite", found=str(value))
    return json.dumps({name: value for name, value in keywords.items() if value is not None})
