"""training/data/table.py: a CSV of labels as a dataset."""

import pytest

from training.data.folder import read_folder, read_rows
from training.errors import DataError
from training.explore import listing


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
    left_out = ("c/../a/000.jpg,cat", "a/000.jpg,", "a\0/0.jpg,cat", f"{300 * 'a'}.jpg,cat")
    dataset = read_folder(table("File,Label", *rows, rows[0], f"b/../{rows[0]}", *left_out))
    assert dataset.classes == ("cat", "dog")
    assert {split: len(photos) for split, photos in dataset.splits.items()} == {"train": 2, "validation": 2, "test": 2}
    assert all((each.path.parent.name == "b") == (each.label == 0) for each in dataset.splits["train"])
    assert dataset.remarks[0].startswith("Left out 4 rows without a file or a label, such as ")


@pytest.mark.parametrize(
    "names", [("red", "red "), ("caf\u00e9", "cafe\u0301"), ('"crane, bird"', ' "crane, bird",, ')]
)
def test_two_spellings_of_a_class_are_one(table, names):
    """So a photo that a CSV names with each of them is one photo of one class; also quoted after a space."""
    rows = [f"a/00{position}.jpg,{name}" for position in range(3) for name in names]
    dataset = read_folder(table("path,label", *rows, *(f"b/00{position}.jpg,dog" for position in range(3))))
    assert dataset.classes == tuple(sorted((names[0].strip('"'), "dog")))
    assert sum(map(len, dataset.splits.values())) == 6


def test_links_to_one_file_are_photos_of_their_own(table):
    """As a store of contents, such as git-annex, has them in the place of equal files."""
    path = table("path,label,split", *(f"a/00{k}.jpg,cat,{split}" for k, split in enumerate(("train", "val", "train"))))
    path.write_text(path.read_text() + "\nb/000.jpg,dog,train\nb/001.jpg,dog,val")
    for photo in (path.parent / "a").iterdir():
        photo.unlink()
        photo.symlink_to(path.parent / "b" / "002.jpg")
    assert {split: len(photos) for split, photos in read_folder(path).splits.items()} == {"train": 3, "validation": 2}


def test_a_csv_may_name_splits(table):
    """By the names that folders may have; others are left out with a word, as `explore` reports them."""
    rows = [
        f"{folder}/{position:03}.jpg,{folder},{split}"
        for folder in "ab"
        for position, split in enumerate(("Training", "dev", "x"))
    ]
    dataset = read_folder(table("path,label,split", *rows))
    assert set(listing.read(table("path,label,split", *rows)).classes) == {"train", "validation", "x"}
    assert {split: [each.label for each in photos] for split, photos in dataset.splits.items()} == {
        "train": [0, 1],
        "validation": [0, 1],
    }
    left_out = "Left out rows of: x. That is taken for none of train, validation, test"
    assert dataset.remarks == (left_out,)


def test_evaluation_beside_validation_is_the_test_split(table):
    """As among folders; it is left out if there is another, but not for one without labels."""
    splits = ("training", "validation", "evaluation")
    rows = [f"{folder}/00{position}.jpg,{folder},{split}" for folder in "ab" for position, split in enumerate(splits)]
    for unlabelled in ((), ("a/000.jpg,,test",)):
        dataset = read_folder(table("path,label,split", *rows, *unlabelled))
        assert {split: len(photos) for split, photos in dataset.splits.items()} == {
            "train": 2,
            "validation": 2,
            "test": 2,
        }
    rows[:2] = ["a/000.jpg,a,test", "a/001.jpg,a,training"]
    splits, _, remarks = read_rows(table("path,label,split", *rows), ("a", "b"))
    assert {split: len(photos) for split, photos in splits.items()} == {"train": 2, "validation": 1, "test": 1}
    assert [each.partition(". ")[0] for each in remarks] == ["Left out rows of: evaluation"]


@pytest.mark.parametrize(("others", "explored"), [("all", {"all"}), ("", {"all"}), ("dev", {"train", "validation"})])
def test_photos_that_a_csv_does_not_split_are_trained_on(table, others, explored):
    """Those of the split `all`, or of none; `explore` shows them as that too."""
    rows = [f"{each}/00{position}.jpg,{each},{'All' if position else others}" for each in "ab" for position in range(3)]
    path = table("path,label,split", *rows)
    assert read_folder(path).remarks == () and set(listing.read(path).classes) == explored


@pytest.mark.parametrize("others", [("id_val", "id_test"), ("train_noisy", "test_noisy"), ("train_more", "val_more")])
def test_words_beside_splits_are_others(table, others):
    """Of `train` and `val_more`, nobody knows if they belong together, so such rows are left out with a word."""
    splits = ("train", "train", "val", *others)
    rows = [f"{'ab'[number % 2]}/00{number // 2}.jpg,{'ab'[number % 2]},{splits[number]}" for number in range(5)]
    (remark,) = read_folder(table("path,label,split", *rows)).remarks
    assert all(other in remark for other in others)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", lambda number: f"Train_{number}"),
        ("checked", lambda number: ("valid", "")[number % 2]),
        ("class,class", lambda number: ("train,", "test,")[number % 2]),
        ("test_date", lambda number: f"2026-03-0{number % 2}"),
        ("test", lambda number: ("positive", "negative")[number % 2]),
        ("note,column 5", lambda number: f"{number},x"),
        ("validation", lambda number: "done"),
        ("trained_by", lambda number: ("Ann", "Bob")[number % 2]),
        ("note", lambda number: f"{('train', 'test')[number % 2]} {number} {chr(65 + number)}"),
    ],
)
def test_a_column_that_says_something_else_is_no_column_of_splits(table, column, value):
    """Ids, a column of one split's word, the labels in other words, values that are no flags, and other words."""
    rows = [f"{'ab'[number % 2]}/00{number // 2 % 3}.jpg,{'ab'[number % 2]},{value(number)}" for number in range(24)]
    assert read_folder(table(f"path,label,{column}", *rows)).remarks == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("path,label", "a/000.jpg,cat", "a/000.jpg,dog"), "one class and one split for each photo.*000.jpg"),
        (("path,label,split", "a/000.jpg,cat,train", "b/../a/000.jpg,cat,val"), "more: .*/a/000.jpg, .*b/../a/000.jpg"),
        (("path,label,split", "a/000.jpg,cat,train", "a/001.jpg,dog,train", "b/000.jpg,cow,val"), "also: cow"),
        (("path,label", "a/000.jpg,cat", "x.jpg,dog"), "two or more classes in .*csv. Received: cat. Left out 1 row w"),
        (("path,cat,dog", "a/000.jpg,0,1"), "Expected columns path and label.* Received: path, cat, dog"),
        (("path;label", "a/000.jpg;cat"), "with commas between them, in .*csv. Received: path;label"),
        (("path,label", "a/000.jpg,cat", '"a/001.jpg,cat', 'b/000.jpg,dog",x'), "line breaks. .*csv, from line 3 on"),
        (("path,label", "a/000.jpg,cat", '"a/001.jpg,cat', '"b/000.jpg",dog'), "csv, from line 3 on: ',' expected"),
        *(
            (
                (first, "a/000.jpg,cat", "a/001.jpg,crane, bird"),
                'line 3. Each column needs a name, .* quotes, such as "crane, bird"$',
            )
            for first in ("path,label", "path,label, ,")
        ),
        (("", "path,label", "a/000.jpg,cat"), "columns path and label.* Received: an empty first line$"),
        (("path,label", '"a/000.jpg,cat', 'b/000.jpg,dog",x,y'), "line breaks. .*csv, from line 2 on"),
        (("path,label,split", "a/000.jpg,cat,val", "b/000.jpg,dog,test"), "train in .* Received: validation, test$"),
        (("path,label,split", "a/000.jpg,cat,x"), "none. Left out rows of: x. .* none of train, validation, test$"),
        (("path,label", "a/000.jpg,a\tb", "b/000.jpg,b"), r"control characters.*csv: b'a\\tb'. Correct its rows\.$"),
        (("path,label", "a/000.jpg,train", "b/000.jpg,test"), "of classes in .*csv. .* like splits, .*: test, train$"),
        (("path,label", "a/000.jpg,cat", "b/000.jpg,dog"), "3 photos in each class of .*csv, .*: 1 of cat, 1 of dog$"),
        (
            ("path,label,set", "a/000.jpg,cat,train", "b/000.jpg,dog,val"),
            "in a column split. .* in another: set. Write train, validation or test into",
        ),
        (
            ("path,label,fold,x,y", "a/000.jpg,cat,1,Test,?", "b/000.jpg,dog,0,train,?", "b/001.jpg,dog,0,unused,"),
            "Received them in another: x. Write",
        ),
        (("path,label,", "a/000.jpg,cat,pets-train", "b/000.jpg,dog,pets-val"), "another: column 3. Write"),
        *(
            ((f"path,label,{flag}", f"a/000.jpg,cat,{yes}", f"b/000.jpg,dog,{no}"), f"in another: {flag}. Write")
            for flag, yes, no in (
                ("is_valid", True, False),
                ("isValid", "WAHR", "FALSCH"),
                ("is_training_img", 1, 0),
                ("test", "x", ""),
                ("test", "Test", "no"),
            )
        ),
        *(
            (("path,label,split,set", f"a/000.jpg,cat,{none},train", "b/000.jpg,dog,,val"), "another: set. Write")
            for none in ("", "all")
        ),
        (
            ("path,label,Usage", "a/000.jpg,cat,Training", "b/000.jpg,dog,PublicTest", "b/001.jpg,dog,PrivateTest"),
            "them in another: Usage. Write",
        ),
        (
            ("path,label,split, Split", "a/000.jpg,cat,train,"),
            "one column of each name in .* several: split. Rename or remove",
        ),
        (("path,label", "x.jpg,cat"), "none. Left out 1 row without a file .* paths start at the CSV's folder"),
    ],
)
def test_a_csv_that_cannot_be_trained_on_is_refused(table, rows, message):
    """A photo of two classes, an unknown or only one class, a column for each, quotes, a comma, no train, and no file.

    Labels that are splits, splits in a column of another name, a flag of a split, two columns of one name, and too few
    photos, as well.
    """
    with pytest.raises(DataError, match=message):
        read_folder(table(*rows))


def test_a_csv_of_unknown_splits_alone_is_refused(table):
    """Also where it is only measured, which needs no photos to train on."""
    with pytest.raises(DataError, match=r"rows of a split in .* Received: none\. Left out rows of: x"):
        read_rows(table("path,label,split", "a/000.jpg,cat,x"), ("cat", "dog"))
