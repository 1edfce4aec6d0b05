"""`python -m training evaluate`: which photos it takes, and the same figures from Keras, files and the gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.document import Contract, ImageSpec, Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import gateway, model_server
from training.__main__ import main
from training.data.folder import read_folder, read_split
from training.data.pixels import Photos, load_pixels
from training.errors import DataError
from training.judge.evaluate import choose_photos

CLASSES = ("cat", "dog", "bird")
SPEC = ImageSpec(16, 16, crop=0.9)


def fill(folder: Path, count: int) -> Path:
    """Write so many photos, each another, into a folder for each class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(encode(photo(40, 30, seed=100 * label + number)))
    return folder


# Which photos


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """A function that chooses photos of a folder, and returns how many and how they are told."""

    def choose(folder: Path, split: str = "auto", **origin: Any) -> tuple[int, str]:
        photos, told = choose_photos(
            Photos(folder, tmp_path / "cache"), Contract("m", CLASSES, SPEC, Origin(**origin)), split
        )
        return len(photos), told

    return choose


def test_the_test_split_is_taken_and_others_by_name(tmp_path: Path, choose: Callable[..., tuple[int, str]]) -> None:
    """Test where there is one, validation by its flag, and all."""
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        fill(tmp_path / "photos" / split, count)
    assert choose(tmp_path / "photos")[0] == 9
    assert choose(tmp_path / "photos", "validation")[0] == 6
    assert choose(tmp_path / "photos", "all")[0] == 30


def test_class_folders_are_taken_whole(tmp_path: Path, choose: Callable[..., tuple[int, str]]) -> None:
    """A folder of photos that the model never saw is all held out."""
    folder = fill(tmp_path / "photos", 4)
    assert choose(folder) == (12, f"all 12 photos of {folder}")


def test_photos_that_training_held_out_are_found_again(tmp_path: Path, choose: Callable[..., tuple[int, str]]) -> None:
    """Of the folder that the model was trained on, only what it was not trained on counts."""
    folder = fill(tmp_path / "photos", 10)
    dataset = read_folder(folder, seed=3)
    assert dataset.classes != CLASSES  # in the order of their names
    digest = {
        split: load_pixels(dataset.splits[split], SPEC, tmp_path / "cache").digest for split in ("validation", "test")
    }
    origin = Origin(recipe={"seed": 3}, data_digest=digest)
    photos, told = choose_photos(
        Photos(folder, tmp_path / "cache"), Contract("m", dataset.classes, SPEC, origin), "auto"
    )
    assert photos == dataset.splits["test"] and "which training set aside for test" in told
    (folder / "cat" / "new.jpg").write_bytes(encode(photo(seed=999)))
    photos, told = choose_photos(Photos(folder, tmp_path / "c"), Contract("m", dataset.classes, SPEC, origin), "auto")
    assert len(photos) == 31 and "the model may have been trained on some of them" in told


@pytest.mark.parametrize("test", [0, 2])
def test_photos_that_training_took_from_its_train_folder_are_found_again(tmp_path: Path, test: int) -> None:
    """Where the folder has train/ alone, and where only validation was missing."""
    folder = tmp_path / "photos"
    fill(folder / "train", 10)
    if test:
        fill(folder / "test", test)
    dataset = read_folder(folder, seed=3)
    digests = {name: load_pixels(photos, SPEC, tmp_path / "cache").digest for name, photos in dataset.splits.items()}
    contract = Contract("m", dataset.classes, SPEC, Origin(recipe={"seed": 3}, data_digest=digests))
    of_folder = Photos(folder, tmp_path / "cache")
    for split, taken in (("auto", "test"), ("test", "test"), ("validation", "validation")):
        assert choose_photos(of_folder, contract, split)[0] == dataset.splits[taken]
    assert "used to choose the model's weights" in choose_photos(of_folder, contract, "validation")[1]
    assert "may have been trained on some" in choose_photos(of_folder, contract, "train")[1]
    photos, told = choose_photos(of_folder, contract, "all")
    assert len(photos) == 30 + 3 * test and "the model may have been trained on some of them" in told


def test_photos_that_chose_the_weights_are_named_so(tmp_path: Path, choose: Callable[..., tuple[int, str]]) -> None:
    """A figure on validation flatters, and the line says that."""
    for split, count in (("train", 5), ("val", 2)):
        fill(tmp_path / "photos" / split, count)
    photos = read_split(tmp_path / "photos" / "val", CLASSES, complete=False)
    digest = load_pixels(photos, SPEC, tmp_path / "cache").digest
    told = choose(tmp_path / "photos", data_digest={"validation": digest})[1]
    assert "they were used to choose the model's weights" in told


@pytest.mark.parametrize(
    ("split", "message"),
    [("validation", "Expected a validation split in .* Received: train"), ("all", "Received also: cow")],
)
def test_photos_that_are_not_there_are_told(
    tmp_path: Path, choose: Callable[..., tuple[int, str]], split: str, message: str
) -> None:
    """A split, and a class that the model does not have."""
    fill(tmp_path / "photos" / "train", 1)
    (tmp_path / "photos" / "train" / "cow").mkdir()
    with pytest.raises(DataError, match=message):
        choose(tmp_path / "photos", split)


# The whole command


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of each class, and a file that is none."""
    folder = fill(tmp_path_factory.mktemp("evaluate") / "photos", 8)
    (folder / "cat" / "broken.jpg").write_bytes(b"not a photo")
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], photos: Path, out: Path, *options: str) -> tuple[str, dict]:
    """Run the command; return what it said, and its JSON."""
    assert main(["evaluate", str(photos), "--out", str(out), "--cache", str(out / "cache"), *options]) == 0
    return capsys.readouterr().out, json.loads((out / "evaluation.json").read_text())


@pytest.mark.tensorflow
@pytest.mark.processes
def test_keras_file_and_gateway_give_the_same_figures(
    capsys: pytest.CaptureFixture[str], photos: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """The run's model, the version's TFLite file, and the version as it is served, on the same photos."""
    from tests.programs.tiny_model import build
    from training.runs.folder import write_run

    run = write_run(tmp_path / "runs", build(0), Contract("tiny", CLASSES, SPEC), {}, [])
    with model_server(tiny_store) as address, gateway(address) as client:
        url = f"http://127.0.0.1:{client.port}"
        sources = ("--run", str(run), "--model", "tiny", "--store", str(tiny_store), "--gateway", url)
        said, document = evaluated(capsys, photos, tmp_path / "report", *sources)
    first, *others = document["results"]
    assert [each["title"] for each in others] == ["tiny 1, tflite", "gateway, tiny 1"]
    for other in others:
        assert other["agreement"]["other_first_places"] == 0
        assert other["agreement"]["largest_difference"] < 1e-5
        assert other["figures"]["confusion"] == first["figures"]["confusion"]
    assert first["figures"]["photos"] == 24 and "broken.jpg: Expected a JPEG" in said
    assert re.search(r"other first places +0 +0", said)


@pytest.mark.tensorflow
def test_the_report_has_pictures_plots_and_page(
    capsys: pytest.CaptureFixture[str], photos: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """Every plot is a PNG, the page is one file, and the worst mistakes are on it."""
    options = ("--model", "tiny", "--store", str(tiny_store), "--engine", "savedmodel")
    said, document = evaluated(capsys, photos, tmp_path / "report", *options)
    for name in ("confusion", "reliability", "classes", "mistakes"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "evaluation.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    mistakes = document["worst_mistakes"]
    assert len(sources) == 3 + len(mistakes) and all(source.startswith("data:image/") for source in sources)
    assert mistakes and all(each["class"] != each["predicted"] for each in mistakes)
    assert "tiny 1, savedmodel" in said and "taken for" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Expected --run, --model or --gateway, or several of them. Received: none"),
        (("--model", "none"), "Expected a version of 'none' in model-store. Received: no version"),
        (("--gateway", "http://127.0.0.1:1"), "Expected a gateway at http://127.0.0.1:1. Received:"),
    ],
)
def test_what_cannot_be_asked_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    """No source, a model that is not in the store, and a gateway that is away."""
    assert main(["evaluate", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
