"""`python -m training predict`: files, folders and URLs, by either file of a version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.document import IMAGES, PREDICT_SIGNATURE, PROBABILITIES, ImageSpec, find_identity
from contract.image import decode
from serving.engines import open_engine
from tests.conftest import Origin
from tests.programs.photos import encode, photo
from training.__main__ import main
from training.judge.predict import expand

pytestmark = pytest.mark.tensorflow  # the tiny model is exported with it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images and a text file."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encode(photo(seed=1)))
    (tmp_path / "photos" / "b.png").write_bytes(encode(photo(seed=2), "PNG"))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def lines(capsys: pytest.CaptureFixture[str], store: Path, *arguments: str, status: int = 0) -> list[dict]:
    """Run the command, and return its lines of JSON."""
    assert main(["predict", *arguments, "--model", "tiny", "--store", str(store), "--json"]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("engine", ["tflite", "tensorflow"])
def test_answers_are_the_versions_own(
    capsys: pytest.CaptureFixture[str], tiny_store: Path, folder: Path, engine: str
) -> None:
    """Each photo of a folder gets the probabilities of the version's file, the most probable class first."""
    answers = lines(capsys, tiny_store, str(folder), "--engine", engine, "--top-k", "3")
    assert [Path(answer["source"]).name for answer in answers] == ["a.jpg", "b.png"]
    pixels = decode((folder / "a.jpg").read_bytes(), ImageSpec(16, 16, crop=0.9)).pixels[np.newaxis]
    model = open_engine(tiny_store / "tiny" / "1", "tflite", threads=1)
    expected = model.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES][0]
    predictions = answers[0]["predictions"]
    assert [each["index"] for each in predictions] == np.argsort(-expected).tolist()
    assert [each["probability"] for each in predictions] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    identity = find_identity(model.signatures)
    assert identity and answers[0]["model"] == {"name": "tiny", "version": 1, "identity": identity}


def test_what_a_folder_has_beside_photos_is_counted(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """On standard error, as the answers are on standard output."""
    assert [Path(each).name for each in expand([str(folder)])] == ["a.jpg", "b.png"]
    assert re.fullmatch(r".*photos: Left out 1 file that cannot be read \(.*\): 1 \.txt\n", capsys.readouterr().err)


def test_files_and_urls_may_be_mixed(
    capsys: pytest.CaptureFixture[str], tiny_store: Path, folder: Path, origin: Origin
) -> None:
    """The same bytes from a URL and a file give the same answer; an image that is named twice is asked once."""
    path, url = str(folder / "a.jpg"), origin.add("a.jpg", (folder / "a.jpg").read_bytes())
    first, second = lines(capsys, tiny_store, path, url, path)
    assert (first["source"], second["source"]) == (path, url)
    assert first["predictions"] == second["predictions"]


def test_an_image_without_an_answer_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tiny_store: Path, folder: Path, origin: Origin
) -> None:
    """A broken file and a URL of nothing: each line says why, and the exit status is 1."""
    missing = f"http://{origin.authority}/none.jpg"
    answers = lines(capsys, tiny_store, str(folder / "notes.txt"), missing, str(folder / "a.jpg"), status=1)
    assert "Expected a JPEG, PNG" in answers[0]["error"] and "status 404" in answers[1]["error"]
    assert answers[2]["predictions"]


def test_without_json_a_line_is_for_a_person(
    capsys: pytest.CaptureFixture[str], tiny_store: Path, folder: Path
) -> None:
    """Classes and probabilities in columns, then the image."""
    path = str(folder / "a.jpg")
    assert main(["predict", path, "--model", "tiny", "--store", str(tiny_store), "--top-k", "1"]) == 0
    name, probability, image = capsys.readouterr().out.split()
    assert name in ("cat", "dog", "bird") and 1 / 3 < float(probability) <= 1 and image == path


def test_long_class_names_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of cars and birds often differ at their ends; shorter ones are padded."""
    from training.judge.predict import Answer, write

    long, short = names = ("Chevrolet Silverado 1500 Regular Cab", "Chevrolet Silverado 1500 Hybrid")
    predictions = [{"class": name, "probability": 0.5} for name in names]
    version: Any = SimpleNamespace(contract=SimpleNamespace(classes=names))
    write(iter([Answer("a.jpg", predictions)]), version, as_json=False)
    assert capsys.readouterr().out == f"{long} 0.500  {short}      0.500  a.jpg\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none.jpg", "--model", "tiny"], "Expected a URL, an image, or a folder of images"),
        (["", "--model", "tiny"], "Received: an empty path"),
        (
            ["{folder}", "--model", "tiny", "--version", "7"],
            "Expected version 7 of 'tiny' in {store}. Received: versions 1",
        ),
        (["{folder}", "--model", "tony"], "Expected a version of 'tony' in {store}. Received: no version"),
    ],
)
def test_what_does_not_exist_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_store: Path, folder: Path, arguments: list[str], message: str
) -> None:
    """A path, a version, and a model."""
    arguments = [argument.format(folder=folder) for argument in arguments]
    assert main(["predict", *arguments, "--store", str(tiny_store)]) == 1
    assert message.format(store=tiny_store) in capsys.readouterr().err


def test_of_many_versions_the_newest_are_named(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    """Twenty fit into a line."""
    for number in range(1, 31):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    assert main(["predict", str(folder), "--model", "many", "--version", "31", "--store", str(tmp_path)]) == 1
    assert "Received: versions …, 11, 12, " in capsys.readouterr().err


def test_an_image_unlike_all_training_photos_is_marked(capsys: pytest.CaptureFixture[str], tiny_store: Path) -> None:
    """A word before its name, and a member of its JSON; a version without a score has neither."""
    from training.judge.predict import Answer, write
    from training.judge.predictors import StoredVersion

    version, predictions = StoredVersion(tiny_store, "tiny", None, "tflite"), [{"class": "cat", "probability": 0.9}]
    answers = [Answer("a.jpg", predictions, unknown=is_unknown) for is_unknown in (True, False, None)]
    write(iter(answers), version, as_json=False)
    assert [line.split()[-2:] for line in capsys.readouterr().out.splitlines()] == [
        ["unknown:", "a.jpg"],
        ["0.900", "a.jpg"],
        ["0.900", "a.jpg"],
    ]
    write(iter(answers), version, as_json=True)
    assert [json.loads(line).get("unknown") for line in capsys.readouterr().out.splitlines()] == [True, False, None]
