"""training/release/quantization.py: the middle in int8, both ends in fp32, and weights rounded with care."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from contract.document import DESCRIBE_SIGNATURE, EXPORT_SIGNATURES, IMAGES, PROBABILITIES, Contract

pytestmark = pytest.mark.tensorflow

IDENTITY = "0123456789abcdef"
PHOTOS = np.random.default_rng(0).integers(0, 256, (22, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def quantization() -> Any:
    """The module; it imports TensorFlow."""
    from training.release import quantization

    return quantization


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A TFLite file of convolutions, depthwise and not, as the converter makes it."""
    from tests.programs import tiny_model
    from training.models.frozen import freeze
    from training.release import export, tflite

    path = tmp_path_factory.mktemp("model")
    contract = Contract("tiny", tiny_model.CLASSES, tiny_model.SPEC, identity=IDENTITY)
    export._write_saved_model(freeze(tiny_model.build_convolutions(0), 16, 16), contract, path)
    return tflite.convert(path, (contract.signature, DESCRIBE_SIGNATURE))


@pytest.fixture(scope="module")
def int8(quantization: Any, fp32: bytes) -> bytes:
    """The same in int8."""
    return quantization.quantize(fp32, quantization.calibrate(fp32, PHOTOS), 0.5)


def predict(content: bytes) -> NDArray[np.float32]:
    runner = Interpreter(model_content=content).get_signature_runner(EXPORT_SIGNATURES + IDENTITY)
    return np.concatenate([runner(**{IMAGES: each[np.newaxis]})[PROBABILITIES] for each in PHOTOS])


def test_the_middle_is_int8_and_both_ends_are_not(quantization: Any, int8: bytes) -> None:
    """Pixels stay uint8, first and last layers give floats, and convolutions between them give int8."""
    model = quantization._Model(int8)
    types = [(model.kind(each), model.tensors[each.outputs[0]].type) for each in model.operations]
    layers = [each for each in types if each[0] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX")]
    floating, integer = quantization.schema.TensorType.FLOAT32, quantization.schema.TensorType.INT8
    assert layers[0] == ("CONV_2D", floating) and layers[-2:] == [("FULLY_CONNECTED", floating), ("SOFTMAX", floating)]
    assert {("CONV_2D", integer), ("DEPTHWISE_CONV_2D", integer)} <= set(layers)


def test_it_answers_nearly_as_fp32(fp32: bytes, int8: bytes) -> None:
    """Probabilities move, and not far."""
    difference = np.abs(predict(fp32) - predict(int8)).max()
    assert 0 < difference < 0.05


def test_signatures_stay(fp32: bytes, int8: bytes) -> None:
    """The file still describes itself with the same bytes."""
    runners = [Interpreter(model_content=each).get_signature_runner(DESCRIBE_SIGNATURE) for each in (fp32, int8)]
    query = np.array([b""], object)
    assert runners[0](query=query)["contract"] == runners[1](query=query)["contract"]


def test_a_range_leaves_out_what_is_rare(quantization: Any) -> None:
    """Of values with long tails 8 bits hold less than all, and lose less than if they held all."""
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    low, high = quantization._best_range(values)
    assert values.min() < low < -4 and 4 < high < values.max()

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        return float(np.square(np.round(np.clip(values, low, high) / step) * step - values).mean())

    assert error(low, high) < 0.8 * error(values.min(), values.max())


@pytest.mark.parametrize(("groups", "n"), [(1, 24), (5, 24), (2, 150)])
def test_rounding_errors_cancel_on_the_photos(quantization: Any, groups: int, n: int) -> None:
    """Sums of products come out closer than with each weight rounded for itself, on the same 255 steps."""
    random = np.random.default_rng(0)
    x = random.normal(size=(400, groups, 3)) @ random.normal(size=(3, n)) + 0.1 * random.normal(size=(400, groups, n))
    weights = random.normal(size=(groups, 8, n)).astype(np.float32)
    steps = np.abs(weights).max(axis=-1, keepdims=True) / 127

    def error(rounded: NDArray[np.float32]) -> float:
        return float(np.square(np.einsum("pgn,gkn->pgk", x, rounded - weights)).mean())

    rounded = quantization._round(weights, np.einsum("pgi,pgj->gij", x, x) / 400)
    np.testing.assert_allclose(rounded / steps, np.round(rounded / steps), atol=1e-3)
    assert np.abs(rounded).max(axis=-1, keepdims=True) == pytest.approx(127 * steps, rel=1e-5)
    assert error(rounded) < 0.3 * error(np.round(weights / steps) * steps)


def test_few_photos_suffice_for_many_weights(quantization: Any) -> None:
    """1,152 on 64 positions, which hardly differ; products of x and y and of y and x differ by float32's errors."""
    random = np.random.default_rng(0)
    x = np.maximum(random.exponential(2, (1, 1152)) - 2 + random.normal(0, 0.3, (64, 1152)), 0)
    moments = (x.T @ x + random.normal(0, 1e-3, (1152, 1152)))[np.newaxis] / 64
    weights = random.normal(size=(1, 2, 1152)).astype(np.float32)
    np.testing.assert_allclose(quantization._round(weights, moments), weights, atol=0.05)


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_patches_fit_the_weights(quantization: Any, fp32: bytes, kind: str) -> None:
    """Weights times patches is what the convolution gives, at each of the positions."""
    model = quantization._Model(fp32)
    operation = [each for each in model.operations if model.kind(each) == kind][-1]
    _, height, width, channels = model.tensors[operation.inputs[0]].shape
    taken = np.random.default_rng(0).normal(size=(1, height, width, channels)).astype(np.float32)
    x = model.patches(operation, taken, np.random.default_rng(1)) * quantization._POSITIONS**0.5
    received = np.einsum("pgn,gkn->pgk", x, model.weights(operation)).reshape(len(x), -1)
    random = np.random.default_rng(1)
    rows, columns = (random.integers(0, size, len(x)) for size in (height, width))
    np.testing.assert_allclose(received, convolve(kind)(taken, model, operation)[0, rows, columns], atol=1e-4)


def test_a_kernel_that_is_computed_is_not_rounded(quantization: Any, fp32: bytes) -> None:
    """A convolution with one has no weights, which ended a release."""
    model = quantization._Model(fp32)
    operation = next(each for each in model.operations if model.kind(each) == "CONV_2D")
    assert model.is_small_convolution(operation)
    model._model.buffers[model._kernel(operation).buffer].data = None
    assert not model.is_small_convolution(operation)


def convolve(kind: str) -> Callable[..., NDArray[np.float32]]:
    """Return TensorFlow's own convolution with an operation's kernel."""
    import tensorflow as tf

    def run(taken: NDArray[np.float32], model: Any, operation: Any) -> NDArray[np.float32]:
        kernel = model._kernel(operation)
        data = np.frombuffer(bytes(model._model.buffers[kernel.buffer].data), np.float32).reshape(kernel.shape)
        if kind == "CONV_2D":
            return tf.nn.conv2d(taken, data.transpose(1, 2, 3, 0), 1, "SAME").numpy()
        return tf.nn.depthwise_conv2d(taken, data.transpose(1, 2, 3, 0), (1, 1, 1, 1), "SAME").numpy()

    return run
