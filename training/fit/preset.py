"""Presets: TOML files with the values of a training, what they are for, and what to expect. Needs no TensorFlow."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.fit.recipe import Recipe, check_types
from training.runs.folder import run_of

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """What a training starts from: a network, its weights, and a recipe.

    Attributes:
        about: What it is for.
        command: How it is used.
        expected: The accuracy that it reached, and on which photos.
        architecture: The backbone's name.
        weights: `imagenet`, `none`, a run folder or a file.
        larger: A network with ImageNet weights that trains in its place where photos are few; empty for none.
        size: Input size in pixels; None for the architecture's own.
        preprocessing: What the network in a file expects; None for that of its architecture.
        time: How long that took, and where.
        recipe: How to train.
    """

    about: str
    command: str
    expected: str
    architecture: str
    weights: str
    larger: str = ""
    size: int | None = None
    preprocessing: str | None = None
    time: str = ""
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        check_types(self)
        if self.larger and self.weights != "imagenet":
            raise TrainingError(f"Expected no larger network with weights {self.weights}. Received: {self.larger}")

    @property
    def pretrained(self) -> bool:
        """Whether the backbone begins with weights; random ones give no features, and are not frozen."""
        return self.weights != "none"

    @property
    def unfreeze(self) -> float:
        """The part of the backbone's layers that is trained."""
        return self.recipe.unfreeze if self.pretrained else 1.0

    def changed(self, values: Mapping[str, Any]) -> Preset:
        """Return the preset with some values of its own or of its recipe replaced; None keeps a value."""
        given = {name: value for name, value in values.items() if value is not None}
        of_recipe = {name: given.pop(name) for name in vars(self.recipe) if name in given}
        if any(name == "architecture" or value != getattr(self, name) for name, value in given.items()):
            given["larger"] = ""  # the network that was chosen is trained
        weights = given.get("weights", self.weights)
        if weights != self.weights and (weights in ("imagenet", "none") or run_of(Path(weights))):
            given.setdefault("preprocessing", None)  # these bring their own; a file may be the preset's, moved
        return replace(self, **given, recipe=replace(self.recipe, **of_recipe))

    def check_trains(self) -> None:
        """Refuse to train nothing but the head, which needs no preset.

        Raises:
            TrainingError: There is no epoch.
        """
        if not self.recipe.epochs:
            raise TrainingError("Expected epochs of at least 1. Received: 0. For the head alone: train --first-only")

    @property
    def first(self) -> Preset:
        """The same for a first version: the head alone, on frozen features."""
        recipe = Recipe(epochs=0, seed=self.recipe.seed, class_weights=self.recipe.class_weights)
        return replace(self, larger="", recipe=recipe)


def names() -> list[str]:
    """Return the names of the presets that are installed."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_preset(name: str) -> Preset:
    """Read an installed preset by its name, or any .toml file by its path.

    Raises:
        TrainingError: There is none, or its values are not those of a preset.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise TrainingError(f"Expected a preset of: {', '.join(names())}, or a .toml file. Received: {name!r}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        for known, received in ((Preset, values), (Recipe, values.get("recipe", {}))):
            names_of = [each.name for each in fields(known)]
            if strange := [name for name in received if name not in names_of]:
                where = "in [recipe]" if known is Recipe else "outside of [recipe]"
                raise ValueError(f"{', '.join(strange)}, where {where} there may be: {', '.join(names_of)}")
        return Preset(**{**values, "recipe": Recipe(**values.get("recipe", {}))})
    except (TypeError, ValueError) as exc:
        raise TrainingError(f"Expected {path} to be a preset. Received: {exc}") from exc


def write_preset(path: Path, preset: Preset) -> None:
    """Write a file that `find_preset` reads; its text, numbers and names are JSON, which TOML takes as they are."""
    values = {name: value for name, value in asdict(preset).items() if value is not None and name != "recipe"}
    lines = [_line(name, value) for name, value in values.items()]
    lines += ["", "[recipe]", *(_line(name, value) for name, value in asdict(preset.recipe).items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{name} = {text}".replace("\x7f", "\\u007f")  # which JSON takes as it is, and TOML does not
