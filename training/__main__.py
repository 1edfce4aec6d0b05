"""Look at photos, train on them, release the model as a version, and measure it."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from threading import Timer

from contract.arguments import Arguments
from contract.document import ContractError
from serving.errors import ServingError
from training.errors import TrainingError
from training.explore import commands as explore
from training.fit import commands as fit
from training.judge import commands as judge
from training.release import commands as release
from training.runs import commands as runs
from training.tune import commands as tune

_log = logging.getLogger("training")

_COMMANDS = (
    ("explore", explore.add_explore, "find what is wrong with photos before training on them"),
    ("tune", tune.add_tune, "search for better hyperparameters, and write them as a preset"),
    ("train", fit.add_train, "train on a folder of photos, then release the model"),
    ("export", release.add_export, "release ready weights, a Keras file, or a run"),
    ("evaluate", judge.add_evaluate, "measure a run, a version, a gateway, or several, on labelled photos"),
    ("predict", judge.add_predict, "classify images with a version, without a server"),
    ("explain", judge.add_explain, "show where a run's model looks (Grad-CAM)"),
    ("runs", runs.add_runs, "list the runs, or compare some"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 after a message on standard error."""
    options = _parser().parse_args(argv)
    _log_to_terminal()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without a GPU, TensorFlow logs that as errors before our lines
    try:
        return options.main(options) or 0
    except (TrainingError, ContractError, ServingError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = " The same command continues where it stopped." if options.command in ("train", "tune") else ""
        if getattr(options, "fresh", False):
            resumes = " If epochs were trained, the same command without --fresh continues them; else repeat --fresh."
        print(f"Stopped.{resumes}", file=sys.stderr)
        return 130


def _press_again(lost: sys.UnraisableHookArgs) -> None:
    """Interrupt again, as Python drops a Ctrl-C that comes while it removes an object, and training would go on."""
    if lost.exc_type is KeyboardInterrupt:
        again = Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _log_to_terminal() -> None:
    """Print the steps of every command, a bare line each; names of files may be any bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a terminal or `| head` that is gone ends no training, and needs no traceback
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers, _log.propagate = [handler], False  # TensorFlow gives the root logger a handler of its own
    _log.setLevel(logging.INFO)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="python -m training", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, add_options, text in _COMMANDS:
        add_options(subparsers.add_parser(name, help=text, description=text))
    return parser


if __name__ == "__main__":
    sys.unraisablehook = _press_again
    sys.exit(main())
