"""Compares probabilities with labels, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

BINS = 15  # of confidence. Source: C. Guo et al., On Calibration of Modern Neural Networks (2017)
THRESHOLDS = (0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of confidence
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure on these photos, and its 95 % interval for others."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassFigures:
    """One class: how many of its predictions are right (precision), and of its photos (recall)."""

    name: str
    photos: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Photos with a highest probability in one fifteenth of 0 to 1."""

    photos: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Threshold:
    """What is left of the photos if predictions below a probability are not used."""

    probability: float
    photos: int
    accuracy: float | None


@dataclass(frozen=True)
class Figures:
    """All figures of one predictor on one set of photos.

    Attributes:
        accuracy: Part of the photos for which the right class is the most probable one.
        top_5: The same for the five most probable classes; None with five classes or fewer.
        macro_f1: Mean F1 of the classes that have photos.
        log_loss: Mean negative logarithm of the right class's probability.
        calibration_error: Expected calibration error: mean difference of accuracy and confidence over bins.
        classes: Each class that has photos or was predicted, in output order.
        confusion: The confusion matrix: photos by class (row) and predicted class (column), of `classes`.
        reliability: The bins that have photos, by confidence.
        thresholds: What is left above some probabilities.
    """

    photos: int
    accuracy: Interval
    top_5: float | None
    macro_f1: Interval
    log_loss: float
    calibration_error: float
    classes: list[ClassFigures]
    confusion: list[list[int]]
    reliability: list[Bin]
    thresholds: list[Threshold]


@dataclass(frozen=True)
class Agreement:
    """How far two predictors agree: photos with another most probable class, and the largest difference."""

    other_first_places: int
    largest_difference: float


def measure(probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]) -> Figures:
    """Return the figures of probabilities (n, k) against labels (n)."""
    predicted = probabilities.argmax(axis=1)
    present = np.union1d(labels, predicted)
    precision, recall, f1, counts = precision_recall_fscore_support(
        labels, predicted, labels=present, average=None, zero_division=0
    )
    rows, columns = np.searchsorted(present, labels), np.searchsorted(present, predicted)
    confusion = np.zeros((len(present), len(present)), np.int64)
    np.add.at(confusion, (rows, columns), 1)
    of_label = probabilities[np.arange(len(labels)), labels]
    confidence, right = probabilities.max(axis=1), predicted == labels
    reliability = _reliability(confidence, right)
    return Figures(
        photos=len(labels),
        accuracy=_accuracy(int(right.sum()), len(labels)),
        top_5=_top_5(probabilities, labels) if probabilities.shape[1] > 5 else None,
        macro_f1=_macro_f1(rows, columns, len(present)),
        log_loss=float(np.log(1 / np.maximum(of_label, 1e-7)).mean()),  # 0, not -0, where all are certain
        calibration_error=sum(each.photos * abs(each.accuracy - each.confidence) for each in reliability) / len(labels),
        classes=[
            ClassFigures(names[index], int(count), *map(float, row))
            for index, count, *row in zip(present, counts, precision, recall, f1, strict=True)
        ],
        confusion=confusion.tolist(),
        reliability=reliability,
        thresholds=[_above(probability, confidence, right) for probability in THRESHOLDS],
    )


def compare(first: NDArray[np.float32], second: NDArray[np.float32]) -> Agreement:
    """Return how far the probabilities (n, k) of two predictors agree."""
    return Agreement(
        int((first.argmax(axis=1) != second.argmax(axis=1)).sum()), float(np.abs(first - second).max(initial=0))
    )


def worst_mistakes(probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> list[int]:
    """Return the positions of wrong predictions, those furthest ahead of the right class first."""
    margin = probabilities.max(axis=1) - probabilities[np.arange(len(labels)), labels]
    order = np.argsort(-margin, kind="stable")
    return [int(i) for i in order if probabilities[i].argmax() != labels[i]][:count]


def _top_5(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    first = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # the lower index of equal ones, as in an answer
    return float((first == labels[:, None]).any(axis=1).mean())


def _accuracy(right: int, photos: int) -> Interval:
    """Return the accuracy with Wilson's interval, which has a width even for three of three."""
    interval = binomtest(right, photos).proportion_ci(LEVEL, method="wilson")
    return Interval(right / photos, float(interval.low), float(interval.high))


def _macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> Interval:
    """Return macro F1 with a percentile interval, from resampled photos (bootstrap)."""
    random, n = np.random.default_rng(0), len(labels)
    samples = (random.integers(0, n, n) for _ in range(RESAMPLES))  # one at a time: of all, a photo takes 8 kB
    figures = [_f1(labels[sample], predicted[sample], k) for sample in samples]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(figures, (tail, 100 - tail))
    return Interval(_f1(labels, predicted, k), float(low), float(high))


def _f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> float:
    right, of_class, taken = (
        np.bincount(each, minlength=k) for each in (labels[labels == predicted], labels, predicted)
    )
    f1 = 2 * right / np.maximum(of_class + taken, 1)
    return float(f1[of_class > 0].mean())


def _above(probability: float, confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> Threshold:
    kept = right[confidence >= probability]
    return Threshold(probability, len(kept), float(kept.mean()) if len(kept) else None)


def _reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> list[Bin]:
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [index == i for i in np.unique(index)]
    return [Bin(int(each.sum()), float(confidence[each].mean()), float(right[each].mean())) for each in bins]
