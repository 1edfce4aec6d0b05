"""training/explore: it finds each fault that is planted among photos, says it in words, and shows it on a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.programs.photos import encode, flip_bit, photo
from training.__main__ import main
from training.errors import DataError
from training.explore import duplicates, labels, listing
from training.explore.findings import Finding, Item, find_findings
from training.explore.inspection import inspect

Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A function that writes a number of different photos into each folder, and returns the topmost folder."""
    seeds = iter(range(1000))

    def fill(**counts: int) -> Path:
        for name, count in counts.items():
            folder = tmp_path / "photos" / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for position in range(count):
                (folder / f"{position:02}.jpg").write_bytes(encode(photo(320, 240, next(seeds))))
        return tmp_path / "photos"

    return fill


def find(source: Path) -> dict[str, Finding]:
    """Return the findings of a folder or CSV by their kind, without those of its labels."""
    inspected = inspect(listing.read(source), source.parent / "cache")
    groups = duplicates.find_groups(inspected)
    return {each.kind: each for each in find_findings(source, inspected, groups, iter(()))}


def notes(finding: Finding) -> list[str]:
    """Return the note of each item."""
    return [item.note for item in finding.items]


def names(finding: Finding) -> list[list[str]]:
    """Return the file names of each item."""
    return [[path.name for path in item.paths] for item in finding.items]


# The list of photos


def test_class_folders_are_one_split(fill: Fill) -> None:
    """Photos, classes without photos, and files that are not photos, in linked folders too."""
    folder = fill(cat=2, dog=1, empty=0)
    (folder / "cat").rename(folder.parent / "cats")
    (folder / "cat").symlink_to(folder.parent / "cats")
    (folder / "cat" / "notes.txt").write_text("no photo")
    found = listing.read(folder)
    assert found.classes == {"all": ("cat", "dog", "empty")}
    assert found.counts == {("all", "cat"): 2, ("all", "dog"): 1}
    assert names(find(folder)["ignored"]) == [["notes.txt"]]
    assert find(folder)["ignored"].title == "1 file not read as photos (1 .txt)"


def test_a_csv_lists_paths_labels_and_splits(fill: Fill) -> None:
    """Paths are relative to the CSV, other columns do not matter, and files that do not exist are reported."""
    folder = fill(inbox=4)
    (folder / "list.csv").write_text(
        ",Image,label,split\n1,inbox/00.jpg,cat,train\n2,inbox/01.jpg,dog ,val\n3,gone.jpg,dog,train\n"
        f"4,{(long := 300 * 'a')},dog,train\n"
        "4,inbox/02.jpg,,train\n5,inbox/03.jpg,cat,x\n"
    )
    expected = {("train", "cat"): 1, ("validation", "dog"): 1, ("x", "cat"): 1}
    assert listing.read(folder / "list.csv").counts == expected
    found = find(folder / "list.csv")
    assert names(found["missing"]) == [["gone.jpg"], [long]] and names(found["unlabelled"]) == [["02.jpg"]]
    assert notes(found["unknown"]) == ["x: 1 photo"]
    (folder / "list.csv").write_text(",path,class\n1,inbox/00.jpg,cat\n")
    assert listing.read(folder / "list.csv").classes == {"all": ("cat",)}


def test_a_file_in_several_rows_is_one_photo(fill: Fill) -> None:
    """As training takes it; with two labels or splits the note says so, as whoever deletes a copy has none left."""
    folder = fill(inbox=2)
    rows = ["path,label,split", *(f"{way}inbox/00.jpg,cat,train" for way in ("", "./", "inbox/../"))]
    (folder / "list.csv").write_text("\n".join(rows))
    assert listing.read(folder / "list.csv").counts == {("train", "cat"): 1}
    (folder / "list.csv").write_text("\n".join([*rows, "inbox/00.jpg,cat,test", "inbox/01.jpg,dog,train"]))
    assert notes(find(folder / "list.csv")["leak"]) == [
        "one file, listed several times: correct that, and keep the file"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "Expected columns path and label"),
        ("path,label\n", "Received: no rows"),
        (
            "path,label\ngone.jpg,cat\nlist.csv,\n",
            "with a label in .* Left out 2 rows without a file or a label, such as .*/gone.jpg; paths start at the CSV",
        ),
        ("path,label,set\n1.jpg,cat,train\n2.jpg,cat,test\n", "in another: set. Write train, validation or test"),
        (None, "Received: "),
    ],
)
def test_a_source_without_photos_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    """A CSV with other columns, an empty one, rows without a file or a label, other splits, and no such path."""
    if content is not None:
        (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        listing.read(tmp_path / "list.csv")


def test_photos_that_must_be_converted_are_named(fill: Fill) -> None:
    """In the words of train."""
    (fill(cat=0) / "cat" / "1.HEIC").write_bytes(b"")
    with pytest.raises(DataError, match=r"Received: none\. Left out 1 file .*: 1 .heic\. Convert .heic to JPEG"):
        listing.read(fill())


# Names and counts


@pytest.mark.parametrize(
    ("counts", "kind", "severity", "expected"),
    [
        ({"train__cat": 3, "train__dog": 0}, "empty", "problem", ["train/dog has no photo"]),
        (
            {"T-shirt": 1, "t shirt": 1, "hat ": 1, "dress": 1},
            "names",
            "problem",
            ["look like one class: 'T-shirt' and 't shirt'"],
        ),
        (
            {"train__cat": 1, "train__dog": 1, "test__cat": 1, "test__cow": 1},
            "splits",
            "problem",
            ["train has no folder for: cow (of test)", "test has no folder for: dog (of train)"],
        ),
        ({"cat": 25, "dog": 2, "cow": 5}, "few", "suspicion", ["dog: 2", "cow: 5"]),
        ({"train__cat": 3, "train__dog": 1, "val__cat": 1}, "few", "suspicion", ["train/dog: 1", "train/cat: 3"]),
        ({"cat": 25, "dog": 2, "cow": 5}, "imbalance", "suspicion", ["cat has 25 photos, dog 2"]),
    ],
)
def test_faults_of_names_and_counts_are_found(
    fill: Fill, counts: dict[str, int], kind: str, severity: str, expected: list[str]
) -> None:
    """Each names the folder; the smallest class comes first."""
    finding = find(fill(**counts))[kind]
    assert finding.severity == severity and notes(finding) == expected


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 2}, "two or more, each with photos .* Received: cat"),
        ({"cat": 25, "dog": 2}, "at least 3 photos in each class .* Received: 2 of dog"),
        ({"validation__cat": 2, "validation__dog": 2, "test__cat": 2}, "Expected a folder .*train, .* Received only: "),
        ({"cat__train": 2, "cat__test": 2, "dog__train": 2, "dog__test": 2}, "class folders inside each split"),
        ({"fold1__cat": 2, "fold1__dog": 2, "fold2__cat": 2, "fold2__dog": 2}, "Received parts of one set"),
        ({"c\tat": 3, "dog": 3, "empty": 0}, "without control characters"),
    ],
)
def test_what_train_refuses_comes_first(fill: Fill, counts: dict[str, int], message: str) -> None:
    """In the words of train, and whatever else is wrong follows."""
    found = find(fill(**counts))
    assert next(iter(found)) == "refused" and found["refused"].severity == "problem"
    assert re.search(message, *notes(found["refused"])) and len(found) > 1
    assert ("empty" in found) == ("empty" in counts)


def test_what_train_says_of_photos_that_it_takes_is_a_note(fill: Fill) -> None:
    """A folder that it leaves out would be missed, but not a link to one that it reads; a warning is a suspicion."""
    found = find(fill(train__cat=20, train__dog=20, val__cat=1, val__dog=1, extra__dog=1))
    assert [each.severity for each in found.values()] == ["note", "note"]
    assert found["outside"].title == "1 photo outside the class folders that train reads"
    assert notes(found["remarks"]) == ["Left out extra/: it is taken for no split"]
    (fill() / "extra" / "linked").symlink_to(fill() / "train" / "cat")
    assert find(fill())["outside"].title == "1 photo outside the class folders that train reads"
    found = find(fill(train__Dog=20))
    assert found["warnings"].severity == "suspicion"
    assert notes(found["warnings"]) == ["classes that differ only in upper and lower case: Dog, dog"]


def test_sound_folders_have_no_findings(fill: Fill) -> None:
    """Nothing is made up; names are the same in both Unicode forms and with a space, and Chrome saves .pjpeg."""
    folder = fill(**{"train__caf\u00e9": 20, "train__dog": 20, "validation__cafe\u0301": 2, "validation__dog ": 2})
    (folder / "train" / "dog" / "00.jpg").rename(folder / "train" / "dog" / "00.pjpeg")
    assert find(folder) == {}


# Files


def test_corrupt_large_dark_blurred_small_and_misnamed_photos_are_found(fill: Fill) -> None:
    """Each fault names its file, and no other."""
    folder = fill(cat=20, dog=20)
    good = folder / "cat" / "00.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    for path in folder.rglob("*.jpg"):  # texture, so that a photo without any stands out
        path.write_bytes(encode(Image.blend(Image.open(path), noise, 0.3)))
    (folder / "cat" / "half.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "cat" / "heic.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("L", (9000, 9000)).save(folder / "cat" / "large.png")
    (folder / "dog" / "flipped.png").write_bytes(flip_bit(encode(Image.open(good), "PNG")))
    (folder / "dog" / "dark.png").write_bytes(encode(ImageEnhance.Brightness(Image.open(good)).enhance(0.02), "PNG"))
    (folder / "dog" / "blurred.jpg").write_bytes(encode(photo(320, 240, 999)))
    (folder / "cat" / "really.jpg").write_bytes(encode(Image.blend(photo(320, 240, 998), noise, 0.3), "PNG"))
    (folder / "cat" / "small.jpg").write_bytes(encode(Image.open(folder / "dog" / "00.jpg").crop((0, 0, 90, 90))))
    (folder / "cat" / "long.webp").write_bytes(encode(photo(700, 300, 997), "WEBP"))
    found = find(folder)
    assert names(found["corrupt"]) == [["half.jpg"], ["heic.jpg"], ["flipped.png"]]
    assert "do not decode" in notes(found["corrupt"])[0] and notes(found["corrupt"])[1].endswith("Convert it to JPEG")
    assert found["corrupt"].advice.startswith("Do what their lines advise. ")
    assert names(found["large"]) == [["large.png"]] and "9000 by 9000" in notes(found["large"])[0]
    assert names(found["dark"]) == [["dark.png"]]
    assert ["blurred.jpg"] in names(found["blurred"])
    assert names(found["misnamed"]) == [["really.jpg"]]
    assert names(found["small"]) == [["small.jpg"]] and notes(found["small"]) == ["90×90 JPEG"]
    assert names(found["elongated"]) == [["long.webp"]]


# Copies


def saved_again(path: Path) -> bytes:
    """Return a photo half as large, brighter, and of low quality."""
    img = Image.open(path)
    return encode(ImageEnhance.Brightness(img.resize((img.width // 2, img.height // 2))).enhance(1.1), quality=50)


def test_duplicates_conflicts_and_leaks_are_distinguished(fill: Fill) -> None:
    """Exact and near copies within a class, in another class, and in another split."""
    folder = fill(train__cat=6, train__dog=6, test__cat=2, test__dog=2)
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "cat" / "00.jpg", train / "cat" / "again.jpg")
    (train / "dog" / "other.jpg").write_bytes(saved_again(train / "cat" / "01.jpg"))
    (test / "dog" / "leak.jpg").write_bytes(saved_again(train / "dog" / "02.jpg"))
    found = find(folder)
    assert {kind: (names(found[kind]), notes(found[kind])) for kind in ("duplicate", "conflict", "leak")} == {
        "duplicate": ([["00.jpg", "again.jpg"]], ["the same bytes"]),
        "conflict": ([["01.jpg", "other.jpg"]], ["look the same, labelled cat and dog"]),
        "leak": ([["02.jpg", "leak.jpg"]], ["look the same"]),
    }


def shirt(seed: int) -> Image.Image:
    """Return a shirt of some colour and print, in the middle of a bed, with the grain of another photo."""
    random = np.random.default_rng(seed)
    grain = random.normal(0, 6, (320, 320, 1))
    bed = np.clip(200 + grain + np.linspace(0, 20, 320)[:, None, None], 0, 255).repeat(3, axis=2)
    img = Image.fromarray(bed.astype(np.uint8))
    draw = ImageDraw.Draw(img)
    outline = [(60, 70), (120, 40), (200, 40), (260, 70), (280, 130), (240, 140), (240, 290), (80, 290), (80, 140)]
    draw.polygon([*outline, (40, 130)], fill=tuple(int(value) for value in random.integers(20, 90, 3)))
    for x, y, size in random.integers((110, 90, 4), (190, 200, 24), (12, 3)).tolist():
        draw.rectangle((x, y, x + size, y + size), fill=(x, y, 200))
    return img


def as_it_is(img: Image.Image) -> Image.Image:
    """Leave a photo to be encoded again."""
    return img


@pytest.mark.parametrize(
    ("change", "quality"),
    [
        (as_it_is, 40),
        (lambda img: img.resize((160, 160)), 80),
        (lambda img: ImageEnhance.Brightness(img).enhance(0.6), 80),
        (lambda img: ImageEnhance.Brightness(img).enhance(1.3), 80),
        (lambda img: img.convert("L"), 80),
        (lambda img: img.crop((4, 10, 308, 314)), 80),
        (ImageOps.mirror, 80),
        (lambda img: ImageOps.mirror(img).crop((10, 4, 314, 308)), 80),
    ],
    ids=["re-encoded", "smaller", "darker", "brighter", "grey", "cropped", "mirrored", "mirrored and cropped"],
)
def test_a_copy_is_found_among_photos_that_look_like_it(
    fill: Fill, change: Callable[[Image.Image], Image.Image], quality: int
) -> None:
    """Different shirts on one bed are no copies of each other; a changed photo of one of them is."""
    folder = fill(shirt=0)
    for seed in range(6):
        (folder / "shirt" / f"{seed}.jpg").write_bytes(encode(shirt(seed)))
    (folder / "shirt" / "copy.jpg").write_bytes(encode(change(shirt(3)), quality=quality))
    assert names(find(folder)["duplicate"]) == [["3.jpg", "copy.jpg"]]


def test_many_photos_of_one_scene_are_compared_with_the_likest(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of a fixed camera's photos would take days; a copy is among the likest."""
    folder, compared = fill(shirt=0), list[int]()
    for seed in range(8):
        (folder / "shirt" / f"{seed}.jpg").write_bytes(encode(shirt(seed)))
    (folder / "shirt" / "copy.jpg").write_bytes(saved_again(folder / "shirt" / "3.jpg"))
    agree = duplicates._agree
    monkeypatch.setattr(duplicates, "_agree", lambda many, one: (compared.append(len(many)), agree(many, one))[1])
    monkeypatch.setattr(duplicates, "MOST_LIKELY", 1)
    assert names(find(folder)["duplicate"]) == [["3.jpg", "copy.jpg"]]
    assert max(compared) == 1


def test_photos_are_compared_in_little_memory() -> None:
    """Beside the spectra, 17 kB a photo, and the greys, 4 kB, nothing is kept of all of them."""
    pixels = np.zeros((400, 8, 8, 3), np.uint8)
    tracemalloc.start()
    greys = duplicates._greys(pixels, 1)
    assert tracemalloc.get_traced_memory()[1] < 6_000 * len(pixels)
    duplicates._details(greys)
    assert tracemalloc.get_traced_memory()[1] < 23_000 * len(pixels)
    tracemalloc.stop()


def test_the_same_in_another_colour_is_no_copy(fill: Fill) -> None:
    """As a shop shows one garment in several colours."""
    folder = fill(shirt=0)
    channels = shirt(3).split()
    for name, order in {"red": (0, 1, 2), "blue": (2, 1, 0), "green": (1, 0, 2)}.items():
        merged = Image.merge("RGB", [channels[each] for each in order])
        (folder / "shirt" / f"{name}.jpg").write_bytes(encode(merged))
    assert "duplicate" not in find(folder)


# Labels


def cluster(centre: int, count: int, seed: int) -> np.ndarray:
    """Return features (n, 32) of length 1 around an axis."""
    noisy = np.eye(32)[centre] + 0.05 * np.random.default_rng(seed).standard_normal((count, 32))
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def test_names_of_any_bytes_are_shown(fill: Fill, tmp_path: Path) -> None:
    """ZIP files of Windows leave names that are not UTF-8, in photos that decode and in others."""
    folder = fill(cat=4, dog=4)
    (folder / "cat" / "00.jpg").rename(folder / "cat" / os.fsdecode(b"caf\xe9.jpg"))
    (folder / "dog" / os.fsdecode(b"na\xefve.jpg")).write_bytes(b"")
    assert main(["explore", str(folder), "--out", str(tmp_path), "--cache", str(tmp_path)]) == 0
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("explore.json", "explore.html"))
    assert os.fsdecode(b"caf\xe9.jpg") in {Path(photo["path"]).name for photo in json.loads(text)["photos"]}
    assert r"na\udcefve.jpg" in page


def test_the_report_of_other_photos_is_not_replaced_without_a_word(
    fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same photos again, or a file that is no report, need none; and what is refused replaces nothing."""
    folder, out = fill(cat=4, dog=4), tmp_path / "out"
    other = shutil.copytree(folder, tmp_path / "other")
    out.mkdir()
    (out / "explore.json").write_text("[]")
    for name, is_other in ((folder, False), (folder, False), (other, True)):
        assert main(["explore", str(name), "--out", str(out), "--cache", str(tmp_path)]) == 0
        assert (f"Note: this replaces the report of {folder} in {out}. " in capsys.readouterr().out) == is_other
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    assert main(["explore", str(folder), "--out", str(out), "--cache", str(tmp_path)]) == 1
    assert "Note: " not in capsys.readouterr().out


@pytest.mark.parametrize("left", [0, 20, 300])
def test_features_that_a_crash_cut_off_are_computed_again(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Whole ones are not."""
    computed: list[int] = []
    monkeypatch.setattr(labels, "_compute", lambda pixels: (computed.append(len(pixels)), np.eye(len(pixels), 32))[1])
    pixels = inspect(listing.read(fill(cat=4, dog=4)), tmp_path).pixels
    whole = labels.features(pixels)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:left])
    for _ in range(2):
        np.testing.assert_array_equal(labels.features(pixels), whole)
    assert computed == [8, 8]


def suspects(given: list[str], features: np.ndarray) -> list[tuple[str, Item]]:
    """Return the labels that look wrong, of photos in one folder."""
    photos = [SimpleNamespace(path=Path(f"{number}.jpg"), label=label) for number, label in enumerate(given)]
    return list(labels.find_suspects(SimpleNamespace(photos=photos), features))


def test_single_wrong_labels_are_found() -> None:
    """A dog among thirty cats."""
    found = suspects(["cat"] * 29 + ["dog"] * 31, np.concatenate([cluster(0, 30, 1), cluster(1, 30, 2)]))
    assert found == [("label", Item((Path("29.jpg"),), "labelled dog; 10 of its 10 neighbours are cat"))]


def test_folders_with_wrong_labels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cats in one of three folders of dogs; the photos of all folders are compared at once, as there may be many."""
    places = ["a/cat"] * 15 + ["b/cat"] * 15 + ["a/dog"] * 15 + ["b/dog"] * 15 + ["c/dog"] * 5 + ["c/cat"] * 2
    photos = [SimpleNamespace(path=Path(place, "1.jpg"), label=place[2:]) for place in places]
    features = np.concatenate([cluster(0, 30, 1), cluster(1, 30, 2), cluster(0, 7, 3)])
    asked, nearest = list[int](), labels._nearest
    monkeypatch.setattr(labels, "_nearest", lambda *given: (asked.append(len(given[3])), nearest(*given))[1])
    inspected = SimpleNamespace(photos=photos, listing=SimpleNamespace(name=str))
    ((found, note),) = labels.suspect_folders(inspected, features)
    assert found == list(range(60, 65)) and asked == [65]
    assert note == "c/dog is labelled dog, but 5 of its 5 photos look like cat elsewhere"


@pytest.mark.parametrize(("photos", "kind"), [(39, "small-pair"), (40, "pair")])
def test_one_class_under_two_names_is_found(photos: int, kind: str) -> None:
    """Beside a class that is different; few photos of two classes may look alike by chance, so those are suspected."""
    features = np.concatenate([cluster(0, 2 * photos, 1), cluster(1, 30, 2)])
    found = suspects(["jacket", "coat"] * photos + ["hat"] * 30, features)
    note = "coat and jacket: photos of one are as close to the other as to their own class"
    assert [each for each in found if each[0] != "label"] == [(kind, Item((), note))]


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
    """The output of `explore` for a folder with one of each fault, and the folder of its report."""
    work = tmp_path_factory.mktemp("explore")
    photos = work / "photos"
    kinds = ("discs", "stripes", "squares")
    counts = (("train", 20), ("validation", 5))
    planned = [(split, kind, number) for split, count in counts for kind in kinds for number in range(count)]
    for seed, (split, kind, number) in enumerate(planned):
        # The mislabelled folder: the discs of validation are stripes.
        shown = "stripes" if (split, kind) == ("validation", "discs") else kind
        (photos / split / kind).mkdir(parents=True, exist_ok=True)
        (photos / split / kind / f"{number:02}.jpg").write_bytes(encode(drawn(shown, seed)))
    train, validation = photos / "train", photos / "validation"
    shutil.copy(train / "discs" / "00.jpg", train / "discs" / "copy.jpg")
    (validation / "squares" / "leak.jpg").write_bytes(saved_again(train / "squares" / "03.jpg"))
    (train / "stripes" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (train / "rings").mkdir()
    with redirect_stdout(StringIO()) as output:
        assert main(["explore", str(photos), "--out", str(work / "report"), "--cache", str(work / "cache")]) == 0
    return output.getvalue(), work / "report"


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "line",
    [
        r"SUSPICION: 1 photo more than once in a class\n  train/discs/00.jpg, train/discs/copy.jpg: the same bytes",
        r"PROBLEM: 1 photo in two splits.*\n  train/squares/03.jpg, validation/squares/leak.jpg: look the same",
        r"PROBLEM: 1 file unreadable and skipped by training\n  train/stripes/broken.jpg: Expected a complete",
        r"PROBLEM: Train refuses these photos\n  Expected photos in each class of .* Received empty folders: rings",
        r"PROBLEM: 1 folder without a photo\n  train/rings has no photo",
        r"PROBLEM: 1 folder with photos that look like another class\n"
        r"  validation/discs is labelled discs, but \d of its 5 photos look like stripes",
    ],
)
def test_each_planted_fault_is_reported(explored: tuple[str, Path], line: str) -> None:
    """A duplicate, a leak, a corrupt file, an empty class and a mislabelled folder, each with what to do."""
    assert re.search(line + r".*\n(  .*\n)*  → \w+", explored[0]), explored[0]


@pytest.mark.tensorflow
def test_the_json_has_every_finding_and_photo(explored: tuple[str, Path]) -> None:
    """A program reads the same as a person."""
    document = json.loads((explored[1] / "explore.json").read_text())
    assert {"duplicate", "leak", "corrupt", "empty", "folder"} <= {each["kind"] for each in document["findings"]}
    assert document["counts"]["train"] == {"discs": 21, "rings": 0, "squares": 20, "stripes": 21}
    assert len(document["photos"]) == 77 and document["photos"][0]["path"] == "train/discs/00.jpg"
