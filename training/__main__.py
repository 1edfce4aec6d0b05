"""`python -m training`: look at photos, train on them, release what was trained, and judge it."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from contract.document import Aspect, Contract, ContractError, Filter, ImageSpec
from training import commands
from training.errors import TrainingError
from training.quiet import import_tensorflow
from training.release.store import check_name

if TYPE_CHECKING:
    from training.release.export import Release

INT8_DROP = 0.005
# What only a file of weights leaves open.
LEAST_SIZE_PX = 8  # of an image's side; most backbones want more, and say so
OF_A_FILE = ("preprocessing", "size", "filter", "aspect", "crop")

_log = logging.getLogger("training")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 after a message on standard error."""
    options = _parser().parse_args(argv)
    _log_to_terminal()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without a GPU, TensorFlow logs that as errors before our lines
    try:
        if name := getattr(options, "name", None):
            check_name(name)
        if getattr(options, "margin", None) is not None and not options.refuse_if_worse:
            _refuse(options, "without --refuse-if-worse", "margin")
        return int(options.command(options) or 0)
    except (TrainingError, ContractError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = " The same command goes on where it was." if getattr(options, "resumes", False) else ""
        print(f"Stopped.{resumes}", file=sys.stderr)
        return 130


def _log_to_terminal() -> None:
    """Print the steps of every command, a bare line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers, _log.propagate = [handler], False  # TensorFlow gives the root logger a handler of its own
    _log.setLevel(logging.INFO)


def _train(options: argparse.Namespace) -> int:
    import_tensorflow()

    from training.fit.preset import find_preset
    from training.fit.recipe import Recipe
    from training.fit.train import train
    from training.models.catalogue import find_architecture
    from training.runs.track import find_tracker, log_run

    tracker = find_tracker(options.track) if options.track else None
    preset = find_preset(options.preset)
    recipe = preset.recipe_with({field.name: getattr(options, field.name) for field in fields(Recipe)})
    architecture = find_architecture(options.architecture or preset.architecture, options.size or preset.size)
    weights = options.weights or preset.weights
    run = train(
        options.folder,
        options.name,
        architecture=architecture,
        weights=None if weights == "none" else weights,
        recipe=recipe,
        runs=options.runs,
        cache=options.cache,
        fresh=options.fresh,
        distribute=options.distribute,
    )
    _log.info(f"Kept the run in {run}")
    status = 0
    try:
        if tracker:  # told of every run, and no condition of a release
            try:
                log_run(run, tracker)
                _log.info(f"Told {options.track} of the run")
            except TrainingError as exc:
                print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
                status = 1
        _release_run(options, run)
    except KeyboardInterrupt:
        command = ["--run", str(run), "--photos", str(options.folder), "--store", str(options.store)]
        command += ["--cache", str(options.cache)]
        command += ["--int8-drop", str(options.int8_drop)] if options.int8_drop is not None else []
        command += ["--refuse-if-worse"] if options.refuse_if_worse else []
        command += ["--margin", str(options.margin)] if options.margin is not None else []
        print(
            f"Stopped; the run is kept. To release it: python -m training export {shlex.join(command)}", file=sys.stderr
        )
        return 130
    return status


def _export(options: argparse.Namespace) -> None:
    import_tensorflow()
    if not options.folder:
        _refuse(options, "without --photos, on which it would be measured", "refuse_if_worse", "int8_drop")
    if options.run:
        _refuse(options, "with a run, which knows its own", "architecture", "classes", *OF_A_FILE)
        _release_run(options, options.run)
    elif options.weights in ("imagenet", "none"):
        _export_architecture(options)
    else:
        _export_file(options)


def _release_run(options: argparse.Namespace, run: Path) -> None:
    from training.runs.folder import read_run, record_release

    model, contract, golden = read_run(run)
    contract = contract.named(options.name or contract.model)
    release = _release(options, model, contract, golden)
    record_release(run, release.directory, release.identity)


def _export_architecture(options: argparse.Namespace) -> None:
    _require(options, "architecture", "name")
    _refuse(options, f"with --weights {options.weights}, whose architecture knows its own", *OF_A_FILE)
    if options.weights == "imagenet":
        _refuse(options, "with ImageNet weights, whose classes are known", "classes")

    from training.models.catalogue import find_architecture, imagenet_classes
    from training.runs.folder import provenance

    architecture = find_architecture(options.architecture)
    classes = _read_classes(options.classes) if options.classes else imagenet_classes()
    _log.info(f"Building {architecture.name} with weights: {options.weights}")
    model = architecture.classifier(None if options.weights == "none" else options.weights, len(classes))
    origin = {"architecture": architecture.name, "weights": options.weights, **provenance()}
    _release(options, model, Contract(options.name, classes, architecture.image, origin))


def _export_file(options: argparse.Namespace) -> None:
    path = Path(options.weights)
    if not path.is_file():
        raise TrainingError(
            f"Expected --weights imagenet, none, or a file. Received a path where there is none: {path}"
        )
    _require(options, "classes", "preprocessing", "name")

    from training.models.catalogue import find_architecture
    from training.models.files import load_file
    from training.runs.folder import provenance, sha256

    classes = _read_classes(options.classes)
    architecture = find_architecture(options.architecture, options.size) if options.architecture else None
    _log.info(f"Loading {path}")
    mode = options.preprocessing.replace("+-", "±")
    model = load_file(path, architecture, len(classes), mode, options.size)
    height, width = model.input_shape[1:3]
    if options.size and (height, width) != (options.size, options.size):
        raise TrainingError(f"Expected --size as the model has it, {height} by {width}. Received: {options.size}")
    if options.aspect != "crop":
        _refuse(options, "without --aspect crop", "crop")
    crop = 1.0 if options.crop is None else options.crop
    image = ImageSpec(height, width, options.filter or "bicubic", options.aspect or "stretch", crop)
    origin = {
        "architecture": architecture.name if architecture else model.name,
        "weights": path.name,
        "weights_sha256": sha256(path),
        **provenance(),
    }
    _release(options, model, Contract(options.name, classes, image, origin))


def _release(options: argparse.Namespace, model: Any, contract: Contract, golden: Sequence[bytes] = ()) -> Release:
    from training.models.files import as_probabilities
    from training.release import export
    from training.release.criteria import read_criteria

    chosen = None
    if options.folder:
        margin = (options.margin or 0.0) if options.refuse_if_worse else None
        int8_drop = INT8_DROP if options.int8_drop is None else options.int8_drop
        chosen = read_criteria(options.folder, contract, options.cache, int8_drop, margin)
    probabilities = as_probabilities(model, len(contract.classes))
    release = export.export(probabilities, contract, options.store, golden, chosen)
    size_mb = sum(path.stat().st_size for path in release.directory.rglob("*") if path.is_file()) / 1e6
    _log.info(f"Released {release.directory} ({size_mb:.0f} MB), export {release.identity}")
    return release


def _require(options: argparse.Namespace, *names: str) -> None:
    if missing := [f"--{name}" for name in names if not getattr(options, name)]:
        expected = ", ".join(f"--{name}" for name in names)
        raise TrainingError(f"Expected {expected} with --weights {options.weights}. Missing: {' and '.join(missing)}")


def _refuse(options: argparse.Namespace, beside: str, *names: str) -> None:
    """Refuse options that would change nothing: whoever gives one expects that it does."""
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]:
        raise TrainingError(f"Expected no {' nor '.join(given)} {beside}")


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise TrainingError(f"Expected a file of class names, one a line. Received a path where there is none: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows puts a byte order mark first
    except UnicodeDecodeError as exc:
        raise TrainingError(f"Expected class names in UTF-8. Received {path}: {exc}") from exc
    return tuple(line.strip() for line in lines if line.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, default=Path("model-store"), help="the model-store (%(default)s)")
    common.add_argument("--cache", type=Path, default=Path(".cache"), help="where decoded pixels go (%(default)s)")
    common.add_argument("--int8-drop", type=float, help=f"accuracy that int8 may lose to be released ({INT8_DROP})")
    common.add_argument(
        "--refuse-if-worse", action="store_true", help="release only what is no worse than the newest version, in fp32"
    )
    common.add_argument("--margin", type=float, help="accuracy that --refuse-if-worse lets a version lose (0)")

    train = subparsers.add_parser("train", parents=[common], help="train on a folder of photos, then release")
    train.set_defaults(command=_train, resumes=True)
    train.add_argument("folder", type=Path, help="FOLDER/CLASS/photo, or FOLDER/train/CLASS/photo and so on")
    train.add_argument("--name", required=True, help="the model's name in the store")
    train.add_argument("--preset", default="default", help="a document of values: default, quick, plain-cnn, or a file")
    train.add_argument("--architecture", help="the backbone (the preset's)")
    train.add_argument("--weights", choices=("imagenet", "none"), help="to start from (the preset's)")
    train.add_argument("--size", type=_pixels, help="input size in pixels (the architecture's)")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go (%(default)s)")
    train.add_argument("--fresh", action="store_true", help="start anew, though the same training was interrupted")
    train.add_argument(
        "--distribute", default="none", choices=("none", "mirrored"), help="mirrored shares batches among all GPUs"
    )
    train.add_argument("--track", choices=("tensorboard", "mlflow", "wandb"), help="tell a tracker of the finished run")
    _add_recipe(train)

    export = subparsers.add_parser("export", parents=[common], help="release ready weights, a Keras file, or a run")
    export.set_defaults(command=_export)
    export.add_argument("--name", help="the model's name in the store")
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder that train left")
    source.add_argument("--weights", help="imagenet, none (random), or a .keras, .h5 or .weights.h5 file")
    export.add_argument(
        "--photos", dest="folder", type=Path, help="the folder it was trained on, for int8 and --refuse-if-worse"
    )
    export.add_argument("--architecture", help="of imagenet and none, and of a .weights.h5 file")
    export.add_argument("--classes", type=Path, help="class names in output order, one a line")
    export.add_argument(
        "--preprocessing", help="what a file's model expects: none, 0-1, ±1 (or +-1), caffe, torch, efficientnet-lite"
    )
    export.add_argument("--size", type=_pixels, help="input size in pixels, for a file that leaves it open")
    export.add_argument("--filter", choices=get_args(Filter), help="resampling filter for a file (bicubic)")
    export.add_argument("--aspect", choices=get_args(Aspect), help="for a file (stretch)")
    export.add_argument("--crop", type=float, help="part kept by --aspect crop (1.0)")
    commands.add_parsers(subparsers)
    return parser


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST_SIZE_PX:
        raise argparse.ArgumentTypeError(f"Expected pixels, {LEAST_SIZE_PX} or more. Received: {text}")
    return int(text)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    from training.fit.recipe import Recipe

    told = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", inspect.getdoc(Recipe) or "", re.DOTALL | re.MULTILINE))
    for field in fields(Recipe):
        meaning = " ".join(told.get(field.name, "").split()).partition(". ")[0].rstrip(".")
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), help=f"{meaning} ({field.default})")


if __name__ == "__main__":
    sys.exit(main())
