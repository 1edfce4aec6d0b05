"""Draws figures as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from training.judge.metrics import Figures

ACCENT, QUIET, ALERT = "#0f6b5c", "#8a857a", "#a3301f"
MAX_CLASSES = 30  # in a matrix or a chart; the names of more cannot be read
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.dpi": 144,
    "axes.titlesize": 11,
}


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of a size in inches, and save it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path)


def confusion_matrix(path: Path, figures: Figures) -> None:
    """Draw the confusion matrix of the classes of `by_confusion`, coloured by part of the class."""
    counts, chosen = np.array(figures.confusion), by_confusion(figures)
    names = [figures.classes[i].name for i in chosen]
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = parts[np.ix_(chosen, chosen)]
    side = max(4.5, 0.45 * len(names) + 2)
    with _figure(path, side, side) as figure:
        axes = figure.subplots()
        axes.imshow(shown, cmap="Greens", vmin=0, vmax=1)
        for row, column in np.argwhere(counts[np.ix_(chosen, chosen)]):
            colour = "white" if shown[row, column] > 0.5 else "black"
            number = counts[chosen[row], chosen[column]]
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("class")
        left_out = len(figures.classes) - len(names)
        axes.set_title("Photos by class" + (f" ({left_out} classes with fewer mistakes left out)" if left_out else ""))
        axes.spines[:].set_visible(False)


def by_confusion(figures: Figures) -> NDArray[np.int64]:
    """Return the classes with the most mistakes, so that those that are taken for each other are neighbours."""
    counts = np.array(figures.confusion)
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])
    if len(chosen) < 3:
        return chosen
    counts = counts[np.ix_(chosen, chosen)]
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distance = 1 - (parts + parts.T) / 2
    np.fill_diagonal(distance, 0)
    order = hierarchy.linkage(squareform(distance), "average", optimal_ordering=True)
    return chosen[hierarchy.leaves_list(order)]


def reliability(path: Path, figures: Figures) -> None:
    """Draw how often the most probable class is right, by its probability."""
    confidence = [each.confidence for each in figures.reliability]
    with _figure(path, 5, 5) as figure:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot((0, 1), (0, 1), color=QUIET, linestyle="--", linewidth=1, label="calibrated")
        sizes = 12 + 400 * np.array([each.photos for each in figures.reliability]) / figures.photos
        accuracy = [each.accuracy for each in figures.reliability]
        axes.plot(confidence, accuracy, color=ACCENT, linewidth=1, label="this model; the area is the photos")
        axes.scatter(confidence, accuracy, sizes, color=ACCENT, alpha=0.8, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        axes.set_title(f"Expected calibration error {figures.calibration_error:.3f}")
        axes.legend(loc="lower right", frameon=False)
        below.bar(confidence, [each.photos for each in figures.reliability], width=0.04, color=ACCENT)
        below.set(xlabel="probability of the most probable class", ylabel="photos")


def classes(path: Path, figures: Figures) -> None:
    """Draw precision and recall of each class, the lowest F1 on top; of many classes, the worst."""
    ordered = sorted((each for each in figures.classes if each.photos), key=lambda each: each.f1)[:MAX_CLASSES][::-1]
    rows = np.arange(len(ordered))
    with _figure(path, 6, max(2.5, 0.36 * len(ordered) + 1.2)) as figure:
        axes = figure.subplots()
        axes.hlines(rows, 0, 1, color="#e9e6dd", linewidth=1, zorder=0)
        axes.scatter([each.precision for each in ordered], rows, color=ACCENT, label="precision")
        axes.scatter([each.recall for each in ordered], rows, facecolors="none", edgecolors=ALERT, label="recall", s=60)
        axes.set_yticks(rows, [f"{each.name} ({each.photos})" for each in ordered])
        axes.set_xlim(0, 1.02)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def curves(path: Path, history: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw loss and accuracy by epoch, for train and validation, one column for each phase of training."""
    phases = [phase for phase in history if history[phase]] or ["not trained"]
    with _figure(path, 4.2 * len(phases), 5) as figure:
        grid = figure.subplots(2, len(phases), squeeze=False, sharex="col", sharey="row")
        for column, phase in enumerate(phases):
            for axes, quantity in zip(grid[:, column], ("accuracy", "loss"), strict=True):
                for prefix, colour, label in (("", QUIET, "train"), ("val_", ACCENT, "validation")):
                    values = history.get(phase, {}).get(prefix + quantity, [])
                    axes.plot(range(1, len(values) + 1), values, "o-", markersize=3, color=colour, label=label)
                if column == 0:
                    axes.set_ylabel(quantity)
            grid[0, column].set_title(phase)
            grid[1, column].set_xlabel("epoch")
            grid[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0, 0].legend(loc="lower right", frameon=False)
