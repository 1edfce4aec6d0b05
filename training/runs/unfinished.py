"""The state of a run, kept on disk after each epoch, so that the same command continues it after kill -9.

`runs/.unfinished/NAME-DIGEST/` contains a folder for each phase. The digest covers everything
that makes the run what it is. keras.callbacks.BackupAndRestore overwrites its weights in place, and keeps neither the
best weights nor the history; here one rename commits all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from contract.disk import locked, sync, written_whole
from training.errors import TrainingError

_LOCK, _STATE = ".lock", "state.json"
History = dict[str, list[float]]


@dataclass
class Unfinished:
    """The folder of an unfinished run, and when it would have started without interruptions.

    `follow` takes the name of a phase and its figures by epoch, after each. If it `is_kept`, the folder stays.
    """

    path: Path
    started: float
    is_kept: bool = False
    follow: Callable[[str, Mapping[str, Sequence[float]]], None] = lambda phase, figures: None

    @property
    def spent_s(self) -> float:
        """Seconds that this process and earlier ones spent on the run."""
        return time.monotonic() - self.started

    def begin(self) -> None:
        """Count the seconds from now on, beside those of earlier processes."""
        self.started = time.monotonic() - spent_s(self.path)


@contextmanager
def open_unfinished(folder_of_runs: Path, name: str, made_of: Sequence[Any], fresh: bool) -> Iterator[Unfinished]:
    """Open the state of a run; it is removed when the run has finished.

    Args:
        folder_of_runs: Where run folders go.
        name: The model's name.
        made_of: All that makes the run what it is, as JSON values.
        fresh: Remove what an interrupted run left.

    Raises:
        TrainingError: The same run is running in another process.
    """
    with folder_of(folder_of_runs / ".unfinished", name, made_of) as path:
        if fresh:
            for left in sorted(path.glob("[!.]*"), key=Path.is_file):  # the plan goes last
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield (unfinished := Unfinished(path, time.monotonic() - spent_s(path)))
        if not unfinished.is_kept:
            shutil.rmtree(path)


def spent_s(path: Path) -> float:
    """Return the seconds that earlier processes spent on the run in a folder."""
    return max((read_kept(state)["spent_s"] for state in path.glob(f"*/{_STATE}")), default=0.0)


def phases_begun(path: Path) -> int:
    """Return how many phases have an epoch in the folder of a run."""
    return len([*path.glob(f"*/{_STATE}")])


def read_kept(file: Path) -> dict[str, Any]:
    """Return what a file in the folder of a training keeps.

    Raises:
        TrainingError: It is not whole.
    """
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
    except ValueError as exc:
        raise _unreadable(file, exc) from exc
    return kept


def _unreadable(file: Path, why: Exception) -> TrainingError:
    return TrainingError(
        f"{file} cannot be read, as after a power loss: {why}. train --fresh starts again; for tune, remove"
        f" {file.parent}"
    )


def digest_of(made_of: Sequence[Any]) -> str:
    """Return what tells trainings apart, by all that makes them what they are, as JSON values."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def folder_of(folder: Path, name: str, made_of: Sequence[Any]) -> Iterator[Path]:
    """Open the folder inside another that belongs to a training, for one process at a time.

    Raises:
        TrainingError: Another process uses it.
    """
    path = folder / f"{name}-{digest_of(made_of)}"
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / _LOCK, TrainingError("The same training is already running in another process.")):
        yield path


class Progress(keras.callbacks.Callback):
    """Keep a phase's weights, optimizer, early stopping and history after each epoch.

    It comes after the early stopping in the list of callbacks.

    Attributes:
        history: Each figure by epoch, and the minutes of the run until then; earlier processes included.
    """

    def __init__(self, run: Unfinished, phase: str, stopping: keras.callbacks.EarlyStopping) -> None:
        super().__init__()
        self.history: History = {}
        self._run, self._folder, self._stopping = run, run.path / phase, stopping
        self._phase = phase
        self._best: dict[str, Any] = {}

    def restore(self, model: keras.Model, epochs: int) -> range:
        """Restore a compiled model, to its best epoch if no epoch is left, and return the epochs that are left.

        Raises:
            TrainingError: What is kept of them is not whole.
        """
        self._folder.mkdir(exist_ok=True)
        if not (self._folder / _STATE).is_file():
            return range(epochs)
        state = read_kept(self._folder / _STATE)
        self.history, stopping = state["history"], state["stopping"]
        self._run.follow(self._phase, self.history)
        model.optimizer.build(model.trainable_variables)
        self._load(model, stopping["best_epoch"])
        if state["epochs"] >= epochs or stopping["wait"] >= self._stopping.patience:
            return range(epochs, epochs)
        self._best = {**stopping, "best_weights": model.get_weights()}
        self._load(model, state["epochs"] - 1)
        return range(state["epochs"], epochs)

    def load_last(self, model: keras.Model) -> None:
        """Give a model the weights of the last epoch."""
        self._load(model, len(self.history["minutes"]) - 1)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the early stopping, which has just been reset."""
        vars(self._stopping).update(self._best)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the weights, then the state that refers to them, and remove weights that are not needed any more."""
        for name, value in {**(logs or {}), "minutes": self._run.spent_s / 60}.items():
            self.history.setdefault(name, []).append(float(value))
        self._check_room(epoch)
        self.model.save_weights(self._weights(epoch))
        sync(self._weights(epoch))
        stopping = {name: getattr(self._stopping, name) for name in ("best", "best_epoch", "wait")}
        state = {"epochs": epoch + 1, "stopping": stopping, "history": self.history, "spent_s": self._run.spent_s}
        with written_whole(self._folder / _STATE) as draft:
            draft.write_text(json.dumps(state))
            sync(draft)
        sync(self._folder)  # the weights that the state before refers to go only now
        for path in self._folder.glob("*.weights.h5"):
            if path not in (self._weights(epoch), self._weights(stopping["best_epoch"])):
                path.unlink()
        self._run.follow(self._phase, self.history)

    def _check_room(self, epoch: int) -> None:
        """Refuse to fill the disk: after HDF5 has failed to write a file, it ends the process by a fault.

        Raises:
            TrainingError: There is not twice the room that the weights take.
        """
        variables = [*self.model.variables, *self.model.optimizer.variables]
        needed, free = 8 * sum(math.prod(each.shape) for each in variables), shutil.disk_usage(self._folder).free
        if needed > free:
            raise TrainingError(
                f"The disk of {self._folder} is nearly full: an epoch needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f}"
                f" MB are free. Make room, and give the same command again: it continues with epoch {epoch + 1}"
            )

    def _load(self, model: keras.Model, epoch: int) -> None:
        try:
            model.load_weights(self._weights(epoch))
        except (OSError, RuntimeError, ValueError, KeyError) as exc:  # as h5py and Keras find it
            raise _unreadable(self._weights(epoch), exc) from exc

    def _weights(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch + 1}.weights.h5"
