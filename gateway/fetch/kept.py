"""Connections that are open after an answer, for the next fetch from the same host.

A fetch by HTTPS from a host with a new connection took 2.6 ms of CPU, 2.3 of it for TLS and the look-up of the name.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from urllib3.connection import HTTPConnection

from gateway.fetch.urls import Host, Url

# Most hosts close an idle connection after 5 to 75 s; one that a firewall forgets in the meantime would cost a fetch.
IDLE_S = 15.0


class KeptConnections:
    """Open connections that no fetch uses. Safe for threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: deque[_Kept] = deque()

    def __del__(self) -> None:
        for kept in self._kept:
            kept.connection.close()

    def take(self, url: Url) -> HTTPConnection | None:
        """Return one to the URL's host and port; the one that was used last comes first."""
        with self._lock:
            self._close_some()
            for kept in [each for each in reversed(self._kept) if each.origin == _origin(url)]:
                self._kept.remove(kept)
                if kept.connection.is_connected:  # and the host sent nothing that nobody asked for
                    return kept.connection
                kept.connection.close()
        return None

    def give(self, url: Url, connection: HTTPConnection) -> None:
        """Keep a connection to a URL's host and port, on which an answer was read to its end."""
        with self._lock:
            self._kept.append(_Kept(_origin(url), connection, time.monotonic()))
            self._close_some()

    def _close_some(self) -> None:
        """Close those that were idle for too long, and those beyond the limit."""
        while self._kept and (len(self._kept) > self._most or time.monotonic() - self._kept[0].since_s > IDLE_S):
            self._kept.popleft().connection.close()


@dataclass(frozen=True, eq=False)
class _Kept:
    origin: tuple[str, Host, int]
    connection: HTTPConnection
    since_s: float


def _origin(url: Url) -> tuple[str, Host, int]:
    return url.scheme, url.host, url.port
