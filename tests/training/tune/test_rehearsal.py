"""training/tune/rehearsal.py: what a training will cost, by a few of its steps."""

from __future__ import annotations

import pytest

from training.fit.preset import Preset
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow


def test_a_rehearsal_measures_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many photos take longer than few, and all epochs longer than the fewest."""
    from tests.programs.small_training import SMALL
    from training.models.catalogue import ARCHITECTURES
    from training.tune.rehearsal import rehearse

    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    preset = Preset("a", "c", "e", "small", "imagenet", recipe=Recipe(epochs=4, patience=1))
    few, many = rehearse(preset, 100, 3), rehearse(preset, 1_000_000, 3)
    assert 0 < few.most_s < many.least_s < many.most_s
