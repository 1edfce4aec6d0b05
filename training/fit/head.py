"""A linear head on frozen features: linear discriminant analysis, shrunk as much as cross-validation finds best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from sklearn.model_selection import StratifiedKFold

from training.judge.calibration import best_temperature, pick_photos

Array = NDArray[np.float32]

# How far the covariance inside the classes is moved to one that is the same in all directions. EfficientNet-Lite0's
# features, accuracy in 5-fold cross-validation on the training photos, beside the best logistic regression of five:
#
#             0.1     0.3     0.5     logistic   standard error
#   trash     0.851   0.868   0.868   0.860      0.006
#   clothing  0.867   0.880   0.880   0.881      0.007
#
# One decomposition serves all shrinkages, so that it takes a tenth of the time of logistic regression.
SHRINKAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
USUAL = 0.4  # where there are too few photos for cross-validation
FOLDS = 5
SOFTENING = (1.0, 1e4)
# Of few photos, logits are far too large: of 5 of each class by a factor of up to 1,000, of all of clothing by 6.8.
# Where cross-validation makes no mistake, sure labels leave them so; Platt's count one more mistake than there was. Two
# classes of trash, 5 photos of each, log loss on others: 47 at a temperature of 1, 13 at that of sure labels, 0.15 at
# Platt's.
TEMPERATURES = (0.3, 1e4)
_LEAST_SPREAD = 0.01  # inside the classes, of features that are scaled; one photo of each class would have none
_LEAST_DEVIATION = 0.1  # of a feature, times their mean: one that is nearly constant in training must not decide


@dataclass(frozen=True)
class Head:
    """A linear head.

    Attributes:
        kernel: Features (c) to logits (k).
        bias: Of each class (k).
        accuracy: In cross-validation; None if a class has fewer than `FOLDS` photos.
    """

    kernel: Array
    bias: Array
    accuracy: float | None


def soften(head: Head, features: Array, labels: NDArray[np.int64], smoothing: float) -> Head:
    """Return a head that a network can be trained with: its logits are divided until they fit smoothed labels (n).

    Those of a discriminant analysis are larger, which smoothing punishes: on clothing's first epoch the loss was 2.6 in
    place of 1.5. The gradients of that ruined the backbone: validation fell from 0.88 to 0.73 in four epochs.
    """
    some = pick_photos(labels, len(head.bias))
    logits = features[some] @ head.kernel + head.bias
    temperature = best_temperature(logits, labels[some], bounds=SOFTENING, smoothing=smoothing)
    return replace(head, kernel=head.kernel / temperature, bias=head.bias / temperature)


def fit_head(features: Array, labels: NDArray[np.int64], *, seed: int, balanced: bool = False) -> Head:
    """Fit a head for features (n, c) of photos with labels (n), each class from 0 to the last at least once.

    The logits are calibrated by the photos that were held out in cross-validation, with labels that are as uncertain as
    the photos are few. Source: J. Platt, Probabilistic Outputs for Support Vector Machines (1999).

    Args:
        features: Of a frozen backbone.
        labels: The classes.
        seed: Of the folds.
        balanced: Whether all classes count the same, in place of all photos.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.maximum(deviation, _LEAST_DEVIATION * deviation.mean() + 1e-6)
    scaled = (features - mean) / deviation
    accuracy, shrinkage, temperature = None, USUAL, 1.0
    often = np.flatnonzero(np.bincount(labels)[labels] >= FOLDS)
    if len(often):
        some = often[pick_photos(labels[often], labels.max() + 1)]
        tried = SHRINKAGES if len(np.unique(labels[often])) > 1 else (USUAL,)  # for one class alone, all are right
        found, shrinkage, logits = _cross_validate(scaled, labels, often, some, tried, seed=seed, balanced=balanced)
        temperature = best_temperature(logits, labels[some], bounds=TEMPERATURES, smoothing=1 / (len(some) + 2))
        accuracy = found if len(often) == len(labels) else None
    kernel, bias = _analyse(scaled, labels, balanced).head(shrinkage)
    kernel = kernel / deviation[:, np.newaxis] / temperature
    return Head(kernel, bias / temperature - mean @ kernel, accuracy)


def _cross_validate(
    scaled: Array,
    labels: NDArray[np.int64],
    often: NDArray[np.int64],
    some: NDArray[np.int64],
    tried: Sequence[float],
    *,
    seed: int,
    balanced: bool,
) -> tuple[float, float, Array]:
    """Return the best accuracy, its shrinkage, and the logits of some photos by heads that were fitted without them.

    Those of all photos are only looked at fold by fold: with many classes they take much memory. Only photos of classes
    that have them `often` enough are held out; the others are in each fit.
    """
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(often, labels[often])
    folds = [
        (held_out, _analyse(np.delete(scaled, held_out, axis=0), np.delete(labels, held_out), balanced))
        for held_out in (often[positions] for _, positions in splits)
    ]

    def judged(shrinkage: float) -> tuple[float, float, Array]:
        right, kept = np.empty(len(labels), bool), np.empty((len(some), labels.max() + 1), np.float32)
        for held_out, analysis in folds:
            kernel, bias = analysis.head(shrinkage)
            logits = scaled[held_out] @ kernel
            logits += bias
            right[held_out] = logits.argmax(axis=1) == labels[held_out]
            _, places, rows = np.intersect1d(some, held_out, return_indices=True)
            kept[places] = logits[rows]
        return float(right[often].mean()), shrinkage, kept

    return max(map(judged, tried), key=itemgetter(0))


@dataclass(frozen=True)
class _Analysis:
    """A discriminant analysis that is still to be shrunk.

    Attributes:
        directions: In which features vary inside the classes (c, c).
        spread: How much they do in each of them (c).
        along: The classes' means in them (k, c).
        priors: The logarithm of each class' part of the photos (k); 0 if all count the same.
    """

    directions: Array
    spread: Array
    along: Array
    priors: Array

    def head(self, shrinkage: float) -> tuple[Array, Array]:
        """Return a kernel (c, k) and bias (k)."""
        mean_spread = max(float(self.spread.mean()), _LEAST_SPREAD)
        weights = self.along / ((1 - shrinkage) * self.spread + shrinkage * mean_spread)
        return self.directions @ weights.T, self.priors - (self.along * weights).sum(axis=1) / 2


def _analyse(scaled: Array, labels: NDArray[np.int64], balanced: bool) -> _Analysis:
    """Analyse features (n, c) of photos with labels (n)."""
    members = coo_array((np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))))  # (k, n)
    counts = np.bincount(labels).astype(np.float32)
    means = members @ scaled / counts[:, np.newaxis]
    within = scaled - means[labels]
    spread, directions = np.linalg.eigh(within.T @ within / len(labels))
    return _Analysis(
        directions, spread, means @ directions, np.zeros_like(counts) if balanced else np.log(counts / len(labels))
    )
