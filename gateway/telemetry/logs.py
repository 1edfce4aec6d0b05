"""Logs as one JSON object a line, with the identifiers of the request."""

from __future__ import annotations

import json
import logging
import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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


current: ContextVar[Trace | None] = ContextVar("current", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the request's identifiers, and `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if trace := current.get():
            line |= {"request_id": trace.request_id, "trace_id": trace.trace_id, "span_id": trace.span_id}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # in ASCII: a terminal may act on other control characters


# All lines, gunicorn's own too, go to standard error as JSON.
CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True}},
}
