"""Fetch an image from a URL that a stranger chose: only from public addresses, within fixed time and size.

The order is the point. A URL is parsed once, its host looked up once, every answer checked, and the connection made to
a checked address, so that nothing can change between the check and the use. Redirects start again at the first step.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException
from ipaddress import ip_address
from threading import BoundedSemaphore, Thread
from typing import cast
from urllib.parse import urljoin

import urllib3.exceptions
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection

from gateway.errors import BadRequest, FetchFailed, FetchTimeout, Overloaded, TooLarge, UrlNotAllowed
from gateway.fetch.addresses import AllowList, embedded_ipv4
from gateway.fetch.sockets import Budget, Hold, PlainSocket, TlsSocket, connect
from gateway.fetch.urls import DEFAULT_PORTS, Address, Url, checked_characters, parse_url

Resolve = Callable[[str, int], list[str]]
"""Host name and port to addresses; raises OSError where there are none."""

MAX_HEADER_BYTES = 32 * 1024
MAX_ADDRESSES = 8
MAX_LOOK_UPS = 16
LOOK_UP_WAIT_S = 1.0
REDIRECTS = (301, 302, 303, 307, 308)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched and how long it may take.

    Attributes:
        timeout_s: Limit for the whole fetch: look-ups, redirects, TLS and body.
        max_bytes: Limit for the body.
        max_redirects: Redirects that are followed.
        user_agent: Some image hosts refuse anonymous clients; it should say whom to ask.
        allow: What is open although it is not public or on another port than 80 and 443.
        deny: What is closed in any case.
    """

    timeout_s: float = 10.0
    max_bytes: int = 10 * 1024 * 1024
    max_redirects: int = 3
    user_agent: str = "image-classifier-gateway"
    allow: AllowList = field(default_factory=AllowList)
    deny: AllowList = field(default_factory=AllowList)

    def __post_init__(self) -> None:
        if not (self.user_agent.isascii() and self.user_agent.isprintable()):
            raise ValueError(f"Expected a user agent of printable ASCII. Received: {self.user_agent!r}.")


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host name by the system's resolver."""
    # As bytes, because a str would pass through the standard library's older IDNA once more.
    answers = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


class Fetcher:
    """Fetches images; one serves all threads of a process."""

    def __init__(self, rules: FetchRules, resolve: Resolve = look_up) -> None:
        self._rules = rules
        self._resolve = resolve
        self._look_ups = BoundedSemaphore(MAX_LOOK_UPS)
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._tls.sslsocket_class = TlsSocket

    def fetch(self, url: str, timeout_s: float | None = None, hold: Hold = lambda _: None) -> bytes:
        """Return the body of the 200 answer at a URL.

        Args:
            url: An http or https URL.
            timeout_s: A limit for this fetch, where it is shorter than the rules' own.
            hold: Is told each number of bytes that came; what it raises ends the fetch.

        Raises:
            BadRequest: The text is not a URL.
            UrlNotAllowed: The rules close the URL, or one that it redirects to.
            TooLarge: The body exceeds the rules' limit.
            FetchTimeout: No complete answer came in time.
            FetchFailed: The origin cannot be reached, or answers anything else than an image's bytes.
        """
        limit_s = self._rules.timeout_s if timeout_s is None else min(timeout_s, self._rules.timeout_s)
        try:
            return self._follow(url, Budget(limit_s, hold))
        except (TimeoutError, urllib3.exceptions.TimeoutError) as exc:
            raise FetchTimeout(f"Expected the whole image within {limit_s:.3g} s. Received: less.") from exc
        except socket.gaierror as exc:
            raise FetchFailed("Expected a host name that resolves. Received: one that does not.") from exc
        except ssl.SSLError as exc:
            raise FetchFailed("Expected TLS with a certificate valid for the host. Received: none.") from exc
        except (OSError, HTTPException, urllib3.exceptions.HTTPError, ValueError) as exc:
            # ValueError is what http.client raises for a chunk of negative size.
            raise FetchFailed(f"Expected a complete HTTP answer. Received: {type(exc).__name__}.") from exc

    def _follow(self, text: str, budget: Budget) -> bytes:
        url = parse_url(text)
        addresses = self._checked_addresses(url, budget)
        for _ in range(self._rules.max_redirects + 1):
            answer = self._get(url, addresses, budget)
            if isinstance(answer, bytes):
                return answer
            url, addresses = self._redirected(url, answer, budget)
        raise FetchFailed(f"Expected at most {self._rules.max_redirects} redirects. Received: one more.")

    def _redirected(self, origin: Url, location: str, budget: Budget) -> tuple[Url, list[Address]]:
        # The caller learns that a redirect is refused but not where it leads: the upstream's words stay with us.
        try:
            # http.client reads headers as Latin-1, browsers read this one as UTF-8.
            location = checked_characters(location.encode("latin-1").decode("utf-8"))
            url = parse_url(urljoin(str(origin), location))
            if (origin.scheme, url.scheme) == ("https", "http"):
                raise UrlNotAllowed("Expected a redirect from https to stay on https. Received: one to http.")
            return url, self._checked_addresses(url, budget)
        except UrlNotAllowed as exc:
            _log.info("Refused a redirect from %s: %s", origin.authority, exc)
            raise UrlNotAllowed("Expected redirects to allowed URLs only. Received: one to another.") from exc
        except (BadRequest, ValueError) as exc:
            raise FetchFailed("Expected redirects to valid URLs only. Received: one to another.") from exc

    def _checked_addresses(self, url: Url, budget: Budget) -> list[Address]:
        """Look the host up, once, and return its addresses if the rules open every one of them."""
        allow, deny = self._rules.allow, self._rules.deny
        if deny.has_host(url.host, url.port):
            raise _denied(url)
        addresses = self._addresses(url, budget)
        meant = [part for address in addresses for part in (address, *embedded_ipv4(address))]
        if any(deny.has_address(part) or deny.has_host(part, url.port) for part in meant):
            raise _denied(url)
        if allow.has_host(url.host, url.port):
            return addresses
        hint = f"To allow it, add {url.authority!r} to GATEWAY_FETCH_ALLOW."
        for address in addresses:
            if reason := allow.refusal(address):
                _log.info("Refused %s: %s is %s", url.authority, address, reason)
                raise UrlNotAllowed(
                    f"Expected a public address. Received a URL whose host is not public: {str(url.host)!r}. {hint}"
                )
            if not allow.has_address(address) and url.port not in DEFAULT_PORTS.values():
                raise UrlNotAllowed(f"Expected port 80 or 443. Received: {url.port}. {hint}")
        return addresses

    def _addresses(self, url: Url, budget: Budget) -> list[Address]:
        if not isinstance(url.host, str):
            return [url.host]
        # getaddrinfo has no deadline: it runs in a thread that is left behind when time is up. A resolver that hangs
        # holds at most MAX_LOOK_UPS of them, and further fetches wait here for their turn.
        if not self._look_ups.acquire(timeout=min(LOOK_UP_WAIT_S, budget.seconds_left())):
            budget.seconds_left()
            raise Overloaded("Expected a free place to look up a host name. Received: none. Try again shortly.")
        found: Future[list[str]] = Future()

        def run(host: str) -> None:
            try:
                found.set_result(self._resolve(host, url.port))
            except Exception as exc:
                found.set_exception(exc)
            finally:
                self._look_ups.release()

        try:
            Thread(target=run, args=(url.host,), name="look-up", daemon=True).start()
        except RuntimeError:  # The system has no thread left.
            self._look_ups.release()
            raise
        addresses = [ip_address(answer.partition("%")[0]) for answer in found.result(budget.seconds_left())]
        if not addresses:
            raise socket.gaierror("No address")
        return addresses

    def _get(self, url: Url, addresses: list[Address], budget: Budget) -> bytes | str:
        """Return the body, or as a str where a redirect leads."""
        headers = {"User-Agent": self._rules.user_agent, "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        with closing(kind(str(url.host), url.port)) as connection:
            connection.auto_open = 0  # It never connects by itself, which would look the host up again.
            connection.sock = self._open(url, addresses, budget)
            connection.timeout = budget.seconds_left()
            budget.allow(MAX_HEADER_BYTES, FetchFailed(f"Expected at most {MAX_HEADER_BYTES} bytes of headers."))
            connection.request("GET", url.target, headers=headers, preload_content=False, decode_content=False)
            with closing(connection.getresponse()) as response:
                return self._read(response, budget)

    def _open(self, url: Url, addresses: list[Address], budget: Budget) -> socket.socket:
        """Connect to the first address that answers; each gets an even part of the time left."""
        candidates = addresses[:MAX_ADDRESSES]
        failure = OSError("No address")
        for position, address in enumerate(candidates):
            try:
                plain = connect(address, url.port, budget, budget.seconds_left() / (len(candidates) - position))
            except OSError as exc:
                failure = exc
            else:
                return self._secure(plain, url) if url.scheme == "https" else plain
        raise failure

    def _secure(self, plain: PlainSocket, url: Url) -> socket.socket:
        # SNI and the certificate are about the host's name. Not by urllib3's own connect(), which sets ALPN and the
        # verify mode anew on the context that all threads share.
        tls = cast(TlsSocket, self._tls.wrap_socket(plain, server_hostname=str(url.host)))
        tls.budget = plain.budget
        return tls

    def _read(self, response: BaseHTTPResponse, budget: Budget) -> bytes | str:
        if response.status in REDIRECTS and (location := response.headers.get("Location")):
            return location
        if response.status != 200:
            raise FetchFailed(f"Expected status 200 of the image's host. Received: {response.status}.")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchFailed("Expected a body without Content-Encoding. Received: an encoded one.")
        if response.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise FetchFailed("Expected a plain or chunked body. Received: another Transfer-Encoding.")
        max_bytes = self._rules.max_bytes
        too_large = TooLarge(f"Expected an image of at most {max_bytes} bytes. Received: a larger one.")
        if (response.length_remaining or 0) > max_bytes:
            raise too_large
        # The body is counted below. This bounds what comes around it: chunk sizes, extensions and trailers.
        budget.allow(2 * max_bytes + MAX_HEADER_BYTES, too_large)
        body = response.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise too_large
        if response.length_remaining or not body:
            raise FetchFailed("Expected a complete body. Received: a short or an empty one.")
        return body


def _denied(url: Url) -> UrlNotAllowed:
    return UrlNotAllowed(f"Expected a URL outside of GATEWAY_FETCH_DENY. Received: {url.authority!r}.")
