"""The files of a version: one function as SavedModel, TFLite and perhaps int8, each checked against the Keras model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract import outputs, tensor
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
)
from serving.engines import TFLITE_FILES, open_engine
from serving.errors import ServingError
from training.cores import CORES
from training.errors import ExportError
from training.models.frozen import freeze
from training.release import quantization, tflite
from training.release.golden import (
    INT8_TOLERANCE,
    KERAS_TOLERANCE,
    REPLAY_TOLERANCE,
    GoldenImage,
    answer,
    check_probabilities,
    golden_images,
    largest_difference,
)

_log = logging.getLogger(__name__)

Run = Callable[[NDArray[np.uint8]], Mapping[str, Any]]
"""Pixels (n, h, w, 3) to the outputs of a file, by their names."""


def export(
    model: keras.Model,
    contract: Contract,
    path: Path,
    *,
    photos: Sequence[bytes] = (),
    int8: quantization.Limit | None = None,
) -> None:
    """Write the files of a version into an empty folder.

    Args:
        model: Pixels 0-255, float32 (n, h, w, 3), to probabilities (n, k); with a score, to both by their names.
        contract: All but its golden examples, which are made here, for each file its own.
        path: The folder.
        photos: Encoded held-out photos for golden examples.
        int8: When an int8 file is good enough; without it, none is written.

    Raises:
        ExportError: The files do not answer as the model does, or what was converted does not load.
        ServingError: One of them does not load.
    """
    images = golden_images(contract.image, photos)
    _log.info(f"Running {len(images)} golden examples through Keras")
    with_score = isinstance(model.output, dict)

    def ask(pixels: NDArray[np.uint8]) -> Mapping[str, Any]:
        given = model(pixels.astype(np.float32), training=False)
        return given if with_score else {PROBABILITIES: given}

    expected = answer(images, ask)
    check_probabilities(expected)
    files = _Files(path, images, expected)

    _log.info("Writing saved_model.pb, variables frozen to constants")
    frozen = freeze(model, contract.image.height, contract.image.width)
    files.add(
        "tensorflow",
        contract,
        lambda pixels: frozen(tf.constant(pixels)),
        lambda described: _write_saved_model(frozen, described, path),
    )
    _write_warmup(contract, path)

    _log.info("Converting to model.tflite")
    fp32 = tflite.convert(path, (contract.signature, DESCRIBE_SIGNATURE))
    files.add_tflite("tflite", contract, fp32)
    if int8 and (found := quantization.search(fp32, int8)):
        metrics = {**contract.metrics, **found.metrics}
        files.add_tflite("int8", replace(contract, metrics=metrics, tolerance=INT8_TOLERANCE), found.content)


@dataclass(frozen=True)
class _Files:
    """The files of one version: each contains the golden answers that it gives itself, and is checked.

    Attributes:
        path: The folder.
        images: Those of the golden examples.
        expected: What the Keras model answers.
    """

    path: Path
    images: Sequence[GoldenImage]
    expected: Sequence[GoldenExample]

    def add(self, engine: str, contract: Contract, run: Run, write: Callable[[Contract], object]) -> None:
        """Ask a function, write it with its answers, then load the file and compare."""
        described = replace(contract, golden=answer(self.images, run))
        write(described)
        self._check(engine, described)

    def add_tflite(self, engine: str, contract: Contract, content: bytes) -> None:
        """Add a TFLite file that does not describe itself yet."""
        file = self.path / TFLITE_FILES[engine]
        try:
            run = tflite.runner(content)
        except ServingError as exc:  # it names a temporary path
            raise ExportError(f"The {engine} file does not load: {exc}") from exc
        self.add(engine, contract, run, lambda described: file.write_bytes(tflite.describe(content, described)))

    def _check(self, name: str, described: Contract) -> None:
        engine = open_engine(self.path, name, CORES)
        if Contract.from_json(outputs.describe(engine.run)) != described:
            raise ExportError(f"The {name} file describes itself by another contract than it was given.")
        received = answer(self.images, lambda pixels: engine.run(described.signature, {IMAGES: pixels}))
        # Single probabilities of int8 may differ: what ties it to Keras is its accuracy. NaN is refused all the same.
        tolerance = np.inf if name == "int8" else KERAS_TOLERANCE
        from_keras = largest_difference(received, self.expected)
        if not from_keras <= tolerance:
            raise ExportError(
                f"The {name} file's probabilities differ from the Keras model's by {from_keras:g};"
                f" at most {tolerance:g} may."
            )
        if not (again := largest_difference(received, described.golden)) <= REPLAY_TOLERANCE:
            raise ExportError(f"The {name} file's probabilities differ by {again:g} when it runs a second time.")
        _log.info(f"Checked {name}: within {from_keras:.1e} of Keras on {len(self.images)} examples")


def _write_saved_model(frozen: Any, contract: Contract, path: Path) -> None:
    description, bits = contract.to_json(), identity_bits(contract.identity)
    pixels = tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name=IMAGES)

    def predict_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {PROBABILITIES: frozen(images)[PROBABILITIES]}

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.slice(tf.shape(images), [0], [1])
        return {**frozen(images), IDENTITY: tf.fill(count, tf.constant(bits, tf.int64))}

    def describe(query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {CONTRACT: tf.fill(tf.shape(query), description)}

    signatures = {
        PREDICT_SIGNATURE: tf.function(predict_default, [pixels]) if contract.novelty else frozen,
        contract.signature: tf.function(predict, [pixels]),
        DESCRIBE_SIGNATURE: tf.function(describe, [tf.TensorSpec((None,), tf.string, name=QUERY)]),
    }
    # Without this, saving a frozen graph fails on functions with a gradient of their own, such as swish.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(tf.Module(), str(path), signatures, options)


def _write_warmup(contract: Contract, path: Path) -> None:
    """Write one request for each signature of the gateway, which TensorFlow Serving runs before a version answers."""
    spec = contract.image
    inputs: dict[str, tuple[str, NDArray[Any]]] = {
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
