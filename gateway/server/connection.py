"""A client's connection: its phases and their time limits, the turns of those that send much, and the answers.

What has come is parsed by its reader.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from gateway.errors import GatewayError, RequestTimeout
from gateway.server.front import Answer, Request
from gateway.server.reader import Reader

READ_BYTES = 64 * 1024  # the most that a connection keeps unparsed: it reads on when nothing is left
# How long a connection parses at once. Those with more share a quarter of the time: 1 ms, then 3 ms for all else.
TURN_S, PAUSE_S = 0.001, 0.003
IDLE_S = 620.0  # longer than load balancers, of which Google's keep 600 s: the server must not close first
LINGER_S = 2.0  # for a client to read its answer while it still sends; closing at once would reset the connection


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
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._phase = ""
        self._is_new, self._is_waiting, self._is_slow = True, False, False
        self._is_ending, self._has_client_ended = False, False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # the rest of an answer, however short, keeps all of it in memory
        client, server = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        name, port = server[:2] if isinstance(server, tuple) else ("localhost", 80)
        addresses = {"REMOTE_ADDR": client[0] if client else "", "SERVER_NAME": name, "SERVER_PORT": str(port)}
        self._reader = Reader(self._front, addresses)
        self._worker.connections.add(self)
        self._worker.nr_conns += 1
        self._watch()

    def get_buffer(self, _: int) -> bytearray:
        """Return where to read to: one buffer for all connections, because its bytes are taken at once."""
        buffer: bytearray = self._worker.buffer
        return buffer

    def buffer_updated(self, size: int) -> None:
        if not self._is_ending:
            self._reader.unread += memoryview(self._worker.buffer)[:size]
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
        self._front.untaken.remove(self.give_up)
        self._advance()

    def connection_lost(self, _: Exception | None) -> None:
        self._worker.nr_conns -= 1
        self._front.untaken.remove(self.give_up)
        self._phase = "closed"
        self._reader.drop()
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
        self._reader.unread.clear()
        self._transport.close()
        self._watch()

    def give_up(self) -> None:
        """Close the connection at once, whatever of an answer its client has not taken."""
        self._transport.abort()

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
        return bool(self._reader.unread) and not (is_closing or self._answering or self._is_slow)

    def _settle(self) -> None:
        if self._has_client_ended and not (self._reader.unread or self._answering or self._is_slow):
            self.close()  # nothing can become complete
        self._watch()

    def _watch(self) -> None:
        """Read on, or leave the rest to the system; and begin the time limit of a new phase."""
        if not self._has_client_ended and not self._transport.is_closing():
            (self._transport.pause_reading if self._reader.unread else self._transport.resume_reading)()
        phase = self._find_phase()
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer:
            self._timer.cancel()
        client_s = self._front.settings.body_timeout_s
        ends = {
            "idle": (IDLE_S, self.close),
            "head": (client_s, self.close),
            "body": (client_s, self._refuse_late),
            "sending": (client_s, self.give_up),
            "ending": (LINGER_S, self.close),
            "closed": (client_s, self.give_up),  # closing waits until all is sent
        }
        if phase in ends:
            self._timer = self._loop.call_later(*ends[phase])

    def _find_phase(self) -> str:
        if self._transport.is_closing():
            return "closed"
        if self._is_slow:
            return "sending"
        if self._is_ending:
            return "ending"
        if self._answering:
            return "answering"
        if self._reader.request:
            return "body"
        return "head" if self._reader.has_begun or self._is_new else "idle"

    def _parse(self) -> None:
        """Parse a piece of what has come; answer the request that it completes, or refuse it."""
        try:
            request = self._reader.parse()
        except GatewayError as error:
            self._refuse(error)
            return
        if request:
            self._is_new = False
            self._answering = self._loop.create_task(self._answer(request))
        elif self._reader.takes_continue():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer(self, request: Request) -> None:
        answer = await self._front.answer(request)
        self._answering = None
        self._send(request, answer)
        self._advance()

    def _refuse_late(self) -> None:
        limit_s, size = self._front.settings.body_timeout_s, self._reader.body_bytes
        self._refuse(RequestTimeout(f"The request did not arrive within {limit_s:g} s; {size:,} bytes of it did."))

    def _refuse(self, error: GatewayError) -> None:
        """Answer a request that is not complete."""
        request = self._reader.refused()
        self._send(request, self._front.refuse(request, error))

    def _send(self, request: Request, answer: Answer) -> None:
        status, headers, content = answer
        is_last = not request.may_keep_alive or self._front.draining or not self._worker.alive
        headers.setdefault("Date", formatdate(usegmt=True))
        if is_last or request.environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            headers["Connection"] = "close" if is_last else "keep-alive"
        if request.environ["REQUEST_METHOD"] == "HEAD" or status in (204, 304):
            content = b""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}"  # to the empty line
        data = head.encode("latin-1") + content
        self._transport.write(data)
        if self._is_slow:
            self._front.untaken.add(self.give_up, len(data))
        if is_last:
            self._end()

    def _end(self) -> None:
        """Send no more, and wait until the client has read all."""
        self._is_ending = True
        self._reader.drop()
        with suppress(OSError):  # from asyncio's own loop, without uvloop, if the client has gone
            self._transport.write_eof()
        self._watch()


def is_readable(sock: Any) -> bool:
    """Tell whether a socket has something to read, or a connection to accept."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
