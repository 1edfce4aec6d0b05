"""The event loop in front of Flask: reads each request whole, admits it or refuses it at once, answers from a thread.

A thread is taken only by a request that is complete and admitted, so a client that sends a byte a second holds a buffer
and no thread. Requests beyond the threads wait in line; beyond the line they are answered 503 by the loop itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from werkzeug.test import run_wsgi_app

from gateway.errors import GatewayError, Overloaded, RequestTimeout, TooLarge
from gateway.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
WsgiApp = Callable[..., Iterable[bytes]]

HEALTH_PATHS = ("/livez", "/readyz", "/metrics")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Front:
    """An ASGI application around a WSGI one."""

    def __init__(self, app: WsgiApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._capacity = settings.threads + settings.max_waiting
        self._admitted = 0
        self._work = ThreadPoolExecutor(settings.threads, thread_name_prefix="request")
        # Whoever asks for the health of a busy gateway must not wait behind its work.
        self._health = ThreadPoolExecutor(1, thread_name_prefix="health")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(scope, receive)
            status, headers, content = await self._admit(scope, body)
        except ClientGone:
            return
        except GatewayError as error:
            status, headers, content = _problem(error)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            TooLarge: It is longer than allowed; by its Content-Length where it has one, before it is read.
            RequestTimeout: It did not come in time.
        """
        limit = self._settings.max_body_bytes
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            raise TooLarge(f"Expected a request body of at most {limit:,} bytes. Received: {int(declared):,}")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise TooLarge(f"Expected a request body of at most {limit:,} bytes. Received: more")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError as exc:
            raise RequestTimeout(
                f"Expected the whole request within {self._settings.body_timeout_s:g} s. Received: {size:,} bytes of it"
            ) from exc

    async def _admit(self, scope: Scope, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        loop = asyncio.get_running_loop()
        if scope["path"] in HEALTH_PATHS:
            return await loop.run_in_executor(self._health, self._run, scope, body)
        if self._admitted >= self._capacity:
            raise Overloaded("Expected a gateway with room for one more request. Received: none. Try again shortly.")
        self._admitted += 1
        try:
            return await loop.run_in_executor(self._work, self._run, scope, body)
        finally:
            self._admitted -= 1

    def _run(self, scope: Scope, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        chunks, status, headers = run_wsgi_app(self._app, _environ(scope, body), buffered=True)
        fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return int(status.split(" ", 1)[0]), fields, b"".join(chunks)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def _problem(error: GatewayError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    content = json.dumps(error.problem()).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(content)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    return error.status, headers, content


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """Return the WSGI environment of a request. Source: PEP 3333."""
    host, port = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope.get("client") or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    environ["CONTENT_LENGTH"] = str(len(body))  # of a chunked body too
    return environ
