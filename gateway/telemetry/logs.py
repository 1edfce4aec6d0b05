"""Logs as one JSON object a line, with the identifiers of the request."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from gateway.trace import current_trace


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
        if trace := current_trace.get():
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
