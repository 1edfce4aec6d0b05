"""The command `explore`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_explore(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_explore)
    add = parser.add_argument
    add(
        "source",
        type=Path,
        help="folder of photos, with class folders or split folders inside, or a .csv of path and label",
    )
    add("--out", type=Path, default=Path("reports/explore"), help="folder for the report (default: %(default)s)")
    add("--cache", type=Path, default=Path(".cache"), help="decoded pixels, safe to delete (default: %(default)s)")


def run_explore(options: argparse.Namespace) -> None:
    """Find what is wrong with photos."""
    from training.explore.survey import explore

    explore(options.source, options.out, options.cache)
