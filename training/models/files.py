"""Keras files: a whole model, or the weights of an architecture."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h5py
import keras
import numpy as np
from keras import layers

from training.errors import WeightsError
from training.models.catalogue import Architecture, check_preprocessing, with_preprocessing
from training.models.outputs import of_one_output
from training.words import counted

_log = logging.getLogger(__name__)

_KERAS_2_ADVICE = (
    "If Keras 2 (tf.keras before TensorFlow 2.16) wrote it: install tf-keras, load the file with it, save its weights"
    " as NAME.weights.h5, and export those with --architecture."
)


class _OfKeras2:
    """Reads what Keras 2 wrote of a layer, and Keras 3 no longer takes: one group, and one axis in a list."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if config.get("groups") == 1:
            config = {name: value for name, value in config.items() if name != "groups"}
        if isinstance(axis := config.get("axis"), list) and len(axis) == 1:
            config = config | {"axis": axis[0]}
        # Keras' own class, so that the model can be saved again
        return getattr(layers, cls.__name__).from_config(config)


# Grouped convolutions keep `groups`. Source: the arguments of Keras 3's layers beside those that Keras 2.15 wrote.
_KERAS_2_LAYERS = {
    layer.__name__: type(layer.__name__, (_OfKeras2, layer), {})
    for layer in (
        *(layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D),
        *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose, layers.BatchNormalization),
    )
}
# Other classes of Keras 2 that predict as one of Keras 3 does, and its policies of precision, of which the name counts.
_KERAS_2_LAYERS |= {
    **dict.fromkeys(("SyncBatchNormalization", "BatchNormalizationV1"), _KERAS_2_LAYERS["BatchNormalization"]),
    "Policy": keras.DTypePolicy,
    "FixedDropout": layers.Dropout,  # of the package efficientnet; a dropout changes no prediction
}
_CUSTOM = re.compile(
    r"(?:Could not locate class|Unknown layer:) '(?P<layer>[^']+)'"
    r"|(?:Could not locate function '|Could not interpret \w+ function identifier: )(?P<function>[^'\s]+)"
)
_IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)
_LAYERS_OF_2_13 = "_layer_checkpoint_dependencies"
_IN_WEIGHTS = {"layers", "vars", _LAYERS_OF_2_13}  # one of them is in each .weights.h5 of Keras 3


def load_file(
    path: Path,
    architecture: Architecture | None,
    classes: int,
    preprocessing: str,
    *,
    size_px: int | None = None,
    output: str | None = None,
) -> keras.Model:
    """Load a Keras model, or the weights of an architecture, as a model for pixels 0-255, in float32.

    Args:
        path: `.keras` or `.h5` with a whole model, or weights alone, which need the architecture.
        architecture: What the weights belong to.
        classes: Number of class outputs expected.
        preprocessing: One of `PREPROCESSING`.
        size_px: Height and width, for a model that leaves them open.
        output: Which output to take, of a model that has several.

    Raises:
        WeightsError: The file does not load, or not with these arguments. Or its outputs do not fit the classes.
    """
    check_preprocessing(preprocessing)  # before a file is loaded, which may take a while
    if not contains_only_weights(path):
        if architecture:
            raise WeightsError(f"Expected no --architecture with {path.name}, which contains a whole model")
        return with_preprocessing(load_model(path, size_px=size_px, output=output), preprocessing)
    if architecture is None:
        raise WeightsError(f"Expected --architecture with {path.name}, which contains weights and no model")
    if output:
        raise WeightsError(f"Expected no --output with {path.name}, as its architecture has only one")
    model = architecture.with_top("none", classes)
    load_weights(
        model, path, f"It must contain all weights of {architecture.name}, with {counted(classes, 'class')} on top."
    )
    return with_preprocessing(model, preprocessing)


def load_model(path: Path, *, size_px: int | None = None, output: str | None = None) -> keras.Model:
    """Load a whole model of one input and one output, in float32, see `load_file`."""
    model = _loading(path, lambda: keras.models.load_model(path, _KERAS_2_LAYERS, compile=False), _KERAS_2_ADVICE)
    shapes = [tuple(each.shape) for each in getattr(model, "inputs", None) or ()]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] != 3:
        raise WeightsError(f"Expected a model of one input (n, height, width, 3). Received: {shapes or 'none defined'}")
    model = of_one_output(_in_float32(model), output)
    if None in model.input_shape[1:3]:
        if size_px is None:
            raise WeightsError("Expected --size, since the model's input leaves height and width open")
        inputs = keras.Input((size_px, size_px, 3))
        try:
            model = keras.Model(inputs, model(inputs), name=model.name)
        except ValueError as exc:  # Keras says in many lines that a map would be smaller than nothing, or does not fit
            expected = f"Expected a --size that {path} takes, such as that of its training"
            raise WeightsError(f"{expected}. Received: {size_px}") from exc
    return model


def load_weights(model: keras.Model, path: Path, advice: str) -> None:
    """Load weights alone into a model; the advice is for what does not fit.

    Keras chooses by the name how it reads them, and Keras 2 wrote its own form under the name of the other one too.
    """
    with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
        is_of_keras_2 = "layer_names" in file.attrs
        link = Path(folder) / ("linked.h5" if is_of_keras_2 else "linked.weights.h5")
        link.symlink_to(path.resolve())
        _loading(path, lambda: model.load_weights(link), advice)
        names = file.attrs["layer_names"] if is_of_keras_2 else file.get("layers") or file.get(_LAYERS_OF_2_13, ())
        may_be_keras_own = is_of_keras_2 and getattr(model.layers[-1], "units", 1000) == 1000  # or without a top
        if may_be_keras_own or sum("rescaling" in str(name) for name in names) > 1:
            _normalise_as_imagenet(model)


def _normalise_as_imagenet(model: keras.Model) -> None:
    """Do in EfficientNetB0 to B7 what Keras does by one more layer, which it builds only for `weights="imagenet"`.

    Their `Normalization` contains ImageNet's deviations in place of variances, and divides by their roots. The layer,
    a second `Rescaling`, divides by the roots once more. Without it, photos have half of the contrast. Keras' own files
    were written without it; what was tuned from them expects it only if it was there.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Normalization) and layer.weights:
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, _IMAGENET_DEVIATIONS, atol=1e-4):
                layer.set_weights([mean, variance**2, count])
                layer.finalize_state()


def count_numbers(path: Path) -> int:
    """Return how many numbers there are in a file of weights alone, without an optimizer's and random seeds."""
    sizes = list[int]()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not {"optimizer", "seed_generator"} & set(name.split("/")):
            sizes.append(item.size)

    with h5py.File(path) as file:
        file.visititems(visit)
    return sum(sizes)


def contains_only_weights(path: Path) -> bool:
    """Look into a file, whatever its name; refuse what is no model, and what Keras would not load under that name."""
    if "saved_model.pb" in (path.name, *(each.name for each in (path.iterdir() if path.is_dir() else ()))):
        raise WeightsError(
            f"Expected a Keras file. Received a SavedModel: {path}. Keras {keras.__version__} does not load it. Load it"
            " where it was made, and save it as NAME.keras or, in Keras 2, its weights as NAME.weights.h5."
        )
    if path.is_dir():
        raise WeightsError(f"Expected a Keras file: .keras, .h5 or .weights.h5. Received a folder: {path}")
    if not path.is_file():
        raise WeightsError(f"Expected a file of weights. Received a path where there is none: {path}")
    content = _read_kind(path)
    if content is None:
        raise WeightsError(
            f"Expected a Keras file: .keras, .h5 or .weights.h5. Received {path}, which is none by its content"
            f" ({path.stat().st_size:,} bytes). If it was downloaded, it may be cut off, or a web page: get it again. A"
            " model of PyTorch, ONNX or TFLite, or a checkpoint, must become a Keras model first, by other tools."
        )
    is_model, suffixes = content
    if not path.name.endswith(suffixes):
        reason = "as the content does" if is_model else "as only weights are inside"
        raise WeightsError(f"Expected a name that ends in {suffixes[0]}, {reason}. Received: {path}. Rename it.")
    return not is_model


def _read_kind(path: Path) -> tuple[bool, tuple[str, ...]] | None:
    """Return whether a file contains a model, and how its name may end; None if it is no whole Keras file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return (True, (".keras",)) if "config.json" in archive.namelist() else None
    try:
        with h5py.File(path) as file:
            if "model_config" in file.attrs:
                return True, (".h5", ".hdf5")
            if "layer_names" in file.attrs:  # weights of Keras 2
                return False, (".weights.h5", ".h5", ".hdf5")
            return (False, (".weights.h5",)) if _IN_WEIGHTS & set(file) else None
    except OSError:  # it is no HDF5, or cut off
        return None


def _in_float32(model: keras.Model) -> keras.Model:
    """Return a model of another or mixed precision in float32; others as they are.

    Raises:
        WeightsError: The model was quantized, so that its variables are integers.
    """
    policies = {layer.dtype_policy.name: layer.dtype_policy for layer in model._flatten_layers()}
    names = ", ".join(sorted(policies))
    if any(isinstance(policy, keras.dtype_policies.QuantizedDTypePolicy) for policy in policies.values()):
        raise WeightsError(
            f"Expected a model that was not quantized. Received one that computes in: {names}. Save it before"
            " `quantize`; with --photos, the release gets an int8 file."
        )
    if not any(re.search("float(16|64)", name) for name in policies):
        return model
    _log.info(f"Loaded in float32. It computed in: {names}")
    config = json.dumps(keras.saving.serialize_keras_object(model))
    config = re.sub(r'"(mixed_)?b?float(16|64)"', '"float32"', config)
    widened = keras.saving.deserialize_keras_object(json.loads(config), _KERAS_2_LAYERS)
    copy_weights(model, widened)
    return cast(keras.Model, widened)


def copy_weights(source: keras.Layer, target: keras.Layer) -> None:
    """Give a layer or model the weights of another that is built alike."""
    target.set_weights(source.get_weights())
    for layer in target._flatten_layers():
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with numbers that it made of its weights before


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
        elif custom := _CUSTOM.search(reason):
            kind = "function" if custom["function"] else "layer"
            reason = f"the {kind} {custom['function'] or custom['layer']}, which Keras does not have"
            advice = "The file contains its name, not its code. Put Keras' own layers in its place, and save again."
        if len(reason) > 800:  # Keras lists whole configurations and variables between the start and the cause
            reason = f"{reason[:400]} … {reason[-400:]}"
        raise WeightsError(
            f"Expected {path} to load in Keras {keras.__version__}. Received: {reason}. {advice}"
        ) from exc
    return loaded
