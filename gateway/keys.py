"""Optional API keys; the gateway knows only their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re

from gateway.errors import Unauthorized

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Keys:
    """The keys that open the gateway; without any, it is open to all."""

    def __init__(self, digests: str) -> None:
        """Read SHA-256 digests in hex, separated by commas: `printf %s KEY | sha256sum` makes one.

        Raises:
            ValueError: One of them is not such a digest.
        """
        self._digests = [digest.strip().lower() for digest in digests.split(",") if digest.strip()]
        if any(not _DIGEST.fullmatch(digest) for digest in self._digests):
            raise ValueError("Expected SHA-256 digests of 64 hex digits, separated by commas. Received something else")

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Accept a request with one of the keys in `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Raises:
            Unauthorized: It has none.
        """
        if not self._digests:
            return
        scheme, _, token = (authorization or "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else api_key or ""
        # The bytes as they came: by PEP 3333 a header's text is Latin-1, whatever its sender meant.
        received = hashlib.sha256(key.encode("latin-1", "backslashreplace")).hexdigest()
        # Every key is compared, in constant time, so that the time shows nothing about how near one was.
        if not any([hmac.compare_digest(received, digest) for digest in self._digests]):  # noqa: C419
            raise Unauthorized(
                "Expected an API key, as Authorization: Bearer KEY. Received: none that the gateway knows."
            )
