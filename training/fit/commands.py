"""The command `train`."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path

from contract.document import ContractError
from contract.settings import number
from contract.store import versions_of
from serving.errors import ServingError
from training.errors import TrainingError, WeightsError
from training.fit.preset import Preset, find_preset, names
from training.fit.recipe import Recipe
from training.models.quiet import import_tensorflow
from training.release.commands import (
    PIXELS,
    add_preprocessing,
    add_release_options,
    check_release_options,
    read_chosen_criteria,
    refuse,
)
from training.runs.folder import Run
from training.runs.track import TRACKERS, Tracking, find_tracker

_log = logging.getLogger(__name__)

MINUTES = number(float, 0.01, 60 * 24 * 365, "minutes from 0.01 to 525600, a year")
USUAL_MINUTES = 30.0  # of a training
OF_HEAD = {"seed", "class_weights"}  # what a first version takes of a recipe

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
        help=f"{', '.join(names())}, or a .toml file (default: %(default)s)",
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
    add("--size", metavar="PIXELS", type=PIXELS, help="input size in pixels (default: the architecture's)")
    add(
        "--minutes",
        type=MINUTES,
        help="time for all, from the first version to the release"
        f" (default: {USUAL_MINUTES:g}; with --epochs, as long as these take)",
    )
    add("--first-only", action="store_true", help="stop after the first version, which takes about a minute")
    add("--fresh", action="store_true", help="start again, even if the same training was interrupted or has ended")
    add("--distribute", default="none", choices=("none", "mirrored"), help="mirrored: share each batch among all GPUs")
    add(
        "--track",
        choices=tuple(TRACKERS),
        help="send each epoch, then the run, to an experiment tracker",
    )
    add_release_options(parser)
    _add_recipe(parser)
    add("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")


def run_train(options: argparse.Namespace) -> int:
    """Train on a folder of photos, then release the model; an exit status other than 0 if that or a tracker fails.

    Where people have no version yet, they get a first one before: a head on frozen features.
    """
    started = time.monotonic()
    check_release_options(options)
    _check_first_only(options)
    import_tensorflow()

    from training.data.pixels import Photos
    from training.fit.train import describe_data, find_strategy, read_data, train
    from training.release.replacement import refuse_other_classes

    tracking = Tracking(find_tracker(options.track)) if options.track else None
    chosen = ("architecture", "weights", "size", "preprocessing", *(field.name for field in fields(Recipe)))
    preset = find_preset(options.preset).changed({name: getattr(options, name) for name in chosen})
    preset.check_trains()
    if options.first_only and not preset.pretrained:
        raise TrainingError("Expected weights to begin with, for a first version. Received: --weights none")
    _check_start(preset, options.architecture)
    strategy = find_strategy("none" if options.first_only else options.distribute, preset.recipe.batch_size)
    minutes = options.minutes or (USUAL_MINUTES if options.epochs is None else None)
    if minutes and not options.first_only:
        _log.info(f"Time for all: {minutes:g} min (--minutes)")
    photos = Photos(options.folder, options.cache)
    dataset = photos.splits()
    if not options.replace_classes:
        refuse_other_classes(options.store, options.name, dataset.classes)
    describe_data(dataset)
    how = {"name": options.name, "runs": options.runs, "strategy": strategy, "fresh": options.fresh}
    data, first, status = read_data(photos, preset), None, 0
    if preset.pretrained:
        with train(data, preset.first, **how, tracking=tracking if options.first_only else None) as first:
            if options.first_only or not versions_of(options.store, options.name):
                status = _release(first, options, int8=False)
            if options.first_only and not status:
                _track(first, tracking, options.track)
    if options.first_only or status:
        return status
    passed_s = time.monotonic() - started
    with train(data, preset, **how, minutes=minutes, passed_s=passed_s, tracking=tracking, first=first) as run:
        status = _release(_better(run, first), options)
        _track(run, tracking, options.track)
    return status


def _check_first_only(options: argparse.Namespace) -> None:
    """Refuse options of what is not made where the first version is all."""
    if not options.first_only:
        return
    refuse(options, "with --first-only, which makes no int8 file", "int8_drop")
    of_network = ["minutes", *({field.name for field in fields(Recipe)} - OF_HEAD)]
    if given := sorted(name for name in of_network if getattr(options, name) is not None):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise TrainingError(f"Expected with --first-only no options of the network's training. Received: {flags}")


def _better(run: Path, first: Path | None) -> Path:
    """Return the run that is more accurate on validation; of equals, the one that gives the right classes more."""
    if not first:
        return run
    now, before = (Run(each).contract.metrics for each in (run, first))
    figures = ("validation_accuracy", "validation_log_loss")
    (accuracy, loss), (accuracy_before, loss_before) = ([each[name] for name in figures] for each in (now, before))
    best = run if (accuracy, -loss) > (accuracy_before, -loss_before) else first
    _log.info(
        f"{'Better' if best == run else 'Not better'} than the first version: accuracy {accuracy:.4f} on validation,"
        f" before {accuracy_before:.4f}; log loss {loss:.3f}, before {loss_before:.3f}"
        + ("" if best == run else f". {first.name} is taken in place of it")
    )
    return best


def _track(run: Path, tracking: Tracking | None, name: str) -> None:
    """Send a run to a tracker.

    Raises:
        TrainingError: The tracker fails, on which a release does not depend.
    """
    if tracking and not tracking.is_begun:
        _log.info(f"Nothing is sent to {name}, as nothing was trained. With --fresh it trains again")
    elif tracking:
        tracking.finish(run)
        _log.info(f"Sent the run to {name}")


def _release(run: Path, options: argparse.Namespace, *, int8: bool = True) -> int:
    """Release a run, but not twice, and return the exit status; if that fails, say how to release it later."""
    from training.release.replacement import answering, version_of
    from training.release.sources import of_run, release

    if number := version_of(run, options.store, options.name):
        other = answering(options.store, options.name)
        status = f"python -m gateway.release {shlex.join([options.name, 'status', '--store', str(options.store)])}"
        why = f". Version {other} answers. To see why, before you try or promote version {number}: {status}"
        _log.info(f"Nothing is released, as {run} is version {number} already{why if other != number else ''}")
        return 0
    try:
        source = of_run(run, options.name)
        decides = int8 or versions_of(options.store, options.name)
        criteria = read_chosen_criteria(options, source.contract) if decides else None
        release(source, options.store, criteria, int8=int8, replace_classes=options.replace_classes)
    except (TrainingError, ContractError, ServingError) as exc:
        print(f"{exc}\n{_kept(run, options)}", file=sys.stderr)
        return 1
    except BaseException:  # Ctrl-C, or a defect of ours
        print(_kept(run, options), file=sys.stderr)
        raise
    return 0


def _kept(run: Path, options: argparse.Namespace) -> str:
    """Return where a run is, and the command that releases it."""
    command = ["--run", str(run), "--photos", str(options.folder)]
    for name in ("store", "cache", "int8_drop", "margin"):
        value = getattr(options, name)
        command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    for name in ("refuse_if_worse", "replace_classes"):
        command += [f"--{name.replace('_', '-')}"] if getattr(options, name) else []
    return f"The run is kept. To release it later: python -m training export {shlex.join(command)}"


def _check_start(preset: Preset, architecture: str | None) -> None:
    """Refuse what does not load before photos are read, and an architecture that would change nothing."""
    from training.fit.phases import start_of
    from training.models.starting_points import File

    start = start_of(preset)
    if preset.larger:
        start_of(preset.changed({"architecture": preset.larger}))
    if architecture and isinstance(start, File) and start.image:
        raise WeightsError(f"Expected no --architecture with {preset.weights}, which contains a whole {start.name}")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add an option for each hyperparameter, described by the first sentence of its docstring."""
    group = parser.add_argument_group(
        "hyperparameters", "What is not given is the preset's; in brackets are the values of the preset `default`."
    )
    docs = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", inspect.getdoc(Recipe) or "", re.DOTALL | re.MULTILINE))
    for field in fields(Recipe):
        meaning = " ".join(docs[field.name].split()).partition(". ")[0].rstrip(".")
        flag = "--" + field.name.replace("_", "-")
        group.add_argument(
            flag,
            metavar="VALUE",
            type=type(field.default),
            help=f"{meaning[0].lower()}{meaning[1:]} ({field.default})",
        )
