"""The command `runs`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_runs(commands: Any) -> None:
    """Add the command to the parser of `python -m training`."""
    parser = commands.add_parser(
        "runs", help="list the runs, or compare some", description="list the runs, or compare some"
    )
    parser.set_defaults(main=run_runs)
    parser.add_argument(
        "run", nargs="*", type=Path, metavar="RUN", help="run folders to compare; lists all without any"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")


def run_runs(options: argparse.Namespace) -> None:
    """List the runs, or compare some."""
    from rich.console import Console

    from training.runs import compare

    console = Console(highlight=False)
    if options.run:
        compare.compare([compare.read(path) for path in options.run], console)
    else:
        compare.list_runs(compare.find(options.runs), console)
