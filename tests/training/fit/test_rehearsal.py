"""training/fit/rehearsal.py: how fast a training is, by a few of its steps."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from training.fit.preset import Preset
from training.fit.recipe import Recipe

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("small")]

PRESET = Preset("a", "c", "e", "small", "imagenet", recipe=Recipe(epochs=4, patience=1))


def test_a_rehearsal_measures_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind's first step makes its graph, too, and counts once. Time passes by looks at the clock."""
    from training.fit import rehearsal

    ticks = count()
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(ticks)))
    speed = rehearsal.rehearse(PRESET, 3)
    assert (speed.train_s, speed.validate_s, speed.once_s) == pytest.approx((0.1, 0.1, 0.4))


def test_devices_that_share_a_rehearsal_share_the_training_after_it() -> None:
    """The scope of their strategy goes on, and ends as it should."""
    import tensorflow as tf

    from training.fit.rehearsal import rehearse

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        rehearse(PRESET, 3)
        assert tf.distribute.get_strategy() is strategy


def test_a_rehearsal_of_long_steps_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after the least steps, and validates all the same."""
    from training.fit import rehearsal

    ends: list[int] = []
    kept = rehearsal._Watch.on_train_batch_end
    monkeypatch.setattr(rehearsal, "ENOUGH_S", -1.0)
    monkeypatch.setattr(
        rehearsal._Watch, "on_train_batch_end", lambda self, batch, logs=None: (ends.append(batch), kept(self, batch))
    )
    speed = rehearsal.rehearse(PRESET, 3)
    assert ends == list(range(rehearsal.LEAST_STEPS)) and speed.validate_s > 0


def test_an_epoch_is_of_whole_batches() -> None:
    """The last one is filled up."""
    from training.fit.rehearsal import Speed

    assert Speed(once_s=9, batch_size=32, train_s=2, validate_s=0.5).epoch_s(33, 5) == 4.5
