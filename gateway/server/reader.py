"""The bytes of a connection, read as one HTTP/1.1 request after another: gunicorn's parser, within limits of our own.

A reader neither waits nor writes. Its connection gives it what has come, and lets it parse a piece at a time.
"""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.parser import (
    InvalidHTTPVersion,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    PythonProtocol,
    UnsupportedTransferCoding,
)

from gateway.errors import (
    BadRequest,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    UnsupportedCoding,
    UnsupportedVersion,
    UriTooLong,
)
from gateway.memory import Held
from gateway.server.front import Front, Request

HEAD_BYTES = 64 * 1024  # all fields together; each may have 8 KiB, and a hundred of those would be 800
# A chunk costs 4 us, however short it is, so a piece takes 0.2 ms at worst. What comes after its length is one piece.
PIECE_BYTES = 256

_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(/[^?]*)?(\?.*)?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(:[0-9]*)?")

_log = logging.getLogger(__name__)


class Reader:
    """Reads the requests of one connection.

    Attributes:
        unread: What has come and is not parsed; the connection adds to it.
        request: What is being read, once its head is complete.
    """

    def __init__(self, front: Front, addresses: dict[str, Any]) -> None:
        """Begin a connection; the WSGI environment of each request has its addresses."""
        self.unread = bytearray()
        self.request: Request | None = None
        self._front, self._addresses = front, addresses
        self._body, self._head_bytes = bytearray(), 0
        self._parser = PythonProtocol(on_headers_complete=self._take_head, on_body=self._body.extend)

    @property
    def has_begun(self) -> bool:
        """Whether some of a request was parsed."""
        return bool(self._head_bytes or self.request)

    @property
    def body_bytes(self) -> int:
        """How much of the request's body has come."""
        return len(self._body)

    def parse(self) -> Request | None:
        """Parse a piece of what has come; return the request that it completes, if it does.

        Raises:
            GatewayError: It breaks a limit, or is not HTTP.
        """
        piece = bytes(self.unread[: max(PIECE_BYTES, self._announced())])
        del self.unread[: len(piece)]
        try:
            return self._feed(piece)
        except GatewayError:
            raise
        except Exception as exc:
            raise _as_gateway_error(exc) from exc

    def takes_continue(self) -> bool:
        """Tell, once, whether the client waits for `100 Continue` before it sends the body."""
        if not self.request or not self.request.awaits_continue or self._body:
            return False
        self.request.awaits_continue = False
        return True

    def refused(self) -> Request:
        """Return what is known of the request that is being read; where the next one would begin is not known."""
        request = self.request or self._request_so_far()
        request.may_keep_alive = False
        return request

    def drop(self) -> None:
        """Forget what has come."""
        self.unread.clear()
        if self.request:
            self.request.held.release()
            self.request = None

    def _announced(self) -> int:
        """Return how many bytes of the body must come before the parser looks at one again."""
        count: int = self._parser._chunk_remaining if self._parser.is_chunked else self._parser._body_remaining
        return count

    def _feed(self, piece: bytes) -> Request | None:
        if not self.request:
            self._head_bytes += len(piece)
            if self._head_bytes > HEAD_BYTES:
                raise HeadersTooLarge(f"Expected header fields of at most {HEAD_BYTES:,} bytes. Received: more")
        self._parser.feed(piece)
        if not (request := self.request):
            return None
        takes_body = self._front.takes_body(request, len(self._body) + self._announced())  # before it is read
        if not takes_body:
            self._body.clear()
            request.may_keep_alive = False  # where the next request would begin is not known
        request.held.add(len(self._body) - request.held.size)
        if takes_body and not self._parser.is_complete:
            return None
        self.unread[:0] = self._parser.remaining()
        request.body = bytes(self._body)
        self._parser.reset()
        self._body.clear()
        self.request, self._head_bytes = None, 0
        return request

    def _take_head(self) -> bool:
        """Take over the head of a request; the parser calls this."""
        self.request = request = self._request_so_far()
        environ, is_1_1 = request.environ, self._parser.http_version > (1, 0)
        for name, value in self._parser.headers:
            if b"_" in name:  # it would be taken for the one with a dash
                continue
            key = name.decode("latin-1").upper().replace("-", "_")
            key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
        path, query = _split(self._parser.path)
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")  # a byte a character. Source: PEP 3333
        environ["QUERY_STRING"] = query.decode("latin-1")
        if is_1_1 and "HTTP_HOST" not in environ:
            raise BadRequest("Expected a Host header, as HTTP/1.1 asks for. Received none.")
        if not _HOST.fullmatch(host := environ.get("HTTP_HOST", "")):
            raise BadRequest(f"Expected a host in the Host header. Received: {host[:100]!r}")
        if environ.get("HTTP_TRANSFER_ENCODING", "chunked").lower() != "chunked":
            raise UnsupportedCoding("Expected no Transfer-Encoding but chunked. Received another one before it.")
        request.may_keep_alive = self._parser.should_keep_alive and self._parser.method != b"CONNECT"
        request.awaits_continue = is_1_1 and environ.get("HTTP_EXPECT", "").lower() == "100-continue"
        self._front.check_key(request)
        return False

    def _request_so_far(self) -> Request:
        """Return what is known of the request that is being read."""
        major, minor = self._parser.http_version or (1, 1)
        environ = {
            **self._addresses,
            "REQUEST_METHOD": (self._parser.method or b"").decode("latin-1"),
            "PATH_INFO": (self._parser.path or b"").partition(b"?")[0].decode("latin-1"),  # it will be in the log
            "SERVER_PROTOCOL": f"HTTP/{major}.{minor}",
        }
        return Request(environ, Held(self._front.room))


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request's target, which may name a host too. Source: RFC 9112, section 3.2.

    Raises:
        BadRequest: It is of another form.
    """
    if match := _ABSOLUTE.fullmatch(target):
        return match[1] or b"/", (match[2] or b"")[1:]
    if not target.startswith(b"/") and target != b"*":
        raise BadRequest(f"Expected a path as the request's target. Received: {target[:100].decode('latin-1')!r}")
    path, _, query = target.partition(b"?")
    return path, query


def _as_gateway_error(error: Exception) -> GatewayError:
    """Return the failure that an exception means; the only place that translates the parser's."""
    received = repr(str(error)[:100])
    match error:
        case LimitRequestLine():
            return UriTooLong("Expected a first line of at most 8,190 bytes. Received: more")
        case LimitRequestHeaders():
            return HeadersTooLarge("Expected at most 100 header fields of 8,190 bytes each. Received: more")
        case UnsupportedTransferCoding():
            return UnsupportedCoding(f"Expected no Transfer-Encoding but chunked. Received: {received}")
        case InvalidHTTPVersion() if re.fullmatch(r"HTTP/\d\.\d", str(error)):
            return UnsupportedVersion(f"Expected HTTP/1.1. Received: {received}")
        case ValueError():  # Python refuses to read such a number
            return BadRequest("Expected a Content-Length of a few digits. Received: thousands")
        case ParseError():
            return BadRequest(f"Expected a request of HTTP/1.1. Received one that is not: {received}")
    _log.error("request failed", exc_info=error)
    return InternalError()
