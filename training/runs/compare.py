"""Run folders side by side in the terminal: which there are, and in what they differ. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from contract.document import Contract, ContractError
from training.errors import TrainingError

_UNFINISHED = "not finished"


@dataclass(frozen=True)
class Run:
    """A run folder and its contract; None if training did not finish it."""

    path: Path
    contract: Contract | None

    @property
    def name(self) -> str:
        """The model's name and the time, as the folders are named."""
        return f"{self.path.parent.name}/{self.path.name}"


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        TrainingError: There is no such folder.
    """
    if not path.is_dir():
        raise TrainingError(f"Expected a run folder. Received a path where there is none: {path}")
    try:
        return Run(path, Contract.from_json((path / "contract.json").read_bytes()))
    except (FileNotFoundError, ContractError):
        return Run(path, None)


def find(folder: Path) -> list[Run]:
    """Return the runs in `folder/MODEL/TIME`, the newest first.

    Raises:
        TrainingError: There are none.
    """
    found = [read(path) for path in folder.glob("[!.]*/*") if path.is_dir()]
    if not found:
        raise TrainingError(f"Expected runs in {folder}, which train leaves there. Received: none")
    return sorted(found, key=lambda run: run.path.name, reverse=True)


def list_runs(runs: Sequence[Run], console: Console) -> None:
    """Print a line for each run: what was trained, for how long, and how well it does."""
    table = Table(
        Column("run", no_wrap=True), "architecture", "validation", "test", "minutes", box=None, pad_edge=False
    )
    for run in runs:
        if run.contract is None:
            table.add_row(Text(str(run.path)), _UNFINISHED)
            continue
        origin, metrics = run.contract.origin, run.contract.metrics
        accuracies = [_figure(metrics.get(f"{split}_accuracy")) for split in ("validation", "test")]
        minutes = "" if origin.training_s is None else f"{origin.training_s / 60:.1f}"
        table.add_row(Text(str(run.path)), origin.architecture, *accuracies, minutes)
    console.print(table)


def compare(runs: Sequence[Run], console: Console) -> None:
    """Print the figures of each run, and every setting in which they differ.

    Raises:
        TrainingError: One of them is not finished.
    """
    if unfinished := [str(run.path) for run in runs if run.contract is None]:
        raise TrainingError(f"Expected runs that train has finished. Received: {', '.join(unfinished)}")
    columns = [_facts(run.contract) for run in runs if run.contract is not None]
    table = Table("", *(run.name for run in runs), box=None, pad_edge=False)
    for name in dict.fromkeys(name for facts in columns for name in facts):
        values = [facts.get(name, "") for facts in columns]
        if len(set(values)) > 1 or name.startswith(("validation", "test")):
            table.add_row(name, *values)
    console.print(table)


def _facts(contract: Contract) -> dict[str, str]:
    facts: dict[str, Any] = {
        **contract.metrics,
        **flat(contract.origin.to_dict()),
        **flat({"image": vars(contract.image)}),
    }
    facts["classes"] = len(contract.classes)
    return {name: _figure(value) for name, value in facts.items()}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested members by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": each for inner, each in flat(value).items()}
        else:
            found[name] = value
    return found


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and len(value) == 64:
        return value[:12]  # of a digest, what tells it from others
    return f"{value:.4g}" if isinstance(value, float) else str(value)
