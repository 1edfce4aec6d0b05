"""How long trainings will take here, by a few steps on noise, and whether they fit: known before a photo is read."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.data.pixels import Pixels
from training.errors import TrainingError
from training.fit import batches, phases
from training.fit.preset import Preset
from training.fit.unfinished import Unfinished
from training.models.catalogue import Architecture
from training.tune.folds import FOLDS, without_lines
from training.tune.space import Space, backbone

_log = logging.getLogger(__name__)

FEWEST_COMPARED = 2  # folds: of fewer, a gain has no standard error
STEPS = 4  # the first one also traces the graph


@dataclass(frozen=True)
class Cost:
    """Seconds of a training: if it ends as early as it can, and if it does not."""

    least_s: float
    most_s: float

    @property
    def range(self) -> str:
        """How long a training takes, in words."""
        return f"{self.least_s:.0f} to {self.most_s:.0f} s"


@dataclass(frozen=True)
class Time:
    """What is left of the minutes of a search."""

    minutes: float
    deadline: float

    @property
    def s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def check(self, needed_s: float, enough_s: float, why: str) -> None:
        """Refuse what cannot be done in the time that is left.

        Raises:
            TrainingError: It needs more; the message says how many minutes are enough.
        """
        if self.s < needed_s:
            minutes = math.ceil(self.minutes + (enough_s - self.s) / 60)
            raise TrainingError(f"Expected --minutes {minutes} or more. Received: {self.minutes:g}. {why}")


@dataclass
class Costs:
    """What a training costs with each backbone, as far as that was asked for."""

    space: Space
    photos: int
    classes: int
    known: dict[Architecture, Cost] = field(default_factory=dict)

    def __getitem__(self, each: Architecture) -> Cost:
        if each not in self.known:
            _log.info(f"Measuring a few steps with {each.name} at {each.size_px} px")
            preset = self.space.start.changed({"architecture": each.name, "size": each.size_px})
            self.known[each] = cost = rehearse(preset, self.photos, self.classes)
            _log.info(f"A training with it takes {cost.range} here")
        return self.known[each]

    def check(self, left: Time) -> None:
        """Refuse a search for which the start, another trial and the comparison of both are too long.

        Raises:
            TrainingError: They are, with the backbone that takes longest.
        """
        first, longest = self.space.backbones[0], max(self.space.backbones, key=lambda each: self[each].most_s)
        trainings = 1 + FEWEST_COMPARED
        left.check(
            trainings * (self[first].least_s + self[longest].least_s),
            trainings * (self[first].most_s + self[longest].most_s),
            f"A training with {longest.name} at {longest.size_px} px takes {self[longest].range}, and a search needs"
            f" {2 * trainings}" + (f", half of them with {first.name} at {first.size_px} px" * (longest != first)),
        )


def rehearse(preset: Preset, photos: int, classes: int) -> Cost:
    """Estimate what a preset's training costs on some photos.

    The head does not count: it is fitted to features in some seconds.
    """
    started, watch, recipe = time.monotonic(), _Watch(), preset.recipe
    keras.utils.clear_session()
    rng, size_px = np.random.default_rng(0), backbone(preset).size_px

    def noise(*shape: int) -> NDArray[np.uint8]:
        return rng.integers(0, 256, shape, np.uint8)

    network, images = phases.build(preset, classes), noise(STEPS * recipe.batch_size, size_px, size_px, 3)
    with tempfile.TemporaryDirectory() as folder, without_lines():
        run, short = Unfinished(Path(folder), time.monotonic()), preset.changed({"epochs": 1})
        pixels = Pixels(images, rng.integers(0, classes, len(images)), [], "", {}, Path())
        phases.Phases(network, short, run, [watch]).fit_upper_layers({"train": pixels, "validation": pixels})
    once_s = time.monotonic() - started - watch.measured_s
    trained = batches.steps(photos * (FOLDS - 1) // FOLDS, recipe) * watch.batch_s("train")
    epoch_s = trained + batches.steps(photos // FOLDS, recipe) * watch.batch_s("test")
    least_s, most_s = (once_s + epochs * epoch_s for epochs in (min(recipe.epochs, recipe.patience + 1), recipe.epochs))
    return Cost(least_s, most_s)


class _Watch(keras.callbacks.Callback):
    """Remember when batches ended."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[str, list[float]] = defaultdict(list)

    def batch_s(self, kind: str) -> float:
        """Return the seconds of a batch of training (`train`) or validation (`test`)."""
        return float(np.median(np.diff(self._ends[kind])))

    @property
    def measured_s(self) -> float:
        """Seconds of all batches after the first of each kind."""
        return sum(ends[-1] - ends[0] for ends in self._ends.values())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends["train"].append(time.monotonic())

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends["test"].append(time.monotonic())
