"""What a training does with its minutes: the largest network that they suffice for, found by a few steps here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from contract.disk import written_whole
from training.data.pixels import decoder
from training.fit import phases
from training.fit.preset import Preset
from training.fit.rehearsal import rehearse
from training.fit.unfinished import open_unfinished

if TYPE_CHECKING:
    from training.fit.train import Data

_log = logging.getLogger(__name__)

LARGER = ("efficientnet-lite2", "efficientnet-lite1")  # than the default's, of the same kind
ENOUGH_EPOCHS = 15
AFTER_S, AFTER_S_A_PHOTO = 60, 0.05  # for the report and the release; for each held-out photo, to search an int8 file


@dataclass(frozen=True)
class Plan:
    """How a training spends its minutes.

    Attributes:
        preset: What it trains.
        limit_s: Seconds of the run until the upper layers must have ended; None if only their epochs count.
        text: The same in words.
    """

    preset: Preset
    limit_s: float | None = None
    text: str = ""


def larger_presets(preset: Preset) -> list[Preset]:
    """Return presets that differ in a larger network, the largest first; none if the network was chosen."""
    if (preset.architecture, preset.weights, preset.size) != ("efficientnet-lite0", "imagenet", None):
        return []
    return [preset.changed({"architecture": each}) for each in LARGER]


@contextmanager
def planned(
    presets: Sequence[Preset], data: Data, minutes: float | None, passed_s: float, *, name: str, runs: Path, fresh: bool
) -> Iterator[Plan | None]:
    """Choose the first of some presets that trains for enough epochs, or the last; None if not one epoch fits.

    An interrupted training goes on with what was chosen before.

    Args:
        presets: What to choose from.
        data: The photos.
        minutes: For all that the training does; None for as long as the last preset's epochs take.
        passed_s: Seconds of them that have passed.
        name: The model's name.
        runs: Where run folders go.
        fresh: Choose again.
    """
    if minutes is None:
        yield Plan(presets[-1])
        return
    held_out = len(data.splits["validation"].labels)
    limit_s = 60 * minutes - passed_s - AFTER_S - held_out * AFTER_S_A_PHOTO
    digests = {split: pixels.digest for split, pixels in data.splits.items()}
    made_of = [list(map(asdict, presets)), digests, keras.__version__, decoder()]
    with open_unfinished(runs, f"{name}-plan", made_of, fresh) as kept:
        file = kept.path / "plan.json"
        if not file.is_file():
            chosen, text = _choose(presets, data, minutes, limit_s)
            with written_whole(file) as draft:
                draft.write_text(json.dumps([chosen, text]))
        chosen, text = json.loads(file.read_text())
        _log.info(text)
        yield None if chosen is None else Plan(presets[chosen], limit_s, text)


def _choose(presets: Sequence[Preset], data: Data, minutes: float, limit_s: float) -> tuple[int | None, str]:
    """Return which preset to train, if any, and why."""
    train, held_out = (len(data.splits[split].labels) for split in ("train", "validation"))
    for position, preset in enumerate(presets):  # noqa: B007, the one that ends it is returned
        network = phases.start_of(preset)
        _log.info(f"Measuring a few steps of training with {network.name} at {network.size_px} px")
        speed = rehearse(preset, len(data.classes))
        limit_s -= speed.once_s
        epoch_s = speed.epoch_s(train, held_out)
        if limit_s >= ENOUGH_EPOCHS * epoch_s:
            break
    if limit_s < epoch_s:
        return None, f"{minutes:g} minutes end with the first version: an epoch takes {epoch_s:.0f} s here"
    epochs, most = int(limit_s / epoch_s), preset.recipe.epochs
    count = f"all {most} epochs" if epochs >= most else f"about {epochs} of at most {most} epochs"
    return position, (
        f"Plan for {minutes:g} minutes: {count} of {network.name} at {network.size_px} px, {epoch_s:.0f} s each,"
        " then the report and the release"
    )
