"""Cross-validation of recipes: each trains on all photos but those of one fold, and is measured on these."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from sklearn.model_selection import StratifiedKFold

from training.data.pixels import Pixels
from training.errors import DataError
from training.fit import phases
from training.fit.preset import Preset
from training.fit.recipe import Recipe
from training.fit.rehearsal import without_lines
from training.runs.unfinished import Unfinished, spent_s

FOLDS = 5


class Folds:
    """The folds of some photos, for all trainings of a backbone and size.

    Args:
        photos: What is divided into folds.
        preset: The network; its recipe's seed decides the folds.
        classes: How many there are.
        path: A folder for the state of trainings that were interrupted.

    Raises:
        DataError: A class has fewer photos than there are folds.
    """

    def __init__(self, photos: Pixels, preset: Preset, *, classes: int, path: Path) -> None:
        self._preset, self._classes, self._photos, self._path = preset, classes, photos, path
        fewest = np.bincount(photos.labels, minlength=classes).min()
        if fewest < FOLDS:
            raise DataError(f"Expected at least {FOLDS} photos of each class to train on. Received {fewest} of one")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=preset.recipe.seed)
        parts = folds.split(photos.labels, photos.labels)
        self._rows = [{"train": train, "validation": held_out} for train, held_out in parts]

    def spent_s(self, recipe: Recipe, fold: int) -> float:
        """Return the seconds that a training which was interrupted has taken so far."""
        return spent_s(self._folder(recipe, fold))

    def forget(self, recipe: Recipe, fold: int) -> None:
        """Remove the state of a training."""
        shutil.rmtree(self._folder(recipe, fold), ignore_errors=True)

    def accuracy(self, recipe: Recipe, fold: int, watch: phases.Watch = ()) -> float:
        """Train and return the best epoch's accuracy on a fold; `watch` is called back while the network trains.

        A training that was interrupted continues after its last epoch.
        """
        keras.utils.clear_session()  # or the graphs of all trainings stay in memory
        keras.utils.set_random_seed(recipe.seed)
        path = self._folder(recipe, fold)
        path.mkdir(parents=True, exist_ok=True)
        run = Unfinished(path, time.monotonic() - spent_s(path))
        splits = {split: self._photos.part(rows) for split, rows in self._rows[fold].items()}
        preset = replace(self._preset, recipe=recipe)
        network = phases.build(preset, self._classes)
        training = phases.Phases(network, preset, run, watch)
        with without_lines():
            if preset.pretrained:
                training.fit_head(splits)
            progress = training.fit_network(splits)
        self.forget(recipe, fold)
        return max(progress.history["val_accuracy"])

    def _folder(self, recipe: Recipe, fold: int) -> Path:
        return self._path / f"training-{hashlib.sha256(f'{recipe} {fold}'.encode()).hexdigest()[:12]}"
