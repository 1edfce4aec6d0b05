"""Between the event loop and Flask: admits or refuses a complete request at once, and answers it from a thread.

Only a request that is complete and admitted takes a thread, so a client that sends a byte a second takes a buffer, but
no thread. Requests beyond the threads wait in line. Beyond the line, the loop itself answers 503.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from gateway.app import DRAINING, HEALTH_PATHS, RECEIVED, write_problem
from gateway.errors import GatewayError, InternalError, Overloaded, TooLarge
from gateway.keys import Keys, Origins
from gateway.memory import Held, Room, Untaken
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.trace import Trace

WsgiApp = Callable[..., Iterable[bytes]]

SMALL_BODY_BYTES = 64 * 1024  # for what needs no body
MAX_SCRAPES = 4
# A process with a request that is still at work so long after its time is ended, and another takes its place. Nothing
# else ends a library that hangs, as a decoder may on an image made for that; it would keep its place for ever.
STUCK_AFTER_S = 10.0

# What is the same in each WSGI environment. Source: PEP 3333.
_SAME: dict[str, Any] = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input_terminated": True,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}

Answer = tuple[int, Headers, bytes]

_log = logging.getLogger(__name__)


@dataclass
class Request:
    """A request as the application gets it.

    Attributes:
        environ: Its part of the WSGI environment; of a request that is refused, what is known.
        held: What keeps the body's bytes in the process's room.
    """

    environ: dict[str, Any]
    held: Held
    body: bytes = b""
    may_keep_alive: bool = True
    awaits_continue: bool = False


class Front:
    """Threads around a WSGI application."""

    def __init__(self, app: WsgiApp, settings: Settings, metrics: Metrics, room: Room) -> None:
        self.settings = settings
        self.room = room
        self.untaken = Untaken(settings.max_held_bytes // 2)
        self.draining = False
        self._app = app
        self._keys, self._origins = Keys(settings.api_keys), Origins(settings.allowed_origins)
        self._metrics = metrics
        limit_s = settings.request_timeout_s + STUCK_AFTER_S
        self._work = Line("request", settings.threads, settings.threads + settings.max_waiting, limit_s)
        # A probe of a busy gateway must not wait behind its work, nor behind a scrape.
        self._health = Line("health", 1, settings.threads + settings.max_waiting, limit_s)
        self._scrapes = Line("metrics", 1, MAX_SCRAPES, limit_s)

    def drain(self) -> None:
        """From now on, be not ready and ask each client to close its connection, but go on answering."""
        self.draining = True

    def takes_body(self, request: Request, size: int) -> bool:
        """Tell whether a body of this size, or of which so much has come, is read; without it, a request is answered.

        Raises:
            TooLarge: It is a prediction's, and larger than allowed.
        """
        if not self._is_prediction(request):
            return size <= SMALL_BODY_BYTES
        if size > (limit := self.settings.max_body_bytes):
            received = f"{size:,}" if size < 10**18 else "far more"
            raise TooLarge(f"Expected a request body of at most {limit:,} bytes. Received: {received}")
        return True

    def check_key(self, request: Request) -> None:
        """Check the API key of a request whose body may be large, before it takes room from those who have a key.

        Raises:
            Unauthorized: It has none.
        """
        if self._is_prediction(request):
            self._keys.check(request.environ.get("HTTP_AUTHORIZATION"), request.environ.get("HTTP_X_API_KEY"))

    def _is_prediction(self, request: Request) -> bool:
        path = f"/{request.environ['PATH_INFO'].lstrip('/')}"  # as Flask reads it
        return request.environ["REQUEST_METHOD"] == "POST" and path == f"{self.settings.path_prefix}/predict"

    async def answer(self, request: Request) -> Answer:
        """Answer a request that is complete."""
        try:
            line = self._line(request.environ["PATH_INFO"])
            return await line.run(self._run, [request, time.monotonic()], request.held)
        except GatewayError as error:
            return self.refuse(request, error)
        except Exception as defect:  # Flask answers for what happens inside of it
            _log.error("request failed", exc_info=defect)
            return self.refuse(request, InternalError())

    def _line(self, path: str) -> Line:
        path = path.removeprefix(self.settings.path_prefix)
        if path == "/metrics":
            return self._scrapes
        return self._health if path in HEALTH_PATHS else self._work

    def _run(self, request: Request, received: float) -> Answer:
        """Answer in a thread.

        Raises:
            Overloaded: Half of the request's time went by in line; the rest may be too short, and the work in vain.
        """
        if time.monotonic() - received > self.settings.request_timeout_s / 2:
            raise Overloaded("The gateway is busy: the request waited for half of its time. Try again shortly.")
        environ = {
            **_SAME,
            **request.environ,
            "CONTENT_LENGTH": str(len(request.body)),  # of a chunked body too
            "wsgi.input": BytesIO(request.body),
            "wsgi.errors": sys.stderr,
            RECEIVED: received,
            DRAINING: self.draining,
        }
        chunks, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        return int(status.split(" ", 1)[0]), headers, b"".join(chunks)

    def refuse(self, request: Request, error: GatewayError) -> Answer:
        """Answer without a thread; count and log it as the application does with its own answers."""
        environ = request.environ
        trace = Trace.of(environ.get("HTTP_X_REQUEST_ID"), environ.get("HTTP_TRACEPARENT"))
        self._metrics.answers.labels("front", error.status, error.code).inc()
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        fields = {"method": method, "path": path, "status": error.status, "code": error.code}
        _log.info("refused", extra={"fields": {**fields, "request_id": trace.request_id, "trace_id": trace.trace_id}})
        response = write_problem(error)
        response.headers["X-Request-ID"] = trace.request_id
        response.headers.update(self._origins.headers(environ.get("HTTP_ORIGIN")))
        return error.status, response.headers, response.get_data()


class Line:
    """Threads, and a line of limited length before them; work that takes longer than the limit ends the process."""

    def __init__(self, name: str, threads: int, capacity: int, limit_s: float) -> None:
        self._capacity = capacity
        self._limit_s = limit_s
        self._admitted = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[..., Answer], arguments: list[Any], held: Held) -> Answer:
        """Work in a thread. It keeps its place and its bytes until it ends, also when its client has gone.

        Raises:
            Overloaded: The line is full.
        """
        if self._admitted >= self._capacity:
            held.release()
            raise Overloaded("The gateway is busy: its line of requests is full. Try again shortly.")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()

        def leave() -> None:
            """Give the place back, and the answer to whoever waits, in the only call to the loop of a request."""
            watch.cancel()
            self._admitted -= 1
            held.release()
            if answered.done() or future.cancelled():  # the client has gone
                return
            if error := future.exception():
                answered.set_exception(error)
            else:
                answered.set_result(future.result())

        try:
            future = self._pool.submit(lambda: work(*arguments))
        except RuntimeError as exc:  # the system allows no more threads; the pool has the work in its line all the same
            arguments.clear()
            held.release()
            raise Overloaded(f"The gateway is busy: {exc}. Try again shortly.") from exc
        self._admitted += 1
        watch = loop.call_later(self._limit_s, _end_process)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        try:
            return await answered
        except asyncio.CancelledError:
            if future.cancel():
                arguments.clear()  # the pool keeps the work until a thread reaches it, but need not keep the body
            raise


def _end_process() -> None:
    _log.critical("a request is still at work %g s after its time; this process ends", STUCK_AFTER_S)
    os._exit(1)
