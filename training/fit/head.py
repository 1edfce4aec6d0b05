"""A linear head on frozen features: logistic regression, as strongly regularised as cross-validation finds best."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

Array = NDArray[np.float32]

# Inverse of the regularisation, for features of mean 0 and deviation 1. Accuracy of Lite0's in 5-fold cross-validation,
# standard errors 0.005 (trash) and 0.009 (clothing):
#
#             0.0001   0.0003   0.001    0.003    0.01
#   trash     0.7855   0.8237   0.8531   0.8564   0.8603
#   clothing  0.7598   0.8400   0.8690   0.8781   0.8807
STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2)
USUAL = 1e-2  # where there are too few photos for cross-validation
FOLDS = 3
MOST_COMPARED = 5000  # photos of the cross-validation; the head that is chosen learns from all
_STEPS = 100  # of the solver; from 50 on, the accuracy no longer changed
_LEAST_DEVIATION = 0.1  # of a feature, times their mean: one that is nearly constant in training must not decide


@dataclass(frozen=True)
class Head:
    """A linear head.

    Attributes:
        kernel: Features (c) to logits (k).
        bias: Of each class (k).
        strength: Which of `STRENGTHS`.
        accuracy: In cross-validation; None if there were too few photos.
    """

    kernel: Array
    bias: Array
    strength: float
    accuracy: float | None


def fit_head(features: Array, labels: NDArray[np.int64], *, seed: int, balanced: bool = False) -> Head:
    """Fit a head for features (n, c) of photos with labels (n), at least one of each class.

    Args:
        features: Of a frozen backbone.
        labels: Each class from 0 to the last.
        seed: Of the folds.
        balanced: Whether all classes count the same, in place of all photos.
    """
    deviation = features.std(axis=0)
    mean, deviation = features.mean(axis=0), np.maximum(deviation, _LEAST_DEVIATION * deviation.mean() + 1e-6)
    scaled = (features - mean) / deviation
    strength, accuracy = _choose(scaled, labels, seed, balanced)
    kernel, bias = _fit(scaled, labels, [strength], balanced)[-1]
    kernel = kernel / deviation[:, np.newaxis]
    return Head(kernel, bias - mean @ kernel, strength, accuracy)


def _choose(scaled: Array, labels: NDArray[np.int64], seed: int, balanced: bool) -> tuple[float, float | None]:
    """Return the strength with the highest accuracy, and that accuracy."""
    if len(labels) > MOST_COMPARED:
        drawn = np.sort(np.random.default_rng(seed).choice(len(labels), MOST_COMPARED, replace=False))
        scaled, labels = scaled[drawn], labels[drawn]
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < FOLDS or len(counts) < 2:
        return USUAL, None

    def accuracies(fold: tuple[NDArray[np.int64], NDArray[np.int64]]) -> list[float]:
        train, held_out = fold
        heads = _fit(scaled[train], labels[train], STRENGTHS, balanced)
        return [
            float(((scaled[held_out] @ kernel + bias).argmax(axis=1) == labels[held_out]).mean())
            for kernel, bias in heads
        ]

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    with ThreadPoolExecutor() as pool:
        means = np.mean(list(pool.map(accuracies, folds)), axis=0)
    best = int(means.argmax())
    return STRENGTHS[best], float(means[best])


def _fit(
    scaled: Array, labels: NDArray[np.int64], strengths: tuple[float, ...] | list[float], balanced: bool
) -> list[tuple[Array, Array]]:
    """Return a kernel (c, k) and bias (k) for each strength, the weakest first, from which the next one starts."""
    model = LogisticRegression(
        max_iter=_STEPS, tol=1e-3, warm_start=True, class_weight="balanced" if balanced else None
    )
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            model.set_params(C=strength).fit(scaled, labels)
            kernel, bias = model.coef_.T, model.intercept_
            if kernel.shape[1] == 1:  # of two classes, the logit of the second
                kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.hstack([-bias / 2, bias / 2])
            found.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return found
