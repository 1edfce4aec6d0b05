"""training/judge/metrics.py: figures with known values, or that a library computes in another way."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, top_k_accuracy_score

from training.judge import metrics

NAMES = [f"class {i}" for i in range(8)]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Labels of 400 photos; class 7 has none."""
    return np.random.default_rng(0).integers(0, 7, 400)


@pytest.fixture(scope="module")
def probabilities(labels: np.ndarray) -> np.ndarray:
    """Probabilities (400, 8) that are mostly right."""
    logits = np.random.default_rng(1).normal(size=(400, 8)) + 2 * np.eye(8)[labels]
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def test_figures_are_those_of_the_library(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Accuracy, top-5, log loss and macro F1 over the classes that have photos."""
    figures = metrics.measure(probabilities, labels, NAMES)
    predicted = probabilities.argmax(axis=1)
    assert figures.accuracy.value == pytest.approx((predicted == labels).mean())
    assert figures.top_5 == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=range(8)))
    assert figures.log_loss == pytest.approx(log_loss(labels, probabilities, labels=range(8)), rel=1e-4)
    assert figures.macro_f1.value == pytest.approx(f1_score(labels, predicted, labels=range(7), average="macro"))


def test_precision_and_recall_follow_from_the_confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Rows are classes, columns predictions, and a class without photos has a column."""
    figures = metrics.measure(probabilities, labels, NAMES)
    confusion = np.array(figures.confusion)
    assert confusion.shape == (8, 8) and confusion.sum() == 400 and confusion[7].sum() == 0
    third = figures.classes[2]
    assert third.name == "class 2" and third.photos == confusion[2].sum() == (labels == 2).sum()
    assert third.recall == pytest.approx(confusion[2, 2] / confusion[2].sum())
    assert third.precision == pytest.approx(confusion[2, 2] / confusion[:, 2].sum())
    assert confusion[2, 5] == ((labels == 2) & (probabilities.argmax(axis=1) == 5)).sum() != confusion[5, 2]


def test_photos_of_one_class_that_are_all_right_have_figures() -> None:
    """Without a warning, which would be an error here."""
    figures = metrics.measure(np.eye(2, dtype=np.float32)[[1, 1]], np.array([1, 1]), ["a", "b"])
    assert (figures.confusion, [each.name for each in figures.classes]) == ([[2]], ["b"])


def test_memory_does_not_grow_with_the_resamples() -> None:
    """For a thousand of 100,000 photos at once, it took 800 MB."""
    labels = np.arange(20_000) % 2
    tracemalloc.start()
    metrics.measure(np.eye(2, dtype=np.float32)[labels], labels, ["a", "b"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * labels.nbytes


def test_the_interval_is_that_of_a_proportion(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """For 400 photos it is near the normal approximation, and for three it is wide."""
    accuracy = metrics.measure(probabilities, labels, NAMES).accuracy
    half = 1.96 * np.sqrt(accuracy.value * (1 - accuracy.value) / 400)
    assert accuracy.low == pytest.approx(accuracy.value - half, abs=0.01)
    assert accuracy.high == pytest.approx(accuracy.value + half, abs=0.01)
    three = metrics.measure(np.eye(2, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 1]), ["a", "b"]).accuracy
    assert (three.value, three.low, three.high) == (1, pytest.approx(0.438, abs=0.001), 1)


def test_calibration_error_is_the_distance_from_confidence() -> None:
    """Ten photos that are 0.9 sure and right seven times are off by 0.2; sure and right ones by nothing."""
    labels = np.array([0] * 7 + [1] * 3)
    sure = np.tile(np.array([0.9, 0.1], np.float32), (10, 1))
    figures = metrics.measure(sure, labels, ["a", "b"])
    assert figures.calibration_error == pytest.approx(0.2, abs=1e-6)
    assert [(each.photos, each.accuracy) for each in figures.reliability] == [(10, 0.7)]
    left = {each.probability: (each.photos, each.accuracy) for each in figures.thresholds}
    assert left[0] == left[0.8] == (10, 0.7) and left[0.95] == (0, None)
    perfect = metrics.measure(np.eye(2, dtype=np.float32)[labels], labels, ["a", "b"])
    assert perfect.calibration_error == 0 and perfect.accuracy.value == 1


def test_a_model_of_few_classes_has_no_top_5(labels: np.ndarray) -> None:
    """All five of five would be right."""
    assert metrics.measure(np.eye(7, dtype=np.float32)[labels][:, :7], labels, NAMES).top_5 is not None
    few = np.minimum(labels, 4)
    assert metrics.measure(np.eye(5, dtype=np.float32)[few], few, NAMES).top_5 is None


def test_equal_probabilities_are_no_hit_for_all() -> None:
    """A gateway rounds: of classes that all are 0, the first four stand behind the one that is sure."""
    sure = np.eye(10, dtype=np.float32)[[0] * 10]
    assert metrics.measure(sure, np.arange(10), [*"abcdefghij"]).top_5 == 0.5


def test_worst_mistakes_are_the_surest_wrong_ones() -> None:
    """By how far the wrong class is ahead of the right one."""
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.95, 0.05], [0.5, 0.5]], np.float32)
    assert metrics.worst_mistakes(probabilities, np.array([1, 1, 1, 0]), 5) == [2, 0]


def test_agreement_counts_other_first_places() -> None:
    """One of two photos changed its class, by 0.3 at most."""
    first = np.array([[0.6, 0.4], [0.2, 0.8]], np.float32)
    second = np.array([[0.3, 0.7], [0.2, 0.8]], np.float32)
    agreement = metrics.compare(first, second)
    assert agreement.other_first_places == 1 and agreement.largest_difference == pytest.approx(0.3)
