"""training/fit/preset.py and its documents."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import _parser
from training.errors import TrainingError
from training.fit.preset import FOLDER, Preset, find_preset, names, write_preset
from training.fit.recipe import Recipe

PRESET = 'about = "a"\ncommand = "c"\nexpected = "e"\narchitecture = "plain-cnn"\nweights = "none"\n'


@pytest.mark.parametrize("name", names())
def test_each_document_is_usable_as_it_says(name: str) -> None:
    """It names what it is for and what to expect, and its command is one of the command line that asks for it."""
    preset = find_preset(name)
    assert preset.about and preset.expected
    options = _parser().parse_args(preset.command.removeprefix("python -m training ").split())
    assert options.preset == name


def test_default_lists_every_default() -> None:
    """The document and the recipe's defaults are the same values, and no value is missing."""
    written = tomllib.loads((FOLDER / "default.toml").read_text())
    assert written["recipe"] == asdict(Recipe())


def test_single_options_override() -> None:
    """A given value counts, and what is not given is the preset's or the default."""
    preset = find_preset("plain-cnn").changed({"epochs": 3, "patience": None, "size": 64, "weights": None})
    assert (preset.recipe.epochs, preset.recipe.patience, preset.recipe.batch_size) == (3, 10, 32)
    assert (preset.size, preset.weights) == (64, "none")


@pytest.mark.parametrize(
    ("given", "preprocessing"),
    [
        ({"weights": "theirs.keras", "size": 64}, "±1"),
        ({"weights": "./theirs.keras"}, "±1"),
        ({"weights": "moved/theirs.keras"}, "±1"),
        ({"weights": "imagenet"}, None),
        ({"weights": "none"}, None),
        ({"weights": "run"}, None),
        ({"weights": "run/model.keras"}, None),
        ({"weights": "other.keras", "preprocessing": "torch"}, "torch"),
    ],
)
def test_preprocessing_is_that_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], preprocessing: str | None
) -> None:
    """Weights that bring their own, as a run does, come without the preset's; a file may be the preset's, moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "contract.json").touch()
    preset = Preset("a", "c", "e", "plain-cnn", "theirs.keras", preprocessing="±1")
    assert preset.changed({"preprocessing": None, **given}).preprocessing == preprocessing


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Quotes, letters beyond ASCII, control characters, small numbers and what is left out come back as they were."""
    recipe = Recipe(learning_rate=1e-5, class_weights="balanced")
    preset = Preset('5 "é" \\ photos', "c\t\x7f", "0.9 ± 0.1", "plain-cnn", "none", time="1 s", recipe=recipe)
    write_preset(tmp_path / "mine.toml", preset)
    assert find_preset(str(tmp_path / "mine.toml")) == preset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Expected a preset of: default, plain-cnn, resnet50, vgg16, or"),
        ("about = 1", "missing"),
        ("no toml", "Expected"),
        ("epochs = 1", "Received: epochs, where outside of \\[recipe\\] there may be: about, command,"),
        (f'{PRESET}size = "160"', "Expected size to be a whole number. Received: '160'"),
        (f"{PRESET}[recipe]\nepochs = 10.5", "Expected epochs to be a whole number. Received: 10.5"),
        (f"{PRESET}[recipe]\nseed = true", "Expected seed to be a whole number. Received: True"),
        (f"{PRESET}[recipe]\nseed = 4294967296", "Expected seed below 4294967296. Received: 4294967296"),
        (f"{PRESET}[recipe]\nlearning_rate = inf", "Expected learning_rate to be a finite number. Received: inf"),
        ("[recipe]\nepoch = 1", "Received: epoch, where in \\[recipe\\] there may be: epochs,"),
    ],
)
def test_what_is_no_preset_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    """A name that there is not, values that are missing or of another type, and what is not TOML."""
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        find_preset(str(path))
