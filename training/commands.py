"""The commands that look and release nothing: explore."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

say = partial(print, flush=True)


def add_parsers(commands: Any) -> None:
    """Add each command with its options to the parser of `python -m training`."""
    explore = commands.add_parser("explore", help="find what is wrong with photos before training on them")
    explore.set_defaults(command=_explore)
    explore.add_argument("source", type=Path, help="class folders, split folders, or a .csv of path and label")
    explore.add_argument("--out", type=Path, default=Path("reports/explore"), help="for the report (%(default)s)")
    explore.add_argument("--cache", type=Path, default=Path(".cache"), help="where decoded pixels go (%(default)s)")


def _explore(options: argparse.Namespace) -> None:
    from training.explore.explore import explore

    explore(options.source, options.out, options.cache, say)
