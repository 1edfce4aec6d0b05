"""training/models/novelty.py: a score for images unlike all training photos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow

LABELS = np.arange(300) % 3  # labels of training photos


@pytest.fixture(scope="module")
def novelty() -> Any:
    """The module; it imports TensorFlow."""
    from training.models import novelty

    return novelty


def draw(count: int, seed: int, directions: int = 5, kind: int = 0) -> np.ndarray:
    """Return features (count, 32) that lie near a few directions, which differ by kind, of any length."""
    random = np.random.default_rng(seed)
    inside = random.normal(size=(count, directions)) @ np.random.default_rng(kind).normal(size=(directions, 32))
    return ((inside + 0.05 * random.normal(size=inside.shape)) * random.uniform(0.1, 10, (count, 1))).astype(np.float32)


def test_what_lies_outside_the_directions_of_the_training_photos_scores_high(novelty: Any) -> None:
    """However long its features are; held-out photos that are like those of training score low."""
    import keras

    inputs = keras.Input((32,))
    dropped = keras.layers.Dropout(0.3, name="head_dropout")(inputs)
    outputs = keras.layers.Dense(3, activation="softmax")(dropped)
    alike, other = draw(100, 2), np.random.default_rng(3).normal(size=(100, 32)).astype(np.float32)
    score = novelty.fit(draw(300, 1), LABELS, alike, 3)
    assert score.is_unknown(other).all() and score.is_unknown(np.zeros((1, 32), np.float32)).all()
    given = novelty.predict(
        novelty.with_score(keras.Model(inputs, outputs), score.directions), np.vstack([alike, other])
    )
    assert given.probabilities.shape == (200, 3) and given.novelty.min() >= 0 and given.novelty.max() <= 1
    threshold = score.novelty.threshold
    assert ((given.novelty > threshold) == np.concatenate([score.is_unknown(each) for each in (alike, other)])).all()


def test_photos_of_a_rare_class_are_known(novelty: Any) -> None:
    """Frequent classes, which use more directions than there are, leave it two."""
    train, held_out = (np.vstack([draw(n, n, 20), draw(10, n, 2, kind=9)]) for n in (500, 200))
    score = novelty.fit(train, np.arange(510) // 500, held_out, 2)
    assert not score.is_unknown(draw(50, 3, 2, kind=9)).any() and score.is_unknown(draw(50, 4, 2, kind=8)).all()


@pytest.mark.parametrize(("photos", "turned_away"), [(20, 0), (100, 1), (250, 6), (2000, 83)])
def test_the_threshold_turns_few_other_photos_away(novelty: Any, photos: int, turned_away: int) -> None:
    """So few of these that at most 5 % of others are above it, with 95 % confidence; of 20 photos none."""
    found = novelty.fit(draw(300, 1), LABELS, draw(photos, 2), 3).novelty
    assert (found.photos, round(found.turned_away * photos)) == (photos, turned_away)


def test_few_photos_give_no_score(novelty: Any) -> None:
    """A threshold of nineteen photos would turn away more than one in twenty."""
    assert novelty.fit(draw(300, 1), LABELS, draw(19, 2), 3) is None
    assert novelty.fit(draw(19, 1), LABELS[:19], draw(300, 2), 3) is None
