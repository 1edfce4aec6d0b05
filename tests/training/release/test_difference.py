"""training/release/difference.py: how a new version differs from the one before, as far as that is right."""

import numpy as np
import pytest

from training.release.difference import measure_difference

pytestmark = pytest.mark.tensorflow


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def before():
    """Probabilities (400, 3) that are calibrated, and labels that are drawn by them."""
    random = np.random.default_rng(0)
    probabilities = softmax(random.normal(0, 2, (400, 3)))
    return probabilities, (probabilities.cumsum(axis=1) < random.random((400, 1))).sum(axis=1)


def test_the_same_version_does_not_differ(before):
    """All shares are 0, and the photos are counted."""
    probabilities, labels = before
    shares = dict.fromkeys(("disagreement", "surer", "less_sure", "class_change"), 0.0)
    assert measure_difference(probabilities, probabilities, labels, number=7) == {
        **shares,
        "compared_photos": 400,
        "compared_version": 7,
    }


def swapped(probabilities):
    """Return the probabilities of a version that says the second class in place of the first, and where it does."""
    lost = probabilities.argmax(axis=1) == 0
    return np.where(lost[:, np.newaxis], probabilities[:, [1, 0, 2]], probabilities), lost


def test_each_difference_has_its_share(before):
    """One class is always lost to another, which is right half of the time: the largest change of a class is that."""
    probabilities, labels = before
    new, lost = swapped(probabilities)
    labels[lost] = np.arange(lost.sum()) % 2
    found = measure_difference(new, probabilities, labels, number=1)
    assert found["disagreement"] == found["class_change"] == pytest.approx(lost.mean(), abs=1e-4)
    assert found["surer"] == found["less_sure"] == 0.0


def test_mistakes_are_not_expected(before, lines):
    """A version that is wrong where the one before is right should not be: so a trial notices. A line warns."""
    probabilities, _ = before
    new, lost = swapped(probabilities)
    found = measure_difference(new, probabilities, probabilities.argmax(axis=1), number=1)
    assert found["disagreement"] == found["class_change"] < 0.5 * lost.mean()
    assert "it is less accurate than version 1" in "\n".join(lines)


def test_a_version_that_knew_the_photos_is_no_measure(before, lines):
    """Its own contract says how often it is right on others."""
    probabilities, _ = before
    new, lost = swapped(probabilities)
    labels, accuracy = probabilities.argmax(axis=1), 1 - lost.mean()
    found = measure_difference(new, probabilities, labels, number=1, recorded=accuracy)
    assert found["disagreement"] == pytest.approx(lost.mean(), abs=1e-4) and "less accurate" not in "\n".join(lines)


def test_false_confidence_is_not_expected(before, lines):
    """A version of doubled logits should not be surer: so a trial notices that it is. A line warns."""
    probabilities, labels = before
    sharper = softmax(2 * np.log(probabilities))
    assert measure_difference(sharper, probabilities, labels, number=1)["surer"] < 0.02
    assert "its confidence is false by a temperature" in "\n".join(lines)


def test_a_version_that_mends_false_confidence_may_be_less_sure(before, lines):
    """It differs from the one before, and is right to."""
    probabilities, labels = before
    sharper = softmax(2 * np.log(probabilities))
    assert measure_difference(probabilities, sharper, labels, number=1)["less_sure"] > 0.3
    assert "false" not in "\n".join(lines)


def test_versions_of_the_same_false_confidence_are_alike(before):
    """Who never calibrated is not surprised by the next version."""
    probabilities, labels = before
    sharper = softmax(2 * np.log(probabilities))
    assert measure_difference(sharper, sharper, labels, number=1)["less_sure"] == 0.0
