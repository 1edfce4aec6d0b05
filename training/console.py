"""Where tables are printed: as wide as the terminal, or as they need where a file or a program takes them."""

from __future__ import annotations

import sys

from rich.console import Console

_WIDE = 10_000  # columns; without a terminal, rich would cut at 80


def open_console() -> Console:
    """Return what prints tables to standard output; names in them are no markup."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)
