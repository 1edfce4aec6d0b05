"""`python -m training` with a small architecture; as a program, it dies at a chosen moment or has two CPU devices."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
from keras import Input, Model, layers
from PIL import Image

from serving.errors import ServingError
from tests.programs.photos import encode
from training.__main__ import main
from training.fit import commands, phases
from training.models import features
from training.models.catalogue import ARCHITECTURES, Architecture
from training.release import sources
from training.runs import track
from training.runs.unfinished import Progress
from training.tune import folds


class Small(Architecture):
    """Pixels (n, h, w, 3) to 8 features, with a batch norm unless its name says so; its weights are always random."""

    def backbone(self, weights: str) -> Model:
        inputs = Input((self.size_px, self.size_px, 3))
        x = layers.Conv2D(8, 3, strides=2)(inputs)
        if self.name == "small":
            x = layers.BatchNormalization()(x)
        return Model(inputs, layers.GlobalAveragePooling2D()(layers.ReLU()(x)))


SMALL, WITHOUT_NORM = (Small(name, 16, "±1") for name in ("small", "without-norm"))


def draw(folder: Path, photos: int = 12, noise: float = 20) -> Path:
    """Write a folder of three easy classes, colours with noise."""
    for name, rgb in {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}.items():
        (folder / name).mkdir(parents=True)
        for seed in range(photos):
            pixels = np.array(rgb) + np.random.default_rng(seed).normal(0, noise, (20, 24, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            (folder / name / f"{seed:02}.jpg").write_bytes(encode(image))
    return folder


def _die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


class Dying(Progress):
    """Die inside the third epoch of the network, or in the fourth between its weights and its state."""

    moment = ""
    tracked = Event()  # the tracker has a thread of its own, which a fast epoch leaves behind

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch if self._folder.name == "network" else -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.moment, self.epoch, batch) == ("inside an epoch", 2, 1):
            assert self.tracked.wait(60), "the tracker has two epochs"
            _die()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (self.moment, self.epoch) == ("before the state", 3):
            setattr(Path, "rename", _die)  # noqa: B010, for mypy
        super().on_epoch_end(epoch, logs)


class Telling(track.TensorBoard):
    """TensorBoard's tracker; it tells when it has two epochs."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        super().log(step, figures)
        if step == 1:
            Dying.tracked.set()


def _die_in_the_third(*_: Any, trainings: Iterator[int] = count(1)) -> float:  # noqa: B008, counts all calls
    return _die() if next(trainings) == 3 else 0.5


def _not_by_tflite(*_: Any) -> NoReturn:
    """Leave features to Keras, as with GPUs."""
    raise ServingError


if __name__ == "__main__":
    ARCHITECTURES |= {each.name: each for each in (SMALL, WITHOUT_NORM)}
    setattr(sources, "release", lambda *_, **__: None)  # noqa: B010, for mypy
    if sys.argv[1] == "two devices":
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
        setattr(features, "freeze", _not_by_tflite)  # noqa: B010
    elif sys.argv[1] == "in the third trial":
        setattr(folds.Folds, "accuracy", _die_in_the_third)  # noqa: B010
    elif sys.argv[1] == "in the release":
        setattr(commands, "_better", lambda run, *_: run)  # noqa: B010
        setattr(sources, "release", lambda *_, int8, **__: _die() if int8 else None)  # noqa: B010
    else:
        setattr(phases, "Progress", Dying)  # noqa: B010
        track.TRACKERS["tensorboard"] = Telling
        Dying.moment = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
