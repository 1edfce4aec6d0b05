"""Room for bytes: what a process holds of request bodies and of fetched images, bounded as a whole."""

from __future__ import annotations

from threading import Lock

from gateway.errors import Overloaded


class Room:
    """So many bytes at once, for all requests of a process."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.lock = Lock()


class Held:
    """The bytes that one request holds of a room; several threads may add."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._released = False
        self.size = 0

    def add(self, size: int) -> None:
        """Hold more.

        Raises:
            Overloaded: That would be more than the process may hold; nothing is added. Or the request has ended.
        """
        with self._room.lock:
            if self._released:
                raise Overloaded("Expected a request under way. Received: one that has ended.")
            if self._room.held_bytes + size > self._room.limit_bytes:
                raise Overloaded(
                    f"Expected room: the gateway holds at most {self._room.limit_bytes:,} bytes of requests and images"
                    " at once. Received: none at the moment. Try again shortly, or send fewer images."
                )
            self._room.held_bytes += size
            self.size += size

    def release(self) -> None:
        """Hold nothing any more."""
        with self._room.lock:
            self._room.held_bytes -= self.size
            self.size = 0
            self._released = True
