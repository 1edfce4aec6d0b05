"""gunicorn's event-loop worker, with a shutdown that loses nothing and a time limit for silent connections."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.sock import close_sockets, create_sockets
from gunicorn.workers import gasgi

# Clients that are busy when a drain begins close their connections themselves after their next answer.
IDLE_GRACE_S = 2.0


class Connection(ASGIProtocol):  # type: ignore[misc]  # gunicorn has no types
    """An HTTP connection with time limits for the begin of its first request, and for the client to take answers.

    gunicorn limits only the waits for later requests. It would keep for ever what a client does not read.
    """

    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.worker.connections.add(self)
        self._keepalive_handle = self._in_time(self._keepalive_timeout)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._in_time(self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread:
            self._unread.cancel()
        super().resume_writing()

    def _keepalive_timeout(self) -> None:
        super()._keepalive_timeout()
        self._in_time(self.transport.abort)  # closing waits until all is sent

    def _in_time(self, end: Callable[[], None]) -> asyncio.TimerHandle:
        handle: asyncio.TimerHandle = self.worker.loop.call_later(self.worker.asgi.settings.body_timeout_s, end)
        return handle

    def close_if_idle(self) -> None:
        """Close the connection, unless a request is complete or being answered."""
        if self._awaiting_request and not self._finishing_calls:
            self._keepalive_timeout()


def listen_for_each_worker(arbiter: Any) -> None:
    """Replace gunicorn's listener, which has shown that the address is free, with one for each worker.

    The system spreads connections over those. With one that is shared, the worker that wakes first takes all. Of eight
    connections, a hundredth of a second apart, one of two workers had 8; now it has 3 to 5.
    """
    close_sockets(arbiter.LISTENERS)
    arbiter.cfg.set("reuse_port", True)
    arbiter.LISTENERS = [each for _ in range(arbiter.cfg.workers) for each in create_sockets(arbiter.cfg, arbiter.log)]
    arbiter.cfg.set("reuse_port", False)  # with it, each worker would make one more


def give_listener(arbiter: Any, worker: Worker) -> None:
    """Give a worker, before the fork, a listener of its own; connections wait there while a worker is replaced."""
    taken = [listener for other in arbiter.WORKERS.values() for listener in other.sockets]
    free = [listener for listener in arbiter.LISTENERS if listener not in taken]
    worker.sockets = (free or arbiter.LISTENERS)[:1]
    worker.foreign_listeners = [listener for listener in arbiter.LISTENERS if listener not in worker.sockets]


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """At SIGTERM it turns readiness off and answers for a while; then it closes, finishes its requests, and exits."""

    foreign_listeners: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[Connection] = WeakSet()

    def init_process(self) -> None:
        self._let_signals_end_it()
        close_sockets(self.foreign_listeners)  # a listener takes connections while it is open in any process
        gasgi.ASGIProtocol = Connection  # gunicorn has no setting for it
        super().init_process()

    def init_signals(self) -> None:
        """Leave signals as they are until the event loop runs: it hears of none that came before.

        A worker that missed SIGTERM while it started kept the whole gateway for 20 s, until gunicorn killed it.
        """

    async def _serve(self) -> None:
        super().init_signals()
        await super()._serve()

    def _let_signals_end_it(self) -> None:
        """End at once on a signal, as nothing is accepted yet, instead of what gunicorn's master does on one."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it means that logs should be opened again

    def handle_exit_signal(self) -> None:
        self.asgi.drain()
        self.loop.call_later(self.asgi.settings.shutdown_delay_s, super().handle_exit_signal)

    async def _shutdown(self) -> None:
        self.loop.call_later(IDLE_GRACE_S, self._close_idle)
        await asyncio.sleep(0)  # accept what waits at the listener: closing it would reset those connections
        await super()._shutdown()

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()
