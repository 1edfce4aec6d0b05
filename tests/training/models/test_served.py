"""Architectures through the commands: trained from random weights, exported, served, and admitted by the gate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gateway.model.versions import Versions
from tests.conftest import ROOT
from tests.serving.test_main import free_port
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
def test_architecture_trains_exports_and_serves(architecture: str, photos: Path, tmp_path: Path) -> None:
    """One step from random weights at 32 px ends in a version that the gateway's client admits and asks."""
    options = ["--architecture", architecture, "--weights", "none", "--size", "32", "--epochs", "1"]
    assert main(["train", str(photos), "--name", "colours", *options, "--batch-size", "6", *places(tmp_path)]) == 0
    port = free_port()
    flags = [f"--port={port}", "--model_name=colours", f"--model_base_path={tmp_path / 'store' / 'colours'}"]
    server = subprocess.Popen([sys.executable, "-m", "serving", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    client = Versions(f"127.0.0.1:{port}", "colours", poll_s=0.2, timeout_s=30)
    try:
        client.start()
        deadline = time.monotonic() + 60
        while not client.health.ready and time.monotonic() < deadline:
            time.sleep(0.1)
        version = client.newest()
        assert version.contract.origin.architecture == architecture and version.contract.image.height == 32
        answer = client.predict(version, np.zeros((2, 32, 32, 3), np.uint8), time.monotonic() + 30)
        assert answer.shape == (2, 3) and answer.sum(axis=1) == pytest.approx(1, abs=1e-5)
    finally:
        client.close()
        server.kill()
        server.wait()


def test_plain_cnn_learns_from_scratch(photos: Path, tmp_path: Path) -> None:
    """Some epochs, and colours are told apart in training."""
    options = ["--preset", "plain-cnn", "--size", "32", "--epochs", "30", "--patience", "30", "--learning-rate", "0.01"]
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
def test_what_cannot_be_built_is_told(
    options: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that there are not, and a size below what an architecture takes."""
    assert main(["train", str(photos), "--name", "colours", *options, *places(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_lite0_takes_another_size() -> None:
    """At 96 px it has the same weights."""
    from dataclasses import replace

    from training.models.catalogue import find_architecture

    lite0 = find_architecture("efficientnet-lite0")
    model = replace(lite0, size_px=96).backbone("imagenet", include_top=False)
    assert model.input_shape == (None, 96, 96, 3) and model.output_shape == (None, 1280)


@pytest.mark.network
def test_weights_of_keras_are_downloaded() -> None:
    """MobileNet comes with ImageNet's weights, and is sure of nothing in noise but gives probabilities."""
    from training.models.catalogue import find_architecture

    model = find_architecture("MobileNet").classifier("imagenet")
    answer = np.asarray(model(np.full((1, 224, 224, 3), 127.0, np.float32), training=False))
    assert answer.shape == (1, 1000) and answer.sum() == pytest.approx(1, abs=1e-4)
