"""Keras files: a whole model, or the weights of an architecture."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from training.errors import WeightsError
from training.models.catalogue import Architecture, with_preprocessing

_KERAS_2_ADVICE = (
    "If Keras 2 (tf.keras before TensorFlow 2.16) wrote it: install tf-keras, load the file with it, save its weights"
    " as NAME.weights.h5, and export those with --architecture."
)


def load_file(
    path: Path, architecture: Architecture | None, classes: int, preprocessing: str, size_px: int | None = None
) -> keras.Model:
    """Load a Keras model, or the weights of an architecture, as a model for pixels 0-255.

    Args:
        path: `.keras` or `.h5` with a whole model, or `.weights.h5`, which needs the architecture.
        architecture: What `.weights.h5` belongs to.
        classes: Number of class outputs expected.
        preprocessing: One of `PREPROCESSING`.
        size_px: Height and width, for a model that leaves them open.

    Raises:
        WeightsError: The file does not load, or its outputs do not fit the classes.
    """
    if not path.is_file():
        raise WeightsError(f"Expected a file of weights. Received a path where there is none: {path}")
    if path.name.endswith(".weights.h5"):
        if architecture is None:
            raise WeightsError("Expected --architecture with a .weights.h5 file, which contains no model")
        model = architecture.backbone("none", include_top=True, classes=classes)
        advice = f"Expected are all weights of {architecture.name}, with {classes} classes on top."
        _loading(path, lambda: model.load_weights(path), advice)
    else:
        model = _loading(path, lambda: keras.models.load_model(path, compile=False, safe_mode=True), _KERAS_2_ADVICE)
    shapes = [tuple(each.shape) for each in getattr(model, "inputs", None) or ()]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] != 3:
        raise WeightsError(f"Expected a model of one input (n, height, width, 3). Received: {shapes or 'none defined'}")
    if None in model.input_shape[1:3]:
        if size_px is None:
            raise WeightsError("Expected --size, since the model's input leaves height and width open")
        inputs = keras.Input((size_px, size_px, 3))
        model = keras.Model(inputs, model(inputs), name=model.name)
    return with_preprocessing(model, preprocessing)


def _loading(path: Path, load: Callable[[], Any], advice: str) -> Any:
    """Load a file, and name every way in which that fails; Keras only warns of layers that stay random."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = load()
        if skipped := [str(each.message) for each in caught if "freshly-initialized" in str(each.message)]:
            raise ValueError(skipped[0])
    except Exception as exc:
        reason = " ".join(str(exc).split()).rstrip(".")
        if "`Lambda` layer" in reason:
            advice = (
                "A Lambda layer is code inside the file. Put one of Keras' own layers in its place, and save again."
            )
        if len(reason) > 800:  # Keras lists whole configurations and variables between the start and the cause
            reason = f"{reason[:400]} … {reason[-400:]}"
        raise WeightsError(
            f"Expected {path} to load in Keras {keras.__version__}. Received: {reason}. {advice}"
        ) from exc
    return loaded


def as_probabilities(model: keras.Model, classes: int) -> keras.Model:
    """Make a model end in probabilities (n, classes): add a softmax to linear outputs, turn one unit into two classes.

    Raises:
        WeightsError: The outputs do not fit the classes, or are not one choice among them.
    """
    if len(model.output_shape) != 2:
        raise WeightsError(f"Expected class outputs (n, {classes}). Received: {model.output_shape}")
    units = model.output_shape[-1]
    activation = _last_activation(model)
    x = model.outputs[0]
    if units == 1:
        if activation == "linear":
            x = layers.Activation("sigmoid")(x)
        elif activation != "sigmoid":
            raise WeightsError(f"Expected a sigmoid or linear output of one unit. Received: {activation}")
        x = layers.Concatenate(name="probabilities")([layers.Rescaling(-1.0, 1.0)(x), x])
    elif activation == "linear":
        if not _sums_to_one(model):
            x = layers.Softmax(name="probabilities")(x)
    elif activation != "softmax":
        raise WeightsError(
            f"Expected softmax or linear outputs: one class an image. Received: {activation} with {units} units"
        )
    if x.shape[-1] != classes:
        raise WeightsError(f"Expected as many classes as the model has outputs, {x.shape[-1]}. Received: {classes}")
    return keras.Model(model.inputs[0], x, name=model.name)


def _sums_to_one(model: keras.Model) -> bool:
    """Check by running it whether linear outputs are probabilities already, such as an average of some."""
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype(np.float32)
    outputs = np.asarray(model(pixels, training=False))
    return bool(outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-4))


def _last_activation(model: keras.Model) -> str:
    operation: Any = model
    while isinstance(operation, keras.Model):
        operation = operation.outputs[0]._keras_history.operation
    name = type(operation).__name__.lower()
    if name in ("softmax", "sigmoid"):
        return name
    return getattr(getattr(operation, "activation", None), "__name__", "linear")
