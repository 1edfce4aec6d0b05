"""What a training does with its minutes, by how long a few steps take here."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.disk import sync, written_whole
from training.errors import TrainingError
from training.fit import phases
from training.fit.preset import Preset
from training.fit.rehearsal import Speed, rehearse
from training.models.novelty import SCORE_PHOTOS
from training.runs.unfinished import phases_begun, read_kept, spent_s
from training.words import counted

if TYPE_CHECKING:
    from training.fit.train import Data

_log = logging.getLogger(__name__)

# After training, for the report and the release; and for each photo of test, or of validation without one, to search an
# int8 file on the CPU: at least what EfficientNet-Lite0 takes, or as long as three of validation take with Keras.
AFTER_S, AFTER_S_A_PHOTO, AFTER_PASSES = 50, 0.05, 3
# Trainings of one network from one head, if the time suffices for all of their epochs; the weights are averaged. 30
# photos of each class of clothing and trash together, 2,209 held out, 40 epochs: 0.831 on average of three, and 0.846
# for their weights' average, log loss 0.664 and 0.592. With many it changes little: trash, 240 of each class, 360 held
# out, twice 40 epochs 0.931, once 0.939 and 0.922. Shorter trainings are worth less: three times 12 epochs 0.919.
MOST_TRAININGS = 3
# The larger network of a preset is for few photos of each class, and for minutes that suffice for some of its epochs.
# Lite2 at 260 px, the same 30 of each class: 0.838 after 20 epochs and 0.855 after 40, where Lite0 has 0.828 and 0.831;
# three trainings averaged 0.850 and 0.846. On crops with other light, turned and blurred, 0.768 and 0.753 (one each).
# 80 of each, 2,004 held out: 0.888 after 12 epochs, where Lite0 has 0.872 after 24, in about the same time (one each).
# Trash, 240 of each class, two fifths held out: 0.964 and 0.919, where Lite0 has 0.961 and 0.922.
FEW_PHOTOS, LARGER_EPOCHS = 100, 12
# How often weights are compared on validation, at most: two of the last training, all trainings' and their average,
# and shares.
CHOICES = 2 + (MOST_TRAININGS + 1) + len(phases.SHARES)


@dataclass(frozen=True)
class Plan:
    """What a training does, and until when.

    Attributes:
        preset: What it trains.
        minutes: That were given; None if only the epochs count.
        limit_s: Seconds of the run after which training ends; None if only its epochs count.
        trainings: How often the network trains; the weights are averaged.
        text: The same in words; empty without epochs.
    """

    preset: Preset
    minutes: float | None = None
    limit_s: float | None = None
    trainings: int = 1
    text: str = ""


def find_plan(file: Path, preset: Preset, data: Data, minutes: float | None, passed_s: float) -> Plan:
    """Return what an interrupted training of as many minutes planned, or plan anew and write the file; log which.

    Other minutes mean another plan, but for the same network if epochs of it are there.

    Args:
        file: Where the plan is, or will be; beside it are the epochs.
        preset: What to train; see `make_plan` for the others.

    Raises:
        TrainingError: The file is not whole, or the minutes do not suffice.
    """
    folder, before = file.parent, read_kept(file) if file.is_file() else {}
    planned, is_same = before.pop("architecture", None), before.get("minutes", math.nan) == minutes
    chosen = preset.changed({"architecture": planned if is_same or spent_s(folder) else None})
    if is_same:
        if before["text"]:
            _log.info(f"Going on by the plan that it began with. {before['text']}")
        return Plan(chosen, **before)
    plan = make_plan(chosen, data, minutes, passed_s, folder) if minutes else _without_limit(chosen, data, folder)
    if plan.text:
        _log.info(plan.text)
    with written_whole(file) as draft:
        values = {name: value for name, value in vars(plan).items() if name != "preset"}
        draft.write_text(json.dumps({**values, "architecture": plan.preset.architecture}))
        sync(draft)
    return plan


def make_plan(preset: Preset, data: Data, minutes: float, passed_s: float, folder: Path) -> Plan:
    """Measure a few steps, and plan what the minutes suffice for.

    Args:
        preset: What to train.
        data: The photos.
        minutes: For all, from the first version to the release.
        passed_s: Seconds of them that have passed.
        folder: Where the epochs of an interrupted training are; these take of the minutes too.

    Raises:
        TrainingError: They do not suffice for one epoch, and none is there.
    """
    started, most = time.monotonic(), preset.recipe.epochs
    train, held_out = (len(data.splits[split].labels) for split in ("train", "validation"))
    networks = [(preset, 1)]
    if preset.larger and is_few(train, len(data.classes)):
        networks.insert(0, (preset.changed({"architecture": preset.larger}), min(most, LARGER_EPOCHS)))
    for chosen, enough in networks:
        speed = rehearse(chosen, len(data.classes))
        epoch_s, after_s = speed.epoch_s(train, held_out), _after_s(chosen, speed, data)
        left_s = 60 * minutes - passed_s - after_s - (time.monotonic() - started)
        if int((left_s - speed.once_s) / epoch_s) >= enough:
            break
    spent = spent_s(folder)
    if spent and left_s < spent + speed.once_s + epoch_s:
        text = f"Plan for {minutes:g} minutes: no more epochs, as {spent / 60:.1f} minutes were spent on those before"
        return Plan(chosen, minutes, spent, phases_begun(folder), f"{text}. The best of them is taken")
    if left_s < speed.once_s + epoch_s:
        enough = math.ceil(minutes + (speed.once_s + epoch_s - left_s) / 60)
        before = " What was released stays. A first version is not made again, so fewer may do."
        raise TrainingError(
            f"Expected --minutes {enough} or more. Received: {minutes:g}. {60 * minutes - after_s - left_s:.0f} s have"
            f" passed, starting takes {speed.once_s:.0f} s, an epoch {epoch_s:.0f} s, and report and release up to"
            f" {after_s:.0f} s.{before if preset.pretrained else ''}"
        )
    whole_s = speed.once_s + most * epoch_s
    trainings = max(1, phases_begun(folder), min(MOST_TRAININGS, int(left_s / whole_s)) if preset.pretrained else 1)
    epochs = max(1, int((left_s / trainings - speed.once_s) / epoch_s))
    count = f"all {most} epochs" if epochs >= most else f"about {epochs} of at most {most} epochs"
    text = f"Plan for {minutes:g} minutes: {count} of {_network(chosen)}, {epoch_s:.0f} s each"
    if trainings > 1:
        text += f", {trainings} times, and the average of the weights"
    if epochs >= most:  # more than the preset's do not help: see its comments
        unused_s = left_s - trainings * whole_s
        text += f"; about {counted(math.ceil(minutes - unused_s / 60), 'minute')} in all"
    if chosen is not preset:
        text += f". For cheaper answers: --architecture {preset.architecture}"
    return Plan(chosen, minutes, left_s, trainings, text)


def is_few(photos: int, classes: int) -> bool:
    """Tell whether a preset's larger network is for as many photos to train on."""
    return photos < FEW_PHOTOS * classes


def _without_limit(preset: Preset, data: Data, folder: Path) -> Plan:
    """Plan all epochs, however long they take, of what was begun; a first version has none, and needs no plan."""
    if not preset.recipe.epochs:
        return Plan(preset)
    text = f"Plan: at most {counted(preset.recipe.epochs, 'epoch')} of {_network(preset)}, without a limit of time"
    if preset.larger and is_few(len(data.splits["train"].labels), len(data.classes)):
        text += f". For so few photos, {preset.larger} may be better: give --minutes or --architecture"
    return Plan(preset, trainings=max(1, phases_begun(folder)), text=text)


def _network(preset: Preset) -> str:
    start = phases.start_of(preset)
    return f"{start.name} at {start.size_px} px"


def _after_s(preset: Preset, speed: Speed, data: Data) -> float:
    """Return the seconds from the end of the last epoch to the release, most of which depend on the network."""
    train, held_out = (len(data.splits[split].labels) for split in ("train", "validation"))
    measured = len(data.splits.get("test", data.splits["validation"]).labels)
    choices_s = (CHOICES if preset.pretrained else 0) * speed.epoch_s(0, held_out)
    features_s = speed.epoch_s(0, min(train, SCORE_PHOTOS))
    int8_s = max(measured * AFTER_S_A_PHOTO, AFTER_PASSES * speed.epoch_s(0, measured))
    return AFTER_S + choices_s + features_s + int8_s
