"""A forward proxy, where it is the only way out. It is asked for addresses that were checked, never for names."""

from __future__ import annotations

import re
from base64 import b64encode
from http.client import HTTPException
from urllib.parse import unquote_to_bytes

from gateway.errors import FetchFailed
from gateway.fetch.answers import FinalAnswer
from gateway.fetch.limits import MAX_HEADER_BYTES, PlainSocket
from gateway.fetch.urls import Address, Url, parse_authority

_PROXY = re.compile(r"http://(?:([^/?#@]*)@)?([^/?#@]+)/?", re.IGNORECASE)


class ProxyError(OSError):
    """The proxy cannot be reached, or did not connect."""


class Proxy:
    """An HTTP proxy that opens tunnels, by CONNECT, for http and https alike.

    A proxy that got a URL instead would look its name up again, and might find another address than the checked one.

    Attributes:
        url: Where the proxy is.
    """

    def __init__(self, text: str) -> None:
        """Read `http://proxy:3128` or `http://name:password@proxy:3128`.

        Raises:
            ValueError: It is not of that form.
        """
        match = _PROXY.fullmatch(text)
        try:
            host, port = parse_authority(match[2] if match else "", 80)
        except ValueError as exc:  # the text may contain a password
            raise ValueError(
                "Expected http://HOST:PORT or http://NAME:PASSWORD@HOST:PORT. Received another form"
            ) from exc
        credentials = unquote_to_bytes(match[1] or "") if match else b""
        self.url = Url("http", host, port, "/")
        self._lines = f"Proxy-Authorization: Basic {b64encode(credentials).decode()}\r\n" if credentials else ""

    def open_tunnel(self, sock: PlainSocket, address: Address, port: int) -> None:
        """Ask the proxy, on a connection to it, to connect to an address.

        Raises:
            ProxyError: It did not.
            FetchFailed: Its answer is too long.
        """
        target = Url("http", address, port, "").authority
        sock.budget.allow(MAX_HEADER_BYTES, FetchFailed(f"The proxy sent over {MAX_HEADER_BYTES} bytes of headers."))
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{self._lines}\r\n".encode())
        answer = FinalAnswer(sock, method="CONNECT")
        try:
            answer.begin()
        except (HTTPException, ValueError) as exc:
            raise ProxyError(f"The proxy's answer to CONNECT {target} is not HTTP: {type(exc).__name__}") from exc
        finally:
            answer.close()
        if not 200 <= answer.status < 300:
            raise ProxyError(f"The proxy answered CONNECT {target} with status {answer.status}")
