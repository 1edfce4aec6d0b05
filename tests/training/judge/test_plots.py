"""training/judge/plots.py: which classes a matrix has, and curves of any phases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.judge import plots
from training.judge.metrics import Figures, measure

History = dict[str, dict[str, list[float]]]


def figures_of(confusion: np.ndarray, names: Sequence[str] = ()) -> Figures:
    """Return the figures of predictions with this confusion matrix (k, k)."""
    labels, predicted = (np.repeat(axis, confusion.ravel()) for axis in np.indices(confusion.shape).reshape(2, -1))
    names = names or [str(k) for k in range(len(confusion))]
    return measure(np.eye(len(confusion), dtype=np.float32)[predicted], labels, names)


def test_a_matrix_has_the_classes_that_are_taken_for_each_other() -> None:
    """Of 81, the four in two frequent pairs stand side by side, also if others have as many mistakes, spread out."""
    confusion = 5 * np.eye(81, dtype=int)
    confusion[70, 3] = confusion[5, 60] = 4
    for label in range(10, 50):
        confusion[label, [(label + step) % 81 for step in (1, 2, 3, 4)]] = 1
    chosen = plots.by_confusion(figures_of(confusion)).tolist()
    assert len(chosen) == plots.MAX_CLASSES
    assert abs(chosen.index(70) - chosen.index(3)) == abs(chosen.index(5) - chosen.index(60)) == 1


def test_a_class_may_be_named_with_dollars(tmp_path: Path) -> None:
    """Its name is drawn as it is, and not as mathematics, which this is not."""
    plots.confusion_matrix(tmp_path / "confusion.png", figures_of(np.eye(2, dtype=int), ["$1_$", "5$-10$"]))
    assert (tmp_path / "confusion.png").is_file()


@pytest.mark.parametrize("letters", [3, 40, 250])
def test_long_names_leave_room_for_the_matrix(tmp_path: Path, letters: int) -> None:
    """The squares of two classes take at least a tenth of the picture, however long the names are."""
    plots.confusion_matrix(tmp_path / "m.png", figures_of(np.eye(2, dtype=int), [name * letters for name in "ab"]))
    with Image.open(tmp_path / "m.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    greens = (pixels[..., 1] > pixels[..., 0]) | (pixels == (247, 252, 245)).all(axis=-1)
    assert greens.mean() > 0.1


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"head": {"loss": [], "accuracy": []}, "network": {"loss": [1.0], "accuracy": [0.5]}},
        {"head": {"loss": [2.0, 1.0], "val_loss": [2.0, 1.5]}, "network": {"loss": [1.0], "val_loss": [1.4]}},
    ],
    ids=["untrained", "one", "both"],
)
def test_phases_share_one_picture_that_a_phone_can_show(tmp_path: Path, history: History) -> None:
    """It is six inches wide with any phases, so that its letters stay readable."""
    plots.curves(tmp_path / "curves.png", history)
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.width == 6 * 144
