"""Labelled photos that decide on a release: how it differs from the version that answers, and is int8 good enough."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from contract.document import Contract, ImageSpec
from contract.store import versions_of
from training.cores import INTERPRETERS
from training.data.folder import Photo
from training.data.pixels import Photos
from training.data.splits import class_name
from training.errors import DataError, ExportError, TrainingError
from training.judge.predictors import Predict, StoredVersion, check_alike, predict_all
from training.release.difference import measure_difference
from training.release.quantization import CALIBRATION_PHOTOS, Limit
from training.release.replacement import answering
from training.words import counted, difference

_log = logging.getLogger(__name__)

CHANCE = 0.05  # probability that guesses are right as often, above which a model may guess too
INT8_DROP = 0.005  # accuracy that int8 may lose against the Keras model, if nobody asks for another limit


@dataclass(frozen=True)
class Criteria:
    """The photos, and how much accuracy may be lost on them.

    Attributes:
        photos: The folder that the model was trained on.
        calibration: Some training photos, uint8 (n, h, w, 3).
        held_out: The test split, or validation without one; those that decode.
        split: Which of them it is.
        int8_drop: Most accuracy that int8 may lose against the Keras model.
        margin: Most accuracy that a version may lose against the one that answers; None does not compare them.
    """

    photos: Photos
    calibration: NDArray[np.uint8]
    held_out: list[Photo]
    split: str
    int8_drop: float
    margin: float | None

    @property
    def description(self) -> str:
        """How many photos of what."""
        return f"{counted(len(self.held_out), 'photo')} of {self.split}"

    def accuracy_of(self, probabilities: NDArray[np.float32]) -> float:
        """Return the accuracy of probabilities (n, k) of the held-out photos."""
        return float((probabilities.argmax(axis=1) == self.labels).mean())

    def note_chance(self, accuracy: float) -> None:
        """Log a note if an accuracy may be what answering the most frequent class each time gives, too."""
        photos, most = len(self.labels), int(np.bincount(self.labels).max())
        right = round(accuracy * photos)
        if most < photos and binomtest(right, photos, most / photos, alternative="greater").pvalue > CHANCE:
            _log.info(
                f"Note: accuracy {accuracy:.4f} on {self.description} may be chance: one class, each time, gives"
                f" {most / photos:.4f}. Check photos, class names and preprocessing"
            )

    def probabilities(self, predict: Predict, spec: ImageSpec, at_once: int = 1) -> NDArray[np.float32]:
        """Return probabilities (n, k) of the held-out photos; some batches are predicted at once."""
        return np.concatenate(predict_all(predict, self.photos.pixels(self.held_out, spec).images, at_once))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes (n) of the held-out photos."""
        return np.array([photo.label for photo in self.held_out])

    def int8_limit(self, keras_accuracy: float, spec: ImageSpec) -> Limit:
        """Return when an int8 file of a model with that accuracy is good enough."""

        def accuracy(predict: Predict) -> float:
            return self.accuracy_of(self.probabilities(predict, spec, INTERPRETERS))

        return Limit(self.calibration, accuracy, self.description, keras_accuracy, self.int8_drop)

    def compare(self, probabilities: NDArray[np.float32], contract: Contract, store: Path) -> dict[str, float]:
        """Compare with the version that answers, by its fp32 TFLite file: the release's stable one, or the newest.

        Args:
            probabilities: Those of the new version, (n, k) for the held-out photos.
            contract: Of the new version.
            store: The model-store.

        Returns:
            How they differ, for the contract; nothing if they cannot be compared.

        Raises:
            TrainingError: The accuracy is lower by more than the margin, or with a margin they cannot be compared.
        """
        if not versions_of(store, contract.model):
            _log.info(f"Nothing to compare with: {store} has no version of {contract.model!r} yet")
            return {}
        try:
            current = StoredVersion(store, contract.model, answering(store, contract.model), "tflite", INTERPRETERS)
            check_alike([(current.title, current.contract), ("the new version", contract)])
            before = current.predict(self.photos.pixels(self.held_out, current.contract.image)).probabilities
        except TrainingError as exc:
            if self.margin is not None:
                raise
            _log.info(f"Not compared with the version that answers: {exc}")
            return {}
        doubt = self.doubt(f"version {current.number}", current.contract)
        if doubt:
            _log.info(f"Note: {doubt}. A {self.split}/ beside train/, whose photos stay, prevents this")
        self._refuse_if_worse(self.accuracy_of(probabilities), current.number, self.accuracy_of(before), doubt)
        recorded = current.contract.metrics.get(f"{self.split}_accuracy", 1.0)
        return measure_difference(probabilities, before, self.labels, number=current.number, recorded=recorded)

    def doubt(self, title: str, contract: Contract) -> str:
        """Return why a model's accuracy may be too high here; nothing if it was trained without these very photos."""
        digests = contract.origin.data_digest
        if digests.get(self.split) == self.photos.pixels(self.held_out, contract.image).digest:
            return ""
        why = "held out other photos" if digests else "does not say which photos it held out"
        return f"{title} {why}. It may have been trained on some of these, so its accuracy here may be too high"

    def _refuse_if_worse(self, accuracy: float, number: int, before: float, doubt: str) -> None:
        if self.margin is None:
            return
        if accuracy < before - self.margin - 1e-9:
            favour = f" This favours version {number}: {doubt}." if doubt else ""
            raise ExportError(
                f"The new version is worse: accuracy {accuracy:.4f} on {self.description}, version {number}"
                f" {before:.4f}, and may lose {self.margin:g}.{favour} Nothing was released; without --refuse-if-worse"
                " it is."
            )
        _log.info(
            f"Not worse than version {number}: accuracy {accuracy:.4f}, before {before:.4f}, on {self.description}"
        )


def read_criteria(photos: Photos, contract: Contract, *, int8_drop: float | None, margin: float | None) -> Criteria:
    """Find the photos in the folder that a model was trained on, in splits that it may have been trained with.

    Without `int8_drop` it is `INT8_DROP`; without `margin`, versions are not compared.

    Raises:
        DataError: The folder cannot be read, or has other classes.
    """
    dataset, classes = photos.splits(), [class_name(name) for name in contract.classes]
    if sorted(dataset.classes) != sorted(classes):
        raise DataError(
            f"Expected in {photos.folder} the {counted(len(classes), 'class')} of the model."
            f" Received: {len(dataset.classes)}, {difference(dataset.classes, classes)}"
        )
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [Photo(each.path, labels[dataset.classes[each.label]]) for each in found]
        for split, found in dataset.splits.items()
    }
    train = splits["train"]
    drawn = random.Random(0).sample(train, min(CALIBRATION_PHOTOS, len(train)))
    split = "test" if "test" in splits else "validation"
    decoded = set(photos.pixels(splits[split], contract.image).paths)
    criteria = Criteria(
        photos=photos,
        calibration=photos.pixels(drawn, contract.image).images,
        held_out=[photo for photo in splits[split] if photo.path in decoded],
        split=split,
        int8_drop=INT8_DROP if int8_drop is None else int8_drop,
        margin=margin,
    )
    if doubt := criteria.doubt("the model", contract):
        _log.info(f"Note: {doubt}")
    return criteria
