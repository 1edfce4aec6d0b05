"""Features of photos: what a network gives before its head, by TFLite on all cores."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert_phase import ConverterError

from contract.document import IMAGES, PREDICT_SIGNATURE, PROBABILITIES
from serving.engines import TFLITE_FILES, open_engine
from serving.errors import ServingError
from training.cores import INTERPRETERS, THREADS
from training.models.frozen import freeze, why_no_tflite
from training.models.quiet import quiet
from training.progress import in_batches
from training.words import counted

_log = logging.getLogger(__name__)

Features = NDArray[np.float32]
"""Of photos (n, c)."""

_BATCH = 16  # photos of a task


def compute_features(model: keras.Model, *splits: NDArray[np.uint8]) -> list[Features]:
    """Return the features (n, c) of several sets of images (n, h, w, 3), and log how long that took."""
    started, photos = time.monotonic(), counted(sum(map(len, splits)), "photo")
    run, workers = _runner(model)
    found = in_batches(run, splits, _BATCH, workers, f"Computing features of {photos}")
    _log.info(f"Computed the features of {photos} in {time.monotonic() - started:.0f} s")
    return [np.concatenate(parts) for parts in found]


def _runner(model: keras.Model) -> tuple[Callable[[NDArray[np.uint8]], Features], int]:
    """Return what computes features of pixels (n, h, w, 3), and how many may do so at once.

    That is TFLite, which is four times as fast as Keras on a CPU, or else Keras.
    """

    def by_keras(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = model.predict_on_batch(pixels)
        return features[: len(pixels)]  # where devices share the work, each predicts all, and Keras joins what they say

    def by_tflite(pixels: NDArray[np.uint8]) -> Features:
        return engine.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES]

    if tf.config.list_physical_devices("GPU"):
        return by_keras, 1
    try:
        with quiet(ConverterError, ServingError), tempfile.TemporaryDirectory() as scratch:
            frozen = freeze(model, *model.input_shape[1:3])
            content = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module()).convert()
            (Path(scratch) / TFLITE_FILES["tflite"]).write_bytes(content)
            engine = open_engine(Path(scratch), "tflite", THREADS, INTERPRETERS)
            by_tflite(np.zeros((1, *model.input_shape[1:]), np.uint8))  # XNNPACK announces itself at the first run
    except ConverterError as exc:
        _log.info(f"Note: a release of this network will fail, as it does not convert to TFLite: {why_no_tflite(exc)}")
    except ServingError as exc:
        why = f"as TFLite could not run this network: {exc}"
        _log.info(f"Note: Keras computes these features, and a release will probably fail, {why}")
    else:
        return by_tflite, INTERPRETERS
    return by_keras, 1
