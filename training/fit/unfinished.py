"""What a run has reached, on disk after each epoch, so that the same command goes on after kill -9.

`runs/.unfinished/NAME-DIGEST/` holds the frozen features and a folder for each phase; the digest is of all that makes
a run what it is. keras.callbacks.BackupAndRestore would overwrite its weights in place, write the epoch afterwards, and
know neither the best weights nor the history; here one rename counts for all of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.disk import locked, written_whole
from training.errors import TrainingError

_LOCK, _STATE = ".lock", "state.json"
History = dict[str, list[float]]


@dataclass
class Unfinished:
    """The folder of a run that is not finished, and when it would have started without an interruption."""

    path: Path
    started: float

    @property
    def spent_s(self) -> float:
        """The time spent on the run by this process and by those before it."""
        return time.monotonic() - self.started

    def keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Keep an array that takes long to compute."""
        with written_whole(self.path / f"{name}.npy") as draft, draft.open("wb") as file:
            np.save(file, array)
        return array

    def kept(self, name: str) -> NDArray[Any] | None:
        """Return an array that was kept, or None."""
        path = self.path / f"{name}.npy"
        return np.load(path) if path.is_file() else None


@contextmanager
def open_unfinished(folder_of_runs: Path, name: str, made_of: Sequence[Any], fresh: bool) -> Iterator[Unfinished]:
    """Open the state of a run: empty at first or if it is to be fresh, gone when the run has finished.

    Args:
        folder_of_runs: Where run folders go.
        name: The model's name.
        made_of: All that makes the run what it is, as JSON values.
        fresh: Forget what an interrupted run left.

    Raises:
        TrainingError: The same run is going on in another process.
    """
    with folder_of(folder_of_runs / ".unfinished", name, made_of) as path:
        if fresh:
            for left in path.glob("[!.]*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        spent_s = max((json.loads(state.read_text())["spent_s"] for state in path.glob(f"*/{_STATE}")), default=0.0)
        yield Unfinished(path, time.monotonic() - spent_s)
        shutil.rmtree(path)


@contextmanager
def folder_of(folder: Path, name: str, made_of: Sequence[Any]) -> Iterator[Path]:
    """Open the folder inside another that belongs to a training, for one process at a time.

    Raises:
        TrainingError: Another process has it.
    """
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name}-{digest}"
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / _LOCK, TrainingError("The same training is already running in another process.")):
        yield path


class Progress(keras.callbacks.Callback):
    """Keep a phase's weights, optimizer, early stopping and history after each epoch; comes after the early stopping.

    Attributes:
        history: Each figure by epoch, those of earlier processes included.
    """

    def __init__(self, run: Unfinished, phase: str, stopping: keras.callbacks.EarlyStopping) -> None:
        super().__init__()
        self.history: History = {}
        self._run, self._folder, self._stopping = run, run.path / phase, stopping
        self._best: dict[str, Any] = {}

    def restore(self, model: keras.Model, epochs: int) -> range:
        """Bring a compiled model to where it was, or to its best epoch if none is left, and return the epochs left."""
        self._folder.mkdir(exist_ok=True)
        if not (self._folder / _STATE).is_file():
            return range(epochs)
        state = json.loads((self._folder / _STATE).read_text())
        self.history, stopping = state["history"], state["stopping"]
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self._weights(stopping["best_epoch"]))
        if state["epochs"] >= epochs or stopping["wait"] >= self._stopping.patience:
            return range(epochs, epochs)
        self._best = {**stopping, "best_weights": model.get_weights()}
        model.load_weights(self._weights(state["epochs"] - 1))
        return range(state["epochs"], epochs)

    def on_train_begin(self, logs: Any = None) -> None:
        """Give the early stopping, which has just begun anew, what it knew."""
        vars(self._stopping).update(self._best)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the weights, then the state that makes them count, and drop the weights that do not count any more."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.model.save_weights(self._weights(epoch))
        stopping = {name: getattr(self._stopping, name) for name in ("best", "best_epoch", "wait")}
        state = {"epochs": epoch + 1, "stopping": stopping, "history": self.history, "spent_s": self._run.spent_s}
        with written_whole(self._folder / _STATE) as draft:
            draft.write_text(json.dumps(state))
        for path in self._folder.glob("*.weights.h5"):
            if path not in (self._weights(epoch), self._weights(stopping["best_epoch"])):
                path.unlink()

    def _weights(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch + 1}.weights.h5"
