"""Prints what a command says. An output that is closed or full ends no command: it may be a trial's only watch."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def say(*lines: str, to: TextIO | None = None) -> None:
    """Print each line at once, as far as it can be written."""
    for line in lines:
        with suppress(OSError):
            print(line, file=to, flush=True)


def warn(*lines: str) -> None:
    """Print lines to stderr."""
    say(*lines, to=sys.stderr)


def close() -> str:
    """Drop what could not be written, as Python would end in a traceback; return why, unless stdout's reader left."""
    reason = ""
    for stream in (sys.stderr, sys.stdout):
        try:
            print(end="", file=stream, flush=True)
        except OSError as exc:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(exc, BrokenPipeError):  # `history | head` is no failure
                reason = exc.strerror or ""
    return reason
