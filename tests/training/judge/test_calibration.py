"""training/judge/calibration.py: the temperature that was put in is found again; baking changes no first place."""

from __future__ import annotations

import numpy as np
import pytest

from training.judge.metrics import measure

pytestmark = pytest.mark.tensorflow


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """Logits of 4,000 photos and 5 classes."""
    return np.random.default_rng(0).normal(0, 2, (4000, 5))


@pytest.fixture(scope="module")
def labels(logits: np.ndarray) -> np.ndarray:
    """Labels drawn with the very probabilities that the logits mean."""
    random = np.random.default_rng(1)
    return np.array([random.choice(5, p=row / row.sum()) for row in softmax(logits).astype(float)])


@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_the_temperature_is_found(logits: np.ndarray, labels: np.ndarray, temperature: float) -> None:
    """Logits that are off by a factor are put right by it."""
    from training.judge.calibration import fit_temperature

    assert fit_temperature(softmax(logits * temperature), labels) == pytest.approx(temperature, rel=0.05)


def test_few_photos_are_not_asked(logits: np.ndarray, labels: np.ndarray) -> None:
    """They would give any temperature."""
    from training.judge.calibration import fit_temperature

    assert fit_temperature(softmax(3 * logits[:50]), labels[:50]) == 1.0


def test_baking_calibrates_and_keeps_first_places(logits: np.ndarray, labels: np.ndarray) -> None:
    """A model three times too sure means what it says afterwards."""
    import keras

    from training.judge.calibration import bake, fit_temperature

    inputs = keras.Input((5,))
    head = keras.layers.Dense(5, activation="softmax", name="head")
    model = keras.Model(inputs, head(inputs))
    head.set_weights([3 * np.eye(5), np.zeros(5)])
    before = np.asarray(model(logits))
    bake(model, "head", fit_temperature(before, labels))
    after = np.asarray(model(logits))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    names = list("abcde")
    assert (
        measure(before, labels, names).calibration_error > 0.1 > 0.03 > measure(after, labels, names).calibration_error
    )
