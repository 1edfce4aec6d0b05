"""Architectures through the commands: trained from random weights, exported, served, and admitted by the gate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.model.versions import Versions
from tests.programs.stack import embedded_server, wait_until
from training.__main__ import main

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes with four photos each, two of them to train on."""
    from tests.programs.small_training import draw

    return draw(tmp_path_factory.mktemp("photos") / "colours", photos=4)


def places(work: Path) -> list[str]:
    """Return options for the folders that training writes to."""
    return [part for name in ("runs", "cache", "store") for part in (f"--{name}", str(work / name))]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("VGG16", "ResNet50")]


@pytest.mark.parametrize("architecture", [*SLOW, "plain-cnn"])
def test_architecture_trains_exports_and_serves(
    architecture: str, photos: Path, tmp_path: Path, connect: Callable[[str], Versions]
) -> None:
    """One step from random weights at 32 px ends in a version that the gateway's client admits and asks."""
    options = ["--architecture", architecture, "--weights", "none", "--size", "32", "--epochs", "1"]
    assert main(["train", str(photos), "--name", "tiny", *options, "--batch-size", "6", *places(tmp_path)]) == 0
    with embedded_server(tmp_path / "store") as address:
        client = connect(address)
        client.start()
        wait_until(lambda: client.health.ready, 60)
        version = client.newest()
        assert version.contract.origin.architecture == architecture and version.contract.image.height == 32
        answer = client.predict(version, np.zeros((2, 32, 32, 3), np.uint8), time.monotonic() + 30)
        assert answer.shape == (2, 3) and answer.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_plain_cnn_learns_from_scratch(photos: Path, tmp_path: Path) -> None:
    """Some epochs, and the loss on colours has fallen."""
    options = ["--preset", "plain-cnn", "--size", "32", "--epochs", "15", "--patience", "15", "--learning-rate", "0.01"]
    status = main(["train", str(photos), "--name", "colours", *options, "--batch-size", "6", *places(tmp_path)])
    (run,) = (tmp_path / "runs" / "colours").iterdir()
    history = json.loads((run / "history.json").read_text())
    assert status == 0 and history["head"] == {}
    assert history["upper layers"]["loss"][-1] < 0.8 * history["upper layers"]["loss"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "plain-cnn"], "Expected --weights none with plain-cnn, which is trained from scratch."),
        (["--architecture", "VGG16", "--weights", "none", "--size", "8"], "Expected an input size that VGG16 takes."),
    ],
)
def test_what_cannot_be_built_is_named(
    options: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that do not exist, and a size below what an architecture takes."""
    assert main(["train", str(photos), "--name", "colours", *options, *places(tmp_path)]) == 1
    assert message in capsys.readouterr().err
