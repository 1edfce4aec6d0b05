"""The command `explore`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_explore_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `explore`."""
    parser.add_argument("source", type=Path, help="class folders, split folders, or a .csv of path and label")


def run_explore(options: argparse.Namespace) -> None:
    """Find what is wrong with photos."""
    from training.explore.survey import explore

    explore(options.source, options.out, options.cache)
