"""`python -m training`: look at photos, train on them, release the model as a version, and measure it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.document import ContractError
from training.errors import TrainingError
from training.explore import commands as explore
from training.fit import commands as fit
from training.judge import commands as judge
from training.release import commands as release
from training.runs import commands as runs

_log = logging.getLogger("training")


@dataclass(frozen=True)
class _Command:
    """What a command is for, its own options, what it does, and the folders that it uses."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    folders: tuple[str, ...]


_COMMANDS = {
    "explore": _Command(
        "find what is wrong with photos before training on them",
        explore.add_explore_options,
        explore.run_explore,
        ("out", "cache"),
    ),
    "tune": _Command(
        "search for better hyperparameters, and write them as a preset",
        fit.add_tune_options,
        fit.run_tune,
        ("runs", "cache"),
    ),
    "train": _Command(
        "train on a folder of photos, then release the model",
        fit.add_train_options,
        fit.run_train,
        ("runs", "cache", "store"),
    ),
    "export": _Command(
        "release ready weights, a Keras file, or a run",
        release.add_export_options,
        release.run_export,
        ("cache", "store"),
    ),
    "evaluate": _Command(
        "measure a run, a version or a gateway on labelled photos",
        judge.add_evaluate_options,
        judge.run_evaluate,
        ("out", "cache", "store"),
    ),
    "predict": _Command(
        "ask a version about images, without a server", judge.add_predict_options, judge.run_predict, ("store",)
    ),
    "explain": _Command(
        "show where a run's model looks (Grad-CAM)", judge.add_explain_options, judge.run_explain, ("out",)
    ),
    "runs": _Command("list the runs, or compare some", runs.add_runs_options, runs.run_runs, ("runs",)),
}
_RESUME = ("train", "tune")
_FOLDERS = {
    "out": ("reports/{command}", "folder for the report"),
    "runs": ("runs", "folder of the runs"),
    "cache": (".cache", "folder for decoded pixels"),
    "store": ("model-store", "model-store"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 after a message on standard error."""
    options = _parser().parse_args(argv)
    _log_to_terminal()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without a GPU, TensorFlow logs that as errors before our lines
    try:
        return _COMMANDS[options.command].run(options) or 0
    except (TrainingError, ContractError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = " The same command continues where it stopped." if options.command in _RESUME else ""
        print(f"Stopped.{resumes}", file=sys.stderr)
        return 130


def _log_to_terminal() -> None:
    """Print the steps of every command, a bare line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers, _log.propagate = [handler], False  # TensorFlow gives the root logger a handler of its own
    _log.setLevel(logging.INFO)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.add_options(subparser)
        for folder in command.folders:
            default, meaning = _FOLDERS[folder]
            path = Path(default.format(command=name))
            subparser.add_argument(f"--{folder}", type=Path, default=path, help=f"{meaning} (default: {path})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
