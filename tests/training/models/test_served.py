"""Architectures through the commands: trained from random weights, exported, served, and admitted by the gate."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.model.versions import Versions
from tests.conftest import ROOT
from tests.programs.stack import embedded_server, wait_until
from tests.training.conftest import places
from training.__main__ import main

pytestmark = pytest.mark.tensorflow

CLOTHING = Path(os.environ.get("CLOTHING", ROOT / "photos"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes with four photos each, two of them to train on."""
    from tests.programs.small_training import draw

    return draw(tmp_path_factory.mktemp("photos") / "colours", photos=4)


def assert_serves(work: Path, connect: Callable[[str], Versions], architecture: str, weights: str) -> None:
    """The version that was released answers, and says what it was made from."""
    with embedded_server(work / "store") as address:
        client = connect(address)
        client.start()
        wait_until(lambda: client.health.ready, 60)
        version = client.newest()
        origin = version.contract.origin
        assert (origin.architecture, origin.weights) == (architecture, weights)
        assert version.contract.image.height == 32
        answer = client.predict(version, np.zeros((2, 32, 32, 3), np.uint8), time.monotonic() + 30).probabilities
        assert answer.shape == (2, 3) and answer.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_plain_cnn_trains_exports_and_serves(photos: Path, tmp_path: Path, connect: Callable[[str], Versions]) -> None:
    """One step at 32 px ends in a version that the gateway's client admits and asks."""
    options = ["--preset", "plain-cnn", "--size", "32", "--epochs", "1", "--batch-size", "6", *places(tmp_path)]
    assert main(["train", str(photos), "--name", "tiny", *options]) == 0
    assert_serves(tmp_path, connect, "plain-cnn", "none")


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kept", "tuned"), [("VGG16", 10, 3), ("ResNet50", 48, 58)])
def test_preset_tunes_the_upper_layers_of_a_file(
    architecture: str, kept: int, tuned: int, photos: Path, tmp_path: Path, connect: Callable[[str], Versions]
) -> None:
    """Of a file of weights, as many layers stay untouched as the preset says, the lower ones, and the result serves."""
    import keras

    theirs = getattr(keras.applications, architecture)(weights=None, include_top=False)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    options = ["--preset", architecture.lower(), "--weights", str(tmp_path / "theirs.weights.h5"), "--size", "32"]
    few = ["--epochs", "1", "--batch-size", "2", "--int8-drop", "0.9"]
    assert main(["train", str(photos), "--name", "tiny", *options, *few, *places(tmp_path)]) == 0
    (run,) = (tmp_path / "runs" / "tiny").glob("*[!t]")
    parts = keras.models.load_model(run / "model.keras").layers
    mine = next(part for part in parts if isinstance(part, keras.Model))
    changed = [
        not all(map(np.array_equal, layer.get_weights(), theirs.get_layer(layer.name).get_weights()))
        for layer in mine.layers
        if layer.weights
    ]
    assert changed == [False] * kept + [True] * tuned
    assert_serves(tmp_path, connect, architecture, "theirs.weights.h5")


def test_plain_cnn_learns_from_scratch(photos: Path, tmp_path: Path) -> None:
    """Some epochs, and the loss on colours has fallen."""
    options = ["--preset", "plain-cnn", "--size", "32", "--epochs", "15", "--patience", "15", "--learning-rate", "0.01"]
    status = main(["train", str(photos), "--name", "colours", *options, "--batch-size", "6", *places(tmp_path)])
    (run,) = (tmp_path / "runs" / "colours").iterdir()
    history = json.loads((run / "history.json").read_text())
    assert status == 0 and list(history) == ["network"]
    assert history["network"]["loss"][-1] < 0.8 * history["network"]["loss"][0]


@pytest.mark.slow
@pytest.mark.skipif(not (CLOTHING / "train" / "t-shirt").is_dir(), reason="needs the tutorial's photos, see CLOTHING")
def test_plain_cnn_learns_clothing(tmp_path: Path) -> None:
    """Ten epochs of the preset are right about 0.6 of the validation photos."""
    options = ["--preset", "plain-cnn", "--epochs", "10", *places(tmp_path)]
    assert main(["train", str(CLOTHING), "--name", "clothing", *options]) == 0
    (run,) = (tmp_path / "runs" / "clothing").iterdir()
    assert json.loads((run / "contract.json").read_text())["metrics"]["validation_accuracy"] >= 0.6


def test_a_size_below_what_an_architecture_takes_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is Keras' own."""
    options = ["--architecture", "VGG16", "--weights", "none", "--size", "8", *places(tmp_path)]
    assert main(["train", str(photos), "--name", "colours", *options]) == 1
    assert "Expected an input size that VGG16 takes." in capsys.readouterr().err
