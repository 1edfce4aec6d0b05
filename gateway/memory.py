"""A limit for the bytes of request bodies and of fetched images that a process keeps in memory at once."""

from __future__ import annotations

from threading import Lock

from gateway.errors import Overloaded


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
