"""Features of a frozen backbone: computed once by TFLite on all cores, and kept beside the pixels."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from tensorflow.lite.python.convert_phase import ConverterError

from contract.disk import written_whole
from training.data.pixels import Pixels, Rows
from training.models.frozen import freeze
from training.models.quiet import quiet
from training.progress import estimated

_log = logging.getLogger(__name__)

Features = NDArray[np.float32]
"""Of photos (n, c)."""
_Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, h, w, 3) to features (n, c)."""

_BATCH = 16  # photos of a task
_MOST_INTERPRETERS = 16  # each takes some 30 MB


def frozen_features(model: keras.Model, *splits: Pixels) -> list[Features]:
    """Return the features of the photos of some splits, which other trainings then find in the cache.

    Args:
        model: Pixels 0-255, float32 (n, h, w, 3), to features (n, c).
        splits: The photos. Of a part of a split, the features of all its photos are computed, for other parts.
    """
    name = _digest(model)
    files = [photos.file.with_suffix(f".{name}.npy") for photos in splits]
    whole = {file: getattr(photos.images, "array", photos.images) for file, photos in zip(files, splits, strict=True)}
    if missing := {file: images for file, images in whole.items() if not file.is_file()}:
        for file, features in zip(missing, compute_features(model, *missing.values()), strict=True):
            with written_whole(file) as draft, draft.open("wb") as opened:
                np.save(opened, features)
    rows = [photos.images.positions if isinstance(photos.images, Rows) else slice(None) for photos in splits]
    return [np.load(file, mmap_mode="r")[chosen] for file, chosen in zip(files, rows, strict=True)]


def compute_features(model: keras.Model, *splits: NDArray[np.uint8]) -> list[Features]:
    """Return the features (n, c) of several sets of images (n, h, w, 3), and log how long that took."""
    started, steps = time.monotonic(), [range(0, len(images), _BATCH) for images in splits]
    count = sum(map(len, splits))
    waited = estimated(range(sum(map(len, steps))), f"Computing features of {count} photos")
    run, workers = _runner(model)
    found = []
    with ThreadPoolExecutor(workers) as pool:
        for images, starts in zip(splits, steps, strict=True):
            parts = pool.map(lambda at, images=images: run(np.ascontiguousarray(images[at : at + _BATCH])), starts)
            found.append(np.concatenate([part for part, _ in zip(parts, waited)]))  # noqa: B905, the latter goes on
    _log.info(f"Computed the features of {count} photos in {time.monotonic() - started:.0f} s")
    return found


def _digest(model: keras.Model) -> str:
    """Return what tells models apart: their layers and weights."""
    kinds = [type(layer).__name__ for layer in model._flatten_layers()]
    digest = hashlib.sha256(repr([kinds, model.input_shape, keras.__version__]).encode())
    for weights in model.get_weights():
        digest.update(weights.tobytes())
    return digest.hexdigest()[:12]


def _runner(model: keras.Model) -> tuple[_Run, int]:
    """Return what computes features, and how many may do so at once.

    That is TFLite, which is four times as fast as Keras on a CPU, or else Keras.
    """
    if tf.config.list_physical_devices("GPU"):
        return model.predict_on_batch, 1
    count = min(os.cpu_count() or 1, _MOST_INTERPRETERS)
    try:
        with quiet():
            frozen = freeze(model, *model.input_shape[1:3])
            content = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module()).convert()
            interpreters = [Interpreter(model_content=content, num_threads=1) for _ in range(count)]
            for interpreter in interpreters:
                interpreter.allocate_tensors()
    except (ConverterError, RuntimeError):  # an operation that TFLite lacks
        return model.predict_on_batch, 1
    idle = SimpleQueue[Any]()
    for interpreter in interpreters:
        idle.put(interpreter)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter = idle.get()
        (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
        rows = []
        for row in pixels:
            interpreter.set_tensor(entry["index"], row[np.newaxis])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(end["index"])[0])
        idle.put(interpreter)
        return np.stack(rows)

    return run, count
