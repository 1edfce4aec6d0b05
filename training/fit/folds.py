"""Cross-validation of recipes: each is trained on all photos but those of a fold, and judged by these."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
from sklearn.model_selection import StratifiedKFold

from training.data.pixels import Pixels
from training.errors import DataError
from training.fit import phases
from training.fit.recipe import Recipe
from training.fit.unfinished import Unfinished
from training.models.catalogue import Architecture

_log = logging.getLogger(__name__)

FOLDS = 5


class Folds:
    """The folds of some photos, with their frozen features, which all trainings share.

    Args:
        photos: What is parted.
        architecture: The backbone.
        weights: `imagenet`, or None to start from random ones.
        classes: How many there are.
        recipe: Its seed decides the folds; it has a head phase if those that are judged have one.
        path: A folder where the features are kept, and the state of the training that runs.

    Raises:
        DataError: A class has fewer photos than there are folds.
    """

    def __init__(
        self,
        photos: Pixels,
        *,
        architecture: Architecture,
        weights: str | None,
        classes: int,
        recipe: Recipe,
        path: Path,
    ) -> None:
        self._architecture, self._weights, self._classes, self._photos = architecture, weights, classes, photos
        self._run = Unfinished(path / "training", time.monotonic())
        fewest = np.bincount(photos.labels, minlength=classes).min()
        if fewest < FOLDS:
            raise DataError(f"Expected at least {FOLDS} photos of each class to train on. Received {fewest} of one")
        parts = StratifiedKFold(FOLDS, shuffle=True, random_state=recipe.seed).split(photos.labels, photos.labels)
        self._rows = [{"train": train, "validation": held_out} for train, held_out in parts]
        self._features = None
        if weights and recipe.head_epochs:
            kept = Unfinished(path, time.monotonic())
            self._features = kept.kept("features")
            if self._features is None:
                _log.info(f"Computing the features of {len(photos.labels)} photos")
                keras.utils.set_random_seed(recipe.seed)
                model, _ = self._build(recipe)
                self._features = kept.keep("features", phases.frozen_features(model, photos.images, recipe))

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
        with _without_lines():
            if recipe.epochs == 0:
                assert self._features is not None  # tune asks for the head alone only with weights
                inputs = keras.Input(self._features.shape[1:])
                model = phases.add_head(inputs, inputs, self._classes, recipe)
                history = phases.Phases(model, recipe, self._run, watch).head(splits)
            else:
                model, backbone = self._build(recipe)
                if self._features is not None:
                    phases.Phases(model, recipe, self._run).head(splits)
                unfreeze = recipe.unfreeze if self._weights else 1.0
                history = phases.Phases(model, recipe, self._run, watch).upper_layers(backbone, unfreeze, splits)
        return max(history["val_accuracy"])

    def close(self) -> None:
        """Remove the state of the last training."""
        shutil.rmtree(self._run.path, ignore_errors=True)

    def _build(self, recipe: Recipe) -> tuple[keras.Model, keras.Model]:
        backbone = self._architecture.backbone(self._weights, include_top=False)
        return phases.assemble(self._architecture, backbone, self._classes, recipe), backbone


@contextmanager
def _without_lines() -> Iterator[None]:
    """Leave out what a training says of its steps; the search says what came of it."""
    phases.log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        phases.log.setLevel(logging.NOTSET)
