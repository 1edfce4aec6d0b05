"""Labelled photos that decide on a release: whether it is worse than the last one, and whether int8 is good enough."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.document import Contract, ImageSpec
from contract.store import versions_of
from training.data.folder import Photo, read_folder
from training.data.pixels import load_pixels
from training.errors import DataError, ExportError
from training.judge.predictors import StoredVersion, check_alike
from training.release.quantization import CALIBRATION_PHOTOS

_log = logging.getLogger(__name__)

_BATCH = 32

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Criteria:
    """The photos, and how much accuracy may be lost on them.

    Attributes:
        calibration: Some training photos, uint8 (n, h, w, 3).
        held_out: The test split, or validation without one; those that decode.
        split: Which of them it is.
        cache: Where decoded pixels go.
        int8_drop: Most accuracy that int8 may lose against the Keras model.
        margin: Most accuracy that a version may lose against the last one; None does not compare them.
    """

    calibration: NDArray[np.uint8]
    held_out: list[Photo]
    split: str
    cache: Path
    int8_drop: float
    margin: float | None

    @property
    def told(self) -> str:
        """How many photos of what."""
        return f"{len(self.held_out)} photos of {self.split}"

    def accuracy(self, predict: Predict, spec: ImageSpec) -> float:
        """Return the part of the held-out photos whose class gets the highest probability (n, k)."""
        pixels = load_pixels(self.held_out, spec, self.cache)
        batches = (pixels.images[start : start + _BATCH] for start in range(0, len(pixels.labels), _BATCH))
        top = np.concatenate([predict(np.ascontiguousarray(batch)).argmax(axis=1) for batch in batches])
        return float((top == pixels.labels).mean())

    def refuse_if_worse(self, accuracy: float, contract: Contract, store: Path) -> None:
        """Compare an accuracy with that of the newest version in the store, by its fp32 TFLite file.

        Raises:
            TrainingError: It is lower by more than the margin, or the classes are others.
        """
        if self.margin is None:
            return
        if not versions_of(store, contract.model):
            _log.info(f"Nothing to compare with: {store} has no version of {contract.model!r} yet")
            return
        last = StoredVersion(store, contract.model, None, "tflite")
        check_alike([last, _New(contract)])
        for title, each in ((last.title, last.contract), ("The new version", contract)):
            digest = load_pixels(self.held_out, each.image, self.cache).digest
            if each.origin.get("data_digest", {}).get(self.split) != digest:
                _log.info(f"Note that {title} held out other photos, and may have been trained on some of these")
        before = self.accuracy(last.predict_pixels, last.contract.image)
        if accuracy < before - self.margin - 1e-9:
            raise ExportError(
                f"Expected an accuracy of at least {before:.4f}, that of version {last.number}, less {self.margin:g} on"
                f" {self.told}. Received: {accuracy:.4f}. Nothing was released; without --refuse-if-worse it is"
            )
        _log.info(f"Not worse than version {last.number}: accuracy {accuracy:.4f}, before {before:.4f}, on {self.told}")


@dataclass(frozen=True)
class _New:
    contract: Contract
    title: str = "the new version"


def read_criteria(folder: Path, contract: Contract, cache: Path, int8_drop: float, margin: float | None) -> Criteria:
    """Find the photos in the folder that a model was trained on, in the splits that it was trained with.

    Raises:
        DataError: The folder cannot be read, or has other classes.
    """
    dataset = read_folder(folder, contract.origin.get("recipe", {}).get("seed", 0))
    if dataset.classes != contract.classes:
        raise DataError(
            f"Expected in {folder} the classes of the model: {', '.join(contract.classes[:5])} …"
            f" Received: {', '.join(dataset.classes[:5])} …"
        )
    photos = dataset.splits["train"]
    drawn = random.Random(0).sample(photos, min(CALIBRATION_PHOTOS, len(photos)))
    split = "test" if "test" in dataset.splits else "validation"
    calibration = load_pixels(drawn, contract.image, cache).images
    decoded = set(load_pixels(dataset.splits[split], contract.image, cache).paths)
    held_out = [photo for photo in dataset.splits[split] if photo.path in decoded]
    return Criteria(calibration, held_out, split, cache, int8_drop, margin)
