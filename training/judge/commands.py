"""The commands `evaluate`, `predict` and `explain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from contract.client import gateway_url
from contract.settings import number
from training.errors import TrainingError
from training.models.quiet import import_tensorflow

_ENGINE = "tflite"  # if none is given


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_evaluate)
    add = parser.add_argument
    add("folder", type=Path, help="folder of photos, with class folders or split folders inside, or a .csv")
    add("--run", type=Path, help="run folder, to measure its Keras model; may be combined with --model and --gateway")
    add("--model", help="name of a model in the store")
    add("--gateway", type=gateway_url, help="URL of a running gateway; its key comes from GATEWAY_KEY")
    add(
        "--split",
        choices=("auto", "train", "validation", "test", "all"),
        default="auto",
        help="photos to measure on; auto: test, or else validation, or else all (default: %(default)s)",
    )
    _add_version_options(parser)
    add("--out", type=Path, default=Path("reports/evaluate"), help="folder for the report (default: %(default)s)")
    add("--cache", type=Path, default=Path(".cache"), help="decoded pixels, safe to delete (default: %(default)s)")


def run_evaluate(options: argparse.Namespace) -> None:
    """Measure a run, a version or a gateway on labelled photos."""
    if not (options.run or options.model or options.gateway):
        raise TrainingError("Expected --run, --model or --gateway, or several of them. Received: none")
    given = [f"--{name}" for name in ("version", "engine") if getattr(options, name) is not None]
    if given and not options.model:
        raise TrainingError(f"Expected no {' nor '.join(given)} without --model, whose version and file they choose")

    from training.cores import INTERPRETERS
    from training.data.pixels import Photos
    from training.judge import predictors
    from training.judge.evaluate import evaluate

    chosen: list[predictors.Predictor] = []
    if options.run:
        import_tensorflow()
        chosen.append(predictors.KerasRun(options.run))
    if options.model:
        version = (options.store, options.model, options.version, options.engine or _ENGINE)
        chosen.append(predictors.StoredVersion(*version, at_once=INTERPRETERS))
    if options.gateway:
        chosen.append(predictors.Gateway(options.gateway))
    photos = Photos(options.folder, options.cache)
    evaluate(photos, chosen, options.split, out=options.out)


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_predict)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a file, a folder, or a URL")
    add("--model", required=True, help="name of a model in the store")
    add("--top-k", metavar="COUNT", type=number(int, 1), default=3, help="predictions per image (default: %(default)s)")
    add("--json", action="store_true", help="print a line of JSON for each image instead of a table")
    _add_version_options(parser)


def run_predict(options: argparse.Namespace) -> None:
    """Classify images with a version."""
    from training.judge import predict
    from training.judge.predictors import StoredVersion

    images = predict.expand(options.sources)
    version = StoredVersion(options.store, options.model, options.version, options.engine or _ENGINE)
    predict.write(predict.predict(images, version, options.top_k), version, options.json)


def _add_version_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--version", metavar="NUMBER", type=int, help="version of the model (default: the newest)")
    add(
        "--engine",
        choices=("int8", "tflite", "tensorflow"),
        help=f"file of the version to run; the model server takes int8 where it is faster (default: {_ENGINE})",
    )
    add("--store", type=Path, default=Path("model-store"), help="the model-store (default: %(default)s)")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs it."""
    parser.set_defaults(main=run_explain)
    add = parser.add_argument
    add("run", type=Path, help="run folder, written by train")
    add("sources", nargs="+", metavar="SOURCE", help="a file or a folder; of many photos it shows those that tell most")
    add("--label", help="class to explain (default: each photo's most probable one)")
    add("--out", type=Path, default=Path("reports/explain"), help="folder for the report (default: %(default)s)")


def run_explain(options: argparse.Namespace) -> None:
    """Show where a run's model looks."""
    import_tensorflow()

    from training.judge.explain import explain

    explain(options.run, options.sources, options.label, options.out)
