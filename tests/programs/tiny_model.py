"""`python -m tests.programs.tiny_model STORE NAME JSON…`: export small Keras models of random weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from keras import layers

from contract.document import Contract, ImageSpec
from training.models.novelty import fit
from training.release.sources import Source, release

CLASSES = ("cat", "dog", "bird")
SPEC = ImageSpec(16, 16, crop=0.9)


def build(seed: int, size: int = 16, classes: int = 3) -> keras.Model:
    """Return pixels 0-255 (n, size, size, 3) to probabilities (n, classes)."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Rescaling(5.0)(layers.Dense(classes)(x))  # sure of itself, so that other pixels give other answers
    return keras.Model(inputs, layers.Softmax()(x))


def build_convolutions(seed: int) -> keras.Model:
    """Return the same with more layers, of which some are quantized."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    for filters in (8, 16, 16):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
        x = layers.Conv2D(filters, 1)(x)
    x = layers.Dense(3)(layers.Dropout(0.3, name="head_dropout")(layers.GlobalAveragePooling2D()(x)))
    return keras.Model(inputs, layers.Softmax()(layers.Rescaling(5.0)(x)))


def small(*top: keras.Layer) -> keras.Model:
    """Return pixels 0-255 (n, 16, 16, 3) to what these layers make of them, scaled and flat."""
    return keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(1 / 255), layers.Flatten(), *top])


def scored() -> Source:
    """Return a model that knows noise, and to which an image of one colour is unknown."""
    model, noise = build_convolutions(0), np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    features = keras.Model(model.inputs, model.get_layer("head_dropout").input)
    train, held_out = np.split(features.predict(noise, verbose=0), 2)
    score = fit(train, np.zeros(len(train), np.int64), held_out, classes=3)
    assert score is not None
    return Source(model, Contract("tiny", CLASSES, SPEC, novelty=score.novelty), directions=score.directions)


def main(store: Path, name: str, *models: str) -> None:
    """Release each model, which JSON describes by its seed, size and classes, or as `scored`."""
    for model in map(json.loads, models):
        if model.get("scored"):
            release(scored(), store)
            continue
        size, classes = model.get("size", 16), tuple(model.get("classes", CLASSES))
        contract = Contract(name, classes, replace(SPEC, height=size, width=size))
        source = Source(build(model.get("seed", 0), size, len(classes)), contract)
        release(source, store, replace_classes=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
