"""How fast a training will be here, by a few steps on noise."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.cores import CORES
from training.data.pixels import Pixels
from training.fit import phases
from training.fit.preset import Preset
from training.runs.unfinished import Unfinished

# The first step also traces the graph, while two batches more than there are cores are read ahead. With only four
# steps, the plan saw no augmentation.
LEAST_STEPS = 4
STEPS = max(16, 2 * (CORES + 2))
ENOUGH_S = 10.0  # after which the least suffice: augmentation takes little of long steps


@dataclass(frozen=True)
class Speed:
    """How fast a network trains here.

    Attributes:
        once_s: Seconds before the second step: for the network, and its graph.
        batch_size: Photos in a batch.
        train_s: Seconds of a batch in training.
        validate_s: Seconds of a batch in validation.
    """

    once_s: float
    batch_size: int
    train_s: float
    validate_s: float

    def epoch_s(self, photos: int, held_out: int) -> float:
        """Return the seconds of an epoch with some photos."""
        batches, held_out_batches = (-(-count // self.batch_size) for count in (photos, held_out))
        return batches * self.train_s + held_out_batches * self.validate_s


def rehearse(preset: Preset, classes: int) -> Speed:
    """Measure how fast a preset's network trains.

    The head does not count: it is fitted to features in some seconds.
    """
    started, watch, recipe = time.monotonic(), _Watch(), preset.recipe
    if not tf.distribute.has_strategy():  # whose scope that would end, so that one device would train alone
        keras.utils.clear_session()
    rng, spec = np.random.default_rng(0), phases.start_of(preset).photo_spec

    def photos(count: int) -> Pixels:
        image = rng.integers(0, 256, (1, spec.height, spec.width, 3), np.uint8)
        images = np.broadcast_to(image, (count, *image.shape[1:]))
        return Pixels(images, rng.integers(0, classes, count), [], "", {}, Path())

    network = phases.build(preset, classes)
    with tempfile.TemporaryDirectory() as folder, without_lines():
        run, short = Unfinished(Path(folder), time.monotonic()), preset.changed({"epochs": 1})
        steps = {"train": STEPS, "validation": LEAST_STEPS}
        splits = {split: photos(count * recipe.batch_size) for split, count in steps.items()}
        phases.Phases(network, short, run, [watch]).fit_network(splits)
    once_s = time.monotonic() - started - watch.measured_s
    return Speed(once_s, recipe.batch_size, watch.batch_s("train"), watch.batch_s("test"))


@contextmanager
def without_lines() -> Iterator[None]:
    """Leave out the lines of a single training, of which there are many."""
    logs = (phases.log, logging.getLogger("training.progress"))
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log in logs:
            log.setLevel(logging.NOTSET)


class _Watch(keras.callbacks.Callback):
    """Remember when batches ended, and end the training when they suffice."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[str, list[float]] = defaultdict(list)

    def batch_s(self, kind: str) -> float:
        """Return the seconds of a batch of training (`train`) or validation (`test`), by the later half of them."""
        later = self._ends[kind][(len(self._ends[kind]) - 1) // 2 :]  # their mean, as batches are read in bursts
        return (later[-1] - later[0]) / (len(later) - 1)

    @property
    def measured_s(self) -> float:
        """Seconds of all batches after the first of each kind."""
        return sum(ends[-1] - ends[0] for ends in self._ends.values())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends["train"].append(time.monotonic())
        if batch + 1 >= LEAST_STEPS and self._ends["train"][-1] - self._ends["train"][0] > ENOUGH_S:
            self.model.stop_training = True

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends["test"].append(time.monotonic())
