"""What a training run shows of itself: curves, figures on held-out photos, augmented photos, and its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract.document import Contract
from training import page
from training.data.pixels import Pixels, spread
from training.fit import batches
from training.fit.recipe import Recipe
from training.judge import plots, report
from training.judge.report import Result
from training.runs.folder import flat
from training.words import counted

AUGMENTED_CLASSES, VERSIONS = 12, 4  # rows in a report, and what stands beside each original
SHOWN_EPOCHS = 8  # in the table of what the minutes bought


@dataclass(frozen=True)
class Course:
    """What a training did with its time.

    Attributes:
        plan: In words; empty without one.
        first: The figures of the first version; None without one.
        history: Each phase's figures by epoch.
    """

    plan: str
    first: Mapping[str, float] | None
    history: Mapping[str, Mapping[str, Sequence[float]]]

    def steps(self, last: Mapping[str, float]) -> list[tuple[str, float]]:
        """Return what was reached, in words, with the accuracy on validation; `last` has the figures of the end."""
        steps = [("The first version", self.first["validation_accuracy"])] if self.first else []
        for number, figures in enumerate(self.history.values(), start=1):
            accuracies, minutes = figures["val_accuracy"], figures["minutes"]
            best, at_most = np.maximum.accumulate(accuracies), max(2, SHOWN_EPOCHS // len(self.history))
            training = f" of training {number}" if len(self.history) > 1 else ""
            steps += [
                (f"The best{training} after {minutes[k]:.1f} minutes, {counted(int(k) + 1, 'epoch')}", best[k])
                for k in spread(len(best), at_most)
            ]
        return [*steps, ("This run's model", last["validation_accuracy"])]


def augmented_photos(pixels: Pixels, recipe: Recipe) -> dict[int, NDArray[np.uint8]]:
    """Return a photo and augmented versions of it, (1 + versions, h, w, 3), by its class.

    Of many classes, some are evenly spread over all; there are none where training does not augment.
    """
    if not (recipe.epochs and (recipe.augmentation or recipe.cutmix)):
        return {}
    labels, first = np.unique(pixels.labels, return_index=True)
    chosen = spread(len(labels), AUGMENTED_CLASSES)
    originals = np.ascontiguousarray(pixels.images[first[chosen]])
    change = batches.augmentation(recipe)
    targets = np.eye(len(chosen), dtype=np.float32)
    versions = [change(tf.constant(step), originals.astype(np.float32), targets)[0] for step in range(VERSIONS)]
    rows = np.stack([originals, *(np.clip(each, 0, 255).astype(np.uint8) for each in versions)], axis=1)
    return dict(zip(labels[chosen].tolist(), rows, strict=True))


def write_report(
    run: Path,
    model: keras.Model,
    contract: Contract,
    *,
    course: Course,
    result: Result,
    splits: Mapping[str, Pixels],
    split: str,
    recipe: Recipe,
) -> Path:
    """Write report.html, its plots as PNG files and model.txt into a run folder, and return the page.

    Args:
        course: What was done.
        result: What the model said of held-out photos.
        splits: All photos.
        split: Which of them the result is of.
        recipe: How photos were augmented.
    """
    photos, augmented = splits[split], augmented_photos(splits["train"], recipe)
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text), expand_nested=True)
    summary = "\n".join(lines)
    (run / "model.txt").write_text(summary, encoding="utf-8")
    if course.history:
        plots.curves(run / "curves.png", course.history)
    chose = "; they were used to choose the model's weights, so expect lower figures on new photos"
    return page.write(
        run / "report.html",
        "run.html",
        **report.draw(
            [result],
            photos,
            contract,
            f"{counted(len(photos.labels), 'photo')} of {split}{chose if split == 'validation' else ''}",
            run,
        ),
        name=contract.model,
        plan=course.plan,
        steps=course.steps(contract.metrics),
        curves=page.picture(run / "curves.png") if course.history else "",
        augmented={contract.classes[label]: list(map(page.thumbnail, row)) for label, row in augmented.items()},
        class_count=len(contract.classes),
        versions=VERSIONS,
        facts=flat(contract.origin.to_dict()),
        summary=summary,
    )
