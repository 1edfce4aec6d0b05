"""training/judge/explain.py: the page shows where in a photo the evidence for a class is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.document import Contract, ImageSpec, Origin
from tests.programs.photos import encode
from training.__main__ import main

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that calls a photo red by its mean redness, with a frozen backbone; pooled to 1 × 1 if asked."""
    import keras
    from keras import layers

    from training.runs.folder import write_run

    pixels = keras.Input((16, 16, 3))
    redness = layers.Conv2D(1, 1, use_bias=False)
    pooled = layers.GlobalAveragePooling2D(keepdims=getattr(request, "param", False))(redness(pixels))
    backbone = keras.Model(pixels, layers.Flatten()(pooled))
    redness.set_weights([np.reshape([1.0, -0.5, -0.5], (1, 1, 3, 1))])
    backbone.trainable = False
    inputs = keras.Input((16, 16, 3))
    head = layers.Dense(2, activation="softmax", name="head_probabilities")
    model = keras.Model(inputs, head(backbone(inputs)))
    head.set_weights([np.array([[0.1, -0.1]]), np.array([-1.0, 1.0])])
    contract = Contract("red", ("red", "other"), ImageSpec(16, 16), Origin("EfficientNetB0"))
    return write_run(tmp_path_factory.mktemp("runs"), model, contract, {}, [])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A grey photo with a red square in its lower right quarter."""
    img = Image.new("RGB", (160, 160), (120, 120, 120))
    img.paste((250, 20, 20), (100, 100, 150, 150))
    (tmp_path / "photo.png").write_bytes(encode(img, "PNG"))
    return tmp_path / "photo.png"


@pytest.mark.parametrize("run", [False, True], indirect=True, ids=["pooled", "keepdims"])
def test_the_heat_is_on_what_spoke_for_the_class(run: Path, photo: Path, tmp_path: Path) -> None:
    """The overlay is warm on the red square and cold elsewhere."""
    from training.judge.explain import explain

    (explanation,) = explain(run, [str(photo)], None, tmp_path / "out")["1 photo"]
    assert explanation.index == 0 and explanation.photo.probabilities[0] > 0.5
    change = explanation.overlay.astype(int) - explanation.pixels // 2
    warm = change[..., 0] - change[..., 2]  # red less blue
    assert warm[11:14, 11:14].min() > 30 > warm[:8, :8].max()


def test_the_heat_of_a_sure_model_is_the_same(run: Path, photo: Path) -> None:
    """Also where the probability is 1 in fp32, and that of the other class 0."""
    from contract.image import decode
    from training.judge.explain import HeatMaps
    from training.runs.folder import read_run

    model, contract, *_ = read_run(run)
    pixels = decode(photo.read_bytes(), contract.image).pixels
    unsure = HeatMaps(model).of(pixels, 0)
    head = model.get_layer("head_probabilities")
    head.set_weights([100 * weights for weights in head.get_weights()])
    assert model.predict_on_batch(pixels[np.newaxis].astype(np.float32)).tolist() == [[1, 0]]
    np.testing.assert_allclose(HeatMaps(model).of(pixels, 0), unsure, atol=1e-6)
    assert unsure.max() == 1


def test_the_command_writes_a_page(run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pictures for the photo, of the class that was asked for."""
    assert main(["explain", str(run), str(photo), "--label", "other", "--out", str(tmp_path / "out")]) == 0
    assert re.search(r"Scored 1 photo\n\ntaken for red 0\.\d+; other 0\.\d+  ", capsys.readouterr().out)
    assert (tmp_path / "out" / "explain.html").read_text().count('src="data:image/jpeg') == 2


def test_the_page_shows_the_telling_photos_of_class_folders(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistakes come first; photos that do not decode are skipped, and without one that does, it refuses."""
    monkeypatch.setattr("training.judge.selection.SECTION_PHOTOS", 1)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    for name in ("red/x", "red/y", "other/z", "u"):
        (tmp_path / f"{name}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(photo.read_bytes())
    assert main(["explain", str(run), str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert f"Skipped {tmp_path}/broken.jpg: " in output and "Scored 5 photos\n" in output
    assert re.search(r"Most confident mistakes\nother 0\.\d+, taken for red 0\.\d+  .*z\.png", output)
    assert re.search(r"Least certain\ntaken for red .*\n\nLowest probability of the true class", output)
    assert re.search(r"At random\n(taken for )?red 0\.\d+(, right)?  ", output)
    assert (tmp_path / "out" / "explain.html").read_text().count('src="data:image/jpeg') == 8
    assert main(["explain", str(run), str(tmp_path / "broken.jpg")]) == 1
    assert "Expected photos that decode" in capsys.readouterr().err
    assert main(["explain", str(run), "https://example.com/a.jpg"]) == 1
    assert "Expected an image, or a folder of images" in capsys.readouterr().err


def test_an_unknown_class_is_refused(run: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the classes."""
    assert main(["explain", str(run), str(photo), "--label", "blue"]) == 1
    assert "Expected a class of: red, other. Received: 'blue'" in capsys.readouterr().err


def test_a_model_that_train_did_not_make_is_refused(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain model has no backbone."""
    from tests.programs.tiny_model import CLASSES, SPEC, build
    from training.runs.folder import write_run

    contract = Contract("tiny", CLASSES, SPEC, Origin("EfficientNetB0"))
    run = write_run(tmp_path, build(0), contract, {}, [])
    assert main(["explain", str(run), str(photo)]) == 1
    assert "Expected a model that train made, with a backbone and a head" in capsys.readouterr().err
