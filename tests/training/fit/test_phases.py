"""training/fit/phases.py: what class weights do."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from training.errors import TrainingError
from training.fit.preset import Preset
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def targets() -> np.ndarray:
    """One-hot labels (40, 2): nine of ten are of the first class."""
    return np.eye(2, dtype=np.float32)[np.arange(40) % 10 // 9]


def test_a_class_without_photos_takes_nothing_from_the_others(targets: np.ndarray) -> None:
    """Where all photos of a class were skipped, the others are as without it."""
    from training.fit.phases import class_weights

    weights = class_weights(targets.argmax(axis=1), 3)
    assert weights[:2] == pytest.approx([20 / 36, 20 / 4])


def test_targets_are_made_for_each_batch(targets: np.ndarray) -> None:
    """Those of all photos would take as much memory as photos times classes; a batch has the same ones."""
    import keras

    from training.fit.phases import one_hot

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    tracemalloc.start()
    lazy = one_hot(np.resize(targets.argmax(axis=1), 100_000), model)
    assert len(lazy) == 100_000 and tracemalloc.get_traced_memory()[1] < 900_000
    tracemalloc.stop()
    np.testing.assert_array_equal(lazy[np.arange(5, 40)], targets[5:])


@pytest.mark.parametrize(("class_weights", "probability"), [("none", 0.1), ("balanced", 0.5)])
def test_what_is_learned_follows_the_weights(
    targets: np.ndarray, tmp_path: Path, class_weights: str, probability: float
) -> None:
    """Of photos that tell nothing, the rare class becomes as probable as it is, or as any other."""
    import keras

    from training.data.pixels import Pixels
    from training.fit import phases
    from training.runs.unfinished import open_unfinished

    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(backbone.output))
    plain = {"label_smoothing": 0.0, "cutmix": 0.0, "augmentation": 0.0, "weight_decay": 0.0, "averaging": 0.0}
    recipe = Recipe(epochs=80, patience=80, batch_size=40, learning_rate=0.05, class_weights=class_weights, **plain)
    preset, images = Preset("a", "c", "e", "plain-cnn", "none", recipe=recipe), np.zeros((40, 8, 8, 3), np.uint8)
    pixels = Pixels(images, targets.argmax(axis=1), [], "", {}, tmp_path)
    with open_unfinished(tmp_path, "m", [], fresh=False) as run:
        phases.Phases(phases.Network(model, backbone), preset, run).fit_network({"train": pixels, "validation": pixels})
        model.load_weights(run.path / "network" / "epoch-80.weights.h5")  # the last, not the first of equals
    assert float(model(images[:1])[0, 1]) == pytest.approx(probability, abs=0.03)


def test_of_equally_accurate_epochs_the_one_with_less_loss_is_taken() -> None:
    """Of three photos, most epochs get as many right."""
    import keras

    from training.fit.phases import BestOfEqual

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse", metrics=["accuracy"])
    epochs = [(0.5, 3.0), (0.5, 2.0), (0.5, 1.9), (0.5, 2.1), (0.4, 0.1), (0.5, 2.0)]

    class Script(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            model.set_weights([np.array([[epoch]], np.float32)])
            logs["val_accuracy"], logs["val_loss"] = epochs[epoch]

    x = np.ones((1, 1), np.float32)
    stopping = BestOfEqual("val_accuracy", patience=3, restore_best_weights=True)
    history = model.fit(x, x, epochs=9, callbacks=[Script(), stopping], verbose=0)
    assert (model.get_weights()[0].item(), stopping.best_epoch, len(history.epoch)) == (2, 2, 6)


@pytest.mark.parametrize(
    "values", [{"class_weights": "balance"}, {"seed": -1}, {"dropout": 2.0}, {"patience": 0}, {"augmentation": 9.0}]
)
def test_values_that_cannot_be_are_told(values: dict[str, object]) -> None:
    """The message names the value."""
    with pytest.raises(TrainingError, match=next(iter(values))):
        Recipe(**values)
