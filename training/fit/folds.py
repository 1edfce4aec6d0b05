"""Cross-validation of recipes: each trains on all photos but those of one fold, and is measured on these."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from training.fit.unfinished import Unfinished

_log = logging.getLogger(__name__)

FOLDS = 5


class Folds:
    """The folds of some photos, with their frozen features, which all trainings share.

    Args:
        photos: What is divided into folds.
        preset: The network; its recipe's seed decides the folds, and it has a head phase if the others have one.
        classes: How many there are.
        path: A folder where the features are kept, and the state of the training that runs.

    Raises:
        DataError: A class has fewer photos than there are folds.
    """

    def __init__(self, photos: Pixels, preset: Preset, *, classes: int, path: Path) -> None:
        self._preset, self._classes, self._photos = preset, classes, photos
        self._run = Unfinished(path / "training", time.monotonic())
        fewest = np.bincount(photos.labels, minlength=classes).min()
        if fewest < FOLDS:
            raise DataError(f"Expected at least {FOLDS} photos of each class to train on. Received {fewest} of one")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=preset.recipe.seed)
        parts = folds.split(photos.labels, photos.labels)
        self._rows = [{"train": train, "validation": held_out} for train, held_out in parts]
        self._features = None
        if preset.pretrained and preset.recipe.head_epochs:
            kept = Unfinished(path, time.monotonic())
            self._features = kept.kept("features")
            if self._features is None:
                _log.info(f"Computing the features of {len(photos.labels)} photos")
                keras.utils.set_random_seed(preset.recipe.seed)
                model = phases.build(preset, classes).model
                self._features = kept.keep("features", phases.frozen_features(model, photos.images, preset.recipe))

    def accuracy(self, recipe: Recipe, fold: int, watch: phases.Watch = ()) -> float:
        """Train and return the best epoch's accuracy on a fold; `watch` is called back in the last phase."""
        keras.utils.clear_session()  # or the graphs of all trainings stay in memory
        keras.utils.set_random_seed(recipe.seed)
        self.close()
        self._run.path.mkdir()
        splits = {split: self._photos.part(rows) for split, rows in self._rows[fold].items()}
        if self._features is not None:
            for split, rows in self._rows[fold].items():
                self._run.keep(f"features-{split}", self._features[rows])
        preset = replace(self._preset, recipe=recipe)
        if recipe.epochs == 0 and self._features is not None:
            network = phases.build_head(preset, self._classes, self._features.shape[1:])
        else:
            network = phases.build(preset, self._classes)
        with _without_lines():
            histories = phases.Phases(network, preset, self._run, watch).fit(splits)
        return max(next(history for history in reversed(histories.values()) if history)["val_accuracy"])

    def close(self) -> None:
        """Remove the state of the last training."""
        shutil.rmtree(self._run.path, ignore_errors=True)


@contextmanager
def _without_lines() -> Iterator[None]:
    """Leave out the lines of a single training; the search logs its result."""
    phases.log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        phases.log.setLevel(logging.NOTSET)
