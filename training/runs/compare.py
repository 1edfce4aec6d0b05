"""Run folders side by side in the terminal: which there are, and how they differ. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from contract.document import Contract
from training.console import open_console
from training.errors import TrainingError
from training.runs.folder import Run, find_runs, flat

LAST_VERSIONS = 3  # that are shown of a run


def list_runs(folder: Path) -> None:
    """Print a line for each run: its architecture, its accuracy, how long it took, and what was released of it.

    Raises:
        TrainingError: There are no runs in the folder.
    """
    names = Column("run", no_wrap=True), Column("architecture", overflow="fold")
    heads = (*names, "validation", "test", "minutes", Column("versions", overflow="fold"))
    table = Table(*heads, box=None, pad_edge=False)
    for run in find_runs(folder):
        table.add_row(str(run.path), *_summary(run))
    open_console().print(table)


def _summary(run: Run) -> list[str]:
    try:
        origin, metrics = run.contract.origin, run.contract.metrics
    except TrainingError:
        return ["unreadable contract" if (run.path / "contract.json").exists() else "not finished"]
    accuracies = [_figure(metrics.get(f"{split}_accuracy", "")) for split in ("validation", "test")]
    minutes = "" if origin.training_s is None else f"{origin.training_s / 60:.1f}"
    return [origin.architecture, *accuracies, minutes, _versions(run)]


def _versions(run: Run) -> str:
    """Return the last versions that were made of a run: a number, or `MODEL/NUMBER` of a model with another name."""
    named = [f"{each['model']}/{each['version']}" for each in run.releases]
    versions = [each.removeprefix(f"{run.path.parent.name}/") for each in named]
    return "… " * (len(versions) > LAST_VERSIONS) + ", ".join(versions[-LAST_VERSIONS:])


def compare(paths: Sequence[Path]) -> None:
    """Print the figures of run folders, and every setting in which they differ.

    Raises:
        TrainingError: One of them is not a finished run.
    """
    runs = [Run(path) for path in paths]
    columns = [_facts(run.contract) for run in runs]
    table = Table("", *(run.name for run in runs), box=None, pad_edge=False)
    for name in dict.fromkeys(name for facts in columns for name in facts):
        values = [facts.get(name, "") for facts in columns]
        if len(set(values)) > 1 or name.startswith(("validation", "test")):
            table.add_row(name, *values)
    open_console().print(table)


def _facts(contract: Contract) -> dict[str, str]:
    settings = flat({**contract.origin.to_dict(), "image": vars(contract.image), "classes": len(contract.classes)})
    return {name: _figure(value) for name, value in {**contract.metrics, **settings}.items()}


def _figure(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]  # enough of a digest
    return f"{value:.4g}" if isinstance(value, float) else str(value)
