"""Fetches an image from a URL that a stranger chose: only from public addresses, within limits of time and size.

The order is the point. A URL is parsed once, its host is looked up once, every answer is checked, and the connection
goes to a checked address. So nothing can change between the check and the use. Redirects start again at the first step.
A connection that an answer left open takes the next fetch from its host: it leads to an address that was checked.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import ssl
import string
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from http.client import BadStatusLine, HTTPException, HTTPResponse
from ipaddress import ip_address
from threading import BoundedSemaphore, Thread
from typing import cast
from urllib.parse import quote, urljoin

import urllib3.exceptions
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.response import assert_header_parsing

from gateway.errors import BadRequest, FetchFailed, FetchTimeout, Overloaded, TooLarge, UrlNotAllowed
from gateway.fetch.addresses import AllowList, is_metadata, refusal
from gateway.fetch.answers import FinalAnswer
from gateway.fetch.kept import KeptConnections
from gateway.fetch.limits import MAX_HEADER_BYTES, Budget, Hold, PlainSocket, TlsSocket, connect
from gateway.fetch.proxy import Proxy, ProxyError
from gateway.fetch.urls import DEFAULT_PORTS, Address, Url, checked_characters, parse_url
from gateway.settings import Settings

Resolve = Callable[[str, int], list[str]]
"""Host name and port to addresses; raises OSError if there are none."""

MAX_ADDRESSES = 8
MAX_LOOK_UPS = 16
LOOK_UP_WAIT_S = 1.0
NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA, None)  # as the DNS says; None where it gives no address of use
# A host that answers with one of these may want to know who asks.
UNWELCOME = (403, 429)
# The codings of which the bytes are not the image's. Other words change nothing: stores of objects write base64, UTF-8
# or aws-chunked beside plain images, and browsers show those. Source: IANA HTTP Content Coding Registry.
CODINGS = {"br", "compress", "dcb", "dcz", "deflate", "exi", "gzip", "pack200-gzip", "x-compress", "x-gzip", "zstd"}
REDIRECTS = (301, 302, 303, 307, 308)
_HIDDEN_HOST = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?/?\\")  # browsers read \\host as //host; urljoin does not

_log = logging.getLogger(__name__)


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host name, from the system's resolver."""
    # As bytes, because the standard library would encode a str once more, by an older IDNA.
    answers = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


class Fetcher:
    """Fetches images for all threads of a process."""

    def __init__(self, settings: Settings, resolve: Resolve = look_up) -> None:
        self._settings, self._resolve = settings, resolve
        self._allow, self._deny = AllowList.parse(settings.fetch_allow), AllowList.parse(settings.fetch_deny)
        self._proxy = Proxy(settings.fetch_proxy) if settings.fetch_proxy else None
        self._look_ups = BoundedSemaphore(MAX_LOOK_UPS)
        self._kept = KeptConnections(settings.fetch_limit)
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._tls.sslsocket_class = TlsSocket
        # For a header that it cannot read, urllib3 logs a warning with the whole URL, which may be signed.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def fetch(self, url: str, timeout_s: float = math.inf, hold: Hold = lambda _: None) -> bytes:
        """Return the body of the 200 answer at a URL.

        Args:
            url: An http or https URL.
            timeout_s: A limit for this fetch, if it is shorter than the setting.
            hold: Called with each number of bytes that came; what it raises ends the fetch.

        Raises:
            BadRequest: The text is not a URL.
            UrlNotAllowed: The settings close the URL, or one that it redirects to.
            TooLarge: The body exceeds the limit.
            FetchTimeout: No complete answer came in time.
            FetchFailed: The image's host cannot be reached, or answers something other than an image's bytes.
        """
        limit_s = min(timeout_s, self._settings.fetch_timeout_s)
        try:
            return self._follow(url, Budget(limit_s, hold))
        except (TimeoutError, urllib3.exceptions.TimeoutError) as exc:
            raise FetchTimeout(f"The image did not arrive within {limit_s:.3g} s.") from exc
        except ProxyError as exc:
            _log.warning("GATEWAY_FETCH_PROXY: %s", exc)
            raise FetchFailed("The gateway's proxy did not connect to the image's host.") from exc
        except socket.gaierror as exc:
            now = "" if exc.errno in NO_SUCH_NAME else " now, as the DNS gives no answer"
            raise FetchFailed(f"The image's host name does not resolve{now}.") from exc
        except ssl.SSLCertVerificationError as exc:
            raise FetchFailed("The image's host has no TLS certificate that is valid for its name.") from exc
        except ConnectionRefusedError as exc:
            raise FetchFailed("The image's host refused the connection.") from exc
        except (OSError, HTTPException, urllib3.exceptions.HTTPError, ValueError) as exc:
            # ValueError is what http.client raises for a chunk of negative size.
            raise FetchFailed(f"The image's host sent no complete HTTP answer: {type(exc).__name__}.") from exc

    def _follow(self, text: str, budget: Budget) -> bytes:
        url, source = parse_url(text), None
        try:
            for _ in range(self._settings.fetch_max_redirects + 1):
                answer = self._get(url, budget)
                if isinstance(answer, bytes):
                    return answer
                source = url
                url = _redirected(source, answer)
        except UrlNotAllowed as exc:
            if source is None:
                raise
            # The caller learns that a redirect is refused, but not where it leads: the host's words stay with us.
            _log.info("Refused a redirect from %s: %s", source.authority, exc)
            raise UrlNotAllowed("The URL redirects to one that is not allowed.") from exc
        raise FetchFailed(f"The URL redirects more than {self._settings.fetch_max_redirects} times.")

    def _checked_addresses(self, url: Url, budget: Budget) -> list[Address]:
        """Look the host up, once, and return its addresses if every one of them is open."""
        allow, deny = self._allow, self._deny
        if deny.has_host(url.host, url.port):
            raise _denied(url)
        addresses = self._addresses(url, budget)
        meant = [part for address in addresses for part in (address, *allow.inside(address))]
        if any(deny.has_address(part) or deny.has_host(part, url.port) for part in meant):
            raise _denied(url)
        if allow.has_host(url.host, url.port):
            return addresses
        hint = f" To allow it, add {url.authority!r} to GATEWAY_FETCH_ALLOW."
        if any(is_metadata(part) for part in meant):
            hint = ""
        for address in addresses:
            if reason := allow.refusal(address):
                _log.info("Refused %s: %s is %s", url.authority, address, reason)
                raise UrlNotAllowed(
                    f"Expected a public address. Received a URL whose host is not public: {str(url.host)!r}.{hint}"
                )
            if not allow.has_address(address) and url.port not in DEFAULT_PORTS.values():
                raise UrlNotAllowed(f"Expected port 80 or 443. Received: {url.port}.{hint}")
        return addresses

    def _addresses(self, url: Url, budget: Budget) -> list[Address]:
        if not isinstance(url.host, str):
            return [url.host]
        # getaddrinfo has no deadline: it runs in a thread that is left behind when the time is over. A resolver that
        # hangs keeps at most MAX_LOOK_UPS of them, and further fetches wait here for their turn.
        if not self._look_ups.acquire(timeout=min(LOOK_UP_WAIT_S, budget.seconds_left())):
            budget.seconds_left()
            raise Overloaded("The gateway is busy: too many host names are being looked up. Try again shortly.")
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
        except RuntimeError:  # the system has no thread left
            self._look_ups.release()
            raise
        addresses = [ip_address(answer.partition("%")[0]) for answer in found.result(budget.seconds_left())]
        if not addresses:
            raise socket.gaierror(None, "No address")
        return addresses

    def _get(self, url: Url, budget: Budget) -> bytes | str:
        """Return the body, or, as a str, where a redirect leads."""
        if reused := self._kept.take(url):
            with suppress(ConnectionError, BadStatusLine, ssl.SSLError):  # the host closed it, or sent no answer
                return self._ask(reused, url, budget, is_reused=True)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = kind(str(url.host), url.port)
        connection.response_class = FinalAnswer
        connection.auto_open = 0  # or it would connect by itself, and look the host up again
        connection.sock = self._open(url, self._checked_addresses(url, budget), budget)
        return self._ask(connection, url, budget)

    def _ask(self, connection: HTTPConnection, url: Url, budget: Budget, *, is_reused: bool = False) -> bytes | str:
        """Ask on an open connection, as `_get`; then keep it for others, or close it."""
        agent, sock = self._settings.fetch_user_agent, cast(PlainSocket | TlsSocket, connection.sock)
        headers = {"User-Agent": agent, "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
        with ExitStack() as unless_kept:
            unless_kept.callback(connection.close)
            sock.budget, connection.timeout = budget, budget.seconds_left()
            too_many = FetchFailed(f"The image's host sent over {MAX_HEADER_BYTES} bytes of headers.")
            budget.allow(MAX_HEADER_BYTES, too_many)
            connection.request("GET", url.target, headers=headers, preload_content=False, decode_content=False)
            with closing(connection.getresponse()) as response:
                if is_reused and response.status == HTTPStatus.REQUEST_TIMEOUT:  # most likely of the time before
                    raise ConnectionError("The host closed the connection")
                try:
                    answer = self._read(response, budget)
                except (TimeoutError, urllib3.exceptions.TimeoutError) as exc:
                    _check_headers(response._original_response, exc)
                    raise
                stays_open = response.closed and _is_framed(response)  # by the read, or it is not at its end
            if stays_open and connection.sock is not None:  # it is None where the host closes the connection
                unless_kept.pop_all()
                self._kept.give(url, connection)
            return answer

    def _open(self, url: Url, addresses: list[Address], budget: Budget) -> socket.socket:
        plain = _first(addresses, budget, lambda address, limit_s: self._connect(address, url.port, budget, limit_s))
        # SNI and the certificate are for the host's name. urllib3's own connect() is not used, because it sets ALPN and
        # the verify mode anew on the context that all threads share.
        return self._tls.wrap_socket(plain, server_hostname=str(url.host)) if url.scheme == "https" else plain

    def _connect(self, address: Address, port: int, budget: Budget, timeout_s: float) -> PlainSocket:
        """Connect to an address, through the proxy if it is public; others, which a list opened, are on this side."""
        proxy = self._proxy
        if proxy is None or refusal(address):
            return connect(address, port, budget, timeout_s)
        part = budget.part(timeout_s)
        try:
            hops = self._addresses(proxy.url, part)
            sock = _first(hops, part, lambda hop, limit_s: connect(hop, proxy.url.port, part, limit_s))
        except OSError as exc:
            raise ProxyError(f"The proxy cannot be reached: {exc}") from exc
        try:
            proxy.open_tunnel(sock, address, port)
            sock.settimeout(budget.seconds_left())
        except BaseException:
            sock.close()
            raise
        return sock

    def _read(self, response: BaseHTTPResponse, budget: Budget) -> bytes | str:
        if response.status in REDIRECTS and (location := response.headers.get("Location")):
            return location
        if response.status != 200:
            hint = " It may want a contact in GATEWAY_FETCH_USER_AGENT." if response.status in UNWELCOME else ""
            raise FetchFailed(f"The image's host answered with status {response.status}.{hint}")
        codings = response.headers.get("Content-Encoding", "").lower().split(",")
        if not CODINGS.isdisjoint(map(str.strip, codings)):
            raise FetchFailed("The image's host sent a compressed body, although it was asked for a plain one.")
        if response.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise FetchFailed("The image's host sent a body with an unknown Transfer-Encoding.")
        max_bytes = self._settings.max_image_bytes
        too_large = TooLarge(f"Expected an image of at most {max_bytes} bytes. Received: a larger one.")
        if (response.length_remaining or 0) > max_bytes:
            raise too_large
        # The body is counted below. This limits what comes around it: chunk sizes, extensions and trailers.
        budget.allow(2 * max_bytes + MAX_HEADER_BYTES, too_large)
        body = response.read(response.length_remaining or max_bytes + 1)
        if len(body) > max_bytes:
            raise too_large
        if response.length_remaining or not body:
            raise FetchFailed("The image's host sent an empty body, or not all of it.")
        return body


def _check_headers(answer: HTTPResponse | None, late: Exception) -> None:
    """Say why no end came, if a line is no header: http.client drops it, and those after it with the length."""
    if answer and answer.length is None and not answer.chunked:
        try:
            assert_header_parsing(answer.msg)
        except urllib3.exceptions.HeaderParsingError:
            raise FetchFailed("The image's host sent a malformed header, and did not close after the image.") from late


def _is_framed(response: BaseHTTPResponse) -> bool:
    """Tell whether the end of an answer is beyond doubt. Source: RFC 9112, 6.1 and 6.3."""
    return "Transfer-Encoding" not in response.headers or (
        "Content-Length" not in response.headers and response.version == 11
    )


def _first(addresses: list[Address], budget: Budget, open_one: Callable[[Address, float], PlainSocket]) -> PlainSocket:
    """Connect to the first address that answers; each gets an equal part of the time left, in seconds."""
    candidates = addresses[:MAX_ADDRESSES]
    failure: OSError | None = None
    for position, address in enumerate(candidates):
        try:
            return open_one(address, budget.seconds_left() / (len(candidates) - position))
        except OSError as exc:
            failure = failure or exc  # this machine may have no way to the others, such as those of IPv6
    raise failure or OSError("No address")


def _redirected(url: Url, location: str) -> Url:
    """Return the URL to which another redirects, with a `Location`."""
    try:
        location = checked_characters(_readable(location))
        if _HIDDEN_HOST.match(location):
            raise BadRequest("Expected a URL without backslashes before its path. Received: one that has some.")
        target = parse_url(urljoin(str(url), location))
        if (url.scheme, target.scheme) == ("https", "http"):
            raise UrlNotAllowed("A redirect left https for http.")
        return target
    except (BadRequest, ValueError) as exc:
        raise FetchFailed("The URL redirects to something that is not a URL.") from exc


def _readable(location: str) -> str:
    """Return a Location as browsers read it, as UTF-8, or else with its bytes encoded; http.client reads Latin-1."""
    sent = location.encode("latin-1")
    try:
        return sent.decode("utf-8")
    except UnicodeDecodeError:
        return quote(sent, safe=string.printable)


def _denied(url: Url) -> UrlNotAllowed:
    return UrlNotAllowed(f"Expected a URL outside of GATEWAY_FETCH_DENY. Received: {url.authority!r}.")
