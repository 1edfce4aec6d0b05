"""Presets: documents that say what a training is for, its command, what to expect of it, and its values.

Needs no TensorFlow.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.fit.recipe import Recipe

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """One document; what it leaves out of the recipe has its default.

    Attributes:
        about: What it is for.
        command: How it is used.
        expected: What somebody reached with it, and on what.
        architecture: The backbone's name.
        weights: `imagenet` or `none`.
        size: Input size in pixels; None for the architecture's own.
        time: How long that took, and where.
        recipe: Values for `training.fit.recipe.Recipe`.
    """

    about: str
    command: str
    expected: str
    architecture: str
    weights: str
    size: int | None = None
    time: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def recipe_with(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with values of one's own; None stands for none."""
        return Recipe(**{**self.recipe, **{name: value for name, value in values.items() if value is not None}})


def names() -> list[str]:
    """Return the names of the presets that are installed."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_preset(name: str) -> Preset:
    """Read a preset by its name, or a document of one's own by its path.

    Raises:
        TrainingError: There is none, or it does not hold what a preset holds.
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
        preset = Preset(**values)
        preset.recipe_with({})
    except (TypeError, ValueError) as exc:
        raise TrainingError(f"Expected {path} to be a preset. Received: {exc}") from exc
    return preset


def write_preset(path: Path, preset: Preset) -> None:
    """Write a document that `find` reads; its text, numbers and names are JSON, which TOML takes as they are."""
    values = {name: value for name, value in asdict(preset).items() if value is not None and name != "recipe"}
    lines = [_line(name, value) for name, value in values.items()]
    lines += ["", "[recipe]", *(_line(name, value) for name, value in preset.recipe.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(name: str, value: Any) -> str:
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"
