"""What was measured, as JSON, plots, one HTML page, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from training import page
from training.data.pixels import Pixels
from training.judge import plots
from training.judge.metrics import Agreement, Figures, Interval, worst_mistakes

MISTAKES, CONFUSIONS = 24, 8


@dataclass(frozen=True)
class Result:
    """What one predictor said of the photos.

    Attributes:
        agreement: With the first predictor; None for the first itself.
    """

    title: str
    probabilities: NDArray[np.float32]
    figures: Figures
    agreement: Agreement | None


def rows(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Return the figures as text: a name, and a value for each result."""
    table = []
    for name in ("accuracy", "macro_f1"):
        intervals: list[Interval] = [getattr(each.figures, name) for each in results]
        table.append((name.replace("_f1", " F1"), [f"{each.value:.4f}" for each in intervals]))
        table.append(("  95 % interval", [f"{each.low:.3f} to {each.high:.3f}" for each in intervals]))
    if results[0].figures.top_5 is not None:
        table.append(("top-5 accuracy", [f"{each.figures.top_5:.4f}" for each in results]))
    table += [
        ("log loss", [f"{each.figures.log_loss:.4f}" for each in results]),
        ("calibration error", [f"{each.figures.calibration_error:.4f}" for each in results]),
    ]
    if len(results) > 1:
        agreements = [each.agreement for each in results]
        table += [
            ("other first places", ["" if each is None else str(each.other_first_places) for each in agreements]),
            ("largest difference", ["" if each is None else f"{each.largest_difference:.1e}" for each in agreements]),
        ]
    return table


def confusions(figures: Figures) -> list[tuple[int, str, str]]:
    """Return the most frequent mistakes: how many photos of a class were taken for which."""
    counts = np.array(figures.confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(i), len(counts)) for i in order]
    return [
        (int(counts[row, column]), figures.classes[row].name, figures.classes[column].name)
        for row, column in pairs
        if counts[row, column]
    ]


def show(results: Sequence[Result], console: Console) -> None:
    """Print the figures, the weakest classes, and the most frequent mistakes."""
    table = Table("", *(each.title for each in results), box=None, pad_edge=False)
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
    for count, name, taken in confusions(figures):
        console.print(f"{count} of {name} taken for {taken}", highlight=False)


def write(results: Sequence[Result], photos: Pixels, classes: Sequence[str], told: str, out: Path) -> Path:
    """Write evaluation.html into a folder with what `draw` leaves there, and return the page."""
    out.mkdir(parents=True, exist_ok=True)
    page.write(out / "evaluation.html", "evaluation.html", **draw(results, photos, classes, told, out))
    return out / "evaluation.html"


def draw(results: Sequence[Result], photos: Pixels, classes: Sequence[str], told: str, out: Path) -> dict[str, Any]:
    """Write evaluation.json and the plots into a folder, and return what a page shows of them.

    Plots, confusions and mistakes are those of the first result.

    Args:
        photos: What the results are of.
        classes: Names in output order.
        told: How the photos are told.
    """
    first = results[0]
    positions = worst_mistakes(first.probabilities, photos.labels, MISTAKES)
    mistakes = [_mistake(first, photos, classes, position) for position in positions]
    images = [photos.images[position] for position in positions]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    document = {
        "photos": told,
        "time": time,
        "data_digest": photos.digest,
        "skipped": photos.skipped,
        "results": [
            {
                "title": each.title,
                "figures": asdict(each.figures),
                "agreement": each.agreement and asdict(each.agreement),
            }
            for each in results
        ],
        "worst_mistakes": mistakes,
    }
    (out / "evaluation.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    plots.confusion(out / "confusion.png", first.figures)
    plots.reliability(out / "reliability.png", first.figures)
    plots.classes(out / "classes.png", first.figures)
    plots.photos(out / "mistakes.png", images, [f"{each['class']}\ntaken for {each['predicted']}" for each in mistakes])
    return {
        "told": told,
        "time": time,
        "titles": [each.title for each in results],
        "rows": rows(results),
        "figures": first.figures,
        "confusions": confusions(first.figures),
        "plots": {name: page.picture(out / f"{name}.png") for name in ("confusion", "reliability", "classes")},
        "mistakes": [
            {**each, "name": Path(each["path"]).name, "url": page.thumbnail(image)}
            for each, image in zip(mistakes, images, strict=True)
        ],
    }


def _mistake(result: Result, photos: Pixels, classes: Sequence[str], position: int) -> dict[str, Any]:
    probabilities, label = result.probabilities[position], int(photos.labels[position])
    predicted = int(probabilities.argmax())
    return {
        "path": str(photos.paths[position]),
        "class": classes[label],
        "probability": round(float(probabilities[label]), 4),
        "predicted": classes[predicted],
        "predicted_probability": round(float(probabilities[predicted]), 4),
    }
