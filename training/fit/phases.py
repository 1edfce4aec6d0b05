"""The model that is trained: a head is fitted on frozen features, then the network trains with augmentation.

Where there is time, it trains several times from that head, each time with another seed, and the weights are averaged.
In the end a part of the change may be taken back, if validation says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.data.pixels import Pixels, Rows
from training.fit import batches
from training.fit.features import frozen_features
from training.fit.head import fit_head, soften
from training.fit.preset import Preset
from training.fit.recipe import SEEDS, Recipe
from training.models.catalogue import Architecture, preprocess
from training.models.starting_points import find_start
from training.progress import estimated
from training.runs.unfinished import History, Progress, Unfinished

log = logging.getLogger(__name__)

Watch = Sequence[keras.callbacks.Callback]
Weights = Sequence[NDArray[np.float32]]

# Of the change from the frozen network and its head. 30 photos of each class of clothing and trash, 2,209 held out:
# what validation chose has 0.843, 0.831 and, with Lite2, 0.861, where all of the change has 0.831, 0.828 and 0.855.
# With 0.8 of it, on crops with other light, turned and blurred, 0.753, with all 0.745. It costs nothing where photos
# are many: trash, 240 of each class, four trainings, 0.8 of the change has 0.922 on average, and all of it 0.921.
SHARES = (1.0, 0.9, 0.8, 0.7)
FEW_PHOTOS = 100  # of validation, below which many epochs tie in accuracy, so the loss breaks ties


@dataclass(frozen=True)
class Network:
    """A model that is trained, pixels 0-255 to probabilities, and the backbone inside it."""

    model: keras.Model
    backbone: keras.Model

    @property
    def features(self) -> keras.Model:
        """The part from pixels to features (n, c)."""
        return keras.Model(self.model.input, self.model.get_layer("head_dropout").input)

    @property
    def head(self) -> keras.Model:
        """The part from features to probabilities (n, k)."""
        inputs = keras.Input(self.features.output_shape[1:])
        return keras.Model(inputs, self.model.get_layer("head_probabilities")(inputs))


def start_of(preset: Preset) -> Architecture:
    """Return the network that a preset starts from."""
    return find_start(preset.architecture, preset.weights, size_px=preset.size, preprocessing=preset.preprocessing)


def build(preset: Preset, classes: int) -> Network:
    """Put a head for some classes on a preset's backbone.

    Batch norms of the layers that are trained learn the statistics of the photos; frozen ones keep theirs. A
    `training=False` for the backbone would not change that: in Keras 3, fit's own overrides it.
    """
    architecture = start_of(preset)
    backbone = architecture.backbone(preset.weights)
    inputs = keras.Input(backbone.input_shape[1:], name="pixels")
    features = backbone(preprocess(inputs, architecture.preprocessing))
    x = layers.Dropout(preset.recipe.dropout, name="head_dropout")(features)
    outputs = layers.Dense(classes, activation="softmax", name="head_probabilities")(x)
    return Network(keras.Model(inputs, outputs, name="classifier"), backbone)


class _Span(NamedTuple):
    """When a training begins and ends, in seconds of the run; one that begins late ends in time too."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Phases:
    """The phases of a training: the head on frozen features, then the network on augmented photos, once or more often.

    Attributes:
        network: From `build`.
        preset: How to train.
        run: State of the same training: what an earlier process left, and what this one keeps.
        watch: Callbacks of Keras for the network, beside those that they need.
        limit_s: When training ends, in seconds of the run, if its epochs have not ended before.
        trainings: How often the network trains.
    """

    network: Network
    preset: Preset
    run: Unfinished
    watch: Watch = ()
    limit_s: float | None = None
    trainings: int = 1

    @property
    def recipe(self) -> Recipe:
        """The preset's."""
        return self.preset.recipe

    @property
    def model(self) -> keras.Model:
        """The network's."""
        return self.network.model

    def fit(self, splits: dict[str, Pixels]) -> dict[str, History]:
        """Train on the split `train`, with early stopping on `validation`; return the figures by phase and epoch."""
        if self.preset.pretrained:
            self.fit_head(splits)
        if not self.recipe.epochs:
            return {}
        start, histories, found = self.model.get_weights(), dict[str, History](), dict[str, Weights]()
        for number in range(self.trainings):
            self.model.set_weights(start)
            progress = self.fit_network(splits, number)
            histories[_name(number)] = progress.history
            if self.preset.pretrained:
                self._average_with_last(progress, splits["validation"])
            found[f"training {number + 1}"] = self.model.get_weights()
        if self.trainings > 1:
            found["the average of all"] = _between(found.values(), [1 / len(found)] * len(found))
            self._take_best(found.items(), splits["validation"])
        if self.preset.pretrained:
            end = self.model.get_weights()
            parts = (_between([start, end], [1 - share, share]) for share in SHARES)
            names = (f"{share:.0%} of the change by training" for share in SHARES)
            self._take_best(zip(names, parts, strict=True), splits["validation"])
        return histories

    def _average_with_last(self, progress: Progress, validation: Pixels) -> None:
        """Average the best epoch's weights, which the model has, with the last epoch's, if that has less loss.

        Which epoch is best is half chance. Clothing, two fifths held out: 0.936 and 0.930 in place of 0.925 and 0.928,
        log loss 0.283 and 0.297 for 0.297 and 0.298; with Lite2 0.930 for 0.925.
        """
        best = self.model.get_weights()
        progress.load_last(self.model)
        last = self.model.get_weights()
        if not all(map(np.array_equal, best, last)):
            average = _between([best, last], [0.5, 0.5])
            self._take_best([("the best epoch", best), ("its average with the last one", average)], validation)

    def _take_best(self, choices: Iterable[tuple[str, Weights]], validation: Pixels) -> None:
        """Take the weights with the least loss on validation, of named choices; if all are NaN, the weights stay.

        Source: Wortsman et al., "Model soups", ICML 2022, and "Robust fine-tuning of zero-shot models", CVPR 2022.
        """
        photos = batches.in_order(validation.images, one_hot(validation.labels, self.model), self.recipe)
        losses, best, kept = dict[str, float](), "", self.model.get_weights()
        for name, weights in choices:
            self.model.set_weights(weights)
            losses[name] = self.model.evaluate(photos, verbose=0, return_dict=True)["loss"]
            if losses[name] < losses.get(best, math.inf):
                best, kept = name, weights
        self.model.set_weights(kept)
        others = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if name != best)
        if best:
            log.info(f"Least loss on validation, {losses[best]:.3f}: {best}. Others: {others}")

    def fit_head(self, splits: dict[str, Pixels]) -> None:
        """Fit the head to frozen features."""
        of_splits = dict(zip(splits, frozen_features(self.network.features, *splits.values()), strict=True))
        balanced = self.recipe.class_weights == "balanced"
        features, labels = of_splits["train"], splits["train"].labels
        head = fit_head(features, labels, seed=self.recipe.seed, balanced=balanced)
        if self.recipe.epochs:
            head = soften(head, features, labels, self.recipe.label_smoothing)
        self.model.get_layer("head_probabilities").set_weights([head.kernel, head.bias])
        if head.accuracy is not None:
            log.info(f"Fitted the head: accuracy {head.accuracy:.4f} in cross-validation on the training photos")

    def _span(self, number: int) -> _Span:
        if self.limit_s is None:
            return _Span(0, math.inf)
        share_s = self.limit_s / self.trainings
        return _Span(share_s * number, share_s * (number + 1))

    def fit_network(self, splits: dict[str, Pixels], number: int = 0) -> Progress:
        """Train a part of the backbone, from the top, with the head; the number of the training changes the seed."""
        weighted = [layer for layer in self.network.backbone.layers if layer.weights]
        for layer in weighted[: round(len(weighted) * (1 - self.preset.unfreeze))]:
            layer.trainable = False
        recipe, model = replace(self.recipe, seed=(self.recipe.seed + number) % SEEDS), self.model
        span, title = self._span(number), f"Training {number + 1}/{self.trainings}, epoch"
        title = title if self.trainings > 1 else "Epoch"
        train, validation = splits["train"], splits["validation"]
        targets = one_hot(train.labels, model)
        steps = batches.steps(len(targets), recipe)
        averaged = _compile(model, steps, recipe)
        early_stopping = BestOfEqual if len(validation.labels) < FEW_PHOTOS else keras.callbacks.EarlyStopping
        stopping = early_stopping("val_accuracy", patience=recipe.patience, restore_best_weights=True)
        progress = Progress(self.run, _name(number), stopping)
        left = progress.restore(model, recipe.epochs)
        if left.start and self.run.spent_s >= span.end_s:
            left = progress.restore(model, 0)  # to the best epoch, as the time is over
        if left and left.start:
            place = f"{title.lower()} {left.start + 1} of {recipe.epochs}"
            log.info(f"Resuming at {place} from {self.run.path}; --fresh starts again")
        if not left:
            return progress
        weights = class_weights(train.labels, targets.shape[1]) if recipe.class_weights == "balanced" else None
        model.fit(
            batches.shuffled(train.images, targets, recipe, left, weights),
            validation_data=batches.in_order(validation.images, one_hot(validation.labels, model), recipe),
            steps_per_epoch=steps,
            initial_epoch=left.start,
            epochs=recipe.epochs,
            callbacks=[
                _Reseed(recipe.seed),
                _Pace(recipe, steps, self.run, span),
                *([_Average(left)] if averaged else []),  # before those that keep weights
                stopping,
                progress,
                _Lines(left, steps, self.run, self.limit_s or math.inf, title, later=self.trainings - number - 1),
                *self.watch,
            ],
            shuffle=False,
            verbose=0,
        )
        return progress


def _between(found: Iterable[Weights], shares: Sequence[float]) -> Weights:
    """Return the weights between some, with a share of each."""
    mixed = (np.average(each, axis=0, weights=shares) for each in zip(*found, strict=True))
    return [np.asarray(each, np.float32) for each in mixed]


def _compile(model: keras.Model, steps: int, recipe: Recipe) -> bool:
    """Compile a model for epochs of some steps, and return whether its weights are averaged."""
    averaged = steps * recipe.averaging > 1
    momentum = 1 - 1 / (steps * recipe.averaging) if averaged else None
    optimizer = keras.optimizers.AdamW(weight_decay=recipe.weight_decay, use_ema=averaged, ema_momentum=momentum)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return averaged


def _name(number: int) -> str:
    """Return the name of the phase of a training of the network."""
    return f"network-{number + 1}" if number else "network"


class BestOfEqual(keras.callbacks.EarlyStopping):
    """Early stopping that prefers, of epochs with equal accuracy, the one with less loss.

    With few validation photos many epochs are equally accurate, and the first of them has learned the least.
    """

    def get_monitor_value(self, logs: Mapping[str, float]) -> float:
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


class _Pace(keras.callbacks.Callback):
    """Let the learning rate rise over the first epoch, then fall to zero by a cosine; end when the time is up.

    It falls with the part of the epochs that has passed, or of the time if that is greater.
    """

    def __init__(self, recipe: Recipe, steps: int, run: Unfinished, span: _Span) -> None:
        super().__init__()
        self._recipe, self._steps, self._run, self._span = recipe, steps, run, span
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        epochs = self._epoch + batch / self._steps
        of_time = (self._run.spent_s - self._span.start_s) / (self._span.end_s - self._span.start_s)
        passed = min(1, max(epochs / self._recipe.epochs, of_time))
        rate = self._recipe.learning_rate * min(1, epochs) * (1 + math.cos(math.pi * passed)) / 2
        self.model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._run.spent_s >= self._span.end_s:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.on_train_batch_end(0)


class _Lines(keras.callbacks.Callback):
    """Log a line for each epoch, with the time that is left for this training and later ones.

    In the middle of the first epoch, it logs once how long that takes.
    """

    def __init__(self, epochs: range, steps: int, run: Unfinished, limit_s: float, title: str, *, later: int) -> None:
        super().__init__()
        self._epochs, self._run, self._limit_s, self._started_s = epochs, run, limit_s, run.spent_s
        self._title, self._later = title, later
        self._steps = estimated(range(1, steps), f"{title} {epochs.start + 1}/{epochs.stop}")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch:  # the first one also traces the graph
            next(self._steps, None)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        passed_s = self._run.spent_s - self._started_s
        left = self._epochs.stop - epoch - 1 + self._later * self._epochs.stop
        left_s = passed_s / (epoch + 1 - self._epochs.start) * left
        left_s = max(0, min(left_s, self._limit_s - self._run.spent_s))
        log.info(
            f"{self._title} {epoch + 1}/{self._epochs.stop}: training loss {logs['loss']:.3f},"
            f" accuracy {logs['accuracy']:.4f}; validation accuracy {logs['val_accuracy']:.4f};"
            f" {passed_s:.0f} s passed, at most {left_s:.0f} s left"
        )


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Return a weight for each class, by labels (n), so that classes count the same, and a photo 1 on average."""
    counts = np.bincount(labels, minlength=classes)
    return np.asarray(len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), np.float32)


def one_hot(labels: NDArray[np.int64], model: keras.Model) -> NDArray[np.float32]:
    """Return labels (n) as float32 (n, k), k the model's classes; each row is taken from one table (k, k)."""
    return cast(NDArray[np.float32], Rows(np.eye(model.output_shape[-1], dtype=np.float32), labels))
