"""Whether a release would change the classes of a name that clients know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from contract.document import ContractError
from contract.store import versions_of
from serving.errors import ServingError
from training.errors import ExportError, TrainingError
from training.judge.predictors import StoredVersion
from training.runs.folder import Run
from training.words import counted

_NAMED = 5  # classes in a message


def refuse_other_classes(store: Path, model: str, classes: Sequence[str]) -> None:
    """Compare the classes of a new version with those of the newest in the store, if it says which it has.

    Raises:
        ExportError: They are others, or in another order.
    """
    if not versions_of(store, model):
        return
    try:
        last = StoredVersion(store, model, None, "tflite")
    except TrainingError:  # no contract, or a file that does not load: this release mends it
        return
    before = last.contract.classes
    if tuple(classes) == before:
        return
    changes = [
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', …' * (len(names) > _NAMED)})"
        for what, names in (("new", _without(classes, before)), ("missing", _without(before, classes)))
        if names
    ]
    raise ExportError(
        f"Version {last.number} of {model!r} has {counted(len(before), 'class')}, this model {len(classes)}:"
        f" {' and '.join(changes) or 'the same names, in another order or number'}. Nothing was released."
        f" Give it another name (--name), or let clients of {model!r} get these classes instead (--replace-classes)."
    )


def version_of(run: Path, store: Path, model: str) -> int | None:
    """Return the number of the newest version of a model that was made of a run; None if the store has none."""
    for each in reversed(Run(run).releases):
        if each["model"] == model and each["version"] in versions_of(store, model):
            with suppress(TrainingError, ContractError, ServingError):  # no contract, or a file that does not load
                if StoredVersion(store, model, each["version"], "tflite").contract.identity == each["identity"]:
                    return int(each["version"])
    return None


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]
