"""What trainings will cost here, and whether they fit into the minutes of a search."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

from training.errors import TrainingError
from training.fit.preset import Preset
from training.fit.rehearsal import rehearse
from training.models.catalogue import Architecture
from training.tune.folds import FOLDS
from training.tune.space import Space

_log = logging.getLogger(__name__)

FEWEST_COMPARED = 2  # folds: of fewer, a gain has no standard error


@dataclass(frozen=True)
class Cost:
    """Seconds of a training: if it ends as early as it can, and if it does not."""

    least_s: float
    most_s: float

    @property
    def range(self) -> str:
        """How long a training takes, in words."""
        bounds = dict.fromkeys(f"{each_s:.0f}" for each_s in (self.least_s, self.most_s))  # each once
        return f"{' to '.join(bounds)} s"


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
            self.known[each] = cost = self._cost(self.space.start_with(each))
            _log.info(f"A training with it takes {cost.range} here")
        return self.known[each]

    def check(self, left: Time) -> None:
        """Refuse a search for which the start, another trial and the comparison of both are too long.

        Raises:
            TrainingError: They are, with the backbone that takes longest, of those that were measured until then.
        """
        backbones, trainings = self.space.backbones, 1 + FEWEST_COMPARED
        first = longest = backbones[0]
        for more, each in zip(reversed(range(len(backbones))), backbones, strict=True):
            longest = max(longest, each, key=lambda one: self[one].most_s)
            shared = f", half of them with {first.name} at {first.size_px} px" * (longest != first)
            why = f"A training with {longest.name} at {longest.size_px} px takes {self[longest].range}, and a search"
            why += f" needs {2 * trainings} trainings{shared}" + f". Not measured yet: {more} more" * bool(more)
            least_s, most_s = self[first].least_s + self[longest].least_s, self[first].most_s + self[longest].most_s
            left.check(trainings * least_s, trainings * most_s, why)

    def _cost(self, preset: Preset) -> Cost:
        """Estimate what a preset's training costs."""
        speed, recipe = rehearse(preset, self.classes), preset.recipe
        epoch_s = speed.epoch_s(self.photos * (FOLDS - 1) // FOLDS, self.photos // FOLDS)
        fewest = min(recipe.epochs, recipe.patience + 1)
        return Cost(speed.once_s + fewest * epoch_s, speed.once_s + recipe.epochs * epoch_s)
