"""The command `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.fit.commands import FOLDER, MINUTES
from training.fit.preset import find_preset
from training.models.quiet import import_tensorflow
from training.release.commands import PIXELS


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_tune)
    add = parser.add_argument
    add("folder", type=Path, help=FOLDER)
    add(
        "--minutes",
        type=MINUTES,
        required=True,
        help="time for the whole search; the same command again continues it for as long",
    )
    add("--out", type=Path, required=True, help="preset to write: a .toml file for train --preset; a page beside it")
    add("--preset", default="default", help="preset to start from (default: %(default)s)")
    add(
        "--architectures",
        metavar="NAME,…",
        type=lambda text: text.split(","),
        default=[],
        help="backbones to choose from, named as for train (default: the preset's)",
    )
    add(
        "--sizes",
        metavar="PIXELS,…",
        type=lambda text: [PIXELS(size) for size in text.split(",")],
        default=[],
        help="input sizes to choose from (default: the preset's, or each architecture's)",
    )
    add("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")
    add("--cache", type=Path, default=Path(".cache"), help="decoded pixels, safe to delete (default: %(default)s)")


def run_tune(options: argparse.Namespace) -> None:
    """Search for better hyperparameters, and write them as a preset."""
    import_tensorflow()

    from training.data.pixels import Photos
    from training.tune.search import tune
    from training.tune.space import find_space

    space = find_space(find_preset(options.preset), Path(options.preset).stem, options.architectures, options.sizes)
    tune(Photos(options.folder, options.cache), space, options.minutes, out=options.out, runs=options.runs)
