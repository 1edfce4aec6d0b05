"""training/phases.py: what class weights do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.errors import TrainingError
from training.recipe import Recipe

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def targets() -> np.ndarray:
    """One-hot labels (40, 2): nine of ten are of the first class."""
    return np.eye(2, dtype=np.float32)[np.arange(40) % 10 // 9]


def test_balanced_weights_make_classes_count_the_same(targets: np.ndarray) -> None:
    """A class' photos times its weight is the same for both, and the mean weight of a photo is 1."""
    from training.phases import class_weights

    assert class_weights(targets) == pytest.approx({0: 20 / 36, 1: 20 / 4})


def test_a_class_without_photos_takes_nothing_from_the_others(targets: np.ndarray) -> None:
    """Where all photos of a class were skipped, the others are as without it."""
    from training.phases import class_weights

    weights = class_weights(np.pad(targets, ((0, 0), (0, 1))))
    assert (weights[0], weights[1]) == pytest.approx((20 / 36, 20 / 4))


@pytest.mark.parametrize(("class_weights", "probability"), [("none", 0.1), ("balanced", 0.5)])
def test_what_is_learned_follows_the_weights(
    targets: np.ndarray, tmp_path: Path, class_weights: str, probability: float
) -> None:
    """Of photos that tell nothing, the rare class becomes as probable as it is, or as any other."""
    import keras

    from training import phases
    from training.resume import unfinished

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, activation="softmax")])
    recipe = Recipe(batch_size=40, label_smoothing=0.0, patience=100, class_weights=class_weights, weight_decay=0.0)
    features = np.zeros((40, 1), np.float32)
    data = dict.fromkeys(("train", "validation"), (features, targets))
    with unfinished(tmp_path, "m", {}, fresh=False) as run:
        phases._fit(model, "head", data, 80, 0.05, recipe, run, print)
        model.load_weights(run.path / "head" / "epoch-80.weights.h5")  # the last, not the first of equals
    assert float(model(features[:1])[0, 1]) == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    "values", [{"class_weights": "balance"}, {"seed": -1}, {"dropout": 2.0}, {"patience": 0}, {"augmentation": 9.0}]
)
def test_values_that_cannot_be_are_told(values: dict[str, object]) -> None:
    """The message names the value."""
    with pytest.raises(TrainingError, match=next(iter(values))):
        Recipe(**values)
