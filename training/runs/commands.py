"""The command `runs`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_runs)
    add = parser.add_argument
    add("run", nargs="*", type=Path, metavar="RUN", help="run folders to compare; lists all without any")
    add("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")


def run_runs(options: argparse.Namespace) -> None:
    """List the runs, or compare some."""
    from training.runs import compare

    if options.run:
        compare.compare(options.run)
    else:
        compare.list_runs(options.runs)
