"""The identifiers of a request, which log lines and the calls of other services carry."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Source: W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


@dataclass(frozen=True)
class Trace:
    """The identifiers that all lines of one request share, here and in other services."""

    request_id: str
    trace_id: str
    span_id: str
    flags: str

    @classmethod
    def of(cls, request_id: str | None, traceparent: str | None) -> Trace:
        """Take the caller's identifiers if they are well formed; make the missing ones."""
        parent = _TRACEPARENT.fullmatch(traceparent or "")
        return cls(
            request_id if request_id and _REQUEST_ID.fullmatch(request_id) else secrets.token_hex(8),
            parent[1] if parent else secrets.token_hex(16),
            secrets.token_hex(8),
            parent[2] if parent else "00",
        )

    @property
    def traceparent(self) -> str:
        """The header that the next service gets."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)
