"""Every way the gateway can fail: one tree of errors, each with its HTTP status and its stable code.

GatewayError
├── BadRequest           400 bad_request         the request is not what the API describes
├── Unauthorized         401 unauthorized        the gateway asks for an API key
├── UrlNotAllowed        403 url_not_allowed     the URL, or one it redirects to, is closed
├── NotFound             404 not_found           no such path
├── MethodNotAllowed     405 method_not_allowed  the path answers other methods
├── RequestTimeout       408 request_timeout     the request itself did not come in time
├── TooLarge             413 too_large           the body, a form, the answer, or the image itself exceeds a limit
├── UriTooLong           414 uri_too_long        the request's first line is too long
├── UnsupportedMedia     415 unsupported_media   not an image of an accepted format, or a compressed body
├── BadImage             422 bad_image           an image that does not decode
├── HeadersTooLarge      431 headers_too_large   the request has too many header fields, or too long ones
├── InternalError        500 internal_error      a defect of ours; the log has the traceback
├── UnsupportedCoding    501 unsupported_coding  a Transfer-Encoding other than chunked
├── FetchFailed          502 fetch_failed        the image's host did not deliver it
├── ModelFailed          502 model_failed        the model server refused, or answered nonsense
├── ModelUnavailable     503 model_unavailable   no model server, or no usable version; come back
│   └── VersionGone                              that version is not loaded there; another may be
├── Overloaded           503 overloaded          the gateway or the model server is busy; come back
├── FetchTimeout         504 fetch_timeout       the image did not come in time
├── ModelTimeout         504 model_timeout       the prediction did not come in time
└── UnsupportedVersion   505 unsupported_version a version of HTTP other than 1.0 and 1.1
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from contract.image import ImageError, ImageTooLargeError, UnsupportedImageError


class GatewayError(Exception):
    """A failure with a name; the detail says what is wrong with the input, or what happened and what to do."""

    status: int
    code: str
    retry_after_s: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def problem(self) -> dict[str, Any]:
        """Return the problem details (RFC 9457) that the client gets."""
        return {
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }


class BadRequest(GatewayError):
    status, code = 400, "bad_request"


class Unauthorized(GatewayError):
    status, code = 401, "unauthorized"


class UrlNotAllowed(GatewayError):
    status, code = 403, "url_not_allowed"


class NotFound(GatewayError):
    status, code = 404, "not_found"


class MethodNotAllowed(GatewayError):
    status, code = 405, "method_not_allowed"


class RequestTimeout(GatewayError):
    status, code = 408, "request_timeout"


class TooLarge(GatewayError):
    status, code = 413, "too_large"


class UriTooLong(GatewayError):
    status, code = 414, "uri_too_long"


class UnsupportedMedia(GatewayError):
    status, code = 415, "unsupported_media"


class BadImage(GatewayError):
    status, code = 422, "bad_image"


class HeadersTooLarge(GatewayError):
    status, code = 431, "headers_too_large"


class InternalError(GatewayError):
    status, code = 500, "internal_error"

    def __init__(self, detail: str = "Internal error; see the gateway's log.") -> None:
        super().__init__(detail)


class UnsupportedCoding(GatewayError):
    status, code = 501, "unsupported_coding"


class FetchFailed(GatewayError):
    status, code = 502, "fetch_failed"


class ModelFailed(GatewayError):
    status, code = 502, "model_failed"


class ModelUnavailable(GatewayError):
    status, code = 503, "model_unavailable"
    retry_after_s = 2


class VersionGone(ModelUnavailable):
    """The model server that was asked has not loaded that version, or has unloaded it."""


class Overloaded(GatewayError):
    status, code = 503, "overloaded"
    retry_after_s = 1


class FetchTimeout(GatewayError):
    status, code = 504, "fetch_timeout"


class ModelTimeout(GatewayError):
    status, code = 504, "model_timeout"


class UnsupportedVersion(GatewayError):
    status, code = 505, "unsupported_version"


def from_image_error(error: ImageError) -> GatewayError:
    """Return the failure that a decoder's error means."""
    if isinstance(error, ImageTooLargeError):
        return TooLarge(str(error))
    if isinstance(error, UnsupportedImageError):
        return UnsupportedMedia(str(error))
    return BadImage(str(error))
