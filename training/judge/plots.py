"""Draws figures as PNG files."""

from __future__ import annotations

import warnings
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

from training.judge.metrics import BINS, Figures
from training.words import counted

ACCENT, QUIET = "#0f6b5c", "#8a857a"
MAX_CLASSES, MAX_LETTERS = 30, 40  # in a matrix; the names of more, and longer ones, cannot be read
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
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes for such names; the pages show them
        figure.savefig(path)


def confusion_matrix(path: Path, figures: Figures) -> None:
    """Draw the confusion matrix of the classes of `by_confusion`, coloured by part of the class."""
    counts, chosen = np.array(figures.confusion), by_confusion(figures)
    names = [_short(figures.classes[i].name) for i in chosen]
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = parts[np.ix_(chosen, chosen)]
    side = max(4.5, 0.45 * max(6, len(names)) + 1.2 + 0.085 * max(map(len, names)))  # inches: squares, title, letters
    with _figure(path, side, side) as figure:
        axes = figure.subplots()
        axes.imshow(shown, cmap="Greens", vmin=0, vmax=1)
        for row, column in np.argwhere(counts[np.ix_(chosen, chosen)]):
            colour = "white" if shown[row, column] > 0.5 else "black"
            number = counts[chosen[row], chosen[column]]
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a name may have a $
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("class")
        left_out = len(figures.classes) - len(names)
        axes.set_title(
            "Photos by class" + f" ({counted(left_out, 'class')} that are confused less left out)" * (left_out > 0)
        )
        axes.spines[:].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def by_confusion(figures: Figures) -> NDArray[np.int64]:
    """Return the classes that are taken for each other most often, ordered so that those are neighbours."""
    counts = np.array(figures.confusion)
    mistakes = counts - np.diag(np.diag(counts))
    pairs = np.unravel_index(np.argsort(-mistakes, axis=None, kind="stable"), counts.shape)
    chosen = np.sort(list(dict.fromkeys(np.column_stack(pairs).ravel()))[:MAX_CLASSES])
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
    confidence = np.array([each.confidence for each in figures.reliability])
    photos = np.array([each.photos for each in figures.reliability])
    accuracy = [each.accuracy for each in figures.reliability]
    with _figure(path, 5, 5) as figure:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot((0, 1), (0, 1), color=QUIET, linestyle="--", linewidth=1, label="calibrated")
        axes.plot(confidence, accuracy, color=ACCENT, linewidth=1, label="this model")
        axes.scatter(confidence, accuracy, 12 + 400 * photos / figures.photos, color=ACCENT, alpha=0.8, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, frameon=False)
        middles = (np.minimum(np.floor(confidence * BINS), BINS - 1) + 0.5) / BINS
        below.bar(middles, photos, width=0.9 / BINS, color=ACCENT)
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True, min_n_ticks=1))
        below.set(xlabel="probability of the most probable class", ylabel="photos")


def curves(path: Path, history: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw accuracy and loss by epoch, for train and validation, one phase of training after the other."""
    phases = {phase: max(map(len, figures.values())) for phase, figures in history.items() if any(figures.values())}
    with _figure(path, 6, 5.5) as figure:
        both, start = figure.subplots(2, sharex=True), 0
        for phase, epochs in phases.items():
            for axes, quantity in zip(both, ("accuracy", "loss"), strict=True):
                axes.set_ylabel(quantity)
                for prefix, colour, label in (("", QUIET, "train"), ("val_", ACCENT, "validation")):
                    values = history[phase].get(prefix + quantity, [])
                    steps = range(start + 1, start + 1 + len(values))
                    axes.plot(steps, values, "o-", markersize=3, color=colour, label="" if start else label)
                if start:
                    axes.axvline(start + 0.5, color=QUIET, linestyle="--", linewidth=1)
            start += epochs
        if phases:
            both[0].legend(frameon=False)
        spent = [f"{epochs} for the {phase}" for phase, epochs in phases.items()]
        both[1].set_xlabel("epoch: " + ", then ".join(spent or ["none"]))
        both[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


Scores = Sequence[tuple[int, float, bool]]
"""The number of each trial, its accuracy, and whether it was pruned."""


def trials(path: Path, scores: Scores) -> None:
    """Draw the accuracy of a search's trials, and the best so far."""
    with _figure(path, 4.5, 2.8) as figure:
        axes = figure.subplots()
        _draw_scores(axes, [number for number, *_ in scores], scores)
        kept = [(number, accuracy) for number, accuracy, pruned in scores if not pruned]
        numbers, accuracies = zip(*kept, strict=True)
        axes.step(numbers, np.maximum.accumulate(accuracies), where="post", color=ACCENT, linewidth=1)
        axes.set(xlabel="trial", ylabel="accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(kept) < len(scores):
            axes.legend(frameon=False)


def hyperparameter(path: Path, name: str, values: Sequence[Any], scores: Scores, *, log: bool) -> None:
    """Draw the accuracy of a search's trials by the values of a hyperparameter, with a ring around the best trial."""
    choices = None if isinstance(values[0], float) else sorted(set(values))
    places = values if choices is None else [choices.index(value) for value in values]
    with _figure(path, 3.5, 2.6) as figure:
        axes = figure.subplots()
        _draw_scores(axes, places, scores)
        top = max(range(len(scores)), key=lambda position: (not scores[position][2], scores[position][1]))
        axes.scatter(places[top], scores[top][1], 120, facecolors="none", edgecolors=ACCENT)
        if choices is not None:
            axes.set_xticks(range(len(choices)), list(map(str, choices)))
            axes.set_xlim(-0.5, len(choices) - 0.5)
        elif log:
            axes.set_xscale("log")
        axes.set(xlabel=name, ylabel="accuracy")


def _draw_scores(axes: Any, places: Sequence[float], scores: Scores) -> None:
    for pruned, marker, colour, label in ((False, "o", ACCENT, "trained to the end"), (True, "x", QUIET, "pruned")):
        chosen = [position for position, each in enumerate(scores) if each[2] == pruned]
        axes.scatter(
            [places[i] for i in chosen], [scores[i][1] for i in chosen], 24, marker=marker, color=colour, label=label
        )
