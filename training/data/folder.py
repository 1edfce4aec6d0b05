"""A folder of photos: which classes it has, and which photos are in which split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.photos import SUFFIXES, is_hidden, photos_in
from training.errors import DataError

SPLIT_FOLDERS = {
    "train": ("train", "training", "seg_train"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing", "seg_test"),
}
HELD_OUT_PART = 0.1  # of each class, for each of validation and test, where the folder has no such split


@dataclass(frozen=True)
class Photo:
    """A file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Classes in the order of their names, and the photos of the splits `train`, `validation` and perhaps `test`."""

    classes: tuple[str, ...]
    splits: dict[str, list[Photo]]


def read_folder(folder: Path, seed: int = 0) -> Dataset:
    """Find classes and splits in a folder: `FOLDER/CLASS/photo` or `FOLDER/SPLIT/CLASS/photo`.

    Missing splits are taken from train, a tenth of each class, the same for the same seed. A folder that has a
    validation split needs no test split.

    Raises:
        DataError: No photos, fewer than two classes, an empty class, or a class that train does not have.
    """
    folders = split_folders(folder)
    if folders and "train" not in folders:
        received = [str(path) for path in folders.values()]
        raise DataError(
            f"Expected a folder {folder / 'train'}, with a folder for each class. Received only: {received}"
        )
    train_folder = folders.get("train", folder)
    classes = tuple(path.name for path in class_folders(train_folder))
    if len(classes) < 2:
        raise DataError(
            f"Expected a folder for each class in {train_folder}, two or more, each with photos"
            f" ({', '.join(SUFFIXES)}). Received: {', '.join(classes) or 'no folder'}"
        )
    splits = {"train": read_split(train_folder, classes, complete=True)}
    for split in ("validation", "test"):
        if split in folders:
            splits[split] = read_split(folders[split], classes, complete=False)
    if "validation" not in splits:
        missing = ["validation"] if "test" in splits else ["validation", "test"]
        splits |= _hold_out(splits, missing, seed)
    return Dataset(classes, splits)


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each split that there is, by its name in any case.

    A folder with such a name, but without folders inside, is a class instead.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of photos. Received a path where there is none: {folder}")
    found: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        for path in class_folders(folder):
            if split not in found and path.name.lower() in names and (inside := class_folders(path)):
                # Some archives contain seg_train/seg_train/CLASS.
                found[split] = inside[0] if [each.name for each in inside] == [path.name] else path
    return found


def class_folders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def read_split(folder: Path, classes: Sequence[str], complete: bool) -> list[Photo]:
    """Return the photos of a folder of class folders.

    Raises:
        DataError: No photos, an unexpected class, or an empty one although `complete` is set.
    """
    found = {path.name: photos_in(path) for path in class_folders(folder)}
    if strange := sorted(set(found) - set(classes)):
        some = ", ".join(classes[:5]) + (" …" if len(classes) > 5 else "")
        raise DataError(f"Expected in {folder} only known classes: {some}. Received also: {', '.join(strange)}")
    if complete and (empty := [name for name in classes if not found[name]]):
        raise DataError(f"Expected photos in each class of {folder}. Received empty folders: {', '.join(empty)}")
    photos = [Photo(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]
    if not photos:
        raise DataError(f"Expected class folders with photos in {folder}. Received a folder without any")
    return photos


def _hold_out(splits: dict[str, list[Photo]], missing: Sequence[str], seed: int) -> dict[str, list[Photo]]:
    """Take a tenth of each class of train, at least one photo, for each missing split."""
    result: dict[str, list[Photo]] = {split: [] for split in ("train", *missing)}
    shuffled = sorted(splits["train"], key=lambda photo: (photo.label, str(photo.path)))
    random.Random(seed).shuffle(shuffled)
    for label in sorted({photo.label for photo in shuffled}):
        rest = [photo for photo in shuffled if photo.label == label]
        part = max(1, round(len(rest) * HELD_OUT_PART))
        if len(rest) <= part * len(missing):
            raise DataError(
                f"Expected at least {len(missing) + 1} photos in each class, to hold some out."
                f" Received {len(rest)} in {rest[0].path.parent}"
            )
        for split in missing:
            result[split] += rest[:part]
            rest = rest[part:]
        result["train"] += rest
    return result
