"""The model that is trained, and its two phases: a head on frozen features, then the upper layers with augmentation."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.data.pixels import Pixels
from training.fit import batches
from training.fit.preset import Preset
from training.fit.recipe import Recipe
from training.fit.unfinished import History, Progress, Unfinished
from training.models.catalogue import Architecture, preprocess
from training.models.starting_points import find_start
from training.progress import estimated
from training.words import counted

log = logging.getLogger(__name__)

Watch = Sequence[keras.callbacks.Callback]
Data = dict[str, tuple[NDArray[Any], NDArray[np.float32]]]
"""Inputs and targets (n, k) of each split."""

# Validation photos below which many epochs tie in accuracy, so the loss breaks ties. With the 341 of clothing, breaking
# ties trained the head for 26 epochs instead of 10, and ended at 0.894 instead of 0.903.
FEW_PHOTOS = 100


@dataclass(frozen=True)
class Network:
    """A model that is trained, pixels 0-255 to probabilities, and the backbone inside it; a head alone has none."""

    model: keras.Model
    backbone: keras.Model | None


def start_of(preset: Preset) -> Architecture:
    """Return the network that a preset starts from."""
    return find_start(preset.architecture, preset.weights, size_px=preset.size, preprocessing=preset.preprocessing)


def build(preset: Preset, classes: int) -> Network:
    """Put a head for some classes on a preset's backbone.

    Batch norms of the layers that are trained learn the statistics of the photos; frozen ones keep theirs. A
    `training=False` for the backbone would not change that: in Keras 3, fit's own overrides it.
    """
    architecture = start_of(preset)
    backbone = architecture.backbone(preset.weights, include_top=False)
    inputs = keras.Input(backbone.input_shape[1:], name="pixels")
    features = backbone(preprocess(inputs, architecture.preprocessing))
    return Network(_with_head(inputs, features, preset.recipe, classes), backbone)


def build_head(preset: Preset, classes: int, shape: tuple[int, ...]) -> Network:
    """Return a head alone, from features of a shape."""
    inputs = keras.Input(shape)
    return Network(_with_head(inputs, inputs, preset.recipe, classes), None)


def _with_head(inputs: Any, features: Any, recipe: Recipe, classes: int) -> keras.Model:
    x = layers.Dropout(recipe.dropout, name="head_dropout")(features)
    outputs = layers.Dense(classes, activation="softmax", name="head_probabilities")(x)
    return keras.Model(inputs, outputs, name="classifier")


@dataclass(frozen=True)
class Phases:
    """The two phases of a training: the head on frozen features, then the upper layers on augmented photos.

    Attributes:
        network: From `build` or `build_head`.
        preset: How to train.
        run: State of the same training: what an earlier process left, and what this one keeps.
        watch: Callbacks of Keras for the last phase, beside those that it needs.
    """

    network: Network
    preset: Preset
    run: Unfinished
    watch: Watch = ()

    @property
    def recipe(self) -> Recipe:
        """The preset's."""
        return self.preset.recipe

    @property
    def model(self) -> keras.Model:
        """The network's."""
        return self.network.model

    def fit(self, splits: dict[str, Pixels]) -> dict[str, History]:
        """Train on the split `train`, with early stopping on `validation`; a phase without epochs is left out."""
        recipe, head, upper = self.recipe, History(), History()
        if recipe.head_epochs and self.preset.pretrained:
            head = self._fit_head(splits)
        if recipe.epochs:
            upper = self._fit_upper_layers(splits)
        return {"head": head, "upper layers": upper}

    def _fit_head(self, splits: dict[str, Pixels]) -> History:
        """Compute the frozen features once, and train the head alone on them."""
        features = self._features(splits)
        inputs = keras.Input(features["train"].shape[1:])
        dropout, probabilities = (self.model.get_layer(name) for name in ("head_dropout", "head_probabilities"))
        head = keras.Model(inputs, probabilities(dropout(inputs)))
        data = {split: (features[split], one_hot(splits[split].labels, self.model)) for split in features}
        history = self._fit("head", head, data, self.recipe.head_epochs, self.recipe.head_learning_rate)
        log.info(
            f"Trained the head for {counted(len(history['loss']), 'epoch')}:"
            f" validation {max(history['val_accuracy']):.4f}"
        )
        return history

    def _fit_upper_layers(self, splits: dict[str, Pixels]) -> History:
        """Train a part of the backbone, from the top, with the head."""
        assert self.network.backbone is not None
        weighted = [layer for layer in self.network.backbone.layers if layer.weights]
        for layer in weighted[: round(len(weighted) * (1 - self.preset.unfreeze))]:
            layer.trainable = False
        steps = batches.steps(len(splits["train"].labels), self.recipe)
        schedule = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=steps * max(1, self.recipe.epochs - 1),
            warmup_target=self.recipe.learning_rate,
            warmup_steps=steps,
        )
        data = {
            split: (splits[split].images, one_hot(splits[split].labels, self.model))
            for split in ("train", "validation")
        }
        return self._fit("upper-layers", self.model, data, self.recipe.epochs, schedule)

    def _features(self, splits: dict[str, Pixels]) -> dict[str, NDArray[np.float32]]:
        """Return the backbone's features of the photos; an earlier process may have left them."""
        started, found = time.monotonic(), dict[str, NDArray[np.float32]]()
        for split in ("train", "validation"):
            kept = self.run.kept(f"features-{split}")
            if kept is None:
                features = frozen_features(self.model, splits[split].images, self.recipe)
                kept = self.run.keep(f"features-{split}", features)
            found[split] = kept
        log.info(
            f"Computed the features of {sum(map(len, found.values()))} photos in {time.monotonic() - started:.0f} s"
        )
        return found

    def _fit(self, phase: str, model: keras.Model, data: Data, epochs: int, learning_rate: Any) -> History:
        """Fit on inputs and targets from where an earlier process stopped; photos are augmented, features are not."""
        recipe, photos, targets = self.recipe, len(data["train"][0].shape) == 4, data["train"][1]
        steps = batches.steps(len(targets), recipe)
        averaged = steps * recipe.averaging > 1
        momentum = 1 - 1 / (steps * recipe.averaging) if averaged else None
        model.compile(
            keras.optimizers.AdamW(
                learning_rate, weight_decay=recipe.weight_decay, use_ema=averaged, ema_momentum=momentum
            ),
            keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
            metrics=["accuracy"],
        )
        early_stopping = BestOfEqual if len(data["validation"][1]) < FEW_PHOTOS else keras.callbacks.EarlyStopping
        stopping = early_stopping("val_accuracy", patience=recipe.patience, restore_best_weights=True)
        progress = Progress(self.run, phase, stopping)
        left = progress.restore(model, epochs)
        if left and left.start:
            log.info(
                f"Resuming {phase} at epoch {left.start + 1} of {epochs} from {self.run.path}; --fresh starts again"
            )
        if not left:
            return progress.history
        model.fit(
            batches.shuffled(*data["train"], recipe, left, augment=photos),
            validation_data=batches.in_order(*data["validation"], recipe),
            steps_per_epoch=steps,
            class_weight=class_weights(targets) if recipe.class_weights == "balanced" else None,
            initial_epoch=left.start,
            epochs=epochs,
            callbacks=[
                _Reseed(recipe.seed),
                *([_Average(left)] if averaged else []),  # before those that keep weights
                stopping,
                progress,
                *([Wait(steps, f"Epoch {left.start + 1}/{left.stop}"), _Lines(left)] if photos else []),
                *(self.watch if phase == "upper-layers" or not recipe.epochs else ()),
            ],
            shuffle=False,
            verbose=0,
        )
        return progress.history


def frozen_features(model: keras.Model, images: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Return the backbone's features (n, c) of images."""
    of_images = keras.Model(model.input, model.get_layer("head_dropout").input)
    wait = Wait(-(-len(images) // recipe.batch_size), f"Computing features of {len(images)} photos")
    return of_images.predict(images, batch_size=recipe.batch_size, callbacks=[wait], verbose=0)


class Wait(keras.callbacks.Callback):
    """Log once how long the first batches take."""

    def __init__(self, batches: int, work: str) -> None:
        super().__init__()
        self._batches = estimated(range(batches), work)

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        next(self._batches, None)

    on_train_batch_begin = on_predict_batch_begin


class BestOfEqual(keras.callbacks.EarlyStopping):
    """Early stopping that prefers, of epochs with equal accuracy, the one with less loss.

    With few validation photos many epochs are equally accurate, and the first of them has learned the least.
    """

    def get_monitor_value(self, logs: Mapping[str, float] | None) -> float:
        logs = logs or {}
        return logs["val_accuracy"] - 1e-4 * logs["val_loss"]


class _Reseed(keras.callbacks.Callback):
    """Make dropout depend on the seed and the epoch alone; files of weights do not contain its state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        states = [each for each in self.model.variables if each.path.endswith("seed_generator_state")]
        for position, state in enumerate(states):
            state.assign([self.seed + position, (epoch + 1) * 2**20])


class _Average(keras.callbacks.SwapEMAWeights):
    """Put the averaged weights into the model after each epoch, and the trained ones back before the next."""

    def __init__(self, epochs: range) -> None:
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = epochs.start > 0  # what a process before this one left


class _Lines(keras.callbacks.Callback):
    """Log a line for each epoch, with the time that is left."""

    def __init__(self, epochs: range) -> None:
        super().__init__()
        self.epochs, self.started = epochs, time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        passed = time.monotonic() - self.started
        left = passed / (epoch + 1 - self.epochs.start) * (self.epochs.stop - epoch - 1)
        log.info(
            f"Epoch {epoch + 1}/{self.epochs.stop}: loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.4f},"
            f" validation {logs['val_accuracy']:.4f}, {passed:.0f} s passed, at most {left:.0f} s left"
        )


def class_weights(targets: NDArray[np.float32]) -> dict[int, float]:
    """Return a weight for each class of targets (n, k) so that classes count the same, and a photo 1 on average."""
    counts = np.maximum(targets.sum(axis=0), 1)
    return dict(enumerate((len(targets) / (np.count_nonzero(targets.sum(axis=0)) * counts)).tolist()))


def one_hot(labels: Sequence[int] | NDArray[np.int64], model: keras.Model) -> NDArray[np.float32]:
    """Return labels (n) as float32 (n, k), k the model's classes."""
    return np.eye(model.output_shape[-1], dtype=np.float32)[labels]
