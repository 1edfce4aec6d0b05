"""The command `train`."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError, WeightsError
from training.models.quiet import import_tensorflow
from training.release.commands import (
    add_preprocessing,
    add_release_options,
    check_release_options,
    pixels,
    read_chosen_criteria,
)

if TYPE_CHECKING:
    from training.fit.preset import Preset

_log = logging.getLogger(__name__)

FOLDER = (
    "folder of photos: a folder for each class, or train/, validation/ and test/ with class folders inside;"
    " or a .csv of path, label and perhaps split"
)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_train)
    add = parser.add_argument
    add("folder", type=Path, help=FOLDER)
    add("--name", required=True, help="name of the model in the store")
    add(
        "--preset",
        default="default",
        help="default, quick, plain-cnn, vgg16, resnet50, or a .toml file (default: %(default)s)",
    )
    add(
        "--architecture",
        help="efficientnet-lite0 to -lite2, plain-cnn, or any Keras application (default: the preset's)",
    )
    add(
        "--weights",
        help="what to start from: imagenet, none (random), a run folder, or a .keras, .h5 or .weights.h5 file"
        " (default: the preset's)",
    )
    add_preprocessing(parser)
    add("--size", metavar="PIXELS", type=pixels, help="input size in pixels (default: the architecture's)")
    add("--fresh", action="store_true", help="start again, even if the same training was interrupted")
    add("--distribute", default="none", choices=("none", "mirrored"), help="mirrored: share each batch among all GPUs")
    add(
        "--track",
        choices=("tensorboard", "mlflow", "wandb"),
        help="send each epoch, then the run, to an experiment tracker",
    )
    add_release_options(parser)
    _add_recipe(parser)
    add("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")


def run_train(options: argparse.Namespace) -> int:
    """Train on a folder of photos, then release the model; an exit status other than 0 if a tracker failed."""
    check_release_options(options)
    import_tensorflow()

    from training.data.pixels import Photos
    from training.fit.preset import find_preset
    from training.fit.recipe import Recipe
    from training.fit.train import train
    from training.release.replacement import refuse_other_classes
    from training.release.sources import of_run, release
    from training.runs.track import Tracking, find_tracker

    tracking = Tracking(find_tracker(options.track)) if options.track else None
    chosen = ("architecture", "weights", "size", "preprocessing", *(field.name for field in fields(Recipe)))
    preset = find_preset(options.preset).changed({name: getattr(options, name) for name in chosen})
    _check_start(preset, options.architecture)
    photos = Photos(options.folder, options.cache)
    if not options.replace_classes:
        refuse_other_classes(options.store, options.name, photos.splits().classes)
    places = {"name": options.name, "runs": options.runs, "fresh": options.fresh}
    run = train(photos, preset, **places, distribute=options.distribute, tracking=tracking)
    _log.info(f"Saved the run in {run}")
    status = 0
    try:
        if tracking:  # gets every run; a release does not depend on it
            try:
                tracking.finish(run)
                _log.info(f"Sent the run to {options.track}")
            except TrainingError as exc:
                print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
                status = 1
        source = of_run(run, options.name)
        release(source, options.store, read_chosen_criteria(options, source.contract))
    except KeyboardInterrupt:
        command = ["--run", str(run), "--photos", str(options.folder)]
        for name in ("store", "cache", "int8_drop", "margin"):
            value = getattr(options, name)
            command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        for name in ("refuse_if_worse", "replace_classes"):
            command += [f"--{name.replace('_', '-')}"] if getattr(options, name) else []
        print(
            f"Stopped; the run is kept. To release it: python -m training export {shlex.join(command)}", file=sys.stderr
        )
        return 130
    return status


def _check_start(preset: Preset, architecture: str | None) -> None:
    """Refuse what does not load before photos are read, and an architecture that would change nothing."""
    from training.fit.phases import start_of
    from training.models.starting_points import File

    start = start_of(preset)
    if architecture and isinstance(start, File) and start.image:
        raise WeightsError(f"Expected no --architecture with {preset.weights}, which contains a whole {start.name}")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add an option for each hyperparameter, described by the first sentence of its docstring."""
    from training.fit.recipe import Recipe

    docs = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", inspect.getdoc(Recipe) or "", re.DOTALL | re.MULTILINE))
    for field in fields(Recipe):
        meaning = " ".join(docs[field.name].split()).partition(". ")[0].rstrip(".")
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(
            flag,
            metavar="VALUE",
            type=type(field.default),
            help=f"{meaning[0].lower()}{meaning[1:]} (default: {field.default})",
        )
