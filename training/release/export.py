"""A Keras model to a released version: SavedModel, TFLite and perhaps int8 of one function, checked, then renamed."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert_phase import ConverterError

from contract import answers, tensor
from contract import messages_pb2 as messages
from contract.document import (
    CONTRACT,
    DESCRIBE_SIGNATURE,
    IDENTITY,
    IMAGES,
    PREDICT_SIGNATURE,
    PROBABILITIES,
    QUERY,
    Contract,
    GoldenExample,
    identity_bits,
    new_identity,
)
from serving.engines import TFLITE_FILES, Engine, open_engine
from serving.errors import ServingError
from training.errors import ExportError
from training.models.frozen import freeze
from training.release import golden, quantization, tflite
from training.release.criteria import Criteria, Predict
from training.release.store import staged_version

_log = logging.getLogger(__name__)

# Largest difference in a probability between an fp32 file and the Keras model. Seen: 4e-6.
KERAS_TOLERANCE = 1e-3
# Largest difference between a file as checked and the golden examples inside it: the same file, run twice.
REPLAY_TOLERANCE = 1e-5
# What a replay of an int8 file may show. For any threads and batch it is 0, but a value that other kernels put on the
# other side of a rounding step moves probabilities: between XNNPACK and TFLite's own by up to 0.037 in 120 photos.
INT8_TOLERANCE = 0.05


@dataclass(frozen=True)
class Release:
    """A version that was released: where it lies, and the identity that its files carry."""

    directory: Path
    identity: str


def export(
    model: keras.Model,
    contract: Contract,
    store: Path,
    photos: Sequence[bytes] = (),
    judge: Criteria | None = None,
) -> Release:
    """Release a model as the next version of `store/<contract.model>/`.

    Args:
        model: Pixels 0-255, float32 (n, h, w, 3), to probabilities (n, k).
        contract: All but its golden examples, which are made here, for each file its own, and its identity.
        store: The model-store.
        photos: Encoded held-out photos for golden examples.
        judge: Labelled photos, without which there is no int8 and no comparison with the last version.

    Raises:
        ExportError: It is worse than the last version and may not be, or the files do not answer as the model does, or
            could not be written; no version was released.
    """
    contract, spec = replace(contract, identity=new_identity()), contract.image
    images = golden.golden_images(spec, photos)
    _log.info(f"Running {len(images)} golden examples through Keras")
    expected = golden.answer(images, spec, lambda pixels: np.asarray(model(pixels.astype(np.float32), training=False)))
    _check_probabilities(expected, len(contract.classes))
    frozen = freeze(model, spec.height, spec.width)

    def by_graph(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(frozen(tf.constant(pixels))[PROBABILITIES])

    accuracy = judge.accuracy(by_graph, spec) if judge else 0.0
    if judge:
        judge.refuse_if_worse(accuracy, contract, store)
    try:
        with staged_version(store, contract.model) as staging:
            _log.info("Writing saved_model.pb, variables frozen to constants")
            described = contract.with_golden(golden.answer(images, spec, by_graph))
            _write_saved_model(frozen, described, staging.path)
            _log.info("Converting to model.tflite")
            converted = tflite.convert(staging.path, (contract.signature, DESCRIBE_SIGNATURE))
            by_tflite = _predict(_run_here(converted, "tflite"), contract)
            described = contract.with_golden(golden.answer(images, spec, by_tflite))
            (staging.path / TFLITE_FILES["tflite"]).write_bytes(tflite.describe(converted, described))
            _write_warmup(contract, staging.path)
            for engine in ("tensorflow", "tflite"):
                _check(_open(staging.path, engine), engine, expected, contract, KERAS_TOLERANCE)
            if judge:
                _add_int8(
                    converted, contract, expected=expected, judge=judge, keras_accuracy=accuracy, path=staging.path
                )
            return Release(staging.release(), contract.identity)
    except (OSError, tf.errors.OpError) as exc:
        raise ExportError(f"Expected to write a version below {store / contract.model}. Received: {exc}") from exc


def _write_saved_model(frozen: Any, contract: Contract, path: Path) -> None:
    description, bits = contract.to_json(), identity_bits(contract.identity)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.slice(tf.shape(images), [0], [1])
        return {**frozen(images), IDENTITY: tf.fill(count, tf.constant(bits, tf.int64))}

    def describe(query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {CONTRACT: tf.fill(tf.shape(query), description)}

    signatures = {
        PREDICT_SIGNATURE: frozen,
        contract.signature: tf.function(answer, [tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name=IMAGES)]),
        DESCRIBE_SIGNATURE: tf.function(describe, [tf.TensorSpec((None,), tf.string, name=QUERY)]),
    }
    # Without this, saving a frozen graph fails on functions with a gradient of their own, such as swish.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(tf.Module(), str(path), signatures, options)


def _add_int8(
    converted: bytes,
    contract: Contract,
    *,
    expected: Sequence[GoldenExample],
    judge: Criteria,
    keras_accuracy: float,
    path: Path,
) -> None:
    """Write a TFLite file in int8 beside the others, if it loses no more accuracy than it may; else say why not."""
    _log.info(f"Calibrating int8 on {len(judge.calibration)} training photos")
    try:
        calibration = quantization.calibrate(converted, judge.calibration)
        for float_part in quantization.FLOAT_PARTS:
            content = quantization.quantize(converted, calibration, float_part)
            predict = _predict(_run_here(content, "int8"), contract)
            accuracy = judge.accuracy(predict, contract.image)
            drop = keras_accuracy - accuracy
            kept = f" with {float_part:.0%} of the operations in fp32" if float_part else ""
            _log.info(f"int8{kept}: accuracy {accuracy:.4f} on {judge.told}, Keras {keras_accuracy:.4f}")
            if drop <= judge.int8_drop + 1e-9:
                break
        else:
            _log.info(f"No int8: expected to lose at most {judge.int8_drop:g} of accuracy")
            return
    except (ConverterError, ServingError, RuntimeError, ValueError) as exc:
        _log.info(f"No int8: expected a model that can be quantized. Received: {exc}")
        return
    metrics = {
        "int8_accuracy": accuracy,
        "keras_accuracy": keras_accuracy,
        "int8_accuracy_drop": drop,
        "int8_float_part": float_part,
    }
    contract = replace(
        contract,
        metrics={**contract.metrics, **{name: round(value, 4) for name, value in metrics.items()}},
        tolerance=INT8_TOLERANCE,
    )
    images = [(each.name, each.image) for each in expected]
    described = contract.with_golden(golden.answer(images, contract.image, predict))
    (path / TFLITE_FILES["int8"]).write_bytes(tflite.describe(content, described))
    # Single probabilities may differ; what holds int8 to Keras is its accuracy. NaN is refused all the same.
    _check(_open(path, "int8"), "int8", expected, contract, np.inf)


def _write_warmup(contract: Contract, path: Path) -> None:
    """Write one request for each signature of the gateway, which TensorFlow Serving runs before a version answers."""
    spec = contract.image
    inputs = {
        contract.signature: (IMAGES, np.zeros((1, spec.height, spec.width, 3), np.uint8)),
        DESCRIBE_SIGNATURE: (QUERY, np.array([b""], dtype=object)),
    }
    folder = path / "assets.extra"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for signature, (alias, array) in inputs.items():
            request = messages.PredictRequest(
                model_spec=messages.ModelSpec(name=contract.model, signature_name=signature),
                inputs={alias: tensor.to_proto(array)},
            )
            log = messages.PredictionLog(predict_log=messages.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _check(
    engine: Engine,
    name: str,
    expected: Sequence[GoldenExample],
    contract: Contract,
    keras_tolerance: float,
) -> None:
    """Load and run what was written: against Keras, and against the golden examples that it carries."""
    written = Contract.from_json(answers.describe(engine.run))
    if written.with_golden(()) != contract:
        raise ExportError(f"Expected the {name} file to describe itself as it was made. Received another contract")
    predict = _predict(engine, contract)
    received = golden.answer([(each.name, each.image) for each in expected], contract.image, predict)
    for other, tolerance, whose in (
        (expected, keras_tolerance, "the Keras model's"),
        (written.golden, REPLAY_TOLERANCE, "its own golden"),
    ):
        difference = _difference(received, other)
        if not difference <= tolerance:
            raise ExportError(
                f"Expected the {name} file's probabilities within {tolerance:g} of {whose}. Received: {difference:g}"
            )
    _log.info(f"Checked {name}: within {_difference(received, expected):.1e} of Keras on {len(expected)} examples")


def _open(path: Path, engine: str) -> Engine:
    try:
        return open_engine(path, engine, os.cpu_count() or 1)
    except ServingError as exc:
        raise ExportError(f"Expected the {engine} file to load. Received: {exc}") from exc


def _run_here(content: bytes, engine: str) -> Engine:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / TFLITE_FILES[engine]).write_bytes(content)
        return _open(Path(scratch), engine)


def _predict(engine: Engine, contract: Contract) -> Predict:
    return lambda pixels: np.asarray(engine.run(contract.signature, {IMAGES: pixels})[PROBABILITIES])


def _difference(received: Sequence[GoldenExample], expected: Sequence[GoldenExample]) -> float:
    """Return the largest absolute difference in a probability; NaN if one is."""
    pairs = zip(received, expected, strict=True)
    return float(np.max([np.abs(np.subtract(a.probabilities, b.probabilities)).max() for a, b in pairs]))


def _check_probabilities(examples: Sequence[GoldenExample], classes: int) -> None:
    for example in examples:
        probabilities = np.array(example.probabilities)
        if len(probabilities) != classes:
            raise ExportError(f"Expected as many probabilities as classes, {classes}. Received: {len(probabilities)}")
        if not (np.isfinite(probabilities).all() and abs(probabilities.sum() - 1) < 1e-3 and probabilities.min() >= 0):
            raise ExportError(
                f"Expected probabilities that sum to 1 for golden example {example.name!r}. Received a sum of"
                f" {probabilities.sum():g}, from {probabilities.min():g} to {probabilities.max():g}"
            )
