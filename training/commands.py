"""The commands that release nothing: explore, tune, evaluate, predict, runs and explain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.quiet import import_tensorflow


def add_parsers(commands: Any) -> None:
    """Add each command with its options to the parser of `python -m training`."""
    explore = commands.add_parser("explore", help="find what is wrong with photos before training on them")
    explore.set_defaults(command=_explore)
    explore.add_argument("source", type=Path, help="class folders, split folders, or a .csv of path and label")
    explore.add_argument("--out", type=Path, default=Path("reports/explore"), help="for the report (%(default)s)")
    explore.add_argument("--cache", type=Path, default=Path(".cache"), help="where decoded pixels go (%(default)s)")

    tune = commands.add_parser("tune", help="search for better values on the training photos, and write a preset")
    tune.set_defaults(command=_tune, resumes=True)
    tune.add_argument("folder", type=Path, help="class folders, or split folders")
    tune.add_argument(
        "--minutes",
        type=float,
        required=True,
        help="time for all of it, at least for five trials; the same command again goes on for as long",
    )
    tune.add_argument("--out", type=Path, required=True, help="the preset to write, a .toml file for train --preset")
    tune.add_argument("--preset", default="default", help="to start from; quick tunes the head alone (%(default)s)")
    tune.add_argument("--runs", type=Path, default=Path("runs"), help="where trials are kept (%(default)s)")
    tune.add_argument("--cache", type=Path, default=Path(".cache"), help="where decoded pixels go (%(default)s)")

    version = argparse.ArgumentParser(add_help=False)
    version.add_argument("--store", type=Path, default=Path("model-store"), help="the model-store (%(default)s)")
    version.add_argument("--version", type=int, help="of the model; the newest without it")
    version.add_argument(
        "--engine",
        choices=("int8", "tflite", "savedmodel"),
        default="tflite",
        help="which of its files; served by default is int8 where there is one (%(default)s)",
    )

    evaluate = commands.add_parser(
        "evaluate",
        parents=[version],
        help="measure a run, a version or a gateway on photos with labels",
        epilog="Of --run, --model and --gateway, each that is given is measured on the same photos and compared.",
    )
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("folder", type=Path, help="class folders, or split folders")
    evaluate.add_argument("--run", type=Path, help="a run folder: the Keras model")
    evaluate.add_argument("--model", help="the name of a model in the store")
    evaluate.add_argument("--gateway", help="the URL of a running gateway; a key is taken from GATEWAY_KEY")
    evaluate.add_argument(
        "--split",
        choices=("auto", "train", "validation", "test", "all"),
        default="auto",
        help="which photos of the folder; auto takes test, or validation, or all (%(default)s)",
    )
    evaluate.add_argument("--out", type=Path, default=Path("reports/evaluate"), help="for the report (%(default)s)")
    evaluate.add_argument("--cache", type=Path, default=Path(".cache"), help="where decoded pixels go (%(default)s)")

    predict = commands.add_parser("predict", parents=[version], help="ask a version about images, without a server")
    predict.set_defaults(command=_predict)
    predict.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, a folder, or a URL")
    predict.add_argument("--model", required=True, help="the name of a model in the store")
    predict.add_argument("--top-k", type=int, default=3, help="predictions an image (%(default)s)")
    predict.add_argument("--json", action="store_true", help="a line of JSON for each image, in place of a table")

    runs = commands.add_parser("runs", help="list run folders, or compare some")
    runs.set_defaults(command=_runs)
    runs.add_argument("run", nargs="*", type=Path, metavar="RUN", help="run folders to compare; all are listed without")
    runs.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (%(default)s)")

    explain = commands.add_parser("explain", help="show where a run's model looks (Grad-CAM)")
    explain.set_defaults(command=_explain)
    explain.add_argument("run", type=Path, help="a run folder of train")
    explain.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or a folder")
    explain.add_argument("--label", help="the class to explain; without it, each photo's most probable one")
    explain.add_argument("--out", type=Path, default=Path("reports/explain"), help="for the report (%(default)s)")


def _explore(options: argparse.Namespace) -> None:
    from training.explore.survey import explore

    explore(options.source, options.out, options.cache)


def _tune(options: argparse.Namespace) -> None:
    import_tensorflow()

    from training.fit.tune import tune

    tune(options.folder, options.preset, options.minutes, out=options.out, runs=options.runs, cache=options.cache)


def _evaluate(options: argparse.Namespace) -> None:
    if not (options.run or options.model or options.gateway):
        raise TrainingError("Expected --run, --model or --gateway, or several of them. Received: none")

    from rich.console import Console

    from training.judge import predictors
    from training.judge.evaluate import evaluate

    chosen: list[predictors.Predictor] = []
    if options.run:
        import_tensorflow()
        chosen.append(predictors.KerasRun(options.run))
    if options.model:
        chosen.append(predictors.StoredVersion(options.store, options.model, options.version, options.engine))
    if options.gateway:
        chosen.append(predictors.Gateway(options.gateway))
    console = Console(highlight=False)
    evaluate(options.folder, chosen, options.split, out=options.out, cache=options.cache, console=console)


def _predict(options: argparse.Namespace) -> None:
    if options.top_k < 1:
        raise TrainingError(f"Expected --top-k of at least 1. Received: {options.top_k}")
    from training.judge import predict
    from training.judge.predictors import StoredVersion

    images = predict.expand(options.sources)
    version = StoredVersion(options.store, options.model, options.version, options.engine)
    answers = predict.predict(images, version, options.top_k)
    predict.write(answers, version, options.json)


def _explain(options: argparse.Namespace) -> None:
    import_tensorflow()

    from training.judge.explain import explain
    from training.judge.predict import expand

    explain(options.run, expand(options.sources, urls=False), options.label, options.out)


def _runs(options: argparse.Namespace) -> None:
    from rich.console import Console

    from training.runs import compare

    console = Console(highlight=False)
    if options.run:
        compare.compare([compare.read(path) for path in options.run], console)
    else:
        compare.list_runs(compare.find(options.runs), console)
