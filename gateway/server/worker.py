"""gunicorn's event-loop worker, with connections of our own and a shutdown that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import signal
import socket
import struct
import time
from typing import Any
from weakref import WeakSet

from gunicorn.sock import close_sockets, create_sockets
from gunicorn.workers import gasgi

from gateway.server.connection import READ_BYTES, Connection, Turns, is_readable

# Clients that are busy when a drain begins close their connections themselves after their next answer.
IDLE_GRACE_S = 2.0
# What Linux takes of an answer before its client has room for it; by itself, it kept 3 MB for one that never reads.
UNSENT_BYTES = 64 * 1024
HANDSHAKE_S = 0.5  # for the last packet of connections that have begun, which comes a round trip after the first
# Linux' numbers for the options, and a program that drops packets whose TCP flags (byte 13) have SYN and not ACK. It
# loads the byte, masks it, and skips one instruction unless it is equal; 0 drops. Source: linux/filter.h.
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
IGNORE_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def ignore_connections(listener: socket.socket) -> None:
    """Make Linux ignore clients that begin to connect from now on; those that have begun can still be accepted.

    A listener that closes resets the connections that it has not accepted. An event loop accepts one at a turn, and on
    a busy machine there is always one more. A client that is ignored tries again after a second, and is then refused.
    """
    program = b"".join(struct.pack("HBBI", *each) for each in IGNORE_SYN)
    kept = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):  # a kernel without filters, as gVisor: then some may be reset
        option = struct.pack("HP", len(IGNORE_SYN), ctypes.addressof(kept))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)


def listen_for_each_worker(arbiter: Any) -> None:
    """Replace gunicorn's listener, which has shown that the address is free, with one for each worker.

    The system spreads connections over those. With one that is shared, the worker that wakes first takes all. Of eight
    connections, a hundredth of a second apart, one of two workers had 8; now it has 3 to 5.
    """
    close_sockets(arbiter.LISTENERS)
    arbiter.cfg.set("reuse_port", True)
    arbiter.LISTENERS = [each for _ in range(arbiter.cfg.workers) for each in create_sockets(arbiter.cfg, arbiter.log)]
    arbiter.cfg.set("reuse_port", False)  # with it, each worker would make one more
    for listener in arbiter.LISTENERS:  # connections inherit it
        with contextlib.suppress(OSError):  # a kernel without it, perhaps gVisor
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def give_listener(arbiter: Any, worker: Worker) -> None:
    """Give a worker, before the fork, a listener of its own; connections wait there while a worker is replaced."""
    taken = [listener for other in arbiter.WORKERS.values() for listener in other.sockets]
    worker.sockets = [listener for listener in arbiter.LISTENERS if listener not in taken][:1]
    worker.foreign_listeners = [listener for listener in arbiter.LISTENERS if listener not in worker.sockets]
    for listener in worker.sockets:
        with contextlib.suppress(OSError):  # there is no filter, unless the worker before was asked to end
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """At SIGTERM it turns readiness off and answers for a while; then it closes, finishes its requests, and exits."""

    foreign_listeners: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[Connection] = WeakSet()
        self._must_end = False
        self.turns = Turns()
        self.buffer = bytearray(READ_BYTES)

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
        self._leave_to_master()
        self._serving = asyncio.current_task()
        if self._must_end:
            self.loop.call_soon(self.handle_exit_signal)
        await super()._serve()

    @property
    def aborted(self) -> bool:
        """Whether the master took it for hung and sent SIGABRT since its last heartbeat; if so, SIGKILL is next.

        gunicorn's flag stays set, so the next pause of the machine would end a worker that is well.
        """
        return bool(self._aborted_at > self.tmp.last_update())

    @aborted.setter
    def aborted(self, is_aborted: bool) -> None:
        self._aborted_at = time.monotonic() if is_aborted else -math.inf

    def handle_abort_signal(self) -> None:
        """Go on, as a loop that hears of the signal runs: the machine was paused, and the master woke first."""

    def _let_signals_end_it(self) -> None:
        """End on a signal, instead of what gunicorn's master does on one; at once, unless it is SIGTERM."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._leave_to_master()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it means that logs should be opened again
        signal.signal(signal.SIGTERM, self._end_if_nobody_waits)

    def _leave_to_master(self) -> None:
        """Ignore what a terminal sends to all processes: gunicorn's master gets it too, and asks workers to end."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _end_if_nobody_waits(self, *_: Any) -> None:
        """End; but if clients have connected already, as on a slow machine, start first, and answer them."""
        for listener in self.sockets:
            ignore_connections(listener)
        time.sleep(HANDSHAKE_S)
        if not any(map(is_readable, self.sockets)):
            os._exit(0)
        self._must_end = True

    def handle_exit_signal(self) -> None:
        self.asgi.drain()
        self.loop.call_later(self.asgi.settings.shutdown_delay_s, self._end_serving)

    def _end_serving(self) -> None:
        """Make gunicorn call `_shutdown`, once.

        gunicorn's own way is `alive`. It also closes each connection after its answer, even if the answer did not say
        so because it began before.
        """
        if self._serving:
            self._serving.cancel()
            self._serving = None

    async def _shutdown(self) -> None:
        self._serving = None
        self.asgi.drain()
        if not self._quick_shutdown:
            await self._stop_listening()
            await self._wait_for_clients()
        await super()._shutdown()

    async def _stop_listening(self) -> None:
        """Close the listener, after all who connected are accepted."""
        for listener in self.sockets:
            ignore_connections(listener)
        await asyncio.sleep(HANDSHAKE_S)
        for _ in range(self.cfg.backlog):
            if not any(map(is_readable, self.sockets)):
                break
            await asyncio.sleep(0)  # accepts one
        for server in self.servers:
            server.close()

    async def _wait_for_clients(self) -> None:
        """Wait until clients have closed their connections; close those that are left once all have been idle."""
        quiet_since = self.loop.time()
        await asyncio.sleep(0.05)  # what was accepted last counts as a connection only now
        while self.nr_conns and not self._quick_shutdown:
            connections = list(self.connections)
            if any(connection.is_busy for connection in connections):
                quiet_since = self.loop.time()
            elif self.loop.time() - quiet_since > IDLE_GRACE_S:
                for connection in connections:
                    connection.close()
            await asyncio.sleep(0.05)
