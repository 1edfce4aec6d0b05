"""What every client of a gateway needs: its URL, as the command line names it, and its key."""

from __future__ import annotations

import argparse
import os
import re

import urllib3


def key_header() -> dict[str, str]:
    """Return the header with the key in `GATEWAY_KEY`, if there is one.

    Raises:
        ValueError: The key has a control character, such as a line break.
    """
    key = os.environb.get(b"GATEWAY_KEY", b"").strip()
    if re.search(rb"[\x00-\x1f\x7f]", key):
        raise ValueError("Expected a key of one line in GATEWAY_KEY. Received one with a control character")
    return {"Authorization": f"Bearer {key.decode('latin-1')}"} if key else {}  # sent as the bytes that they are


def gateway_url(text: str) -> str:
    """Read a gateway's URL from the command line."""
    try:
        url = urllib3.util.parse_url(text)
        (url.host or "").encode("idna")  # as a look-up does
    except (urllib3.exceptions.LocationParseError, UnicodeError):
        url = urllib3.util.Url()
    if not text.startswith(("http://", "https://")) or not url.host or text.endswith("/predict"):
        raise argparse.ArgumentTypeError(f"Expected http://HOST:PORT or https://HOST. Received: {text!r}")
    return text.rstrip("/")
