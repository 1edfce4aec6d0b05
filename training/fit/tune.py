"""The search for better hyperparameters: Optuna proposes them, folds of the training photos measure them.

Trials are scored on the first fold, where the best of many is also the luckiest. So the best one is compared with the
preset on the other folds, and only a gain there counts. Validation and test are not used. `runs/.tune/PRESET-DIGEST/`
keeps the trials, the scores of the comparison and the frozen features.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import tensorflow as tf
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.data.pixels import Photos, decoder
from training.errors import TrainingError
from training.fit.folds import FOLDS, Folds
from training.fit.preset import Preset, find_preset, write_preset
from training.fit.recipe import Recipe
from training.fit.unfinished import folder_of
from training.models.catalogue import find_architecture
from training.words import counted

_log = logging.getLogger(__name__)

FEWEST_COMPARED = 2  # of fewer folds, a gain has no standard error
FIRST_TRIALS = 5  # drawn at random and never pruned: later ones are compared with them

_SPACE = {
    "head_learning_rate": FloatDistribution(1e-4, 3e-2, log=True),
    "learning_rate": FloatDistribution(5e-5, 5e-3, log=True),
    "weight_decay": FloatDistribution(1e-4, 1, log=True),
    "dropout": FloatDistribution(0, 0.6),
    "label_smoothing": FloatDistribution(0, 0.2),
    "augmentation": FloatDistribution(0, 2),
    "unfreeze": FloatDistribution(0, 1),
}


def tune(photos: Photos, preset_name: str, minutes: float, *, out: Path, runs: Path) -> None:
    """Search for values that do better than a preset's on the training photos of a folder, and write a preset.

    Args:
        photos: Class folders, or split folders.
        preset_name: Where to start. If it does not train the upper layers, all trials share the frozen features.
        minutes: Time for the whole search. The same call again continues it for as long.
        out: The .toml file to write; without a gain, it has the values of the preset.
        runs: The folder where the trials are kept.

    Raises:
        TrainingError: There are too few minutes, or too few photos, or the preset trains nothing.
    """
    if not 0 < minutes < math.inf:
        raise TrainingError(f"Expected --minutes above 0. Received: {minutes:g}")
    deadline = time.monotonic() + 60 * minutes
    tf.get_logger().setLevel("ERROR")  # it warns that each training traces its functions again
    if out.suffix != ".toml" or not out.absolute().parent.is_dir():
        raise TrainingError(f"Expected --out to be a .toml file in a folder that is there. Received: {out}")
    preset, name = find_preset(preset_name), Path(preset_name).stem
    start, space = preset.recipe, _space(preset)
    architecture = find_architecture(preset.architecture, preset.size)
    dataset = photos.splits()
    for line in dataset.describe():
        _log.info(line)
    _log.info(f"Taking {minutes:g} min: one trial first, then up to half of the rest is reserved for a comparison")
    pixels = photos.read("train", dataset.splits["train"], architecture.photo_spec)
    made_of = [asdict(architecture), preset.weights, asdict(start), pixels.digest, keras.__version__, decoder()]
    with folder_of(runs / ".tune", name, made_of) as path:
        folds = Folds(pixels, preset, classes=len(dataset.classes), path=path)
        search = _Search(_open(path, start), space, start, folds, minutes, deadline)
        best, result = search.compare(search.run(), name)
        trials = search.trials(TrialState.COMPLETE, TrialState.PRUNED)
        options = ["--name", "NAME", "--preset", str(out)]
        tuned = replace(
            preset,
            about=f"{name}, tuned on the training photos of {photos.folder} in {counted(len(trials), 'trial')}.",
            command=shlex.join(["python", "-m", "training", "train", str(photos.folder), *options]),
            expected=result,
            time=f"{search.best_s:.0f} s for {FOLDS - 1} of {FOLDS} parts of the photos, where it was tuned.",
            recipe=best,
        )
        write_preset(out, tuned)
        folds.close()
    _log.info(result)
    _log.info(f"Wrote {out}, for: {tuned.command}")


@dataclass
class _Search:
    """The trials of a study, within its time."""

    study: optuna.Study
    space: Mapping[str, FloatDistribution]
    start: Recipe
    folds: Folds
    minutes: float
    deadline: float

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states."""
        return self.study.get_trials(deepcopy=False, states=states)

    @property
    def best_s(self) -> float:
        """Seconds that the best trial took."""
        return self.study.best_trial.user_attrs["took_s"]

    def run(self) -> int:
        """Run trials until the rest of the time is needed for the comparison; return the number of its folds."""
        if kept := self.trials(TrialState.COMPLETE, TrialState.PRUNED):
            _log.info(f"Continuing after {counted(len(kept), 'trial')}")
        else:
            edges = {name: (edge.low, edge.high) for name, edge in self.space.items()}
            self.study.enqueue_trial({name: float(np.clip(getattr(self.start, name), *edges[name])) for name in edges})
            if not self._run_trial(self.deadline):
                raise TrainingError(f"Expected more time. Received: {self.minutes:g} min, over in the first trial")
        first_s = self.trials(TrialState.COMPLETE)[0].user_attrs["took_s"]
        left_s = self.deadline - time.monotonic()
        fewest_s = first_s * (1 + 2 * FEWEST_COMPARED)
        if left_s < fewest_s:
            raise TrainingError(
                f"Expected {math.ceil(self.minutes + (fewest_s - left_s) / 60)} min or more. Received:"
                f" {self.minutes:g}. A training takes {first_s:.0f} s, and after the first trial, which is kept,"
                f" at least {1 + 2 * FEWEST_COMPARED} are needed"
            )
        folds = min(FOLDS - 1, max(FEWEST_COMPARED, int(left_s / 2 / (2 * first_s))))
        kept_back_s = folds * 2 * first_s
        _log.info(
            f"A training takes about {first_s:.0f} s: {(left_s - kept_back_s) / 60:.1f} min for the search,"
            f" {kept_back_s / 60:.1f} to compare on {folds} other folds"
        )
        while time.monotonic() + first_s <= (until := self.deadline - folds * (first_s + self.best_s)):
            if not self._run_trial(until):
                break
        return folds

    def compare(self, folds: int, preset: str) -> tuple[Recipe, str]:
        """Return the better recipe on the folds that no trial was scored on, and a sentence that says by how much."""
        best = self._recipe(self.study.best_params)
        pairs: list[tuple[float, float]] = []
        for fold in range(1, folds + 1):
            started = time.monotonic()
            pairs.append((self._accuracy(self.start, fold), self._accuracy(best, fold)))
            _log.info(f"Fold {fold + 1} of {FOLDS}: {preset} {pairs[-1][0]:.4f}, found {pairs[-1][1]:.4f}")
            if len(pairs) >= FEWEST_COMPARED and 2 * time.monotonic() - started > self.deadline:
                break
        before, after = np.mean(pairs, axis=0)
        gain, error = after - before, np.std(np.diff(pairs), ddof=1) / math.sqrt(len(pairs))
        figures = f"{abs(gain):.4f} ± {error:.4f}"
        where = f"in cross-validation on the training photos ({len(pairs)} folds, standard error)"
        if gain <= 0:
            return self.start, (
                f"Accuracy {before:.4f} {where}: these are the values of {preset}, and nothing better was found;"
                f" the best of the search was {figures} below them."
            )
        chance = ", which may be chance" if gain < 2 * error else ""
        return best, f"Accuracy {after:.4f} {where}, {figures} above {preset}{chance}."

    def _run_trial(self, until: float) -> bool:
        """Run a trial; one that does not end in time does not count."""
        # With the trial's number, or a continued search would draw the same values again.
        numbers = np.random.SeedSequence((self.start.seed, len(self.study.get_trials(deepcopy=False))))
        seed = int(numbers.generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=FIRST_TRIALS, seed=seed)
        trial = self.study.ask(dict(self.space))
        values = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in trial.params.items())
        try:
            started = time.monotonic()
            accuracy = self.folds.accuracy(self._recipe(trial.params), 0, [_Report(trial, until)])
            trial.set_user_attr("took_s", time.monotonic() - started)
            self.study.tell(trial, accuracy)
            outcome = f"accuracy {accuracy:.4f}, best {self.study.best_value:.4f}"
        except optuna.TrialPruned:
            done = self.study.tell(trial, state=TrialState.PRUNED)
            outcome = f"pruned at {done.value:.4f} after {counted(len(done.intermediate_values), 'epoch')}"
        except _OutOfTime:
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        passed = self.minutes - (self.deadline - time.monotonic()) / 60
        _log.info(f"Trial {trial.number}: {values}: {outcome}, {passed:.1f} of {self.minutes:g} min")
        return True

    def _accuracy(self, recipe: Recipe, fold: int) -> float:
        """Return the accuracy that an earlier comparison found, or train."""
        key = f"fold {fold}: {recipe}"
        if key not in self.study.user_attrs:
            self.study.set_user_attr(key, self.folds.accuracy(recipe, fold))
        return self.study.user_attrs[key]

    def _recipe(self, values: Mapping[str, Any]) -> Recipe:
        found: dict[str, Any] = {name: float(f"{value:.3g}") for name, value in values.items()}
        return replace(self.start, **found)


class _OutOfTime(Exception):
    """The time for trials has run out."""


class _Report(keras.callbacks.Callback):
    """Report each epoch's accuracy to Optuna, and stop a trial that is hopeless or late."""

    def __init__(self, trial: optuna.Trial, until: float) -> None:
        super().__init__()
        self.trial, self.until = trial, until

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.trial.report((logs or {})["val_accuracy"], epoch)
        if time.monotonic() > self.until:
            raise _OutOfTime
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _space(preset: Preset) -> dict[str, FloatDistribution]:
    """Return the values that matter to a preset's training."""
    preset.check_trains()
    head, upper = preset.pretrained and preset.recipe.head_epochs > 0, preset.recipe.epochs > 0
    matters = {
        "head_learning_rate": head,
        "learning_rate": upper,
        "augmentation": upper,
        "unfreeze": upper and preset.pretrained,
    }
    return {name: values for name, values in _SPACE.items() if matters.get(name, True)}


def _open(path: Path, start: Recipe) -> optuna.Study:
    """Open the study in a folder that no other process uses.

    An epoch's report takes 1.3 ms of CPU in Optuna's journal and 13 ms in its SQLite. But a process that was killed
    may leave a lock on the journal, and half a line in it.
    """
    journal = path / "trials.journal"
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        pruner=optuna.pruners.MedianPruner(FIRST_TRIALS, n_warmup_steps=(start.epochs or start.head_epochs) // 4),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
    )
    for lost in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(lost.number, state=TrialState.FAIL)
    return study
