"""The answer of an HTTP server, be it an image's host or a proxy."""

from __future__ import annotations

from http import HTTPStatus
from http.client import HTTPResponse


class FinalAnswer(HTTPResponse):
    """The answer after all that only inform, such as 103 Early Hints; `HTTPResponse` skips 100 alone.

    101 is none of them, as nobody asked for another protocol. Source: RFC 9110, 15.2.
    """

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
        is_informational = 101 < status < 200
        return version, HTTPStatus.CONTINUE if is_informational else status, reason
