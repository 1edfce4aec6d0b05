"""An fp32 TFLite file to int8 after training, calibrated on some photos.

TFLite's converter alone lost 1.2 points of accuracy on clothing photos with EfficientNet-Lite0. Its divergence from
fp32 (Kullback-Leibler, on training photos outside the calibration) was 0.0146. Each step lowered it:

| step                                                                                   | divergence |
|----------------------------------------------------------------------------------------|------------|
| The last layer and the softmax stay in fp32; in int8, probabilities go in steps of 1/256 | 0.0035     |
| Ranges with the least squared error, where TFLite takes the widest values                | 0.0025     |
| The first half of the operations stays in fp32 too                                       | 0.0004     |
| Weights of convolutions are rounded so that errors cancel on photos                      | 0.0001     |

With AVX2 alone, keeping half in fp32 costs no time: the file is 1.12 times as fast as fp32, and 1.02 times all in int8.
With VNNI it costs 7 to 16 %, so smaller parts are tried first. Equalising channels and shifting biases made it worse.

ai-edge-quantizer 0.10 was tried in November 2026. With the same parts in fp32 it diverged 3 to 5 times as much on
clothing and trash, since it rounds no convolutions on photos. It also needs one exact version of ai-edge-litert.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.lite.python.convert_phase import ConverterError

from contract.document import DESCRIBE_SIGNATURE, IMAGES
from serving.errors import ServingError
from training.cores import CORES
from training.judge.predictors import Predict
from training.models.quiet import quiet
from training.progress import estimated
from training.release import tflite

_log = logging.getLogger(__name__)

CALIBRATION_PHOTOS = 150  # divergence 0.00013; 0.00012 with 400, in more than twice the time
FLOAT_PARTS = (0, 1 / 4, 1 / 2)  # of the operations, from the first; the least that keeps the accuracy is released
_VALUES, _POSITIONS = 1000, 64  # of each tensor and photo, drawn at random
# Whose patches are kept, 200 MB of EfficientNet-Lite0. ResNet50 one by one took 1.2 to 1.9 times as long.
_PHOTOS_AT_ONCE = 4
_MOST_WEIGHTS = 2304  # of one sum of products: 3x3x256; the moments are the square of it
_AT_ONCE = 64  # weights after which those that are left are changed: 512 x 2048 took 3.5 s, and 29 one by one
_LAYERS = ("CONV_2D", "FULLY_CONNECTED")
_KINDS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Limit:
    """When an int8 file is good enough to be released.

    Attributes:
        photos: Training photos to calibrate on, uint8 (n, h, w, 3).
        accuracy: Measures a file's accuracy on labelled photos.
        description: How many photos of what these are.
        keras_accuracy: The Keras model's accuracy on them.
        largest_drop: Most accuracy that int8 may lose against it.
    """

    photos: NDArray[np.uint8]
    accuracy: Callable[[Predict], float]
    description: str
    keras_accuracy: float
    largest_drop: float


@dataclass(frozen=True)
class Int8:
    """An int8 file without a description, and its figures for the contract."""

    content: bytes
    metrics: Mapping[str, float]


def search(content: bytes, limit: Limit) -> Int8 | None:
    """Quantize an fp32 TFLite file, as much of it as keeps the accuracy; None, after a log line, if nothing does."""
    _log.info(f"Calibrating int8 on {len(limit.photos)} training photos")
    try:
        calibration = calibrate(content, limit.photos)
        for float_part in FLOAT_PARTS:
            quantized = quantize(content, calibration, float_part)
            accuracy = limit.accuracy(tflite.predictor(quantized))
            drop = limit.keras_accuracy - accuracy
            kept = f" with {float_part:.0%} of the operations in fp32" if float_part else ""
            _log.info(f"int8{kept}: accuracy {accuracy:.4f} on {limit.description}, Keras {limit.keras_accuracy:.4f}")
            if drop <= limit.largest_drop + 1e-9:
                figures = {"int8_accuracy": accuracy, "keras_accuracy": limit.keras_accuracy}
                figures |= {"int8_accuracy_drop": drop, "int8_float_part": float_part}
                return Int8(quantized, {name: round(value, 4) for name, value in figures.items()})
    except (ConverterError, ServingError, RuntimeError, ValueError) as exc:
        _log.info(f"No int8 file: the model cannot be quantized ({exc})")
        return None
    _log.info(f"No int8 file: each lost more than {limit.largest_drop:g} of accuracy")
    return None


@dataclass(frozen=True)
class Calibration:
    """What photos show of each tensor, by its name.

    Attributes:
        ranges: Lowest and highest value that 8 bits should represent.
        weights: Of convolutions (g, k, n), rounded, see `_Model.weights`.
    """

    ranges: dict[str, tuple[float, float]]
    weights: dict[str, NDArray[np.float32]]


def calibrate(content: bytes, pixels: NDArray[np.uint8]) -> Calibration:
    """Run an fp32 TFLite file on training photos, uint8 (n, h, w, 3), and measure what its operations give."""
    model = _Model(content)
    convolutions = [operation for operation in model.operations if model.is_small_convolution(operation)]
    interpreter = Interpreter(model_content=model.with_all_outputs(), num_threads=CORES)
    predict = interpreter.get_signature_runner(model.signature)
    random = np.random.default_rng(0)
    drawn: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.computed}
    taken: dict[str, list[NDArray[np.float32]]] = {model.name(each.outputs[0]): [] for each in convolutions}
    moments: dict[str, NDArray[np.float32]] = {}  # of what a convolution takes: sum of x xᵀ (g, n, n)
    for position in estimated(range(len(pixels)), "Calibrating"):
        predict(**{IMAGES: pixels[position : position + 1]})
        for name, index in model.computed.items():
            values = interpreter.get_tensor(index, model.index).ravel()
            drawn[name] += [random.choice(values, _VALUES), values[[values.argmin(), values.argmax()]]]
        for operation in convolutions:
            name, value = model.name(operation.outputs[0]), interpreter.get_tensor(operation.inputs[0], model.index)
            taken[name].append(model.patches(operation, value, random))
        if (position + 1) % _PHOTOS_AT_ONCE == 0 or position + 1 == len(pixels):
            for name, patches in taken.items():
                found = _products(patches)
                moments[name] = np.add(moments[name], found, out=found) if name in moments else found
                patches.clear()
    ranges = {name: _best_range(np.concatenate(values)) for name, values in drawn.items()}
    outputs = {model.name(operation.outputs[0]): operation for operation in convolutions}
    return Calibration(ranges, {name: _round(model.weights(each), moments.pop(name)) for name, each in outputs.items()})


def _products(patches: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the sum of x xᵀ (g, n, n) over all x of all patches (p, g, n)."""
    x = np.concatenate(patches)
    if x.shape[1] == 1:  # of a matrix times its own transpose, NumPy computes half
        return (x[:, 0].T @ x[:, 0])[np.newaxis]
    return np.einsum("pgi,pgj->gij", x, x, optimize=True)


def quantize(content: bytes, calibration: Calibration, float_part: float) -> bytes:
    """Return an fp32 TFLite file in int8, but for its first part and its end; inputs and outputs stay as they are."""
    model = _Model(content)
    for name, index in model.computed.items():
        parameters = schema.QuantizationParametersT()
        parameters.min, parameters.max = ([value] for value in calibration.ranges[name])
        model.tensors[index].quantization = parameters
    first = round(len(model.operations) * float_part)
    in_fp32 = [*model.operations[:first], *model.ends()]
    for operation in model.operations:
        if operation not in in_fp32 and model.is_small_convolution(operation):
            model.set_weights(operation, calibration.weights[model.name(operation.outputs[0])])
    names = [model.name(index) for operation in in_fp32 for index in operation.outputs]
    with quiet(ConverterError):
        return mlir_quantize(model.to_bytes(), denylisted_nodes=names)


def _best_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the part of the values' range, zero in it, whose 255 steps leave the least squared error."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 1e-6)

    def error(part: float) -> float:
        step = (high - low) * part / 255
        clipped = np.clip(values, low * part, high * part)
        return float(np.square(np.round(clipped / step) * step - values, dtype=np.float64).mean())

    best = min(map(float, np.linspace(0.3, 1.0, 36)), key=error)
    return low * best, high * best


def _round(weights: NDArray[np.float32], moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round each row of weights (g, k, n) to 255 steps; the error of each weight is made good by those after it.

    The widest weight of a row, which decides on its step when TFLite rounds again, stays.

    Source: E. Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (2022).
    """
    left = weights.astype(np.float64)
    n = left.shape[-1]
    widest = np.abs(left).argmax(axis=-1)
    fixed = 127 * np.sign(np.take_along_axis(left, widest[..., np.newaxis], axis=-1)[..., 0])
    steps = np.maximum(np.abs(left).max(axis=-1), 1e-9) / 127
    # Symmetric to the last bit: those of few photos are nearly singular, and errors of float32 would ruin the inverse.
    symmetric = np.add(moments, moments.swapaxes(1, 2), dtype=np.float64) / 2
    damping = np.maximum(0.01 * np.trace(symmetric, axis1=1, axis2=2) / n, 1e-9)
    factor = np.linalg.cholesky(np.linalg.inv(symmetric + damping[:, np.newaxis, np.newaxis] * np.eye(n)))
    rounded, errors = np.zeros_like(left), np.zeros_like(left)
    for start in range(0, n, _AT_ONCE):
        stop = min(start + _AT_ONCE, n)
        for i in range(start, stop):
            whole = np.clip(np.round(left[..., i] / steps), -127, 127)
            rounded[..., i] = np.where(widest == i, fixed, whole) * steps
            errors[..., i] = (left[..., i] - rounded[..., i]) / factor[:, np.newaxis, i, i]
            left[..., i + 1 : stop] -= errors[..., i, np.newaxis] * factor[:, np.newaxis, i + 1 : stop, i]
        left[..., stop:] -= errors[..., start:stop] @ factor[:, stop:, start:stop].swapaxes(1, 2)
    return rounded.astype(np.float32)


class _Model:
    """The part of a TFLite file that predicts, as objects that can be changed."""

    def __init__(self, content: bytes) -> None:
        self._model = tflite.unpack(content)
        predicts = next(each for each in self._model.signatureDefs if each.signatureKey != DESCRIBE_SIGNATURE.encode())
        self.signature, self.index = predicts.signatureKey.decode(), predicts.subgraphIndex
        self.operations = self._model.subgraphs[self.index].operators
        self.tensors = self._model.subgraphs[self.index].tensors

    @property
    def computed(self) -> dict[str, int]:
        """The index of each float tensor that an operation gives, by its name."""
        outputs = (int(index) for operation in self.operations for index in operation.outputs)
        return {self.name(each): each for each in outputs if self.tensors[each].type == schema.TensorType.FLOAT32}

    def ends(self) -> list[Any]:
        """Return the last layer, what comes after it, and what goes beside it: no other layer takes what they give.

        Without any layer, it is the last operation.
        """
        if not any(self.kind(operation) in _LAYERS for operation in self.operations):
            return list(self.operations[-1:])
        ends, taken = list[Any](), set[int]()  # by a layer, at the end
        for operation in reversed(self.operations):
            if taken.isdisjoint(map(int, operation.outputs)):
                ends.append(operation)
            if operation not in ends or self.kind(operation) in _LAYERS:
                taken.update(map(int, operation.inputs))
        return ends

    def name(self, index: int) -> str:
        return str(self.tensors[index].name.decode())

    def kind(self, operation: Any) -> str:
        code = self._model.operatorCodes[operation.opcodeIndex]
        return _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def is_small_convolution(self, operation: Any) -> bool:
        """Tell whether it is a convolution, of one group or of each channel alone, whose moments can be handled.

        A kernel that is computed has no weights to round.
        """
        if self.kind(operation) not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return False
        kernel = self._kernel(operation)
        if self._model.buffers[kernel.buffer].data is None:
            return False
        _, height, width, channels = kernel.shape
        values = height * width * (1 if self.kind(operation) == "DEPTHWISE_CONV_2D" else channels)
        return bool(channels == self.tensors[operation.inputs[0]].shape[-1] and values <= _MOST_WEIGHTS)

    def patches(self, operation: Any, taken: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Return what the kernel lies on at random positions (p, g, n): n values for each of g sums of products.

        A convolution has one group; depthwise, each channel is one.
        """
        _, height, width, _ = self._kernel(operation).shape
        top, left = (height - 1) // 2, (width - 1) // 2
        padded = np.pad(taken[0], ((top, height - 1 - top), (left, width - 1 - left), (0, 0)))
        rows, columns = (random.integers(0, size, _POSITIONS) for size in taken.shape[1:3])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(0, 1))
        x: NDArray[np.float32] = windows[rows, columns].reshape(_POSITIONS, taken.shape[-1], -1)
        x = x / np.float32(_POSITIONS**0.5)
        return x if self.kind(operation) == "DEPTHWISE_CONV_2D" else x.reshape(_POSITIONS, 1, -1)

    def weights(self, operation: Any) -> NDArray[np.float32]:
        """Return a convolution's weights (g, k, n), k channels for each group, in the order of `patches`."""
        kernel = self._kernel(operation)
        data = bytes(self._model.buffers[kernel.buffer].data)
        by_channel = np.moveaxis(np.frombuffer(data, np.float32).reshape(kernel.shape), -1, 1)  # k, c, h, w
        outer, channels = by_channel.shape[:2]
        if self.kind(operation) == "DEPTHWISE_CONV_2D":
            return by_channel.reshape(1, channels, -1).swapaxes(0, 1)
        return by_channel.reshape(1, outer, -1)

    def set_weights(self, operation: Any, weights: NDArray[np.float32]) -> None:
        """Put weights (g, k, n) in place of a convolution's."""
        kernel = self._kernel(operation)
        outer, height, width, channels = kernel.shape
        by_channel = weights.reshape(outer, channels, height, width)
        buffer = self._model.buffers[kernel.buffer]
        buffer.data = np.frombuffer(np.moveaxis(by_channel, 1, -1).tobytes(), np.uint8)

    def _kernel(self, operation: Any) -> Any:
        return self.tensors[operation.inputs[1]]

    def with_all_outputs(self) -> bytes:
        """Return a file that gives what lies between the operations too.

        XNNPACK keeps that to itself otherwise. Without XNNPACK, ResNet50 takes 4.5 times as long, DenseNet121 6.7.
        """
        model = tflite.unpack(self.to_bytes())
        model.subgraphs[self.index].outputs = np.array([*self.computed.values()], np.int32)
        return tflite.pack(model)

    def to_bytes(self) -> bytes:
        return tflite.pack(self._model)
