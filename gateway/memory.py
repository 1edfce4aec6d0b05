"""Limits for the bytes that a process keeps in memory at once: of request bodies and fetched images, and of answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

from gateway.errors import Overloaded

_log = logging.getLogger(__name__)


class Room:
    """The bytes that all requests of a process may keep at once."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.lock = Lock()


class Held:
    """The bytes of a room that one request keeps; several threads may add."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._released = False
        self.size = 0

    def add(self, size: int) -> None:
        """Keep more.

        Raises:
            Overloaded: The process would keep more than it may, and nothing is added; or the request has ended.
        """
        with self._room.lock:
            if self._released:
                raise Overloaded("The request has already ended.")
            if self._room.held_bytes + size > self._room.limit_bytes:
                raise Overloaded(
                    f"The gateway is busy: it keeps at most {self._room.limit_bytes:,} bytes of requests and images at"
                    " once. Try again shortly, or send fewer images."
                )
            self._room.held_bytes += size
            self.size += size

    def release(self) -> None:
        """Keep nothing any more."""
        with self._room.lock:
            self._room.held_bytes -= self.size
            self.size = 0
            self._released = True


class Untaken:
    """The answers that clients have not taken whole. Not safe for threads.

    Beyond the limit, the one that has waited longest is given up. Refusing the newest instead would let clients that
    never read keep all others from large answers.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sizes: dict[Callable[[], None], int] = {}
        self._total_bytes = 0

    def add(self, give_up: Callable[[], None], size: int) -> None:
        """Count an answer, which `give_up` drops; a single one may be larger than the limit."""
        self._sizes[give_up] = size
        self._total_bytes += size
        while self._total_bytes > self._limit_bytes and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            _log.warning(
                "clients have not taken %d answers of %d bytes; a connection is closed",
                len(self._sizes),
                self._total_bytes,
            )
            self.remove(oldest)
            oldest()

    def remove(self, give_up: Callable[[], None]) -> None:
        """Count an answer no more."""
        self._total_bytes -= self._sizes.pop(give_up, 0)
