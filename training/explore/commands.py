"""The command `explore`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_explore(commands: Any) -> None:
    """Add the command to the parser of `python -m training`."""
    parser = commands.add_parser(
        "explore",
        help="find what is wrong with photos before training on them",
        description="find what is wrong with photos before training on them",
    )
    parser.set_defaults(main=run_explore)
    parser.add_argument(
        "source",
        type=Path,
        help="folder of photos, with class folders or split folders inside, or a .csv of path and label",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/explore"), help="folder for the report (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder for decoded pixels (default: %(default)s)"
    )


def run_explore(options: argparse.Namespace) -> None:
    """Find what is wrong with photos."""
    from training.explore.survey import explore

    explore(options.source, options.out, options.cache)
