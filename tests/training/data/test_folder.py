"""training/data/folder.py: folders of photos in every shape that people have."""

import os
import shutil
from collections import Counter

import pytest

from training.data.folder import read_folder, read_rows, read_split
from training.data.splits import SPLIT_NAMES, split_of
from training.errors import DataError
from training.explore import listing


def paths(dataset, *splits):
    return [each.path for split in splits for each in dataset.splits[split]]


# Folders


def test_classes_are_the_folders_in_order_of_their_names(fill):
    """Labels are the positions of the sorted class names."""
    dataset = read_folder(fill({"dog": 4, "Bird": 4, "cat": 4}))
    assert dataset.classes == ("Bird", "cat", "dog")
    assert all(each.path.parent.name == dataset.classes[each.label] for each in dataset.splits["train"])


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        *(
            ({train: {"cat": 4, "dog": 3}, validation: {"cat": 2, "dog": 1}, test: {"cat": 1, "dog": 1}}, (7, 3, 2))
            for train, validation, test in [
                *(("train", "valid", "test"), ("TRAIN_DIR/training", "Val", "Testing")),
                ("train", "pets-val", "pets-test"),
            ]
        ),
        ({"seg_train/seg_train": {"cat": 10, "dog": 10}, "seg_test/seg_test": {"cat": 2, "dog": 2}}, (18, 2, 4)),
        ({"archive/training_set/training_set": {"cat": 5, "dog": 5}, "archive/dev": {"cat": 2, "dog": 2}}, (10, 4)),
        *(
            (
                {"training": {"cat": 5, "dog": 5}, validation: {"cat": 2, "dog": 2}, test: {"cat": 1, "dog": 3}},
                (10, 4, 4),
            )
            for validation, test in [("validation", "evaluation"), ("dev", "eval"), ("ValidationSet", "EvaluationSet")]
        ),
        *(
            ({train: {"cat": 10, "dog": 10}, test: {"cat": 3, "dog": 3}}, (18, 2, 6))
            for train, test in [
                *(("train", "test"), ("pets-train", "pets-test"), ("train_small", "test_small"), ("x_train", "x_test")),
                *(("train/images", "test/images"), ("Trainingsdaten", "Testdaten"), ("Entraînement", "essai")),
            ]
        ),
    ],
)
def test_split_folders_are_used_as_they_are(fill, folders, sizes):
    """By each name, in any case, nested as archives unpack; only validation is taken from train if it is missing."""
    for below, counts in folders.items():
        folder = fill(counts, below)
    dataset = read_folder(folder)
    found = {split: len(dataset.splits[split]) for split in SPLIT_NAMES if split in dataset.splits}
    assert found == dict(zip(SPLIT_NAMES, sizes, strict=False))
    assert dataset.classes == ("cat", "dog")
    assert sorted(paths(dataset, *found)) == sorted(folder.rglob("*.jpg"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, split) for split, names in SPLIT_NAMES.items() for name in names),
        *(("training_set", "train"), ("Train Images", "train"), ("seg_train", "train"), ("train2017", "train")),
        *(("val-data", "validation"), ("ValidationSet", "validation"), ("eval_images", "validation")),
        *(("test1", "test"), ("test_set", "test"), ("images_test", "test"), ("TestPhotos", "test")),
        *((name, None) for name in ("trains", "steam train", "trainer", "valley", "protest", "deval", "set", "images")),
    ],
)
def test_names_that_read_like_splits(name, split):
    """Words such as set, data and images may stand around them; other words may not."""
    assert split_of(name) == split


def test_names_that_look_the_same_are_one_class(fill):
    """Both Unicode forms of a letter, and a space at the end; only upper and lower case make two, with a warning.

    So do they in a CSV.
    """
    fill({"caf\u00e9": 3, "dog": 3, "Dog": 3}, "train")
    folder = fill({"cafe\u0301": 1, "dog ": 2}, "val")
    table = folder / "labels.csv"
    rows = [f"{path},{path.parent.name},{path.parts[-3]}" for path in sorted(folder.rglob("*.jpg"))]
    table.write_text("\n".join(["path,label,split", *rows]))
    for dataset in map(read_folder, (folder, table)):
        assert dataset.classes == ("Dog", "caf\u00e9", "dog")
        assert [each.label for each in dataset.splits["validation"]] == [1, 2, 2]
        assert dataset.remarks == ("Warning: classes that differ only in upper and lower case: Dog, dog",)


def test_a_class_of_photos_that_must_be_converted_is_refused_with_a_word(fill):
    """An iPhone's photos are named, not only the empty class; also where no photo is left to measure with."""
    folder = fill({"cat": 3, "dog": 3})
    for path in (folder / "cat").iterdir():
        path.rename(path.with_suffix(".HEIC"))
    left_out = r"\. Left out 3 files .*: 3 .heic. Convert .heic to JPEG$"
    with pytest.raises(DataError, match=f"empty folders: cat{left_out}"):
        read_folder(folder)
    shutil.rmtree(folder / "dog")
    with pytest.raises(DataError, match=f"a folder without any{left_out}"):
        read_split(folder, ("cat", "dog"), complete=False)


def test_photos_beside_class_folders_and_files_of_other_splits_are_counted(fill):
    """Nothing is left out without a word, in linked folders either; nor is what lies beside the split folders."""
    folder = fill({"cat": 3, "dog": 3}, "train")
    (fill({"cat": 1}, "val") / "val" / "cat" / "001.heic").write_bytes(b"")
    for stray in ("b.jpg", "a.jpg", "train/stray.jpg"):
        (folder / stray).write_bytes(b"")
    (folder.parent / "linked").mkdir()
    (folder.parent / "linked" / "a.heic").write_bytes(b"")
    (folder / "train" / "cat" / "linked").symlink_to(folder.parent / "linked")
    beside, stray, left_out = read_folder(folder).remarks
    assert beside == f"Left out 2 photos beside the split folders, such as {folder / 'a.jpg'}"
    assert stray == f"Left out 1 photo beside the class folders, such as {folder / 'train' / 'stray.jpg'}"
    assert ": 2 .heic. " in left_out


def test_classes_may_be_named_like_splits(fill):
    """A folder `train` beside class folders with photos is a class, also where it has folders of its own.

    So may be a folder in one class; several with `test` inside are refused.
    """
    assert read_folder(fill({"valid": 3, "invalid": 3}, "../checks").parent / "checks").classes == ("invalid", "valid")
    dataset = read_folder(fill({"bus": 3, "train": 3}))
    assert dataset.classes == ("bus", "train")
    assert dataset.remarks == ("train/ is taken for a class, not for a split: it has no class folders",)
    fill({"steam": 3, "diesel": 3}, "train")
    fill({"train": 1}, "bus")
    fill({"test": 1}, "car")
    dataset = read_folder(fill({"car": 3}))
    assert dataset.classes == ("bus", "car", "train")
    assert dataset.remarks[0] == "train/ is taken for a class: folders beside it have photos"


@pytest.mark.parametrize(
    ("folders", "remarks"),
    [
        ({"train": 1, "training_set": 1, "val": 1}, ["Left out training_set/: train/ is taken for train"]),
        (
            {"train": 1, "validation_set": 1, "eval": 1, "test": 1},
            ["Left out eval/: it is taken for no split"],
        ),
        ({"train": 1, "extra": 1, "val": 1}, ["Left out extra/: it is taken for no split"]),
        (
            {"train": 1, "val": 1, "validation": 1, "evaluation": 1, "test": 1},
            ["Left out evaluation/: it is taken for no split", "Left out val/: validation/ is taken for validation"],
        ),
        (
            {"color": 1, "gray": 1, "masks": 1},
            ["Warning: color/, gray/, masks/ contain only folders, by the same names (cat, cow, dog). If those are"],
        ),
        ({"": 1, "pets/all": 1}, ["Note: pets/ contains only folders (all): their photos are all taken for it"]),
        ({"train": 1, "train/all": 1, "val": 1}, ["Warning: all/ contains folders with names of other classes."]),
        ({"": 1, "pets": 1}, ["Warning: pets/ contains folders with names of other classes. Is it a copy of all"]),
    ],
)
def test_what_is_left_out_or_looks_wrong_is_said(fill, folders, remarks):
    """Two folders for one split, a folder beside the splits, variants of one set, and a class that contains all."""
    for below in folders:
        folder = fill({"cat": 4, "cow": 4, "dog": 4}, below)
    found = read_folder(folder).remarks
    assert [each[: len(start)] for each, start in zip(found, remarks, strict=True)] == remarks


def test_a_split_without_class_folders_is_left_out_with_a_word(fill, jpegs):
    """A test folder of photos without labels, as in competitions, is no class, and evaluation tests in its place."""
    folder = fill({"cat": 10, "dog": 10}, "train")
    (folder / "test1").mkdir()
    (folder / "test1" / "1.jpg").write_bytes(jpegs[0])
    dataset = read_folder(folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.remarks == ("Left out test1/: it has no class folders",)
    fill({"cat": 1, "dog": 2}, "val")
    dataset = read_folder(fill({"cat": 2, "dog": 2}, "evaluation"))
    assert {split: len(photos) for split, photos in dataset.splits.items()} == {"train": 20, "validation": 3, "test": 4}
    assert dataset.remarks == ("Left out test1/: it has no class folders",)
    shutil.rmtree(folder / "val")
    (folder / "test1").rename(folder / "val")
    (folder / "test").mkdir()
    dataset = read_folder(folder)
    assert {split: len(photos) for split, photos in dataset.splits.items()} == {"train": 18, "validation": 2, "test": 4}
    assert dataset.remarks == tuple(f"Left out {name}/: it has no class folders" for name in ("test", "val"))


def test_its_description_counts_each_class_and_what_is_left_out(fill):
    """By the suffixes, the most frequent first."""
    folder = fill({"cat": 10, "dog": 20})
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".hidden"):
        (folder / "cat" / name).write_bytes(b"")
    classes, held_out, left_out = read_folder(folder).describe()
    assert classes == "Photos to train on, by class: cat 8, dog 16"
    assert held_out == "Held-out photos: 3 for validation, 3 for test"
    assert left_out.startswith("Left out 4 files that cannot be read (.jpg, ")
    assert left_out.endswith(": 2 .heic, 1 .txt, 1 without a suffix. Convert .heic to JPEG")


def test_of_many_classes_those_with_the_fewest_photos_are_named(fill):
    """Twenty fit into a line; the last of them has the fewest here."""
    line, *_ = read_folder(fill({f"c{number:02}": 5 - (number == 24) for number in range(25)})).describe()
    assert line.startswith("Photos to train on, by class: c24 2, c00 3, c01 3, ")
    assert line.endswith(", c18 3, and no fewer of 5 other classes")


def test_each_suffix_that_decodes_counts(fill, jpegs):
    """Among them what Chrome on Windows saves."""
    folder = fill({"cat": 3, "dog": 3})
    for suffix in (".jfif", ".JPE", ".pjpeg"):
        (folder / "cat" / f"saved{suffix}").write_bytes(jpegs[5])
    dataset = read_folder(folder)
    assert (dataset.remarks, len(paths(dataset, "train", "validation", "test"))) == ((), 9)


def test_folder_without_splits_is_split_stratified(fill):
    """Each class gives a tenth to validation, a tenth to test and the rest to train, each photo once."""
    folder = fill({"cat": 40, "dog": 20})
    dataset = read_folder(folder)
    counts = {split: Counter(each.label for each in photos) for split, photos in dataset.splits.items()}
    assert counts == {"train": {0: 32, 1: 16}, "validation": {0: 4, 1: 2}, "test": {0: 4, 1: 2}}
    assert sorted(paths(dataset, "train", "validation", "test")) == sorted(folder.rglob("*.jpg"))


@pytest.fixture
def many(tmp_path):
    """A function that makes so many files in each of two class folders, and returns which is in which split."""

    def many(count, below="photos"):
        folder = tmp_path / below
        for path in (folder / name / f"IMG_{number:04}.jpg" for name in ("cat", "dog") for number in range(count)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = read_folder(folder).splits
        return {photo.path.relative_to(folder): split for split, photos in found.items() for photo in photos}

    return many


@pytest.mark.parametrize(("more", "bound"), [(2, 0.05), (20, 0.1), (200, 0.2)])
def test_held_out_photos_stay_so_when_others_are_added(many, more, bound):
    """But for a few, none from validation to test; and hardly any that was trained on is held out now."""
    before, after = many(200), many(200 + more)
    held_out = [path for path, split in before.items() if split != "train"]
    moved = [path for path in held_out if after[path] != before[path]]
    assert len(moved) <= bound * len(held_out) and all(after[path] == "train" for path in moved)
    known = [path for path, split in before.items() if split == "train" and after[path] != "train"]
    assert len(known) <= bound / 2 * sum(split != "train" for split in after.values())


def test_splits_depend_on_names_in_the_folder_alone(many, tmp_path):
    """A folder that moves, becomes train/ beside a test/, or is listed in a CSV, has the same validation split."""
    made = many(30)
    assert many(30, "elsewhere/photos/train") == made
    table = tmp_path / "photos" / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent}\n" for path in sorted(made)))
    listed = read_folder(table).splits
    assert {each.path.relative_to(table.parent): split for split in listed for each in listed[split]} == made
    test = tmp_path / "elsewhere" / "photos" / "test"
    for path in (path for path, split in made.items() if split == "test"):
        (test / path).parent.mkdir(parents=True, exist_ok=True)
        (test.with_name("train") / path).rename(test / path)
    held_out = [path.relative_to(test.with_name("train")) for path in paths(read_folder(test.parent), "validation")]
    assert sorted(held_out) == sorted(path for path, split in made.items() if split == "validation")


def test_views_of_one_thing_are_not_held_out_together(many, tmp_path):
    """The name of a file is not enough: with `CLASS/THING/front.jpg`, all fronts would be held out."""
    for thing in (tmp_path / "views" / name / str(number) for name in "ab" for number in range(50)):
        thing.mkdir(parents=True)
        for view in ("front.jpg", "back.jpg"):
            (thing / view).touch()
    splits = read_folder(tmp_path / "views").splits
    assert all(len({photo.path.name for photo in photos}) == 2 for photos in splits.values())


def test_what_lies_beside_class_folders_is_no_class(fill, jpegs):
    """Neither hidden folders, nor what macOS archives add, nor files."""
    folder = fill({"cat": 3, "dog": 3})
    (folder / "labels.csv").write_text("0,cat")
    for hidden in (".git", "__MACOSX"):
        (folder / hidden).mkdir()
        (folder / hidden / "000.jpg").write_bytes(jpegs[0])
    assert read_folder(folder).classes == ("cat", "dog")


def test_broken_links_are_not_left_out(fill):
    """Their photos count, until they cannot be read; a class folder or a stray photo is no less missed."""
    folder = fill({"cat": 3, "dog": 3})
    for name in ("cat/link.jpg", "stray.jpg", "labels.csv"):
        (folder / name).symlink_to("nothing")
    dataset = read_folder(folder)
    assert folder / "cat" / "link.jpg" in paths(dataset, "train", "validation", "test")
    assert dataset.remarks == (f"Left out 1 photo beside the class folders, such as {folder / 'stray.jpg'}",)
    (folder / "cat" / "README").symlink_to("nothing")
    read_folder(folder)


@pytest.mark.parametrize("link", ["hat", "validation", "train/hat", "test/wrapped/hat"])
def test_a_broken_link_that_may_be_a_class_or_a_split_is_refused(fill, link):
    """Otherwise the class would be missing, or others would be held out."""
    split = {"train/cat": 3, "train/dog": 3, "test/wrapped/cat": 3}
    place = fill(split if "/" in link else {"cat": 3, "dog": 3})
    (place / link).symlink_to("nothing")
    for read in (read_folder, listing.read):
        with pytest.raises(DataError, match=f"Received also a broken link: {place / link}"):
            read(place)


def test_missing_folder_is_named(tmp_path):
    """A path where there is nothing is in the message."""
    with pytest.raises(DataError, match=r"none: .*nothing"):
        read_folder(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"": {}}, "a folder for each class .* Received: no folder with photos"),
        ({"": {"cat": 3}}, "two or more.* Received: cat"),
        ({"": {"cat": 3, "dog": 0}}, "Received empty folders: dog"),
        ({"": dict.fromkeys("abcdefg", 0) | {"cat": 3}}, "Received empty folders: a, b, c, d, e …$"),
        ({"": dict.fromkeys("abcdefg", 1)}, "Received: 1 of a, 1 of b, 1 of c, 1 of d, 1 of e …$"),
        ({"": {"cat": 1, "cow": 3, "dog": 2}}, "at least 3 photos in each class .*: 1 of cat, 2 of dog$"),
        ({"train": {"cat": 3, "dog": 1}, "test": {"cat": 1}}, "at least 2 photos in each class .*: 1 of dog$"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "cow": 1}}, "known classes: cat, dog. Received also: cow"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 0}}, "folder without any"),
        ({"": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}}, r"a folder .*train.* Received only: .*test"),
        ({"": {"cat": 3, "dog": 3, "test": 3}}, r"both in .*: test/ reads like a split, but has no class folders\."),
        ({"": {"training_set": 3, "test_set": 3}}, "read like splits, and no classes inside these: test_set, train"),
        ({"": {"train_cat": 3, "test_cat": 3}}, "read like splits, and no classes inside these: test_cat, train_cat"),
        ({"cat": {"train": 3, "val": 3}, "dog": {"train": 3, "val": 3}}, "splits inside a folder: .*cat/train"),
        ({"": {"cat": 3, "elk": 3}, "dog": {"train": 3, "val": 3}}, "splits inside a folder: .*dog/train"),
        ({"cat": {"train": 3, "val": 3, "masks": 1}, "dog": {"train": 3, "masks": 1}}, "a folder: .*cat/train"),
        (
            {"": {"cat": 3, "dog": 3}, "cat": {"old": 1, "test": 1}, "dog": {"test": 1}},
            "splits inside a folder: .*cat/test. If cat is a class, move test above it; .* If test is no split, rename",
        ),
        ({"fold1": {"cat": 3, "dog": 3}, "fold2": {"cat": 3, "dog": 3}}, "parts of one set, .*fold1, .*fold2"),
        ({"train": {"cat": 3, "dog": 3}, "": {"unlabeled": 3}}, "If train is a split, move unlabeled/ elsewhere"),
        *(
            ({"": {"cat": 3, name: 3}}, "UTF-8, without control")
            for name in (os.fsdecode(b"caf\xe9"), "a\nb", "\x1b[31m", " ")
        ),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(fill, tmp_path, folders, message):
    """Missing, empty, too few, unknown and misnamed classes, splits without photos, without train or for classes."""
    (tmp_path / "photos").mkdir()
    for below, counts in folders.items():
        folder = fill(counts, below)
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_photos_of_a_name_that_two_classes_have_are_refused(fill):
    """Each would count for both, or for the last one; others may be measured with such a model."""
    classes = ("crane", "dog", "crane")
    table = fill({"dog": 2}) / "labels.csv"
    table.write_text("path,label\ndog/000.jpg,crane\n")
    assert [each.label for each in read_split(table.parent, classes, complete=False)] == [1, 1]
    fill({"crane": 1})
    for read in (lambda: read_rows(table, classes), lambda: read_split(table.parent, classes, complete=False)):
        with pytest.raises(DataError, match=r"Received also names of several classes: crane\. Leave their photos out"):
            read()
