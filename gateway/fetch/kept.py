"""Connections that are open after an answer, for the next fetch from the same host.

A fetch by HTTPS from a host with a new connection took 2.6 ms of CPU, 2.3 of it for TLS and the look-up of the name.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass

from urllib3.connection import HTTPConnection

from gateway.fetch.urls import Host, Url

# Most hosts close an idle connection after 5 to 75 s; one that a firewall forgets in the meantime would cost a fetch.
# It is closed at the next fetch from any host.
IDLE_S = 15.0


class KeptConnections:
    """Open connections that no fetch uses. Safe for threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: deque[_Idle] = deque()

    def __del__(self) -> None:
        for idle in self._idle:
            idle.connection.close()

    def take(self, url: Url) -> HTTPConnection | None:
        """Return one to the URL's scheme, host and port, if there is one; the one that was used last comes first."""
        with self._lock:
            self._close_some()
            for idle in [each for each in reversed(self._idle) if each.origin == _origin(url)]:
                self._idle.remove(idle)
                if _is_silent(idle.connection):
                    return idle.connection
                idle.connection.close()
        return None

    def give(self, url: Url, connection: HTTPConnection) -> None:
        """Keep a connection to the URL's scheme, host and port, on which an answer was read to its end."""
        with self._lock:
            self._idle.append(_Idle(_origin(url), connection, time.monotonic()))
            self._close_some()

    def _close_some(self) -> None:
        """Close those that were idle for too long, and those beyond the limit."""
        while self._idle and (len(self._idle) > self._most or time.monotonic() - self._idle[0].since_s > IDLE_S):
            self._idle.popleft().connection.close()


@dataclass(frozen=True, eq=False)
class _Idle:
    origin: tuple[str, Host, int]
    connection: HTTPConnection
    since_s: float


def _origin(url: Url) -> tuple[str, Host, int]:
    return url.scheme, url.host, url.port


def _is_silent(connection: HTTPConnection) -> bool:
    """Tell whether a host has neither closed a connection nor sent what nobody asked for: the next fetch would get it.

    What TLS has decrypted already does not show at the socket. What comes after this look would still be read.
    """
    return connection.is_connected and not (isinstance(connection.sock, ssl.SSLSocket) and connection.sock.pending())
