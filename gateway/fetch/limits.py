"""The limits of one fetch, on bytes and time, and the sockets that keep them."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from gateway.errors import GatewayError
from gateway.fetch.urls import Address

MAX_HEADER_BYTES = 32 * 1024
Hold = Callable[[int], None]
"""Called with each number of bytes that came; what it raises ends the fetch."""


class Budget:
    """What one fetch may still take: seconds until its deadline, and bytes from the network."""

    def __init__(self, timeout_s: float, hold: Hold) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._hold = hold
        self._bytes_left = 0
        self._excess: GatewayError

    def seconds_left(self) -> float:
        """Return the time left, always above zero, or raise TimeoutError."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("The deadline is over")
        return left

    def part(self, timeout_s: float) -> Budget:
        """Return a budget for a part of the fetch, with a shorter time."""
        return Budget(timeout_s, self._hold)

    def allow(self, max_bytes: int, excess: GatewayError) -> None:
        """Allow so many bytes for the next part of an answer; a read beyond them raises `excess`."""
        self._bytes_left = max_bytes
        self._excess = excess

    def receive(self, sock: socket.socket, recv_into: Callable[[memoryview], int], buffer: memoryview) -> int:
        """Read from a socket within the budget.

        A socket's own timeout starts anew with every read: a host that sends a byte a second would never time out.
        Here each read gets the time left until the deadline.
        """
        if not self._bytes_left:
            raise self._excess
        sock.settimeout(self.seconds_left())
        count = recv_into(buffer[: self._bytes_left])
        self._bytes_left -= count
        self._hold(count)
        return count


class PlainSocket(socket.socket):
    """A TCP socket that reads within a budget."""

    budget: Budget

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self.budget.receive(self, super().recv_into, buffer)


class TlsSocket(ssl.SSLSocket):
    """A TLS socket that reads within a budget."""

    budget: Budget

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        return self.budget.receive(self, super().recv_into, buffer)


def connect(address: Address, port: int, budget: Budget, timeout_s: float) -> PlainSocket:
    """Connect to an address, and make sure that it is the one that answered.

    Raises:
        OSError: It did not answer in time, or another one did.
    """
    sock = PlainSocket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    sock.budget = budget
    try:
        sock.settimeout(timeout_s)
        sock.connect((str(address), port))
        peer = sock.getpeername()
        if (ip_address(peer[0].partition("%")[0]), peer[1]) != (address, port):
            raise ConnectionError("Connected to another address than the one that was checked")
        # The limit for the TLS handshake and the request: OpenSSL counts it for the whole handshake.
        sock.settimeout(budget.seconds_left())
    except BaseException:
        sock.close()
        raise
    return sock
