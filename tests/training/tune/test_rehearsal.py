"""training/tune/rehearsal.py: what a training will cost, by a few of its steps."""

from __future__ import annotations

import pytest

from training.fit.preset import Preset
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("recipe", [Recipe(epochs=4, head_epochs=5, patience=1), Recipe(epochs=0, head_epochs=5)])
def test_a_rehearsal_measures_a_few_steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many photos take longer than few, in each kind of training."""
    from tests.programs.small_training import SMALL
    from training.models.catalogue import ARCHITECTURES
    from training.tune.rehearsal import rehearse

    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    preset = Preset("a", "c", "e", "small", "imagenet", recipe=recipe)
    few, many = rehearse(preset, 100, 3), rehearse(preset, 1_000_000, 3)
    assert 0 < few.features_s < many.features_s / 100
    assert few.most_s < many.least_s <= many.most_s
