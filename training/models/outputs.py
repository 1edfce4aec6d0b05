"""What a model's outputs mean: which of them to take, and how they become probabilities."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from training.errors import WeightsError

_KEEPING = {  # operations whose outputs are probabilities if their inputs are
    *("activation", "identity", "dropout", "cast", "reshape", "flatten", "squeeze", "expanddims", "getitem", "clip"),
    *("concatenate", "average", "mean", "globalaveragepooling2d", "averagepooling2d"),
}
# What softmax makes probabilities of; of logarithms of a softmax, that softmax again.
_LOGITS = ("linear", "log_softmax", *(f"log of {each}softmax" for each in ("", "add of ", "maximum of ")))


def of_one_output(model: keras.Model, name: str | None) -> keras.Model:
    """Return a model with the output of a name, or with the only one.

    Raises:
        WeightsError: There is none of the name, or there are several and no name.
    """
    outputs = getattr(model, "output", None)  # a Sequential that was not called has none, but has `outputs`
    if not isinstance(outputs, dict) or not all(isinstance(each, keras.KerasTensor) for each in outputs.values()):
        outputs = {}
        for each, tensor in zip(getattr(model, "output_names", [model.layers[-1].name]), model.outputs, strict=True):
            # A layer that is used twice gives two outputs of one name.
            outputs[each if each not in outputs else f"{each}:{len(outputs)}"] = tensor
    if name is None and len(outputs) > 1:
        shapes = ", ".join(f"{each} {tuple(tensor.shape)}" for each, tensor in outputs.items())
        raise WeightsError(
            f"Expected a model of one output, or for export --output with the name of one. Received: {shapes}"
        )
    if name is not None and name not in outputs:
        raise WeightsError(f"Expected --output of: {', '.join(outputs)}. Received: {name}")
    return keras.Model(model.inputs[0], outputs[name or next(iter(outputs))], name=model.name)


def as_probabilities(model: keras.Model, classes: int) -> keras.Model:
    """Make a model end in probabilities (n, classes): add a softmax to linear outputs, turn one unit into two classes.

    Raises:
        WeightsError: The outputs do not fit the classes, or are not one choice among them. Those that are made of
            probabilities must sum to 1, as nothing tells what they are.
    """
    if len(model.output_shape) != 2:
        raise WeightsError(f"Expected class outputs (n, {classes}). Received: {model.output_shape}")
    units = model.output_shape[-1]
    x = model.outputs[0]
    activation = _activation_of(x, {})
    if units == 1:
        if activation == "linear":
            x = layers.Activation("sigmoid")(x)
        elif activation != "sigmoid":
            raise WeightsError(f"Expected a sigmoid or linear output of one unit. Received: {activation}")
        x = layers.Concatenate(name="probabilities")([layers.Rescaling(-1.0, 1.0)(x), x])
    elif activation.endswith("sigmoid") or not _sums_to_one(model, is_softmax=activation == "softmax"):
        if activation not in _LOGITS:
            raise WeightsError(
                f"Expected softmax or linear outputs: one class an image. Received: {activation} with {units} units"
                f"{', which do not sum to 1' * (activation == 'softmax')}"
            )
        x = layers.Softmax(name="probabilities")(x)
    if x.shape[-1] != classes:
        raise WeightsError(f"Expected as many classes as the model has outputs, {x.shape[-1]}. Received: {classes}")
    return keras.Model(model.inputs[0], x, name=model.name)


def _sums_to_one(model: keras.Model, *, is_softmax: bool) -> bool:
    """Check by running it whether outputs are probabilities already, such as a sum of weighted ones."""
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype(np.float32)
    outputs = np.asarray(model(pixels, training=False))
    if np.isnan(outputs).any():
        return is_softmax  # an export refuses it, if photos give that too
    tolerance = 0.01 if is_softmax or outputs.dtype.itemsize < 4 else 1e-4  # 16-bit floats add up to about 1
    sums = outputs.astype(np.float32).sum(axis=1)
    return bool(outputs.min() >= 0 and np.allclose(sums, 1, atol=tolerance))


def _activation_of(tensor: Any, fed: Mapping[int, Any]) -> str:
    """Return what made the values of a tensor; `linear` if they are no probabilities, or if nothing tells.

    What something else without weights makes of probabilities, such as their logarithm, has both names. So has what it
    makes of several kinds of them, such as a softmax times a sigmoid, and what is made of that. What joins or averages
    probabilities and others has all their names too; what else is made of both, such as gated logits, is `linear`.

    Args:
        tensor: An output of a model, or of an operation in it.
        fed: What the inputs of models around it, by id, get from outside.
    """
    if id(tensor) in fed:
        return _activation_of(fed[id(tensor)], fed)
    operation, node, index = tensor._keras_history
    inputs = operation._inbound_nodes[node].input_tensors
    if isinstance(operation, keras.Model):
        outer = dict(zip(map(id, operation.inputs), inputs, strict=True))
        return _activation_of(operation.outputs[index], {**fed, **outer})
    operation = getattr(operation, "layer", operation)  # of a wrapper, such as TimeDistributed
    name = type(operation).__name__.lower()
    if name in ("softmax", "sigmoid"):
        return name
    function = getattr(operation, "activation", None)
    function = getattr(function, "activation", function)  # of a layer in the place of a function
    activation: str = getattr(function, "__name__", "linear")
    if activation != "linear" or getattr(operation, "weights", []):
        return activation
    names = {_activation_of(each, fed) for each in inputs}
    are_probable = [bool(re.search("sigmoid|softmax", each)) for each in names]
    if len(names) > 1:  # gated logits, linear ones or those of a relu times a sigmoid, are logits still
        is_mix = any(are_probable) if name in _KEEPING else all(are_probable)
        return f"{' and '.join(sorted(names))} in one {name}" if is_mix else "linear"
    made = names.pop() if names else "linear"
    if name in _KEEPING:
        return made
    return f"{name} of {made}" if any(are_probable) else "linear"
