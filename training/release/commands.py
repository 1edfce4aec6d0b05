"""The command `export`, and how every command releases a model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from contract.document import Aspect, Contract, Filter
from contract.settings import number
from training.errors import TrainingError
from training.models.quiet import import_tensorflow
from training.release.store import check_name

if TYPE_CHECKING:
    from training.release.criteria import Criteria

_log = logging.getLogger(__name__)

PIXELS = number(int, 8)  # of an image's side; most backbones want more, and say so
# 1, perhaps meant as one point, would accept any model.
_LOSS = number(float, 0, 0.999, "a loss of accuracy, such as 0.01 for one point")
_OF_A_FILE = ("preprocessing", "size", "filter", "aspect", "crop", "output")  # what only a file of weights leaves open


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_export)
    add = parser.add_argument
    add("--name", help="name of the model in the store; needed with --weights")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder, written by train")
    source.add_argument("--weights", help="imagenet, none (random), or a .keras, .h5 or .weights.h5 file")
    add(
        "--photos",
        dest="folder",
        type=Path,
        help="photos that the model was trained on; needed for int8 and --refuse-if-worse",
    )
    add("--architecture", help="architecture; needed unless a file contains a whole model")
    add(
        "--classes",
        metavar="FILE",
        type=Path,
        help="class names in output order: a text file with one a line, a JSON list or map, or a CSV with a header",
    )
    add_preprocessing(parser)
    add("--size", metavar="PIXELS", type=PIXELS, help="input size in pixels, if the file leaves it open")
    add("--filter", choices=get_args(Filter), help="resampling filter, for a file (default: bicubic)")
    add("--aspect", choices=get_args(Aspect), help="how to fit a photo into the input, for a file (default: stretch)")
    add("--crop", metavar="PART", type=float, help="part of the shorter side that --aspect crop keeps (default: 1.0)")
    add("--output", metavar="NAME", help="output to take, for a file with several")
    add_release_options(parser)


def run_export(options: argparse.Namespace) -> None:
    """Release ready weights, a Keras file, or a run."""
    _check_export(options)
    import_tensorflow()

    from training.release import sources
    from training.release.replacement import refuse_other_classes

    if options.run:
        source = sources.of_run(options.run, options.name)
    elif options.weights in ("imagenet", "none"):
        source = sources.of_architecture(options.name, options.architecture, options.weights, options.classes)
    else:
        names = ("classes", "preprocessing", "architecture", "filter", "aspect", "crop", "output")
        given = {name: value for name in names if (value := getattr(options, name)) is not None}
        source = sources.of_file(Path(options.weights), options.name, size_px=options.size, **given)
    if not options.replace_classes:
        refuse_other_classes(options.store, source.contract.model, source.contract.classes)
    criteria = read_chosen_criteria(options, source.contract)
    sources.release(source, options.store, criteria, replace_classes=options.replace_classes)
    if not options.folder and options.weights not in ("imagenet", "none"):
        _log.info("Made no int8 file, which photos decide on. Add --photos FOLDER, those that the model was trained on")


def _check_export(options: argparse.Namespace) -> None:
    """Refuse what is missing, and what would change nothing, before anything is loaded."""
    check_release_options(options)
    if not options.folder:
        refuse(options, "without --photos, on which it would be measured", "refuse_if_worse", "int8_drop")
    if options.run:
        refuse(options, "with a run, which has its own", "architecture", "classes", *_OF_A_FILE)
    elif options.weights in ("imagenet", "none"):
        _require(options, "architecture", "name")
        refuse(options, f"with --weights {options.weights}, as the architecture has its own", *_OF_A_FILE)
        if options.weights == "imagenet":
            refuse(options, "with ImageNet weights, whose classes are known", "classes")
    else:
        if not Path(options.weights).exists():
            raise TrainingError(f"Expected --weights imagenet, none, or a file. Received: {options.weights}")
        _require(options, "classes", "preprocessing", "name")
        if options.aspect != "crop":
            refuse(options, "without --aspect crop", "crop")


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Add the option of what a file leaves open."""
    parser.add_argument(
        "--preprocessing",
        type=lambda text: text.replace("+-", "±"),
        help="input that the file's model expects: none, 0-1, ±1 (or +-1), caffe, torch, efficientnet-lite",
    )


def add_release_options(parser: argparse.ArgumentParser) -> None:
    """Add what `train` and `export` have in common."""
    add = parser.add_argument
    add(
        "--int8-drop",
        metavar="ACCURACY",
        type=_LOSS,
        help="largest accuracy loss at which int8 is released (default: 0.005, half a point)",
    )
    add(
        "--refuse-if-worse",
        action="store_true",
        help="do not release a model that is less accurate than the version that answers, in fp32",
    )
    add(
        "--replace-classes",
        action="store_true",
        help="release it even if the version that answers has other classes",
    )
    add("--margin", metavar="ACCURACY", type=_LOSS, help="loss that --refuse-if-worse accepts (default: 0)")
    add("--store", type=Path, default=Path("model-store"), help="the model-store (default: %(default)s)")
    add("--cache", type=Path, default=Path(".cache"), help="decoded pixels, safe to delete (default: %(default)s)")


def check_release_options(options: argparse.Namespace) -> None:
    """Refuse a name that no model can have, and a margin that nothing asks for."""
    if options.name:
        check_name(options.name)
    if not options.refuse_if_worse:
        refuse(options, "without --refuse-if-worse", "margin")
    else:
        refuse(options, "with --refuse-if-worse, which compares versions of the same classes", "replace_classes")


def read_chosen_criteria(options: argparse.Namespace, contract: Contract) -> Criteria | None:
    """Return the labelled photos that decide on the release; None without photos."""
    from training.data.pixels import Photos
    from training.release.criteria import read_criteria

    if not options.folder:
        return None
    margin = (options.margin or 0.0) if options.refuse_if_worse else None
    photos = Photos(options.folder, options.cache)
    return read_criteria(photos, contract, int8_drop=options.int8_drop, margin=margin)


def refuse(options: argparse.Namespace, beside: str, *names: str) -> None:
    """Refuse options that would change nothing: whoever gives one expects that it does."""
    values = {name: getattr(options, name) for name in names}
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if not (value is None or value is False)]
    if given:  # 0 is a value
        raise TrainingError(f"Expected no {' nor '.join(given)} {beside}")


def _require(options: argparse.Namespace, *names: str) -> None:
    if missing := [f"--{name}" for name in names if not getattr(options, name)]:
        expected = ", ".join(f"--{name}" for name in names)
        raise TrainingError(f"Expected {expected} with --weights {options.weights}. Missing: {' and '.join(missing)}")
