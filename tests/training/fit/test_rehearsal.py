"""training/fit/rehearsal.py: how fast a training is, by a few of its steps."""

from __future__ import annotations

import pytest

from training.fit.preset import Preset
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow


def test_a_rehearsal_measures_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of many photos takes longer than one of few."""
    from tests.programs.small_training import SMALL
    from training.fit.rehearsal import rehearse
    from training.models.catalogue import ARCHITECTURES

    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    speed = rehearse(Preset("a", "c", "e", "small", "imagenet", recipe=Recipe(epochs=4, patience=1)), 3)
    assert min(speed.once_s, speed.train_s, speed.validate_s) > 0
    assert speed.epoch_s(1000, 100) > 9 * speed.epoch_s(100, 10)
