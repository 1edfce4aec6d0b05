"""A small convolutional network for training from scratch, where ImageNet's weights cannot or may not help."""

from __future__ import annotations

import keras
from keras import layers

from training.errors import WeightsError

NAME = "plain-cnn"
SIZE_PX = 96
FILTERS = (32, 64, 128, 256)  # of each block: twice as many where a side has half the places


def check_weights(weights: str) -> None:
    """Refuse weights that there are not.

    Raises:
        WeightsError: Weights are asked for.
    """
    if weights != "none":
        raise WeightsError(f"Expected --weights none with {NAME}, which is trained from scratch. Received: {weights}")


def build(size_px: int, weights: str, include_top: bool, classes: int) -> keras.Model:
    """Build four blocks of convolution, batch norm and pooling for input 0-1, float32 (n, size, size, 3).

    Args:
        size_px: Height and width.
        weights: `none`; there are no others.
        include_top: End with dropout and softmax probabilities; without it, with pooled features (n, 256).
        classes: Number of probabilities.

    Raises:
        WeightsError: Weights are asked for.
    """
    check_weights(weights)
    inputs = keras.Input((size_px, size_px, 3))
    x = inputs
    for block, filters in enumerate(FILTERS):
        stride = 2 if block == 0 else 1  # the first would take as long as all others
        x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False, name=f"block{block}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        x = layers.MaxPooling2D(padding="same", name=f"block{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = layers.Dropout(0.2, name="dropout")(x)
        x = layers.Dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, x, name=NAME.replace("-", "_"))
