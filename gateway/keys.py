"""Optional API keys, known to the gateway only by their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re

from gateway.errors import Unauthorized

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Keys:
    """The keys that open the gateway; none at all leave it open."""

    def __init__(self, digests: str) -> None:
        """Read SHA-256 digests in hex, separated by commas: `printf %s KEY | sha256sum` makes one.

        Raises:
            ValueError: One is no such digest.
        """
        self._digests = [digest.strip().lower() for digest in digests.split(",") if digest.strip()]
        if any(not _DIGEST.fullmatch(digest) for digest in self._digests):
            raise ValueError("Expected SHA-256 digests of 64 hex digits, by commas. Received something else")

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Accept a request whose `Authorization: Bearer KEY` or `X-API-Key: KEY` holds one of the keys.

        Raises:
            Unauthorized: It holds none.
        """
        if not self._digests:
            return
        scheme, _, token = (authorization or "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else api_key or ""
        # The bytes as they came: a header's text is Latin-1 by PEP 3333, whatever its sender meant.
        received = hashlib.sha256(key.encode("latin-1", "backslashreplace")).hexdigest()
        # Each is compared, in constant time, so that the time tells neither whether nor which key was near.
        if not any([hmac.compare_digest(received, digest) for digest in self._digests]):  # noqa: C419
            raise Unauthorized("Expected an API key, as Authorization: Bearer KEY. Received: none that is known.")
