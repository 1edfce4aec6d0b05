"""A network without its own classifier: pixels to pooled features."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers

from training.errors import WeightsError
from training.models.files import copy_weights

MAX_FEATURES = 8_192  # the covariance that the head is fitted with takes 256 MiB, and grows with their square
_CLASSIFIERS = (layers.Dense, layers.Conv2D)
_POOLINGS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_DROPOUTS = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.AlphaDropout)


def before_classifier(model: keras.Model) -> keras.Model:
    """Return what a model computes before its last layers, its own classifier, as features (n, c).

    The features are those of the global pooling before the classifier. Without one they are the input of the last dense
    layer. All layers can be trained, whatever they could before.

    Raises:
        WeightsError: There are no such features, or more than `MAX_FEATURES`.
    """
    flat = _flattened(model)
    features = _features(flat.outputs[0])
    if features is None:
        raise WeightsError(
            "Expected a network that ends in pooled features (n, c), or in a classifier of them. Received one that ends"
            f" in {model.output_shape}, without. Put a GlobalAveragePooling2D behind its last map, before any"
            " classifier, and save it again."
        )
    if (count := math.prod(features.shape[1:])) > MAX_FEATURES:
        raise WeightsError(
            f"Expected a network that ends in pooled features (n, c), at most {MAX_FEATURES:,}. Received one with"
            f" {count:,}. Put a GlobalAveragePooling2D behind its last map, in place of a Flatten, and save it again."
        )
    if len(features.shape) == 4:
        features = layers.Flatten(name="backbone_features")(features)
    return keras.Model(flat.inputs[0], features, name="backbone")  # its own name may be one of ours


def _flattened(model: keras.Model) -> keras.Model:
    """Return a model of new layers with the same weights, which can be trained; those of models inside are its own.

    So a part of the layers can be frozen, and heat maps find the last map.
    """
    made = dict[int, tuple[Any, Any]]()
    names = {"backbone_features"}  # that of our own last layer

    def renewed(operation: Any) -> Any:
        if isinstance(operation, keras.Model):
            inner = keras.Model(operation.inputs, operation.outputs)  # a Sequential has no graph of its own
            return lambda x, *_, **__: inner._run_through_graph(x, renewed)
        if id(operation) not in made:
            name = operation.name
            while name in names:
                name += "_"
            names.add(name)
            config = operation.get_config() | {"name": name}
            if "trainable" in config:
                config["trainable"] = True
            made[id(operation)] = operation, type(operation).from_config(config)
        return made[id(operation)][1]

    inputs = keras.Input(model.input_shape[1:])
    outputs = model._run_through_graph(inputs, renewed)
    for old, new in made.values():
        if isinstance(old, layers.Layer):
            copy_weights(old, new)
    return keras.Model(inputs, outputs)


def _features(outputs: Any) -> Any:
    """Return the tensor that a classifier starts from, or None; a model that ends in pooling has no classifier."""
    tensor, features = outputs, outputs if isinstance(_operation(outputs), (*_POOLINGS, layers.Flatten)) else None
    classified = False
    while len(sources := _sources(tensor)) == 1 and not is_map(tensor):
        if classified and isinstance(_operation(tensor), _POOLINGS):
            features = tensor
            break
        if not classified and isinstance(_operation(tensor), _CLASSIFIERS):
            classified, features = True, sources[0]
        tensor = sources[0]
    while features is not None and isinstance(_operation(features), _DROPOUTS):
        features = _sources(features)[0]
    return None if features is None or len(features.shape) == 3 or is_map(features) else features


def _operation(tensor: Any) -> Any:
    return tensor._keras_history.operation


def _sources(tensor: Any) -> list[Any]:
    """Return what a tensor was computed from; nothing for an input."""
    return list(_operation(tensor)._inbound_nodes[tensor._keras_history.node_index].input_tensors)


def is_map(tensor: Any) -> bool:
    """Return whether a tensor has places, more than one."""
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) != (1, 1)
