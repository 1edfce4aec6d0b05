"""Batches of photos, shuffled and augmented by the seed and the step alone.

So a run that was killed continues with the batches that it would have had, and runs with one seed see the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.fit.recipe import Recipe

_SEEDS_A_STEP = 64  # more than the augmentation draws together
_LEAST_AREA = 0.1  # of a photo, that is cropped


def steps(photos: int, recipe: Recipe) -> int:
    """Return the steps of an epoch."""
    return -(-photos // recipe.batch_size)


def shuffled(
    images: NDArray[Any],
    targets: NDArray[np.float32],
    recipe: Recipe,
    epochs: range,
    weights: NDArray[np.float32] | None = None,
) -> tf.data.Dataset:
    """Return the batches of several epochs: augmented images, float32 (b, h, w, 3), and targets (b, k).

    With weights of the classes (k), a third part has those of the images (b).
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
        return images[chosen].astype(np.float32), targets[chosen]

    numbers = tf.data.Dataset.range(epochs.start * a_epoch, epochs.stop * a_epoch)
    change = augmentation(recipe)
    batches = numbers.map(lambda step: (step, *_read(rows, step, images, targets)))
    batches = batches.map(change, num_parallel_calls=tf.data.AUTOTUNE)
    if weights is not None:
        batches = batches.map(lambda images, labels: (images, labels, tf.linalg.matvec(labels, weights)))
    return _ready(batches)


def in_order(inputs: NDArray[Any], targets: NDArray[np.float32], recipe: Recipe) -> tf.data.Dataset:
    """Return one pass over all inputs as they stand.

    The last batch is filled up with the first inputs, so that devices that share it get equal parts: Keras needs those.
    """
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    order = np.resize(np.arange(len(targets)), devices * -(-len(targets) // devices))

    def rows(start: np.int64) -> tuple[NDArray[Any], NDArray[np.float32]]:
        # Copies: TensorFlow may write its next result, such as smoothed labels, into the memory that it is handed.
        chosen = order[start : start + recipe.batch_size]
        return inputs[chosen].astype(np.float32), targets[chosen]

    starts = tf.data.Dataset.range(0, len(order), recipe.batch_size)
    return _ready(starts.map(lambda start: _read(rows, start, inputs, targets)))


def augmentation(recipe: Recipe) -> Any:
    """Return a function of a step, images (n, h, w, 3), 0-255, and targets (n, k), which changes both at random.

    What is drawn depends on the recipe's seed and the step alone.
    """

    @tf.autograph.experimental.do_not_convert
    def change(step: tf.Tensor, images: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        draw = _Draws(recipe.seed, step, tf.shape(images)[0])
        if recipe.augmentation:
            images = _coloured(_cropped(images, draw, recipe.augmentation), draw, recipe.augmentation)
        return _pasted(images, targets, draw, recipe.cutmix) if recipe.cutmix else (images, targets)

    return change


class _Draws:
    """Random numbers (n), a new one for each image at each call."""

    def __init__(self, seed: int, step: tf.Tensor, count: tf.Tensor) -> None:
        self._start = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64) * _SEEDS_A_STEP])
        self._count, self._taken = count, 0

    def __call__(self, low: float, high: float) -> tf.Tensor:
        self._taken += 1
        return tf.random.stateless_uniform(
            [self._count], self._start + tf.constant([0, self._taken], tf.int64), low, high
        )

    def pixels(self, low: float, high: float) -> tf.Tensor:
        """Return such numbers to multiply pixels by (n, 1, 1, 1)."""
        return self(low, high)[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _cropped(images: tf.Tensor, draw: _Draws, strength: float) -> tf.Tensor:
    """Return a part of each image at its size, turned, perhaps flipped; what is outside is mirrored."""
    area, aspect = draw(max(_LEAST_AREA, 1 - 0.36 * strength), 1.0), tf.exp(strength * draw(-0.25, 0.25))
    down, right = (tf.minimum(tf.sqrt(each), 1.0) for each in (area / aspect, area * aspect))
    flip, angle = tf.sign(draw(-1.0, 1.0)), strength * draw(-0.3, 0.3)
    height, width = (float(length) for length in images.shape[1:3])
    y = height / 2 - 0.5 + height * (1 - down) * draw(-0.5, 0.5)
    x = width / 2 - 0.5 + width * (1 - right) * draw(-0.5, 0.5)
    rows = []
    for middle, along, across in (
        (x, right * flip * tf.cos(angle), -down * tf.sin(angle)),
        (y, right * flip * tf.sin(angle), down * tf.cos(angle)),
    ):
        rows += [along, across, middle - along * (width - 1) / 2 - across * (height - 1) / 2]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*rows, tf.zeros_like(angle), tf.zeros_like(angle)], axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _coloured(images: tf.Tensor, draw: _Draws, strength: float) -> tf.Tensor:
    """Change the brightness, contrast and saturation of each image, and the level of each colour."""
    images = images * (1 + strength * draw.pixels(-0.2, 0.2))
    for axes, most in (([1, 2, 3], 0.25), ([3], 0.3)):
        mean = tf.reduce_mean(images, axes, keepdims=True)
        images = mean + (images - mean) * (1 + strength * draw.pixels(-most, most))
    levels = tf.concat([draw.pixels(-8.0, 8.0) for _ in range(3)], axis=3)
    return tf.clip_by_value(images + strength * levels, 0.0, 255.0)


def _pasted(images: tf.Tensor, targets: tf.Tensor, draw: _Draws, part: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Paste a square of another image into some of the images, and mix their targets by area.

    Source: Yun et al., "CutMix", ICCV 2019.
    """
    height, width = images.shape[1:3]
    side = tf.where(draw(0.0, 1.0) < part, draw(0.2, 0.7), 0.0)[:, tf.newaxis] * min(height, width)
    inside = []
    for length in (height, width):
        start, places = draw(0.0, 1.0)[:, tf.newaxis] * (length - side), tf.range(length, dtype=tf.float32)
        inside.append(tf.cast((places >= start) & (places < start + side), tf.float32))
    mask = (inside[0][:, :, tf.newaxis] * inside[1][:, tf.newaxis])[..., tf.newaxis]
    other, kept = tf.argsort(draw(0.0, 1.0)), 1 - tf.reduce_mean(mask, [1, 2])
    return (
        images * (1 - mask) + tf.gather(images, other) * mask,
        targets * kept + tf.gather(targets, other) * (1 - kept),
    )


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
