"""What is searched: the preset that it starts from, and the values that each hyperparameter may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from training.errors import TrainingError
from training.fit.phases import start_of
from training.fit.preset import Preset
from training.models.catalogue import Architecture, find_architecture

_FLOATS = {
    "learning_rate": FloatDistribution(5e-5, 5e-3, log=True),
    "weight_decay": FloatDistribution(1e-4, 1, log=True),
    "dropout": FloatDistribution(0, 0.6),
    "label_smoothing": FloatDistribution(0, 0.2),
    "augmentation": FloatDistribution(0, 2),
    "unfreeze": FloatDistribution(0, 1),
}
# Above 1e-3, an EfficientNet-Lite0 with ImageNet weights, which has no norms, forgot all within an epoch.
_RATE_OF_PRETRAINED = FloatDistribution(2e-5, 1e-3, log=True)

TRIAL_EPOCHS = 8  # of a training that is compared with others; all of the default's take half an hour


@dataclass(frozen=True)
class Space:
    """The presets that a search chooses from.

    Attributes:
        name: The name of the preset that it starts from.
        label: The name, and the backbone and size if they are not the preset's own, or its larger network is left out.
        start: That preset, with few epochs; its backbone or size is the first to choose from, if its own is not among
            these.
        epochs: How many it has itself.
        values: The values of each hyperparameter; a backbone or size is one if there are several.
        backbones: The start's, then the others that a preset may have.
    """

    name: str
    label: str
    start: Preset
    epochs: int
    values: dict[str, BaseDistribution]
    backbones: list[Architecture]

    @property
    def made_of(self) -> list[Any]:
        """What tells its search of the same photos from others, as JSON values."""
        networks, weights = zip(*(each.made_of(self.start.weights) for each in self.backbones), strict=True)
        return [networks, weights[0], asdict(self.start.recipe)]

    def first(self) -> dict[str, Any]:
        """Return the values of the start, moved inside their bounds."""
        found = {"architecture": self.start.architecture, "size": self.start.size, **vars(self.start.recipe)}
        for name, values in self.values.items():
            if isinstance(values, FloatDistribution):
                found[name] = float(np.clip(found[name], values.low, values.high))
        return {name: found[name] for name in self.values}

    def preset(self, values: Mapping[str, Any]) -> Preset:
        """Return the start with some values, rounded as they are written."""
        rounded = {name: float(f"{value:.3g}") if name in _FLOATS else value for name, value in values.items()}
        return self.start.changed(rounded)

    def start_with(self, backbone: Architecture) -> Preset:
        """Return the start with one of the backbones, at its size."""
        if backbone == self.backbones[0]:  # the start's own; that of a file may not be square
            return self.start
        return self.start.changed({"architecture": backbone.name, "size": backbone.size_px})


@cache  # a file is loaded to know its size
def backbone(preset: Preset) -> Architecture:
    """Return a preset's backbone, at its size."""
    return start_of(preset)


def find_space(preset: Preset, name: str, architectures: Sequence[str], sizes: Sequence[int]) -> Space:
    """Return the values that matter to a preset's training, and the backbones and sizes to choose from, if any.

    Raises:
        TrainingError: The preset trains nothing, there is no such architecture, or its weights are those of one.
    """
    preset.check_trains()
    epochs = preset.recipe.epochs
    preset = preset.changed({"epochs": min(epochs, TRIAL_EPOCHS)})
    floats = {each: values for each, values in _FLOATS.items() if each != "unfreeze" or preset.pretrained}
    if preset.pretrained:
        floats["learning_rate"] = _RATE_OF_PRETRAINED
    if preset.weights not in ("imagenet", "none"):
        if architectures or sizes:
            raise TrainingError(
                f"Expected no --architectures nor --sizes with the weights of one network, {preset.weights}"
            )
        return Space(name, name, preset, epochs, dict(floats), [backbone(preset)])
    own = find_architecture(preset.architecture).name
    named = sorted({find_architecture(each).name for each in architectures}) or [own]  # in whatever order they came
    px: list[int | None] = [*sorted(set(sizes))] or [preset.size]
    known = preset.size or find_architecture(own).size_px
    chosen = own if own in named else named[0]
    # One that was named has no larger network, by which few photos are trained.
    start = preset.changed({"architecture": chosen if architectures else None, "size": known if known in px else px[0]})
    first = find_architecture(start.architecture, start.size)
    backbones = list(dict.fromkeys([first, *(find_architecture(each, size) for each in named for size in px)]))
    values: dict[str, BaseDistribution] = {}
    if len(named) > 1:  # in the order of the backbones, by which a search is found again: Optuna takes no other
        values["architecture"] = CategoricalDistribution(list(dict.fromkeys(each.name for each in backbones)))
    if len(px) > 1:
        values["size"] = CategoricalDistribution(list(dict.fromkeys(each.size_px for each in backbones)))
    values |= floats
    changed = first != find_architecture(own, preset.size) or start.larger != preset.larger
    label = f"{name} with {first.name} at {first.size_px} px" if changed else name
    return Space(name, label, start, epochs, values, backbones)
