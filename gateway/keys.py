"""Who may ask: optional API keys, of which the gateway knows only the SHA-256, and pages of other origins."""

from __future__ import annotations

import hashlib
import hmac
import re
from contextlib import suppress

from gateway.errors import Unauthorized
from gateway.fetch.urls import parse_authority

# What browsers send: the host in ASCII, and no port that is the scheme's own.
_ORIGIN = re.compile(
    r"(?!http:.*:80\Z|https:.*:443\Z)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OF_NOTHING = hashlib.sha256(b"").hexdigest()


class Keys:
    """The keys that open the gateway; without any, it is open to all."""

    def __init__(self, digests: str) -> None:
        """Read SHA-256 digests in hex, separated by commas: `printf %s KEY | sha256sum` makes one.

        Raises:
            ValueError: One of them is not such a digest.
        """
        self._digests = [digest.strip().lower() for digest in digests.split(",") if digest.strip()]
        if digests and not self._digests:
            raise ValueError("Expected SHA-256 digests, or nothing for a gateway that is open to all. Received: blanks")
        if any(not _DIGEST.fullmatch(digest) for digest in self._digests):
            raise ValueError("Expected SHA-256 digests of 64 hex digits, separated by commas. Received something else")
        if _OF_NOTHING in self._digests:  # it would open the gateway to all who send no key
            raise ValueError("Expected digests of keys. Received: that of an empty one, as an unset variable gives")

    def check(self, authorization: str | None, api_key: str | None) -> str:
        """Accept a request with one of the keys in `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Returns:
            The digest of its key; empty if no key is needed.

        Raises:
            Unauthorized: It has none.
        """
        if not self._digests:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        # Both count: what stands before the gateway may want a key of its own in the other header.
        for key in (token.strip(" \t") if scheme.lower() == "bearer" else "", api_key or ""):
            # The bytes as they came: by PEP 3333 a header's text is Latin-1, whatever its sender meant.
            received = hashlib.sha256(key.encode("latin-1", "backslashreplace")).hexdigest()
            # Every key is compared, in constant time, so that the time shows nothing about how near one was.
            if any([hmac.compare_digest(received, digest) for digest in self._digests]):  # noqa: C419
                return received
        raise Unauthorized("Expected an API key, as Authorization: Bearer KEY. Received: none that the gateway knows.")


class Origins:
    """Origins whose pages may read answers in a browser; without any, only the gateway's own page may."""

    def __init__(self, text: str) -> None:
        """Read origins as browsers send them, separated by commas, such as `https://shop.example`.

        Raises:
            ValueError: Some are not origins; the message lists them all.
        """
        self._origins = [each.strip().lower() for each in text.split(",") if each.strip()]
        if bad := [each for each in self._origins if not _is_origin(each)]:
            raise ValueError(
                "Expected origins as browsers send them, such as https://shop.example or http://localhost:3000,"
                " separated by commas: without a path, * or the default port, and bücher.example as"
                f" xn--bcher-kva.example. Received: {', '.join(map(repr, bad))}"
            )

    def headers(self, origin: str | None, *, is_preflight: bool = False) -> dict[str, str]:
        """Return the headers of an answer to a page of this origin. Source: the Fetch standard, CORS protocol."""
        if not self._origins:
            return {}
        headers = {"Vary": "Origin"}  # or a cache could give one origin the answer for another
        if origin not in self._origins:
            return headers
        headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "X-Request-ID, Retry-After"}
        if is_preflight:
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, X-API-Key, X-Release-Key, X-Request-ID, traceparent"
            )
            headers["Access-Control-Max-Age"] = "600"
        return headers


def _is_origin(text: str) -> bool:
    matched = _ORIGIN.fullmatch(text)
    with suppress(ValueError):  # there is no such address or port
        host, _ = parse_authority(text.partition("://")[2], default_port=1)
        return matched is not None and (isinstance(host, str) or str(host) == matched[1].strip("[]"))
    return False
