"""The command `runs`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_runs_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `runs`."""
    parser.add_argument("run", nargs="*", type=Path, metavar="RUN", help="run folders to compare (default: list all)")


def run_runs(options: argparse.Namespace) -> None:
    """List the runs, or compare some."""
    from rich.console import Console

    from training.runs import compare

    console = Console(highlight=False)
    if options.run:
        compare.compare([compare.read(path) for path in options.run], console)
    else:
        compare.list_runs(compare.find(options.runs), console)
