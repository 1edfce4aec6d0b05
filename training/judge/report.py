"""What was measured, as tables in the terminal, as JSON, as plots, and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from contract.document import Contract
from contract.outputs import most_probable
from training import page
from training.console import open_console
from training.data.pixels import Pixels, spread
from training.judge import plots
from training.judge.metrics import Agreement, Figures, worst_mistakes

WORST_MISTAKES, FREQUENT_MISTAKES = 24, 8
UNKNOWN_PHOTOS = 12
PAIR_PHOTOS, PAGE_PHOTOS = 12, 600  # of one class taken for another, and of all; at 4 kB each, a page stays below 3 MB


@dataclass(frozen=True)
class Result:
    """The probabilities (n, k) of one predictor, and their figures.

    Attributes:
        agreement: With the first predictor; None for the first itself.
        unknown: Which photos (n) it says are unlike all training photos; None if it cannot tell.
    """

    title: str
    probabilities: NDArray[np.float32]
    figures: Figures
    agreement: Agreement | None
    unknown: NDArray[np.bool_] | None = None


def rows(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Return the figures as text: a name, and a value for each result."""
    figures = [each.figures for each in results]
    table = []
    for name, intervals in (
        ("accuracy", [each.accuracy for each in figures]),
        ("macro F1", [each.macro_f1 for each in figures]),
    ):
        table.append((name, [f"{each.value:.4f}" for each in intervals]))
        table.append((f"  {name}, 95 % interval", [f"{each.low:.3f} to {each.high:.3f}" for each in intervals]))
    if figures[0].top_5 is not None:
        table.append(("top-5 accuracy", [f"{each.top_5:.4f}" for each in figures]))
    table.append(("log loss", [f"{each.log_loss:.4f}" for each in figures]))
    table.append(("calibration error", [f"{each.calibration_error:.4f}" for each in figures]))
    if any(each.unknown is not None for each in results):
        parts = ["" if each.unknown is None else f"{each.unknown.mean():.1%}" for each in results]
        table.append(("called unknown", parts))
    if agreements := [each.agreement for each in results if each.agreement]:
        table.append(("different predictions", ["", *(str(each.other_first_places) for each in agreements)]))
        table.append(("largest difference", ["", *(f"{each.largest_difference:.1e}" for each in agreements)]))
    return table


def frequent_mistakes(figures: Figures) -> list[tuple[int, str, str]]:
    """Return how many photos of which class were most often predicted as which other class."""
    counts = np.array(figures.confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:FREQUENT_MISTAKES]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    names = [each.name for each in figures.classes]
    return [(int(counts[row, column]), names[row], names[column]) for row, column in pairs if counts[row, column]]


def show(results: Sequence[Result]) -> None:
    """Print the figures, the weakest classes, and the most frequent mistakes."""
    console, table = open_console(), Table("", *(each.title for each in results), box=None, pad_edge=False)
    for name, values in rows(results):
        table.add_row(name, *values)
    console.print(table)
    figures = results[0].figures
    weakest = sorted((each for each in figures.classes if each.photos), key=lambda each: each.f1)[:10]
    table = Table("lowest F1", "precision", "recall", "F1", "photos", box=None, pad_edge=False)
    for each in weakest:
        table.add_row(each.name, f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", str(each.photos))
    console.print()
    console.print(table)
    console.print()
    for count, name, predicted in frequent_mistakes(figures):
        console.print(f"{count} of {name} taken for {predicted}", highlight=False)


def draw(results: Sequence[Result], photos: Pixels, contract: Contract, description: str, out: Path) -> dict[str, Any]:
    """Write evaluation.json and the plots into a folder, and return what a page shows of them.

    Figures in sight, plots and mistakes are those of the first result.

    Args:
        results: One for each predictor.
        contract: The first predictor's.
        description: Which photos these are.
    """
    first, classes = results[0], contract.classes
    positions = worst_mistakes(first.probabilities, photos.labels, WORST_MISTAKES)
    mistakes = [_mistake(first, photos, classes, position) for position in positions]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"photos": description, "time": time, **_document(results, photos), "worst_mistakes": mistakes}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (out / "evaluation.json").write_text(text, encoding="utf-8", errors="backslashreplace")
    plots.confusion_matrix(out / "confusion.png", first.figures)
    plots.reliability(out / "reliability.png", first.figures)
    return {
        "description": description,
        "trained_on": contract.metrics.get("train_photos"),
        "time": time,
        "titles": [each.title for each in results],
        "rows": rows(results),
        "figures": first.figures,
        "pairs": _pairs(first, photos, classes),
        "matrix": _matrix(first, photos.labels),
        "reliability": page.picture(out / "reliability.png"),
        "mistakes": [_picture(first, photos, classes, position) for position in positions],
        "unknown": None if first.unknown is None else _unknown(first, first.unknown, photos, classes),
        "novelty": contract.novelty,
    }


def _document(results: Sequence[Result], photos: Pixels) -> dict[str, Any]:
    return {
        "data_digest": photos.digest,
        "skipped": photos.skipped,
        "results": [
            {
                "title": each.title,
                "figures": asdict(each.figures),
                "agreement": each.agreement and asdict(each.agreement),
                "unknown": None if each.unknown is None else int(each.unknown.sum()),
            }
            for each in results
        ],
    }


def _matrix(result: Result, labels: NDArray[np.int64]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of the confusion matrix: a class, and its cells with the id of the photos that they stand for."""
    counts, chosen = np.array(result.figures.confusion), plots.by_confusion(result.figures)
    names = [each.name for each in result.figures.classes]
    present = np.union1d(labels, result.probabilities.argmax(axis=1))  # their numbers, as two may share a name
    return [
        (
            names[row],
            [
                {
                    "count": int(counts[row, column]),
                    "part": round(float(counts[row, column] / max(counts[row].sum(), 1)) ** 0.5, 2),
                    "right": row == column,
                    "id": f"pair-{present[row]}-{present[column]}" if row != column and counts[row, column] else None,
                }
                for column in chosen
            ],
        )
        for row in chosen
    ]


def _pairs(result: Result, photos: Pixels, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return which class was taken for which other, the most frequent first, with photos, the surest first."""
    order = worst_mistakes(result.probabilities, photos.labels, len(photos.labels))
    by_pair: dict[tuple[int, int], list[int]] = {}
    for position, predicted in zip(order, result.probabilities[order].argmax(axis=1), strict=True):
        by_pair.setdefault((int(photos.labels[position]), int(predicted)), []).append(position)
    pairs, left = list[dict[str, Any]](), PAGE_PHOTOS
    for (label, predicted), positions in sorted(by_pair.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        shown = positions[: min(PAIR_PHOTOS, left)]
        left -= len(shown)
        pairs.append(
            {
                "id": f"pair-{label}-{predicted}",
                "count": len(positions),
                "photos_of_class": int((photos.labels == label).sum()),
                "class": classes[label],
                "predicted": classes[predicted],
                "photos": [_picture(result, photos, classes, position) for position in shown],
            }
        )
    return pairs


def _unknown(result: Result, unknown: NDArray[np.bool_], photos: Pixels, classes: Sequence[str]) -> dict[str, Any]:
    """Return how many photos are called unknown though they are of the classes, and some of them, evenly spread."""
    positions = np.flatnonzero(unknown)
    shown = positions[spread(len(positions), UNKNOWN_PHOTOS)]
    return {"count": len(positions), "photos": [_picture(result, photos, classes, int(each)) for each in shown]}


def _picture(result: Result, photos: Pixels, classes: Sequence[str], position: int) -> dict[str, Any]:
    mistake = _mistake(result, photos, classes, position)
    return {**mistake, "name": photos.paths[position].name, "url": page.thumbnail(photos.images[position])}


def _mistake(result: Result, photos: Pixels, classes: Sequence[str], position: int) -> dict[str, Any]:
    probabilities, label = result.probabilities[position], int(photos.labels[position])
    (predicted,) = most_probable(classes, probabilities, 1)
    return {
        "path": str(photos.paths[position]),
        "class": classes[label],
        "probability": round(float(probabilities[label]), 6),
        "predicted": predicted["class"],
        "predicted_probability": predicted["probability"],
    }
