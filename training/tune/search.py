"""The search for better hyperparameters: Optuna proposes them, folds of the training photos measure them.

Trials are scored on the first fold, where the best of many is also the luckiest. So the best one is compared with the
preset on the other folds, and only a gain there counts. Validation and test are not used. `runs/.tune/PRESET-DIGEST/`
keeps the trials, the scores of the comparison, and trainings that were interrupted.
"""

from __future__ import annotations

import glob
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import optuna
import tensorflow as tf
from optuna.trial import FrozenTrial, TrialState

from training.data.pixels import Photos, decoder
from training.errors import TrainingError
from training.fit.plan import is_few
from training.fit.preset import Preset, write_preset
from training.fit.train import memory_watched
from training.models.catalogue import Architecture
from training.runs.unfinished import folder_of
from training.tune import study as kept
from training.tune.costs import FEWEST_COMPARED, Costs, Time
from training.tune.folds import FOLDS, Folds
from training.tune.report import Comparison, shown, write_report
from training.tune.space import Space, backbone
from training.words import as_utf8, counted

_log = logging.getLogger(__name__)


@memory_watched()
def tune(photos: Photos, space: Space, minutes: float, *, out: Path, runs: Path) -> None:
    """Search for values that do better than a preset's on the training photos of a folder; write a preset and a page.

    Args:
        photos: Class folders, or split folders.
        space: Where to start, and what to choose from.
        minutes: Time for the whole search. The same call again continues it for as long.
        out: The .toml file to write, with a page beside it; without a gain, it has the values of the preset.
        runs: The folder where the trials are kept.

    Raises:
        TrainingError: There are too few minutes, or too few photos.
    """
    if out.suffix != ".toml" or not out.absolute().parent.is_dir():
        raise TrainingError(f"Expected --out to be a .toml file in a folder that is there. Received: {out}")
    left = Time(minutes, time.monotonic() + 60 * minutes)
    tf.get_logger().setLevel("ERROR")  # it warns that each training traces its functions again
    start, tuning = space.start, runs / ".tune"
    dataset = photos.splits()
    for line in dataset.describe():
        _log.info(line)
    if start.larger and is_few(len(dataset.splits["train"]), len(dataset.classes)):
        _log.info(
            f"Note: trials train {start.architecture}. With so few photos, train takes {start.larger} if its minutes"
            f" suffice. To tune that: --architectures {start.larger}"
        )
    costs = Costs(space, len(dataset.splits["train"]), len(dataset.classes))
    if not any(tuning.glob(f"{glob.escape(space.name)}-*")):  # a search that continues needs less
        costs.check(left)
    specs = {each.size_px: each.photo_spec for each in space.backbones}
    pixels = {size_px: photos.read("train", dataset.splits["train"], spec) for size_px, spec in specs.items()}
    made_of = [*space.made_of, pixels[space.backbones[0].size_px].digest, keras.__version__, decoder()]
    with folder_of(tuning, space.name, made_of) as path:
        folds: dict[Architecture, Folds] = {}
        for each in space.backbones:
            preset, of_backbone = space.start_with(each), path / f"{each.name}-{each.size_px}"
            folds[each] = Folds(pixels[each.size_px], preset, classes=len(dataset.classes), path=of_backbone)
        search = _Search(kept.open_study(path, space), space, folds, costs, left)
        best, comparison = search.compare(search.run())
        _write(out, best, search, comparison, photos.folder)


def _write(out: Path, best: Preset, search: _Search, comparison: Comparison, photos: Path) -> None:
    """Write the preset, and a page beside it."""
    tried, options = counted(len(search.done), "trial"), ["--name", "NAME", "--preset", str(out)]
    tuned = replace(
        best.changed({"epochs": search.space.epochs}),
        about=as_utf8(f"{comparison.start}, tuned on the training photos of {photos} in {tried}."),
        command=as_utf8(shlex.join(["python", "-m", "training", "train", str(photos), *options])),
        expected=as_utf8(comparison.sentence),
        time=f"{search.best_s:.0f} s for {FOLDS - 1} of {FOLDS} parts of the photos"
        f" and {search.space.start.recipe.epochs} epochs, where it was tuned.",
    )
    write_preset(out, tuned)
    page = write_report(out.with_suffix(".html"), search.space.start, tuned, search.done, comparison)
    _log.info(tuned.expected)
    _log.info(f"Wrote {out}, for: {tuned.command}")
    _log.info(f"Wrote {page}, which shows the trials")


@dataclass
class _Search:
    """The trials of a study, within its time."""

    study: optuna.Study
    space: Space
    folds: Mapping[Architecture, Folds]
    costs: Costs
    left: Time

    @property
    def done(self) -> list[FrozenTrial]:
        """The trials that have a result."""
        return kept.trials(self.study, TrialState.COMPLETE, TrialState.PRUNED)

    @property
    def best_s(self) -> float:
        """Seconds that the best trial took."""
        return self.study.best_trial.user_attrs["took_s"]

    def training_s(self, of: Architecture) -> float:
        """Return the seconds that a training takes: the mean of the trials with its backbone, or an estimate."""
        complete = kept.trials(self.study, TrialState.COMPLETE)
        took_s = [each.user_attrs["took_s"] for each in complete if backbone(self.space.preset(each.params)) == of]
        return float(np.mean(took_s)) if took_s else self.costs[of].most_s

    def run(self) -> int:
        """Run trials until the rest of the time is needed for the comparison; return the number of its folds."""
        if self.done:
            _log.info(f"Continuing after {counted(len(self.done), 'trial')}")
        else:
            self.costs.check(self.left)
            if not self._run_trial(folds=0):
                raise TrainingError(
                    f"The first training did not end in {self.left.minutes:g} min; the same command continues it."
                )
        first_s, needed = self.training_s(self.space.backbones[0]), 1 + 2 * FEWEST_COMPARED
        why = f"A training takes {first_s:.0f} s, and after the trials so far, which are kept, {needed} are needed"
        self.left.check(first_s * needed, first_s * needed, why)
        pair_s = first_s + max(map(self.training_s, self.space.backbones))
        folds = min(FOLDS - 1, max(FEWEST_COMPARED, int(self.left.s / 2 / pair_s)))
        _log.info(
            f"A training takes about {first_s:.0f} s: {(self.left.s - folds * pair_s) / 60:.1f} min for the search,"
            f" {folds * pair_s / 60:.1f} to compare on {folds} other folds"
        )
        while any(self._fits(each, folds) for each in self.space.backbones) and self._run_trial(folds):
            pass
        return folds

    def compare(self, folds: int) -> tuple[Preset, Comparison]:
        """Return the better preset on the folds that no trial was scored on, and the accuracies there."""
        best = self.space.preset(self.study.best_params)
        pairs: list[tuple[float, float]] = []
        for fold in range(1, folds + 1):
            before_s = self.left.s
            pairs.append((self._accuracy(self.space.start, fold), self._accuracy(best, fold)))
            _log.info(f"Fold {fold + 1} of {FOLDS}: {self.space.label} {pairs[-1][0]:.4f}, found {pairs[-1][1]:.4f}")
            if len(pairs) >= FEWEST_COMPARED and self.left.s < before_s - self.left.s:
                break
        comparison = Comparison(self.space.label, pairs)
        return best if comparison.gain > 0 else self.space.start, comparison

    def _until(self, of: Architecture, folds: int) -> float:
        """Return when a trial must have ended, so that it can be compared on some folds if it is the best."""
        if not folds:
            return self.left.deadline
        pair_s = self.training_s(self.space.backbones[0]) + max(self.best_s, self.training_s(of))
        return self.left.deadline - folds * pair_s

    def _fits(self, of: Architecture, folds: int, spent_s: float = 0.0) -> bool:
        """Tell whether there is time for a trial that has been trained for some seconds before."""
        return time.monotonic() + max(self.training_s(of) - spent_s, 0) <= self._until(of, folds)

    def _run_trial(self, folds: int) -> bool:
        """Run a trial that leaves time to compare it on some folds; one that does not end in time is continued later.

        Returns:
            Whether there was time.
        """
        trial = kept.ask(self.study, self.space)
        preset = self.space.preset(trial.params)
        of, photos = backbone(preset), self.folds[backbone(preset)]
        spent_s = photos.spent_s(preset.recipe, 0)
        if folds and not self._fits(of, folds, spent_s):
            kept.put_back(self.study, trial)
            return False
        values = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in trial.params.items())
        try:
            started = time.monotonic()
            accuracy = photos.accuracy(preset.recipe, 0, [_Report(trial, self._until(of, folds))])
            trial.set_user_attr("took_s", time.monotonic() - started + spent_s)
            self.study.tell(trial, accuracy)
            outcome = f"accuracy {accuracy:.4f}, best {self.study.best_value:.4f}"
        except optuna.TrialPruned:
            trial.set_user_attr("took_s", time.monotonic() - started + spent_s)
            photos.forget(preset.recipe, 0)
            done = self.study.tell(trial, state=TrialState.PRUNED)
            outcome = f"pruned at {done.value:.4f} after {counted((done.last_step or 0) + 1, 'epoch')}"
        except _OutOfTime:
            kept.put_back(self.study, trial)
            return False
        passed = self.left.minutes - self.left.s / 60
        _log.info(f"Trial {trial.number}: {values}: {outcome}, {passed:.1f} of {self.left.minutes:g} min")
        return True

    def _accuracy(self, preset: Preset, fold: int) -> float:
        """Return the accuracy that an earlier comparison found, or train."""
        of = backbone(preset)
        key = f"fold {fold}: {of.name}, {of.size_px} px, {preset.recipe}"
        if key not in self.study.user_attrs:
            self.study.set_user_attr(key, self.folds[of].accuracy(preset.recipe, fold))
        return self.study.user_attrs[key]


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
