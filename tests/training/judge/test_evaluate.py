"""`python -m training evaluate`: which photos it measures on, and the same figures from Keras, a file and a gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.document import Contract, ImageSpec, Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import embedded_server, gateway
from training import page
from training.__main__ import main
from training.data.folder import Photo, read_folder, read_split
from training.data.pixels import Photos, Pixels, load_pixels
from training.errors import DataError
from training.judge.evaluate import choose_photos, evaluate
from training.judge.metrics import measure
from training.judge.report import Result, draw

CLASSES = ("cat", "dog", "bird")
SPEC = ImageSpec(16, 16, crop=0.9)
Choose = Callable[..., tuple[list[Photo], str]]


def fill(folder: Path, count: int) -> Path:
    """Write a number of different photos into a folder for each class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(encode(photo(40, 30, seed=100 * label + number)))
    return folder


# Which photos


@pytest.fixture
def choose(tmp_path: Path) -> Choose:
    """A function that chooses photos of `photos/` for a model of some origin, and returns them and a description."""

    def choose(split: str = "auto", **origin: Any) -> tuple[list[Photo], str]:
        contract = Contract("m", tuple(sorted(CLASSES)), SPEC, Origin(**origin))
        return choose_photos(Photos(tmp_path / "photos", tmp_path / "cache"), [("m", contract)], split)

    return choose


def test_the_test_split_is_taken_and_others_by_name(tmp_path: Path, choose: Choose) -> None:
    """Test if there is one, validation by its flag, and all."""
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        fill(tmp_path / "photos" / split, count)
    assert [len(choose(split)[0]) for split in ("auto", "validation", "all")] == [9, 6, 30]


def test_class_folders_are_taken_whole(tmp_path: Path, choose: Choose) -> None:
    """The model never saw any photo of the folder."""
    folder = fill(tmp_path / "photos", 4)
    photos, description = choose()
    assert len(photos) == 12 and description == f"all of {folder}, 12 photos"


@pytest.mark.parametrize(
    ("split", "count", "lines"),
    [
        ("test", 6, ["1 photo beside .*/test/stray.jpg$", "2 files .*: 2 .heic. Convert .heic to JPEG$"]),
        ("train", 6, []),
        ("all", 18, ["1 photo beside .*/test/stray.jpg$", "3 files .*: 3 .heic. Convert .heic to JPEG$"]),
    ],
)
def test_what_is_left_out_of_the_photos_is_said(
    tmp_path: Path, choose: Choose, caplog: pytest.LogCaptureFixture, split: str, count: int, lines: list[str]
) -> None:
    """In the words of train, and once: otherwise a part of the photos would be taken for all of them."""
    for name in ("train", "val", "test"):
        fill(tmp_path / "photos" / name, 2)
    for left_out in ("val/cat/1.heic", "test/cat/1.heic", "test/dog/2.HEIC", "test/stray.jpg"):
        (tmp_path / "photos" / left_out).write_bytes(b"")
    caplog.set_level("INFO")
    assert len(choose(split)[0]) == count
    assert all(re.match(f"Left out {line}", each) for each, line in zip(caplog.messages, lines, strict=True))


def test_a_csv_is_taken_as_a_folder_is(tmp_path: Path) -> None:
    """What training held out of it is found again; a split by its name; and all of another CSV, which may have none."""
    table = fill(tmp_path / "photos", 4) / "labels.csv"
    rows = [(f"{name}/{number}.jpg", name, "test" * (number == 3)) for name in CLASSES for number in range(4)]
    table.write_text("\n".join(map(",".join, [("path", "label", "split"), *rows])))
    splits, photos = read_folder(table).splits, Photos(table, tmp_path / "cache")
    digests = {split: photos.pixels(chosen, SPEC).digest for split, chosen in splits.items()}
    trained = Contract("m", tuple(sorted(CLASSES)), SPEC, Origin(data_digest=digests))
    assert choose_photos(photos, [("m", trained)], "auto") == (splits["test"], f"3 photos of test in {table}")
    held_out, description = choose_photos(photos, [("m", trained)], "validation")
    assert held_out == splits["validation"] and "which training held out for validation" in description
    assert len(choose_photos(photos, [("m", Contract("m", trained.classes, SPEC, Origin()))], "all")[0]) == 12
    table.write_text("\n".join(map(",".join, [("path", "label"), *(row[:2] for row in rows)])))
    assert choose_photos(photos, [("m", trained)], "auto")[1].startswith(f"all of {table}, 12 photos")
    with pytest.raises(DataError, match=r"Expected a train split in .*csv\. Received: none\.$"):
        choose_photos(photos, [("m", trained)], "train")


@pytest.mark.parametrize(("train", "test"), [("", 0), ("train", 0), ("train", 2)])
def test_photos_that_training_held_out_are_found_again(tmp_path: Path, choose: Choose, train: str, test: int) -> None:
    """Class folders, train/ alone, and train/ and test/; not among more photos, of which others are held out."""
    folder = tmp_path / "photos"
    fill(folder / train, 10)
    if test:
        fill(folder / "test", test)
    splits = read_folder(folder).splits
    digests = {split: load_pixels(photos, SPEC, tmp_path / "cache").digest for split, photos in splits.items()}
    origin: dict[str, Any] = {"data_digest": digests}
    for split, taken in (("auto", "test"), ("test", "test"), ("validation", "validation")):
        photos, description = choose(split, **origin)
        assert photos == splits[taken]
        assert test or f"which training held out for {taken}" in description
        assert ("they were used to choose the model's weights" in description) is (taken == "validation")
    for split, count in (("train", 30), ("all", 30 + 3 * test)) if train else (("all", 30),):
        photos, description = choose(split, **origin)
        assert len(photos) == count and "the model may have been trained on some of them" in description
    for number in range(10):
        (folder / train / "cat" / f"new-{number}.jpg").write_bytes(encode(photo(seed=900 + number)))
    if not test:
        photos, description = choose(**origin)
        assert len(photos) == 40 and "the model may have been trained on some of them" in description
    with pytest.raises(
        DataError, match=r"or the folder that .* Received: .*\. The model held out other photos for it\."
    ):
        choose("validation", **origin)


def test_photos_that_chose_the_weights_are_named_so(tmp_path: Path, choose: Choose) -> None:
    """Figures on the folder's own validation split are too good, and the description says so."""
    for split, count in (("train", 5), ("val", 2)):
        fill(tmp_path / "photos" / split, count)
    photos = read_split(tmp_path / "photos" / "val", sorted(CLASSES), complete=False)
    digest = load_pixels(photos, SPEC, tmp_path / "cache").digest
    assert "they were used to choose the model's weights" in choose(data_digest={"validation": digest})[1]


def test_each_model_is_told_that_may_know_the_photos(tmp_path: Path) -> None:
    """The second may have been trained on what the first held out, or was; one that held out the same was not."""
    for split, count in (("train", 5), ("test", 2)):
        fill(tmp_path / "photos" / split, count)
    photos = Photos(tmp_path / "photos", tmp_path / "cache")
    other_spec = ImageSpec(8, 8)
    test = photos.pixels(photos.splits().splits["test"], SPEC).digest

    def described(*digests: dict[str, str]) -> str:
        specs = (SPEC, other_spec)
        models = [
            (f"m {number}", Contract("m", tuple(sorted(CLASSES)), specs[number % 2], Origin(data_digest=each)))
            for number, each in enumerate(digests)
        ]
        return choose_photos(photos, models, "auto")[1].partition("test; ")[2]

    expect, own, others = "so expect lower figures on new photos", {"test": test}, {"train": "0", "test": "1"}
    other = "held out other photos, and may have been trained on some of them"
    assert described(own, own) == described(own, {}) == ""
    assert described(own, others) == f"m 1 {other}, {expect}"
    assert described(others, own) == f"m 0 {other}, {expect}"
    assert described(others) == f"the model {other}, {expect}"
    assert described(others, others) == f"each model {other}, {expect}"
    assert described(others, own, {"train": test}) == f"m 0 {other}; m 2 was trained on them, {expect}"


@pytest.mark.parametrize(
    ("split", "message"),
    [("validation", "Expected a validation split in .* Received: train"), ("all", "Received also: cow")],
)
def test_missing_photos_are_refused(tmp_path: Path, choose: Choose, split: str, message: str) -> None:
    """A split that does not exist, and a class that the model does not have."""
    fill(tmp_path / "photos" / "train", 1)
    (tmp_path / "photos" / "train" / "cow").mkdir()
    with pytest.raises(DataError, match=message):
        choose(split)


class Fixed:
    """A predictor with a row of probabilities for each photo."""

    def __init__(self, px: int, *rows: tuple[float, ...]) -> None:
        self.title, self.contract = f"{px} px", Contract("m", ("cat", "dog", "cat", "owl"), ImageSpec(px, px))
        self.probabilities = np.array(rows, np.float32)

    def predict(self, pixels: Pixels) -> tuple[np.ndarray, None]:
        return self.probabilities, None


def test_the_page_shows_the_first_models_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it saw them; and a number in the matrix leads to those of its class, of two that share a name."""
    (tmp_path / "photos" / "dog").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "photos" / "dog" / f"{number}.jpg").write_bytes(encode(photo(40, 30, number)))
    shown: dict[str, Any] = {}
    sizes: set[tuple[int, ...]] = set()
    monkeypatch.setattr(page, "write", lambda path, template, **values: shown.update(values))
    monkeypatch.setattr(page, "thumbnail", lambda pixels: str(sizes.add(pixels.shape)))
    predictors = [Fixed(px, (0, 0.1, 0.9, 0), (0.9, 0.1, 0, 0)) for px in (16, 8)]
    evaluate(Photos(tmp_path / "photos", tmp_path), predictors, "all", out=tmp_path)
    links = [cell["id"] for _, cells in shown["matrix"] for cell in cells if cell["id"]]
    assert sizes == {(16, 16, 3)} and sorted(links) == ["pair-1-0", "pair-1-2"]


# The whole command


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of each class, and a file that is not a photo."""
    folder = fill(tmp_path_factory.mktemp("evaluate") / "photos", 8)
    (folder / "cat" / "broken.jpg").write_bytes(b"not a photo")
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], photos: Path, out: Path, *options: str) -> tuple[str, dict]:
    """Run the command; return its output and its JSON."""
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
    with embedded_server(tiny_store) as address, gateway(address) as client:
        url = f"http://127.0.0.1:{client.port}"
        sources = ("--run", str(run), "--model", "tiny", "--store", str(tiny_store), "--gateway", url)
        output, document = evaluated(capsys, photos, tmp_path / "report", *sources)
    first, *others = document["results"]
    assert [each["title"] for each in others] == ["tiny 1, tflite", "gateway, tiny 1"]
    for other in others:
        assert other["agreement"]["other_first_places"] == 0
        assert other["agreement"]["largest_difference"] < 1e-5
        assert other["figures"]["confusion"] == first["figures"]["confusion"]
    assert first["figures"]["photos"] == 24 and "broken.jpg: Expected a JPEG" in output
    assert re.search(r"different predictions +0 +0", output)


@pytest.mark.tensorflow
def test_the_report_has_pictures_plots_and_page(
    capsys: pytest.CaptureFixture[str], photos: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """Every plot is a PNG, and the page is one file with the plots and the worst mistakes."""
    options = ("--model", "tiny", "--store", str(tiny_store), "--engine", "tensorflow")
    output, document = evaluated(capsys, photos, tmp_path / "report", *options)
    for name in ("confusion", "reliability"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "evaluation.html").read_text()
    sources, mistakes = re.findall(r'src="([^"]*)"', page), document["worst_mistakes"]
    assert len(sources) == 1 + 2 * len(mistakes) and all(source.startswith("data:image/") for source in sources)
    assert mistakes and all(each["class"] != each["predicted"] for each in mistakes)
    assert "tiny 1, tensorflow" in output and "taken for" in output
    assert "25 photos; 1 of them cannot be decoded" in page and document["photos"].endswith("cannot be decoded")


def test_a_class_that_was_only_predicted_is_none_of_the_photos(tmp_path: Path) -> None:
    """The page counts the classes that have photos, and lists their F1, of which macro F1 is the mean."""
    classes = (*sorted(CLASSES), "horse")
    pixels = load_pixels(read_split(fill(tmp_path / "photos", 1), classes, complete=False), SPEC, tmp_path / "cache")
    probabilities = np.eye(4, dtype=np.float32)[[3, 1, 2]]
    result = Result("m 1", probabilities, measure(probabilities, pixels.labels, classes), None)
    drawn = draw([result], pixels, Contract("m", classes, SPEC), "3 photos", tmp_path)
    html = page.write(tmp_path / "evaluation.html", "evaluation.html", **drawn).read_text()
    assert "measured, of 3 classes</p>" in html and "<td>dog</td>" in html and "<td>horse</td>" not in html


@pytest.mark.tensorflow
def test_class_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    """Brackets and colons in them are no markup, and long ones are not cut where the output is no terminal."""
    from tests.programs.tiny_model import build
    from training.runs.folder import write_run

    names = ("a [/b]", "c[d]" * 12, ":cat:")
    table = tmp_path / "labels.csv"
    rows = [f"{photos}/{folder}/0.jpg,{name}" for folder, name in zip(CLASSES, names, strict=True)]
    table.write_text("\n".join(["path,label", *rows]))
    run = write_run(tmp_path / "runs", build(0), Contract("tiny", names, SPEC), {}, [])
    output, _ = evaluated(capsys, table, tmp_path / "report", "--run", str(run))
    assert all(f"\n{name}  " in output for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Expected --run, --model or --gateway, or several of them. Received: none"),
        (("--run", "none", "--engine", "int8"), "Expected no --engine without --model, whose version and file they"),
        (("--run", "none", "--version", "0"), "Expected no --version without --model, whose version and file they"),
        (("--model", "none"), "Expected a version of 'none' in model-store. Received: no version"),
        (("--gateway", "http://127.0.0.1:1"), "Expected a gateway at http://127.0.0.1:1. Received:"),
    ],
)
def test_a_predictor_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    """No predictor, a file or version of none, a model that is not in the store, and a gateway that does not run."""
    assert main(["evaluate", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
