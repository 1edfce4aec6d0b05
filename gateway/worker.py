"""gunicorn's event-loop worker, with a shutdown that loses nothing and a limit for connections that say nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakSet

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.sock import close_sockets, create_sockets
from gunicorn.workers import gasgi

# Clients that are busy when a drain begins close their connections by themselves after their next answer.
IDLE_GRACE_S = 2.0


class Connection(ASGIProtocol):  # type: ignore[misc]  # gunicorn has no types
    """An HTTP connection whose first request must begin in time; gunicorn bounds only the waits for later ones."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.worker.connections.add(self)
        limit_s = self.worker.asgi.settings.body_timeout_s
        self._keepalive_handle = self.worker.loop.call_later(limit_s, self._keepalive_timeout)

    def close_if_idle(self) -> None:
        """Close it, unless a request is complete or being answered."""
        if self._awaiting_request and not self._finishing_calls:
            self._keepalive_timeout()


def leave_listening_to_workers(arbiter: Any) -> None:
    """Close gunicorn's own socket, once it has shown that the address is free: each worker listens on one of its own.

    Over those the system spreads connections. Of a shared one the worker that wakes first takes all: of eight
    connections, a hundredth of a second apart, one of two workers had 8, and has 3 to 5 now.
    """
    close_sockets(arbiter.LISTENERS)
    arbiter.LISTENERS = []


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """Listens once it can answer. At SIGTERM: readiness off; answer for a while; then close, finish, and exit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[Connection] = WeakSet()

    def init_process(self) -> None:
        gasgi.ASGIProtocol = Connection  # gunicorn has no setting for it
        super().init_process()

    def run(self) -> None:
        self.cfg.set("reuse_port", True)
        self.sockets = create_sockets(self.cfg, self.log)
        super().run()

    def handle_exit_signal(self) -> None:
        self.asgi.drain()
        self.loop.call_later(self.asgi.settings.shutdown_delay_s, super().handle_exit_signal)

    async def _shutdown(self) -> None:
        self.loop.call_later(IDLE_GRACE_S, self._close_idle)
        await super()._shutdown()

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()
