"""What a release would replace: the version that answers, and the classes that clients know."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from contract.release import FILE_NAME, ReleaseError, read_release
from contract.store import versions_of
from training.errors import ExportError, TrainingError
from training.judge.predictors import StoredVersion
from training.runs.folder import Run
from training.words import counted, difference


def answering(store: Path, model: str) -> int:
    """Return the number of the version that answers: a release's stable one, or the newest without a release."""
    found, release = versions_of(store, model), None
    with suppress(ReleaseError):
        release = read_release(store / model / FILE_NAME)
    return release.stable if release and release.stable in found else max(found, default=0)


def refuse_other_classes(store: Path, model: str, classes: Sequence[str]) -> None:
    """Compare the classes of a new version with those of the one that answers, if it says which it has.

    Raises:
        ExportError: They are others, or in another order.
    """
    if not versions_of(store, model):
        return
    try:
        current = StoredVersion(store, model, answering(store, model), "tflite")
    except TrainingError:  # no contract, or a file that does not load: this release mends it
        return
    before = current.contract.classes
    if tuple(classes) == before:
        return
    raise ExportError(
        f"Version {current.number} of {model!r}, which answers, has {counted(len(before), 'class')}, this model"
        f" {len(classes)}: {difference(classes, before)}. Nothing was released."
        f" Give it another name (--name), or let clients of {model!r} get these classes instead (--replace-classes)."
    )


def version_of(run: Path, store: Path, model: str) -> int | None:
    """Return the number of a version of a model that was made of a run; None if the store has none.

    Of several it is the one that answers, or else the newest.
    """
    current = answering(store, model)
    for each in sorted(Run(run).releases, key=lambda each: (each["version"] == current, each["version"]), reverse=True):
        if each["model"] == model and each["version"] in versions_of(store, model):
            with suppress(TrainingError):  # no contract, or a file that does not load
                if StoredVersion(store, model, each["version"], "tflite").contract.identity == each["identity"]:
                    return int(each["version"])
    return None
