"""training/explore: faults that are planted among photos are each found, told in words, and shown on a page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from tests.programs.photos import encode, photo
from training.errors import DataError
from training.explore import duplicates, findings, labels, listing
from training.explore.findings import Finding
from training.explore.inspection import Inspection, inspect

Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A function that writes so many photos, each another, into each folder, and returns the topmost."""
    seeds = iter(range(1000))

    def fill(**counts: int) -> Path:
        for name, count in counts.items():
            folder = tmp_path / "photos" / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for position in range(count):
                (folder / f"{position:02}.jpg").write_bytes(encode(photo(320, 240, next(seeds))))
        return tmp_path / "photos"

    return fill


def look(source: Path) -> Inspection:
    """Inspect every photo of a source."""
    return inspect(listing.read(source), source.parent / "cache")


def by_kind(found: list[Finding]) -> dict[str, Finding]:
    """Return findings by their kind."""
    return {finding.kind: finding for finding in found}


def names(finding: Finding) -> list[list[str]]:
    """Return the file names of each item."""
    return [[path.name for path in item.paths] for item in finding.items]


# What is listed


def test_class_folders_are_one_split(fill: Fill) -> None:
    """Photos, classes without photos, and files that are none."""
    folder = fill(cat=2, dog=1, empty=0)
    (folder / "cat" / "notes.txt").write_text("no photo")
    found = listing.read(folder)
    assert found.classes == {"all": ("cat", "dog", "empty")}
    assert found.counts == {("all", "cat"): 2, ("all", "dog"): 1}
    assert [path.name for path in found.ignored] == ["notes.txt"]


def test_split_folders_are_splits_by_any_of_their_names(fill: Fill) -> None:
    """`val` is validation."""
    found = listing.read(fill(train__cat=2, train__dog=1, val__cat=1))
    assert found.classes == {"train": ("cat", "dog"), "validation": ("cat",)}
    assert found.counts["validation", "cat"] == 1


def test_a_csv_lists_paths_labels_and_splits(fill: Fill) -> None:
    """Paths are relative to the CSV, other columns are left alone, and files that are not there are told."""
    folder = fill(inbox=3)
    (folder / "list.csv").write_text(
        "sender,Image,label,split\n1,inbox/00.jpg,cat,train\n2,inbox/01.jpg,dog,val\n3,gone.jpg,dog,train\n"
        "4,inbox/02.jpg,,train\n"
    )
    found = listing.read(folder / "list.csv")
    assert found.counts == {("train", "cat"): 1, ("validation", "dog"): 1}
    told = by_kind(findings.of_listing(found))
    assert names(told["missing"]) == [["gone.jpg"]] and names(told["unlabelled"]) == [["02.jpg"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2\n", "Expected columns path and label"), ("path,label\n", "Received: no rows"), (None, "Received: ")],
)
def test_a_source_that_is_none_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    """A CSV of something else, an empty one, and a path where there is nothing."""
    if content is not None:
        (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        listing.read(tmp_path / "list.csv")


# What names and counts tell


def test_empty_classes_are_found(fill: Fill) -> None:
    """The folder is named."""
    finding = by_kind(findings.of_listing(listing.read(fill(train__cat=3, train__dog=0))))["empty"]
    assert finding.severity == "problem" and [item.note for item in finding.items] == ["train/dog holds no photo"]


def test_a_single_class_is_found(fill: Fill) -> None:
    """Photos of one folder cannot be told apart."""
    finding = by_kind(findings.of_listing(listing.read(fill(cat=25))))["single"]
    assert finding.severity == "problem" and finding.items[0].note == "the only class is cat"


def test_names_that_differ_in_case_and_spaces_are_found(fill: Fill) -> None:
    """`T-shirt` and `t shirt` are one class to a person."""
    folder = fill(**{"T-shirt": 1, "t shirt": 1, "hat ": 1, "dress": 1})
    notes = [item.note for item in by_kind(findings.of_listing(listing.read(folder)))["names"].items]
    assert notes == ["are one class by their names: 'T-shirt' and 't shirt'", "begins or ends with a space: 'hat '"]


def test_classes_that_a_split_lacks_are_found(fill: Fill) -> None:
    """Both directions are told."""
    folder = fill(train__cat=1, train__dog=1, test__cat=1, test__cow=1)
    notes = {item.note for item in by_kind(findings.of_listing(listing.read(folder)))["splits"].items}
    assert notes == {"train has no folder for: cow (of test)", "test has no folder for: dog (of train)"}


def test_imbalance_and_small_classes_are_found(fill: Fill) -> None:
    """Counts are told, the smallest first."""
    found = by_kind(findings.of_listing(listing.read(fill(cat=25, dog=2, cow=5))))
    assert [item.note for item in found["few"].items] == ["dog: 2", "cow: 5"]
    assert found["imbalance"].items[0].note == "cat has 25 photos, dog 2"


def test_sound_folders_have_no_findings(fill: Fill) -> None:
    """Nothing is made up."""
    folder = fill(train__cat=20, train__dog=20, validation__cat=2, validation__dog=2)
    inspected = look(folder)
    assert findings.of_listing(inspected.listing) + findings.of_files(inspected) == []
    assert duplicates.find_groups(inspected) == []


# What files tell


def test_corrupt_dark_blurred_small_and_misnamed_photos_are_found(fill: Fill) -> None:
    """Each fault names its file, and no other."""
    folder = fill(cat=20, dog=20)
    good = folder / "cat" / "00.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    for path in folder.rglob("*.jpg"):  # texture, so that a photo without any stands out
        path.write_bytes(encode(Image.blend(Image.open(path), noise, 0.3)))
    (folder / "cat" / "half.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "dog" / "dark.png").write_bytes(encode(ImageEnhance.Brightness(Image.open(good)).enhance(0.02), "PNG"))
    (folder / "dog" / "blurred.jpg").write_bytes(encode(photo(320, 240, 999)))
    (folder / "cat" / "really.jpg").write_bytes(encode(Image.blend(photo(320, 240, 998), noise, 0.3), "PNG"))
    (folder / "cat" / "small.jpg").write_bytes(encode(Image.open(folder / "dog" / "00.jpg").crop((0, 0, 90, 90))))
    found = by_kind(findings.of_files(look(folder)))
    assert names(found["corrupt"]) == [["half.jpg"]]
    assert "do not decode" in found["corrupt"].items[0].note
    assert names(found["dark"]) == [["dark.png"]]
    assert ["blurred.jpg"] in names(found["blurred"])
    assert names(found["misnamed"]) == [["really.jpg"]]
    assert names(found["small"]) == [["small.jpg"]]


# What is there twice


def saved_anew(path: Path) -> bytes:
    """Return a photo half as large, brighter, and of low quality."""
    img = Image.open(path)
    return encode(ImageEnhance.Brightness(img.resize((img.width // 2, img.height // 2))).enhance(1.1), quality=50)


def test_duplicates_conflicts_and_leaks_are_told_apart(fill: Fill) -> None:
    """Exact and near copies within a class, in another class, and in another split."""
    folder = fill(train__cat=6, train__dog=6, test__cat=2, test__dog=2)
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "cat" / "00.jpg", train / "cat" / "again.jpg")
    (train / "dog" / "other.jpg").write_bytes(saved_anew(train / "cat" / "01.jpg"))
    (test / "dog" / "leak.jpg").write_bytes(saved_anew(train / "dog" / "02.jpg"))
    inspected = look(folder)
    found = by_kind(findings.of_duplicates(inspected, duplicates.find_groups(inspected)))
    assert names(found["duplicate"]) == [["00.jpg", "again.jpg"]]
    assert found["duplicate"].items[0].note == "the same bytes"
    assert names(found["conflict"]) == [["01.jpg", "other.jpg"]]
    assert found["conflict"].items[0].note == "look the same, labelled cat and dog"
    assert names(found["leak"]) == [["02.jpg", "leak.jpg"]]
    assert found["leak"].items[0].note == "look the same"


# What labels tell


def cluster(centre: int, count: int, seed: int) -> np.ndarray:
    """Return features (n, 32) of length 1 around an axis."""
    noisy = np.eye(32)[centre] + 0.05 * np.random.default_rng(seed).standard_normal((count, 32))
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def test_single_wrong_labels_are_found() -> None:
    """A dog among thirty cats."""
    features = np.concatenate([cluster(0, 30, 1), cluster(1, 30, 2)])
    given = np.array(["cat"] * 29 + ["dog"] + ["dog"] * 30)
    assert [(each.position, each.label, each.looks_like) for each in labels.suspect_photos(given, features)] == [
        (29, "dog", "cat")
    ]


def test_one_class_under_two_names_is_found() -> None:
    """Photos of one kind, half of them under another name, beside a class that is apart."""
    features = np.concatenate([cluster(0, 60, 1), cluster(1, 30, 2)])
    given = np.array(["jacket", "coat"] * 30 + ["hat"] * 30)
    assert labels.suspect_pairs(given, features) == [
        labels.SuspectPair("coat", "jacket", pytest.approx(0, abs=0.3), 30)
    ]


@pytest.mark.parametrize(("photos", "severity"), [(12, "suspicion"), (20, "problem")])
def test_classes_of_few_photos_are_only_suspected(photos: int, severity: str) -> None:
    """A dozen photos of each may look alike by chance."""
    pairs = (labels.SuspectPair("coat", "jacket", 0.1, photos),)
    (finding,) = findings.of_labels(None, labels.Suspects(folders=(), pairs=pairs, photos=()))  # type: ignore[arg-type]
    assert finding.severity == severity


# The whole command


def drawn(kind: str, seed: int) -> Image.Image:
    """Return a photo of discs, stripes or squares on another background each time."""
    random = np.random.default_rng(seed)
    img = photo(300, 300, seed)
    draw = ImageDraw.Draw(img)
    fill = tuple(int(value) for value in random.integers(0, 256, 3))
    if kind == "stripes":
        for x in range(int(random.integers(0, 20)), 300, 24):
            draw.line((x, 0, x + 40, 300), fill=fill, width=9)
        return img
    for _ in range(14):
        x, y, size = (int(value) for value in random.integers((0, 0, 30), (260, 260, 60)))
        (draw.ellipse if kind == "discs" else draw.rectangle)((x, y, x + size, y + size), fill=fill)
    return img


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `explore` says of a folder with one of each fault, and the folder of its report."""
    from contextlib import redirect_stdout
    from io import StringIO

    from training.__main__ import main

    work = tmp_path_factory.mktemp("explore")
    photos = work / "photos"
    kinds = ("discs", "stripes", "squares")
    for seed, (split, kind, number) in enumerate(
        (split, kind, number)
        for split, count in (("train", 20), ("validation", 5))
        for kind in kinds
        for number in range(count)
    ):
        # The mislabelled folder: what validation calls discs are stripes.
        shown = "stripes" if (split, kind) == ("validation", "discs") else kind
        (photos / split / kind).mkdir(parents=True, exist_ok=True)
        (photos / split / kind / f"{number:02}.jpg").write_bytes(encode(drawn(shown, seed)))
    train, validation = photos / "train", photos / "validation"
    shutil.copy(train / "discs" / "00.jpg", train / "discs" / "copy.jpg")
    (validation / "squares" / "leak.jpg").write_bytes(saved_anew(train / "squares" / "03.jpg"))
    (train / "stripes" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (train / "rings").mkdir()
    with redirect_stdout(StringIO()) as said:
        assert main(["explore", str(photos), "--out", str(work / "report"), "--cache", str(work / "cache")]) == 0
    return said.getvalue(), work / "report"


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "line",
    [
        r"SUSPICION: 1 photo more than once in a class\n  train/discs/00.jpg, train/discs/copy.jpg: the same bytes",
        r"PROBLEM: 1 photo in two splits.*\n  train/squares/03.jpg, validation/squares/leak.jpg: look the same",
        r"PROBLEM: 1 file corrupt: training skips it\n  train/stripes/broken.jpg: Expected a complete",
        r"PROBLEM: 1 class folder without a photo\n  train/rings holds no photo",
        r"PROBLEM: 1 folder whose photos look like another class\n"
        r"  validation/discs is labelled discs, but \d of its 5 photos look like stripes",
    ],
)
def test_each_planted_fault_is_told(explored: tuple[str, Path], line: str) -> None:
    """A duplicate, a leak, a corrupt file, an empty class and a mislabelled folder, each with what to do."""
    assert re.search(line + r".*\n(  .*\n)*  → \w+", explored[0]), explored[0]


@pytest.mark.tensorflow
def test_the_page_is_one_file_with_pictures(explored: tuple[str, Path]) -> None:
    """Every picture is inside, and decodes; nothing is asked of a network."""
    import base64

    text = (explored[1] / "explore.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) > 60 and all(source.startswith("data:image/") for source in sources)
    assert Image.open(BytesIO(base64.b64decode(sources[0].split(",")[1]))).size == (128, 128)
    for told in ("validation/discs is labelled discs", "train/stripes/broken.jpg", "Contact sheets"):
        assert told in text


@pytest.mark.tensorflow
def test_the_json_has_every_finding_and_photo(explored: tuple[str, Path]) -> None:
    """A program reads the same as a person."""
    document = json.loads((explored[1] / "explore.json").read_text())
    assert {"duplicate", "leak", "corrupt", "empty", "folder"} <= {each["kind"] for each in document["findings"]}
    assert document["counts"]["train"] == {"discs": 21, "rings": 0, "squares": 20, "stripes": 21}
    assert len(document["photos"]) == 77 and document["photos"][0]["path"] == "train/discs/00.jpg"
