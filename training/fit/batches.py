"""Batches of photos, shuffled and augmented by the seed and the step alone.

So a run that was killed continues with the batches that it would have had, and runs with one seed see the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from training.fit.recipe import Recipe

_SEEDS_A_STEP = 64  # more than all layers of the augmentation draw together


def steps(photos: int, recipe: Recipe) -> int:
    """Return the steps of an epoch."""
    return -(-photos // recipe.batch_size)


def shuffled(
    inputs: NDArray[Any], targets: NDArray[np.float32], recipe: Recipe, epochs: range, augment: bool
) -> tf.data.Dataset:
    """Return the batches of several epochs: inputs as float32 (b, …), and targets (b, k).

    Each epoch has its own order. Its last batch is filled up from its start, so that each device gets a part of it.
    """
    a_epoch = steps(len(targets), recipe)

    @lru_cache(maxsize=2)  # reading ahead reaches into the next epoch
    def order(epoch: int) -> NDArray[np.int64]:
        return np.resize(
            np.random.default_rng((recipe.seed, epoch)).permutation(len(targets)), a_epoch * recipe.batch_size
        )

    def rows(step: np.int64) -> tuple[NDArray[Any], NDArray[np.float32]]:
        epoch, place = divmod(int(step), a_epoch)
        chosen = np.sort(order(epoch)[place * recipe.batch_size :][: recipe.batch_size])
        return inputs[chosen].astype(np.float32), targets[chosen]

    numbers = tf.data.Dataset.range(epochs.start * a_epoch, epochs.stop * a_epoch)
    batches = numbers.map(lambda step: (step, *_read(rows, step, inputs, targets)))
    if augment and recipe.augmentation:
        change = augmentation(recipe.seed, recipe.augmentation)
        batches = batches.map(
            lambda step, images, labels: (step, change(images, step), labels), num_parallel_calls=tf.data.AUTOTUNE
        )
    return _ready(batches.map(lambda step, images, labels: (images, labels)))


def in_order(inputs: NDArray[Any], targets: NDArray[np.float32], recipe: Recipe) -> tf.data.Dataset:
    """Return one pass over all inputs as they stand."""

    def rows(start: np.int64) -> tuple[NDArray[Any], NDArray[np.float32]]:
        chosen = slice(start, start + recipe.batch_size)
        # Copies: TensorFlow may write its next result, such as smoothed labels, into the memory that it is handed.
        return inputs[chosen].astype(np.float32), targets[chosen].copy()

    starts = tf.data.Dataset.range(0, len(targets), recipe.batch_size)
    return _ready(starts.map(lambda start: _read(rows, start, inputs, targets)))


def augmentation(seed: int, extent: float = 1.0) -> Any:
    """Return a function that changes images (n, h, w, 3), 0-255, at random, seeded by the step.

    The extent scales every change but the flip.
    """
    zoom, shift = (-0.2 * extent, 0.1 * extent), 0.08 * extent
    changes = (
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.05 * extent, fill_mode="nearest"),
        layers.RandomZoom(zoom, zoom, fill_mode="nearest"),
        layers.RandomTranslation(shift, shift, fill_mode="nearest"),
        layers.RandomBrightness(0.15 * extent),
        layers.RandomContrast(0.2 * extent, value_range=(0, 255)),
    )

    @tf.autograph.experimental.do_not_convert
    def change(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        seeds = _StepSeeds(tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64) * _SEEDS_A_STEP]))
        for layer in changes:
            drawn = layer.get_random_transformation(images, training=True, seed=seeds)
            images = layer.transform_images(images, drawn, training=True)
        return images

    return change


class _StepSeeds(keras.random.SeedGenerator):
    """Seeds counted from a start. Keras' generator keeps a variable, which parallel steps read in any order."""

    def __init__(self, start: tf.Tensor) -> None:
        self.start, self.taken = start, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self.taken += 1
        return self.start + tf.constant([0, self.taken], tf.int64)


@tf.autograph.experimental.do_not_convert
def _read(rows: Any, number: tf.Tensor, inputs: NDArray[Any], targets: NDArray[np.float32]) -> tuple[tf.Tensor, ...]:
    batch, labels = tf.numpy_function(rows, [number], (tf.float32, tf.float32))
    batch.set_shape((None, *inputs.shape[1:]))
    labels.set_shape((None, *targets.shape[1:]))
    return batch, labels


def _ready(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Read ahead, and let each device take its part of every batch, as the source cannot be split by files."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
