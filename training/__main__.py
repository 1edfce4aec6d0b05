"""Look at photos, train on them, release the model as a version, and measure it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from contract.document import ContractError
from training.errors import TrainingError
from training.explore import commands as explore
from training.fit import commands as fit
from training.judge import commands as judge
from training.release import commands as release
from training.runs import commands as runs

_log = logging.getLogger("training")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 after a message on standard error."""
    options = _parser().parse_args(argv)
    _log_to_terminal()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without a GPU, TensorFlow logs that as errors before our lines
    try:
        return options.main(options) or 0
    except (TrainingError, ContractError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = " The same command continues where it stopped." if options.command in ("train", "tune") else ""
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
    for add in (
        explore.add_explore,
        fit.add_tune,
        fit.add_train,
        release.add_export,
        judge.add_evaluate,
        judge.add_predict,
        judge.add_explain,
        runs.add_runs,
    ):
        add(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
