"""A folder of photos: which classes it has, and which photos are in which split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from contract.photos import SUFFIXES, describe_others, files_in, is_hidden, photos_in
from training.data.splits import (
    SPLIT_NAMES,
    class_folders,
    class_name,
    find_splits,
    left_out_photos,
    read_like_splits,
    several_splits,
    split_of,
)
from training.data.table import Row, is_table, left_out_rows, no_photos, read_table, real_path
from training.errors import DataError
from training.words import counted

_CONVERTIBLE = (".heic", ".heif", ".tif", ".tiff", ".jp2", ".jxl", ".cr2", ".nef", ".arw", ".dng", ".psd", ".svg")
_FOLD = re.compile(r"(k?fold|part|batch|split|subset)[\W_]*\d+", re.IGNORECASE)
NAMED = 20  # classes in a line; of more, those with the fewest photos
HELD_OUT_PART = 0.1  # of each class, for each of validation and test, where the folder has no such split


@dataclass(frozen=True)
class Photo:
    """A file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Classes in the order of their names, and the photos of the splits `train`, `validation` and perhaps `test`.

    `remarks` say what was left out, and what looks wrong.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Photo]]
    remarks: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Return lines for a person: how many photos each class has to train on, each split's size, and remarks."""
        counts = Counter(photo.label for photo in self.splits["train"])
        labels = sorted(range(len(self.classes)), key=counts.__getitem__ if len(self.classes) > NAMED else None)
        by_class = ", ".join(f"{self.classes[label]} {counts[label]}" for label in labels[:NAMED])
        by_class += f", and no fewer of {counted(len(labels) - NAMED, 'other class')}" if labels[NAMED:] else ""
        held_out = ", ".join(f"{len(photos)} for {split}" for split, photos in self.splits.items() if split != "train")
        return [f"Photos to train on, by class: {by_class}", f"Held-out photos: {held_out}", *self.remarks]


def read_folder(folder: Path) -> Dataset:
    """Find classes and splits in a folder: `FOLDER/CLASS/photo` or `FOLDER/SPLIT/CLASS/photo`; or in a CSV.

    Missing splits are taken from train, a tenth of each class, see `_hold_out`. A folder that has a validation split
    needs no test split.

    Raises:
        DataError: No photos, fewer than two classes, an empty class, or a class that train does not have.
    """
    if is_table(folder):
        rows, named, left_out = read_rows(folder)
        by_split = {split or "train": photos for split, photos in rows.items()}
        return Dataset(named, _complete(by_split, named, folder), left_out)
    found = find_splits(folder)
    if found.folders and "train" not in found.folders:
        received = [str(path) for path in found.folders.values()]
        raise DataError(
            f"Expected a folder {found.root / 'train'}, with a folder for each class. Received only: {received}"
        )
    train_folder = found.folders.get("train", found.root)
    class_paths = class_folders(train_folder)
    classes = tuple(sorted({class_name(path.name) for path in class_paths}))
    _check_classes(classes, train_folder)
    _check_order(class_paths)
    splits = {"train": read_split(train_folder, classes, complete=True)}
    for split in ("validation", "test"):
        if split in found.folders:
            splits[split] = read_split(found.folders[split], classes, complete=False)
    read = [train_folder, *(folder for folder in found.folders.values() if folder != train_folder)]
    remarks = [*found.remarks, *_suspicions(class_paths), *_alike(classes), *left_out_files(read)]
    return Dataset(classes, _complete(splits, classes, train_folder), tuple(remarks))


def read_rows(
    table: Path, classes: Sequence[str] = ()
) -> tuple[dict[str, list[Photo]], tuple[str, ...], tuple[str, ...]]:
    """Return the photos of a CSV by split, the classes, and remarks; the classes are those of train, if none are given.

    Where no row has a split, all photos are by an empty name.

    Raises:
        DataError: No photo, none to train on, one of two classes, an unknown class, one named as another, or too few.
    """
    rows = read_table(table)
    there = [row for row in rows if row.label.strip() and row.has_file()]
    files = {row: real_path(row.path) for row in there}
    # Each once, by whichever of its paths.
    kept = {(file, class_name(row.label), row.split or "train"): row for row, file in files.items()}
    left_out = [row.path for row in rows if row not in files]
    if not kept:
        raise no_photos(table, left_out)
    remarks = [left_out_rows(left_out)] if left_out else []
    file, count = Counter(file for file, *_ in kept).most_common(1)[0]
    if count > 1:
        received = _some(dict.fromkeys(str(row.path) for (each, *_), row in kept.items() if each == file))
        raise DataError(f"Expected one class and one split for each photo in {table}. Received more: {received}")
    by_split: dict[str, list[Row]] = {}
    for row in kept.values():
        by_split.setdefault(row.split or "train", []).append(row)
    if others := sorted(set(by_split) - set(SPLIT_NAMES)):
        known = ", ".join(SPLIT_NAMES)
        remarks.append(f"Left out rows of: {_some(others)}. That is taken for none of {known}")
    read = {split: by_split[split] for split in SPLIT_NAMES if split in by_split}
    if not read or not (classes or "train" in read):
        expected = "a split" if classes else "the split train"
        received = ". ".join([", ".join(read) or "none", *remarks])
        raise DataError(f"Expected rows of {expected} in {table}, or without a split. Received: {received}")
    if not classes:
        classes = sorted({class_name(row.label) for row in read["train"]})
        if len(classes) < 2:
            received = ". ".join([_some(classes), *remarks])
            raise DataError(f"Expected labels of two or more classes in {table}. Received: {received}")
        _check_classes(classes, table)
        remarks += _alike(classes)
    labels = {class_name(name): label for label, name in enumerate(classes)}
    _check_known({class_name(row.label) for rows in read.values() for row in rows}, classes, table)
    splits = {split: [Photo(row.path, labels[class_name(row.label)]) for row in rows] for split, rows in read.items()}
    if not any(row.split for row in rows):
        splits = {"": splits["train"]}
    return splits, tuple(classes), tuple(remarks)


def _missing_splits(present: Container[str]) -> list[str]:
    """Return the splits that are taken from train; beside a validation split, no test split is needed."""
    if "validation" in present:
        return []
    return ["validation"] if "test" in present else ["validation", "test"]


def _complete(splits: dict[str, list[Photo]], classes: Sequence[str], folder: Path) -> dict[str, list[Photo]]:
    """Return the splits and those that are missing, taken from train.

    Raises:
        DataError: Classes have too few photos to hold some out.
    """
    missing, counts = _missing_splits(splits), Counter(photo.label for photo in splits["train"])
    if few := [f"{counts[label]} of {name}" for label, name in enumerate(classes) if counts[label] <= len(missing)]:
        raise DataError(
            f"Expected at least {len(missing) + 1} photos in each class of {folder}, to hold some out."
            f" Received: {_some(few)}"
        )
    root = folder if folder.is_dir() else folder.parent  # of a CSV
    return splits | _hold_out(splits["train"], missing, root) if missing else splits


def _check_classes(classes: Sequence[str], folder: Path) -> None:
    """Refuse what cannot be classes."""
    if len(classes) < 2:
        raise DataError(
            f"Expected a folder for each class in {folder}, two or more, each with photos"
            f" ({', '.join(SUFFIXES)}). Received: {', '.join(classes) or 'no folder with photos'}"
        )
    if read_like_splits(classes):
        raise DataError(
            f"Expected names of classes in {folder}. Received names that read like splits, and no classes inside"
            f" these: {', '.join(classes)}"
        )
    for name in classes:
        if not name or any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name):
            advice = "Rename it; ZIP files of Windows often have names in another encoding."
            raise DataError(
                f"Expected names of classes in UTF-8, without control characters. Received in {folder}:"
                f" {os.fsencode(name)!r}. {advice if folder.is_dir() else 'Correct its rows.'}"
            )


def _check_known(found: Set[str], classes: Sequence[str], place: Path) -> None:
    """Refuse names of photos that are no class, or more than one: ImageNet has two cranes."""
    known = Counter(map(class_name, classes))
    if strange := sorted(found - set(known)):
        raise DataError(f"Expected in {place} only known classes: {_some(classes)}. Received also: {_some(strange)}")
    if shared := sorted(name for name in found if known[name] > 1):
        raise DataError(
            f"Expected in {place} only names that one class has. Received also names of several classes:"
            f" {_some(shared)}. Leave their photos out."
        )


def _check_order(class_paths: Sequence[Path]) -> None:
    """Refuse `FOLDER/CLASS/SPLIT` and `FOLDER/FOLD/CLASS`: training would take photos together that are no class."""
    inside = {path: [each.name for each in class_folders(path)] for path in class_paths}
    if all(inside.values()) and all(_FOLD.fullmatch(path.name) for path in class_paths):
        raise DataError(
            f"Expected a folder for each class. Received parts of one set, with folders inside:"
            f" {_some(str(path) for path in class_paths)}. Put the folders of all parts together."
        )
    splits = [path / found[0] for path, names in inside.items() if (found := several_splits(names))]
    below = [path / name for path, names in inside.items() for name in names]
    held_out = [path for path in below if split_of(path.name) in ("validation", "test")]
    if len({path.parent for path in held_out}) > 1:  # in one class alone, it may be no split
        splits += held_out
    if splits:
        split, name = splits[0].name, splits[0].parent.name
        raise DataError(
            f"Expected class folders inside each split. Received splits inside a folder: {splits[0]}. If {name} is a"
            f" class, move {split} above it; if it is a set of photos, train on it alone. If {split} is no split,"
            " rename it."
        )


def _suspicions(class_paths: Sequence[Path]) -> list[str]:
    """Return a warning for class folders that look like a copy of the whole, or like variants of one set."""
    names = {path.name for path in class_paths}
    inside = {path: {each.name for each in class_folders(path)} for path in class_paths}
    copies = [path for path in class_paths if names & inside[path] - {path.name}]
    warnings = [
        f"Warning: {path.name}/ contains folders with names of other classes. Is it a copy of all of them?"
        for path in copies
    ]
    # Folders inside, and no file beside them.
    others = [path for path in class_paths if inside[path] and path not in copies]
    only_folders = [path for path in others if not any(map(_is_visible_file, path.iterdir()))]
    seen = Counter(name for path in only_folders for name in inside[path])
    variants = [path for path in only_folders if any(seen[name] > 1 for name in inside[path])]
    if variants:
        warnings.append(
            f"Warning: {_some(f'{path.name}/' for path in variants)} contain only folders, by the same names"
            f" ({_some(sorted(seen))}). If those are the classes, train on one folder, such as {variants[0]}"
        )
    warnings += [
        f"Note: {path.name}/ contains only folders ({_some(sorted(inside[path]))}): their photos are all taken for it"
        for path in only_folders
        if path not in variants
    ]
    return warnings


def _alike(classes: Sequence[str]) -> list[str]:
    """Return a warning for classes that differ only in upper and lower case."""
    folded = Counter(map(str.casefold, classes))
    alike = [name for name in classes if folded[name.casefold()] > 1]
    return [f"Warning: classes that differ only in upper and lower case: {_some(alike)}"] if alike else []


def _some(names: Iterable[str]) -> str:
    """Join the first of some names."""
    listed = list(names)
    return ", ".join(listed[:5]) + (" …" if len(listed) > 5 else "")


def left_out_files(folders: Sequence[Path]) -> list[str]:
    """Return lines with the photos beside class folders, and how many files in these are no photos, by suffix."""
    files = [path for folder in folders for inside in class_folders(folder) for path in files_in(inside)]
    images = sorted({path.suffix.lower() for path in files}.intersection(_CONVERTIBLE))
    advice = f". Convert {' and '.join(images)} to JPEG" if images else ""
    others = describe_others(files)
    strays = [line for folder in folders for line in left_out_photos(folder, "class folders")]
    return [*strays, *([f"{others}{advice}"] if others else [])]


def _is_visible_file(path: Path) -> bool:
    return not path.is_dir() and not is_hidden(path)


def read_split(folder: Path, classes: Sequence[str], complete: bool) -> list[Photo]:
    """Return the photos of a folder of class folders.

    Raises:
        DataError: No photos, a class that is unknown or named as another, or an empty one although `complete` is set.
    """
    found: dict[str, list[Path]] = {}
    for path in class_folders(folder):
        found.setdefault(class_name(path.name), []).extend(photos_in(path))
    classes = [class_name(name) for name in classes]
    _check_known(set(found), classes, folder)
    if complete and (empty := [name for name in classes if not found[name]]):
        received = ". ".join([_some(empty), *left_out_files([folder])])
        raise DataError(f"Expected photos in each class of {folder}. Received empty folders: {received}")
    photos = [Photo(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]
    if not photos:
        received = ". ".join(["a folder without any", *left_out_files([folder])])
        raise DataError(f"Expected class folders with photos in {folder}. Received {received}")
    return photos


def _hold_out(photos: list[Photo], missing: Sequence[str], folder: Path) -> dict[str, list[Photo]]:
    """Take a tenth of each class, at least one photo, for each missing split.

    A hash of a photo's path in the folder decides, so that a photo stays in its split when others are added, or when
    the folder moves. Only a few change, because the number grows: validation has the lowest hashes of a class, and test
    the highest.
    """
    result: dict[str, list[Photo]] = {split: [] for split in ("train", *missing)}
    by_class: dict[int, list[Photo]] = {}
    for photo in sorted(photos, key=lambda photo: (photo.label, _hash(photo.path, folder), str(photo.path))):
        by_class.setdefault(photo.label, []).append(photo)
    for rest in by_class.values():
        part = max(1, round(len(rest) * HELD_OUT_PART))
        end = len(rest) - part * ("test" in missing)
        places = {"validation": rest[:part], "train": rest[part:end], "test": rest[end:]}
        for split, found in result.items():
            found += places[split]
    return result


def _hash(photo: Path, folder: Path) -> bytes:
    """Return a hash of a photo's path in a folder: the same for both Unicode forms of `é`, and for bytes of no form."""
    name = unicodedata.normalize("NFC", os.path.relpath(photo, folder))
    return sha256(name.encode(errors="surrogateescape")).digest()
