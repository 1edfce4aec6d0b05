"""What a training run shows of itself: curves, figures on held-out photos, augmented samples, and its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from contract.document import Contract
from training import page
from training.data.pixels import Pixels
from training.judge import plots, report
from training.judge.report import Result
from training.runs.folder import flat


def write_report(
    run: Path,
    model: keras.Model,
    contract: Contract,
    *,
    history: Mapping[str, Mapping[str, Sequence[float]]],
    result: Result,
    photos: Pixels,
    split: str,
    augmented: NDArray[np.uint8],
) -> Path:
    """Write report.html, its plots as PNG files and model.txt into a run folder, and return the page.

    Args:
        history: Each phase's figures by epoch.
        result: What the model said of held-out photos.
        photos: Those photos.
        split: Which they are.
        augmented: A few photos (n, h, w, 3) as training changed them; n may be 0.
    """
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text), expand_nested=True)
    summary = "\n".join(lines)
    (run / "model.txt").write_text(summary, encoding="utf-8")
    plots.curves(run / "curves.png", history)
    page.write(
        run / "report.html",
        "run.html",
        **report.draw(
            [result],
            photos,
            contract.classes,
            f"{len(photos.labels)} photos of {split}",
            run,
            trained_on=contract.metrics.get("train_photos"),
        ),
        name=contract.model,
        curves=page.picture(run / "curves.png"),
        augmented=[page.thumbnail(each) for each in augmented],
        facts=flat(contract.origin.to_dict()),
        summary=summary,
    )
    return run / "report.html"
