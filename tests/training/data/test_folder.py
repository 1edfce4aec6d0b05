"""training/data/folder.py: folders of photos in every shape that people have, and the cache of decoded pixels."""

import os
import re
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from contract.document import ImageSpec
from contract.image import decode
from tests.programs.photos import encode, flip_bit, photo
from training.data import pixels
from training.data.folder import Photo, read_folder
from training.data.pixels import Photos, load_pixels
from training.data.splits import SPLIT_NAMES, split_of
from training.errors import DataError

SPEC = ImageSpec(8, 8)


@pytest.fixture(scope="module")
def jpegs():
    """Encoded photos, each another."""
    return [encode(photo(24, 16, seed)) for seed in range(40)]


@pytest.fixture
def fill(tmp_path, jpegs):
    """A function that writes photos into class folders, perhaps of a split, and returns the topmost folder."""

    def fill(counts, below=""):
        for name, count in counts.items():
            folder = tmp_path / "photos" / below / name
            folder.mkdir(parents=True, exist_ok=True)
            for position in range(count):
                (folder / f"{position:03}.jpg").write_bytes(jpegs[position])
        return tmp_path / "photos"

    return fill


@pytest.fixture
def cache(tmp_path):
    """A folder for decoded pixels."""
    return tmp_path / "cache"


@pytest.fixture
def photos(fill):
    """Six photos of two classes."""
    folder = fill({"cat": 3, "dog": 3})
    return [Photo(path, int(path.parent.name == "dog")) for path in sorted(folder.rglob("*.jpg"))]


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows with each image that is decoded."""
    calls = []

    def counted(image, spec):
        calls.append(image)
        return decode(image, spec)

    monkeypatch.setattr(pixels, "decode", counted)
    return calls


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
            for train, validation, test in [("train", "valid", "test"), ("TRAIN_DIR/training", "Val", "Testing")]
        ),
        ({"seg_train/seg_train": {"cat": 10, "dog": 10}, "seg_test/seg_test": {"cat": 2, "dog": 2}}, (18, 2, 4)),
        ({"archive/training_set/training_set": {"cat": 5, "dog": 5}, "archive/dev": {"cat": 2, "dog": 2}}, (10, 4)),
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
    """Both Unicode forms of a letter, and a space at the end; only upper and lower case make two, with a warning."""
    fill({"caf\u00e9": 3, "dog": 3, "Dog": 3}, "train")
    dataset = read_folder(fill({"cafe\u0301": 1, "dog ": 2}, "val"))
    assert dataset.classes == ("Dog", "caf\u00e9", "dog")
    assert [each.label for each in dataset.splits["validation"]] == [1, 2, 2]
    assert dataset.remarks == ("Warning: classes that differ only in upper and lower case: Dog, dog",)


def test_a_class_of_photos_that_must_be_converted_is_refused_with_a_word(fill):
    """An iPhone's photos are named, not only the empty class."""
    folder = fill({"cat": 3, "dog": 3})
    for path in (folder / "cat").iterdir():
        path.rename(path.with_suffix(".HEIC"))
    with pytest.raises(DataError, match=r"empty folders: cat; Left out 3 files .*: 3 .heic. Convert .heic to JPEG"):
        read_folder(folder)


def test_photos_beside_class_folders_and_files_of_other_splits_are_counted(fill):
    """Nothing is left out without a word."""
    folder = fill({"cat": 3, "dog": 3}, "train")
    (fill({"cat": 1}, "val") / "val" / "cat" / "001.heic").write_bytes(b"")
    (folder / "train" / "stray.jpg").write_bytes(b"")
    stray, left_out = read_folder(folder).remarks
    assert stray == f"Left out 1 photo beside the class folders, such as {folder / 'train' / 'stray.jpg'}"
    assert "1 .heic" in left_out


def test_classes_may_be_named_like_splits(fill):
    """A folder `train` beside class folders with photos is a class, also where it has folders of its own."""
    dataset = read_folder(fill({"bus": 3, "train": 3}))
    assert dataset.classes == ("bus", "train")
    assert dataset.remarks == ("train/ is taken for a class, not for a split: it has no class folders",)
    fill({"steam": 3, "diesel": 3}, "train")
    dataset = read_folder(fill({"car": 3}))
    assert dataset.classes == ("bus", "car", "train")
    assert dataset.remarks[0] == "train/ is taken for a class: folders beside it have photos"


@pytest.mark.parametrize(
    ("folders", "remarks"),
    [
        ({"train": 1, "training_set": 1, "val": 1}, ["Left out training_set/: train/ is taken for train"]),
        ({"train": 1, "extra": 1, "val": 1}, ["Left out extra/: it does not read like a split"]),
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
    """A test folder of photos without labels, as in competitions, is no class."""
    folder = fill({"cat": 10, "dog": 10}, "train")
    (folder / "test1").mkdir()
    (folder / "test1" / "1.jpg").write_bytes(jpegs[0])
    dataset = read_folder(folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.remarks == ("Left out test1/: it has no class folders",)


def test_its_description_counts_each_class_and_what_is_left_out(fill):
    """By the suffixes, the most frequent first."""
    folder = fill({"cat": 10, "dog": 20})
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".hidden"):
        (folder / "cat" / name).write_bytes(b"")
    classes, held_out, left_out = read_folder(folder).describe()
    assert classes == "Photos to train on, by class: cat 8, dog 16"
    assert held_out == "Held-out photos: 3 for validation, 3 for test"
    assert left_out.startswith("Left out 4 files that cannot be read (.jpg, ")
    assert left_out.endswith(": 2 .heic, 1 .txt, 1 without a suffix. Convert .heic to JPEG to train on them, too")


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


def test_a_held_out_split_may_lack_a_class(fill):
    """Labels stay those of train."""
    fill({"cat": 5, "dog": 5}, "train")
    dataset = read_folder(fill({"dog": 2}, "val"))
    assert [each.label for each in dataset.splits["validation"]] == [1, 1]


def test_only_visible_images_count(fill, jpegs):
    """Hidden files and folders, what macOS archives add, and files that are no images are left out."""
    folder = fill({"cat": 3, "dog": 3})
    (folder / "cat" / "._000.jpg").write_bytes(b"resource fork")
    (folder / "cat" / "Thumbs.db").write_bytes(b"thumbnails")
    (folder / "labels.csv").write_text("0,cat")
    for hidden in (".git", "__MACOSX", "dog/.ipynb_checkpoints"):
        (folder / hidden).mkdir()
        (folder / hidden / "000.jpg").write_bytes(jpegs[0])
    dataset = read_folder(folder)
    assert dataset.classes == ("cat", "dog")
    assert len(paths(dataset, "train", "validation", "test")) == 6


def test_suffixes_count_in_any_case_and_any_depth(fill, jpegs):
    """`CLASS/2024/IMG.JPG` is a photo of the class."""
    folder = fill({"cat": 3, "dog": 3})
    (folder / "dog" / "2024").mkdir()
    (folder / "dog" / "2024" / "IMG.JPG").write_bytes(jpegs[9])
    assert folder / "dog" / "2024" / "IMG.JPG" in paths(read_folder(folder), "train", "validation", "test")


def test_class_folders_may_be_links(fill, tmp_path):
    """A class folder that is a symbolic link counts with its photos."""
    folder = fill({"cat": 3, "dog": 3})
    (folder / "dog").rename(tmp_path / "elsewhere")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    dataset = read_folder(folder)
    assert Counter(each.label for each in dataset.splits["train"]) == {0: 1, 1: 1}


def test_missing_folder_is_named(tmp_path):
    """A path where there is nothing is in the message."""
    with pytest.raises(DataError, match=r"none: .*nothing"):
        read_folder(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"": {}}, "a folder for each class .* Received: no folder"),
        ({"": {"cat": 3}}, "two or more.* Received: cat"),
        ({"": {"cat": 3, "dog": 0}}, "Received empty folders: dog"),
        ({"": {"cat": 3, "dog": 2}}, "at least 3 photos in each class.* Received 2 in .*dog"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "cow": 1}}, "known classes: cat, dog. Received also: cow"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 0}}, "folder without any"),
        ({"": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}}, r"a folder .*train.* Received only: .*test"),
        ({"": {"training_set": 3, "test_set": 3}}, "read like splits, without class folders inside: test_set, train"),
        ({"": {"train_cat": 3, "test_cat": 3}}, "read like splits, without class folders inside: test_cat, train_cat"),
        ({"cat": {"train": 3, "val": 3}, "dog": {"train": 3, "val": 3}}, "splits inside each folder: .*cat/train"),
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


# A CSV of labels


@pytest.fixture
def table(fill):
    """A function that writes a CSV beside six photos of two classes, and returns its path."""

    def write(*rows):
        fill({"a": 3, "b": 3})
        path = fill({}) / "labels.csv"
        path.write_text("\n".join(rows), encoding="utf-8-sig")
        return path

    return write


def test_a_csv_of_labels_is_a_dataset(table):
    """Paths are relative to it; without a split, some photos of each class are held out."""
    rows = [
        f"{folder}/{position:03}.jpg,{label}" for folder, label in (("a", "dog"), ("b", "cat")) for position in range(3)
    ]
    dataset = read_folder(table("File,Label", *rows, rows[0], "a/404.jpg,cat", "a/000.jpg,"))
    assert dataset.classes == ("cat", "dog")
    assert {split: len(photos) for split, photos in dataset.splits.items()} == {"train": 2, "validation": 2, "test": 2}
    assert all((each.path.parent.name == "b") == (each.label == 0) for each in dataset.splits["train"])
    assert dataset.remarks[0].startswith("Left out 2 rows without a file or a label, such as ")


def test_a_csv_may_name_splits(table):
    """By the names that folders may have; others are left out with a word."""
    rows = [
        f"{folder}/{position:03}.jpg,{folder},{split}"
        for folder in "ab"
        for position, split in enumerate(("Training", "dev", "x"))
    ]
    dataset = read_folder(table("path,label,split", *rows))
    assert {split: [each.label for each in photos] for split, photos in dataset.splits.items()} == {
        "train": [0, 1],
        "validation": [0, 1],
    }
    assert dataset.remarks == ("Left out rows of: x. That does not read like a split",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("path,label", "a/000.jpg,cat", "a/000.jpg,dog"), "one class and one split for each photo.*000.jpg"),
        (("path,label,split", "a/000.jpg,cat,train", "a/001.jpg,dog,train", "b/000.jpg,cow,val"), "also: cow"),
        (("path,label", "a/000.jpg,cat"), "labels of two or more classes in .*csv. Received: cat"),
        (("path,cat,dog", "a/000.jpg,0,1"), "Expected columns path and label.* Received: path, cat, dog"),
        (("path,label", "x.jpg,cat"), "labels of two or more classes in .*csv. Received: none"),
    ],
)
def test_a_csv_that_cannot_be_trained_on_is_refused(table, rows, message):
    """A photo of two classes, an unknown class, one class, a column for each class, and no file."""
    with pytest.raises(DataError, match=message):
        read_folder(table(*rows))


# Pixels


def test_pixels_are_the_contracts(photos, cache):
    """Each image is what contract/image.py makes of the file, beside its label and path."""
    pixels = load_pixels(photos, SPEC, cache)
    assert pixels.images.dtype == np.uint8 and pixels.images.shape == (6, 8, 8, 3)
    for each, image in zip(photos, pixels.images, strict=True):
        np.testing.assert_array_equal(image, decode(each.path.read_bytes(), SPEC).pixels)
    assert pixels.labels.tolist() == [0, 0, 0, 1, 1, 1] and pixels.paths == [each.path for each in photos]


def test_corrupt_files_are_named_and_skipped(photos, cache):
    """Pixels, labels and paths of the rest stay together, also when they come from the cache."""
    broken, empty, flipped = photos[1].path, photos[4].path, photos[5].path
    broken.write_bytes(broken.read_bytes()[:300])
    empty.write_bytes(b"")
    flipped.write_bytes(flip_bit(encode(photo(24, 16), "PNG")))
    for loaded in (load_pixels(photos, SPEC, cache), load_pixels(photos, SPEC, cache)):
        assert sorted(loaded.skipped) == [str(broken), str(empty), str(flipped)]
        assert "Received: nothing" in loaded.skipped[str(empty)]
        assert loaded.labels.tolist() == [0, 0, 1] and len(loaded.images) == 3
        np.testing.assert_array_equal(loaded.images[1], decode(loaded.paths[1].read_bytes(), SPEC).pixels)


@pytest.mark.parametrize(("split", "refused"), [("train", True), ("validation", False)])
def test_a_class_without_a_photo_that_decodes_is_refused(photos, cache, caplog, split, refused):
    """Training would never see it; in a split that only measures, it is a warning."""
    for each in photos[:3]:
        each.path.write_text("<html>")
    lost = rf"3 of 3 photos for {split} in .*cat cannot be decoded"
    with caplog.at_level("INFO"), pytest.raises(DataError, match=lost) if refused else nullcontext():
        Photos(cache, cache).read(split, photos, SPEC)
    assert refused or re.search("Warning: " + lost, caplog.text)


def test_no_photo_that_decodes_is_an_error(photos, cache):
    """Files that are all corrupt are named, and nothing is kept."""
    for each in photos:
        each.path.write_bytes(b"not a photo")
    with pytest.raises(DataError, match=r"Received 6 that cannot be decoded: .*000\.jpg"):
        load_pixels(photos, SPEC, cache)
    assert list(cache.iterdir()) == []


def test_second_load_decodes_nothing(photos, cache, decoded):
    """The cache gives the same pixels without a decode."""
    first = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 6
    second = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 6 and first.digest == second.digest
    np.testing.assert_array_equal(first.images, second.images)


def test_changed_file_decodes_again(photos, cache, decoded, jpegs):
    """New content under an old name is seen."""
    before = load_pixels(photos, SPEC, cache)
    photos[2].path.write_bytes(jpegs[20])
    after = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 12 and not np.array_equal(before.images[2], after.images[2])


def test_another_decoder_decodes_again(photos, cache, decoded, monkeypatch):
    """Pixels that an older Pillow made are not those that are served."""
    load_pixels(photos, SPEC, cache)
    monkeypatch.setattr(pixels.PIL, "__version__", "0.1")
    load_pixels(photos, SPEC, cache)
    assert len(decoded) == 12


def test_other_size_decodes_again(photos, cache):
    """Pixels of one size are not given for another."""
    load_pixels(photos, SPEC, cache)
    assert load_pixels(photos, ImageSpec(10, 12), cache).images.shape == (6, 10, 12, 3)


@pytest.mark.parametrize("killed", [1, 2])
def test_cache_of_a_killed_run_is_not_used(photos, cache, decoded, monkeypatch, killed):
    """A process that ended before its last rename leaves nothing that counts."""
    renames = []

    def rename(path, target):
        renames.append(target)
        if len(renames) == killed:
            raise KeyboardInterrupt
        path.replace(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pixels.Path, "rename", rename)
        load_pixels(photos, SPEC, cache)
    assert len(load_pixels(photos, SPEC, cache).images) == 6 and len(decoded) == 12


def test_cache_that_cannot_be_written_is_named(photos, tmp_path):
    """A path that is no folder, like a full disk, is an error with the place."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"write decoded photos to .*file"):
        load_pixels(photos, SPEC, tmp_path / "file")


def test_digest_follows_content_and_labels(photos, cache, tmp_path, jpegs):
    """Time and place of files do not change it; a label or one photo's bytes do."""
    digest = load_pixels(photos, SPEC, cache).digest
    moved = photos[0].path.rename(tmp_path / "moved.jpg")
    assert load_pixels([Photo(moved, 0), *photos[1:]], SPEC, cache).digest == digest
    assert load_pixels([Photo(moved, 1), *photos[1:]], SPEC, cache).digest != digest
    moved.write_bytes(jpegs[20])
    assert load_pixels([Photo(moved, 0), *photos[1:]], SPEC, cache).digest != digest
