"""A client's connection: reads one HTTP/1.1 request after another, each within limits, and sends the answers.

gunicorn's parser reads the bytes. The connection decides how many bytes wait for it, how long it works before others
have their turn, and how long a client may take.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import time
from collections import deque
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.parser import (
    InvalidHTTPVersion,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    PythonProtocol,
    UnsupportedTransferCoding,
)

from gateway.errors import (
    BadRequest,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    RequestTimeout,
    UnsupportedCoding,
    UnsupportedVersion,
    UriTooLong,
)
from gateway.memory import Held
from gateway.server.front import Answer, Request

READ_BYTES = 64 * 1024  # the most that a connection keeps unparsed: it reads on when nothing is left
HEAD_BYTES = 64 * 1024  # all fields together; each may have 8 KiB, and a hundred of those would be 800
# What a connection parses at once. Those with more share a quarter of the time: 1 ms, then 3 ms for everything else.
# A chunk costs 4 us, however short it is, so a piece takes 0.2 ms at worst. What comes after its length is one piece.
TURN_S, PAUSE_S = 0.001, 0.003
PIECE_BYTES = 256
IDLE_S = 620.0  # longer than load balancers, of which Google's keep 600 s: the server must not close first
LINGER_S = 2.0  # for a client to read its answer while it still sends; closing at once would reset the connection

_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(/[^?]*)?(\?.*)?", re.IGNORECASE)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(:[0-9]*)?")

_log = logging.getLogger(__name__)


class Turns:
    """Lets the connections that have more to parse go on one after another, for a part of the time."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()

    def add(self, connection: Connection) -> None:
        """Let a connection wait for its turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(PAUSE_S, self._take)
        self._waiting.append(connection)

    def _take(self) -> None:
        end = time.perf_counter() + TURN_S
        while self._waiting and time.perf_counter() < end:
            if self._waiting[0].take_turn():
                self._waiting.rotate(-1)
            else:
                self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_later(PAUSE_S, self._take)


class Connection(asyncio.BufferedProtocol):
    """An HTTP connection of a worker.

    It is in one phase at a time: *idle*, in the *head* or the *body* of a request, *answering*, *sending* what the
    client takes slowly, *ending* until the client has read all, or *closed*. Each but answering has a time limit.
    """

    def __init__(self, worker: Any) -> None:
        self._worker, self._front = worker, worker.asgi
        self._loop: asyncio.AbstractEventLoop = worker.loop
        self._parser = PythonProtocol(on_headers_complete=self._take_head, on_body=self._take_part)
        self._unread = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._phase = ""
        self._is_new, self._is_waiting, self._is_slow = True, False, False
        self._is_ending, self._has_client_ended = False, False
        self._request: Request | None = None  # once its head is complete
        self._body, self._head_bytes = bytearray(), 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._worker.connections.add(self)
        self._worker.nr_conns += 1
        self._watch()

    def get_buffer(self, _: int) -> bytearray:
        """Return where to read to: one buffer for all connections, because its bytes are taken at once."""
        buffer: bytearray = self._worker.buffer
        return buffer

    def buffer_updated(self, size: int) -> None:
        if not self._is_ending:
            self._unread += memoryview(self._worker.buffer)[:size]
            self._advance()

    def eof_received(self) -> bool:
        """Answer what is complete: a client may close its half, and wait."""
        self._has_client_ended = True
        self._advance()
        return True

    def pause_writing(self) -> None:
        self._is_slow = True
        self._watch()

    def resume_writing(self) -> None:
        self._is_slow = False
        self._advance()

    def connection_lost(self, _: Exception | None) -> None:
        self._worker.nr_conns -= 1
        self._phase = "closed"
        self._unread.clear()
        self._drop_request()
        if self._timer:
            self._timer.cancel()
        if self._answering:
            self._answering.cancel()

    @property
    def is_busy(self) -> bool:
        """Whether a request's head is complete, or some of one has come and is not read yet."""
        if self._phase in ("ending", "closed"):
            return False
        return self._phase not in ("idle", "head") or is_readable(self._transport.get_extra_info("socket"))

    def close(self) -> None:
        """Close the connection, once what was sent has left."""
        self._is_ending = True
        self._unread.clear()
        self._transport.close()
        self._watch()

    def take_turn(self) -> bool:
        """Parse a piece of what waits; return whether there is more."""
        if self._may_parse():
            self._parse()
        self._is_waiting = self._may_parse()
        self._settle()
        return self._is_waiting

    def _advance(self) -> None:
        """Parse what has come, until a request is complete or it is the others' turn."""
        if self._is_waiting:
            return
        end = time.perf_counter() + TURN_S
        while self._may_parse() and time.perf_counter() < end:
            self._parse()
        if self._may_parse():
            self._is_waiting = True
            self._worker.turns.add(self)
        self._settle()

    def _may_parse(self) -> bool:
        is_closing = self._is_ending or self._transport.is_closing()
        return bool(self._unread) and not (is_closing or self._answering or self._is_slow)

    def _settle(self) -> None:
        if self._has_client_ended and not (self._unread or self._answering or self._is_slow):
            self.close()  # nothing can become complete
        self._watch()

    def _watch(self) -> None:
        """Read on, or leave the rest to the system; and begin the time limit of a new phase."""
        if not self._has_client_ended and not self._transport.is_closing():
            (self._transport.pause_reading if self._unread else self._transport.resume_reading)()
        phase = self._find_phase()
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer:
            self._timer.cancel()
        limit_s, end = self._front.settings.body_timeout_s, self.close
        if phase == "answering":
            return
        if phase == "idle":
            limit_s = IDLE_S
        elif phase == "body":
            end = self._refuse_late
        elif phase == "ending":
            limit_s = LINGER_S
        elif phase in ("sending", "closed"):  # closing waits until all is sent
            end = self._transport.abort
        self._timer = self._loop.call_later(limit_s, end)

    def _find_phase(self) -> str:
        if self._transport.is_closing():
            return "closed"
        if self._is_slow:
            return "sending"
        if self._is_ending:
            return "ending"
        if self._answering:
            return "answering"
        if self._request:
            return "body"
        return "head" if self._head_bytes or self._is_new else "idle"

    def _parse(self) -> None:
        """Parse a piece of what has come; refuse the request if it breaks a limit, or is not HTTP."""
        size = max(PIECE_BYTES, self._announced())
        try:
            self._feed(bytes(self._unread[:size]))
        except Exception as exc:
            self._refuse(_as_gateway_error(exc))

    def _announced(self) -> int:
        """Return how many bytes of the body must come before the parser looks at one again."""
        count: int = self._parser._chunk_remaining if self._parser.is_chunked else self._parser._body_remaining
        return count

    def _feed(self, piece: bytes) -> None:
        del self._unread[: len(piece)]
        if not self._request:
            self._head_bytes += len(piece)
            if self._head_bytes > HEAD_BYTES:
                raise HeadersTooLarge(f"Expected header fields of at most {HEAD_BYTES:,} bytes. Received: more")
        self._parser.feed(piece)
        if request := self._request:
            takes_body = self._front.takes_body(request, len(self._body) + self._announced())  # before it is read
            if not takes_body:
                self._body.clear()
                request.may_keep_alive = False  # where the next request would begin is not known
            request.held.add(len(self._body) - request.held.size)
            if self._parser.is_complete or not takes_body:
                self._unread[:0] = self._parser.remaining()
                request.body = bytes(self._body)
                self._parser.reset()
                self._request, self._body, self._head_bytes = None, bytearray(), 0
                self._is_new = False
                self._answering = self._loop.create_task(self._answer(request))
            elif request.awaits_continue and not self._body:
                request.awaits_continue = False
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _take_head(self) -> bool:
        """Take over the head of a request; the parser calls this."""
        self._request = request = self._request_so_far()
        request.headers = [field for field in self._parser.headers if b"_" not in field[0]]
        path, query = _split(self._parser.path)
        request.path, request.query = unquote_to_bytes(path).decode("latin-1"), query.decode("latin-1")
        hosts = [value for name, value in request.headers if name == b"host"]
        if not hosts and self._parser.http_version > (1, 0):
            raise BadRequest("Expected a Host header, as HTTP/1.1 asks for. Received none.")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise BadRequest(f"Expected a host in the Host header. Received: {hosts[0][:100].decode('latin-1')!r}")
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in request.headers):
            raise UnsupportedCoding("Expected no Transfer-Encoding but chunked. Received another one before it.")
        request.may_keep_alive = self._parser.should_keep_alive and request.method != "CONNECT"
        request.awaits_continue = self._parser.http_version > (1, 0) and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in request.headers
        )
        self._front.check_key(request)
        return False

    def _take_part(self, part: bytes) -> None:
        """Take over a part of a body; the parser calls this."""
        self._body += part

    async def _answer(self, request: Request) -> None:
        answer = await self._front.answer(request)
        self._answering = None
        self._send(request, answer)
        self._advance()

    def _refuse_late(self) -> None:
        limit_s, size = self._front.settings.body_timeout_s, len(self._body)
        self._refuse(RequestTimeout(f"The request did not arrive within {limit_s:g} s; {size:,} bytes of it did."))

    def _refuse(self, error: GatewayError) -> None:
        """Answer a request that is not complete; where the next one would begin is not known."""
        request = self._request or self._request_so_far()
        request.may_keep_alive = False
        self._send(request, self._front.refuse(request, error))

    def _send(self, request: Request, answer: Answer) -> None:
        status, headers, content = answer
        is_last = not request.may_keep_alive or self._front.draining or not self._worker.alive
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [b"%s: %s" % field for field in headers]
        if not any(name == b"date" for name, _ in headers):
            lines.append(b"date: " + formatdate(usegmt=True).encode())
        if is_last or request.version == "1.0":
            lines.append(b"connection: close" if is_last else b"connection: keep-alive")
        if request.method == "HEAD" or status in (204, 304):
            content = b""
        self._transport.write(b"\r\n".join((*lines, b"", content)))
        if is_last:
            self._end()

    def _end(self) -> None:
        """Send no more, and wait until the client has read all."""
        self._is_ending = True
        self._unread.clear()
        self._drop_request()
        with suppress(OSError):  # from asyncio's own loop, without uvloop, if the client has gone
            self._transport.write_eof()
        self._watch()

    def _drop_request(self) -> None:
        if self._request:
            self._request.held.release()
            self._request = None

    def _request_so_far(self) -> Request:
        """Return what is known of the request that is being read."""
        client, server = (self._transport.get_extra_info(name) for name in ("peername", "sockname"))
        major, minor = self._parser.http_version or (1, 1)
        return Request(
            method=(self._parser.method or b"").decode("latin-1"),
            path=(self._parser.path or b"").partition(b"?")[0].decode("latin-1"),  # it will be in the log
            version=f"{major}.{minor}",
            client=client[0] if client else "",
            server=server[:2] if isinstance(server, tuple) else ("localhost", 80),
            held=Held(self._front.room),
        )


def is_readable(sock: Any) -> bool:
    """Tell whether a socket has something to read, or a connection to accept."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request's target, which may name a host too. Source: RFC 9112, section 3.2.

    Raises:
        BadRequest: It is of another form.
    """
    if match := _ABSOLUTE.fullmatch(target):
        return match[1] or b"/", (match[2] or b"")[1:]
    if not target.startswith(b"/") and target != b"*":
        raise BadRequest(f"Expected a path as the request's target. Received: {target[:100].decode('latin-1')!r}")
    path, _, query = target.partition(b"?")
    return path, query


def _as_gateway_error(error: Exception) -> GatewayError:
    """Return the failure that an exception means; the only place that translates the parser's."""
    received = repr(str(error)[:100])
    match error:
        case GatewayError():
            return error
        case LimitRequestLine():
            return UriTooLong("Expected a first line of at most 8,190 bytes. Received: more")
        case LimitRequestHeaders():
            return HeadersTooLarge("Expected at most 100 header fields of 8,190 bytes each. Received: more")
        case UnsupportedTransferCoding():
            return UnsupportedCoding(f"Expected no Transfer-Encoding but chunked. Received: {received}")
        case InvalidHTTPVersion() if re.fullmatch(r"HTTP/\d\.\d", str(error)):
            return UnsupportedVersion(f"Expected HTTP/1.1. Received: {received}")
        case ValueError():  # Python refuses to read such a number
            return BadRequest("Expected a Content-Length of a few digits. Received: thousands")
        case ParseError():
            return BadRequest(f"Expected a request of HTTP/1.1. Received one that is not: {received}")
    _log.error("request failed", exc_info=error)
    return InternalError()
