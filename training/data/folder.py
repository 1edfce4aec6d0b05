"""A folder of photos: which classes it has, and which photos are in which split."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.photos import SUFFIXES, is_hidden, photos_in
from training.data.splits import class_folders, find_splits, split_of
from training.errors import DataError

_CONVERTIBLE = (".heic", ".heif", ".tif", ".tiff", ".jp2", ".jxl", ".cr2", ".nef", ".arw", ".dng", ".psd", ".svg")
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
        by_class = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(self.classes))
        held_out = ", ".join(f"{len(photos)} for {split}" for split, photos in self.splits.items() if split != "train")
        return [f"Photos to train on, by class: {by_class}", f"Held-out photos: {held_out}", *self.remarks]


def read_folder(folder: Path, seed: int = 0) -> Dataset:
    """Find classes and splits in a folder: `FOLDER/CLASS/photo` or `FOLDER/SPLIT/CLASS/photo`.

    Missing splits are taken from train, a tenth of each class, the same for the same seed. A folder that has a
    validation split needs no test split.

    Raises:
        DataError: No photos, fewer than two classes, an empty class, or a class that train does not have.
    """
    found = find_splits(folder)
    if found.folders and "train" not in found.folders:
        received = [str(path) for path in found.folders.values()]
        raise DataError(
            f"Expected a folder {found.root / 'train'}, with a folder for each class. Received only: {received}"
        )
    train_folder = found.folders.get("train", found.root)
    class_paths = class_folders(train_folder)
    classes = tuple(path.name for path in class_paths)
    _check_classes(classes, train_folder)
    splits = {"train": read_split(train_folder, classes, complete=True)}
    for split in ("validation", "test"):
        if split in found.folders:
            splits[split] = read_split(found.folders[split], classes, complete=False)
    remarks = [*found.remarks, *_suspicions(class_paths), *_left_out(class_paths)]
    if "validation" not in splits:
        missing = ["validation"] if "test" in splits else ["validation", "test"]
        splits |= _hold_out(splits, missing, seed)
    return Dataset(classes, splits, tuple(remarks))


def _check_classes(classes: Sequence[str], folder: Path) -> None:
    """Refuse what cannot be classes."""
    if len(classes) < 2:
        raise DataError(
            f"Expected a folder for each class in {folder}, two or more, each with photos"
            f" ({', '.join(SUFFIXES)}). Received: {', '.join(classes) or 'no folder'}"
        )
    if all(map(split_of, classes)):
        raise DataError(
            f"Expected a folder for each class in {folder}. Received folders that read like splits, without class"
            f" folders inside: {', '.join(classes)}"
        )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"Expected class folders with names in UTF-8. Received in {folder}: {os.fsencode(name)!r}. Rename it;"
                " ZIP files of Windows often have names in another encoding."
            ) from None


def _suspicions(class_paths: Sequence[Path]) -> list[str]:
    """Return a warning for each class folder that looks like a copy of the whole, and for variants of one set."""
    names = {path.name for path in class_paths}
    inside = {path: tuple(each.name for each in class_folders(path)) for path in class_paths}
    # Folders inside, and no file beside them.
    only_folders = [path for path in class_paths if inside[path] and not any(map(_is_visible_file, path.iterdir()))]
    warnings = [
        f"Warning: {path.name}/ contains folders with names of other classes. Is it a copy of all of them?"
        for path in only_folders
        if len(names & set(inside[path]) - {path.name}) > 1
    ]
    same = Counter(inside[path] for path in only_folders)
    for content, count in same.items():
        if count > 1 and len(content) > 1:
            variants = [path for path in only_folders if inside[path] == content]
            warnings.append(
                f"Warning: {', '.join(f'{path.name}/' for path in variants)} contain only folders, the same in each"
                f" ({', '.join(content[:3])} …). If those are the classes, train on one folder, such as {variants[0]}"
            )
    return warnings


def _left_out(class_paths: Sequence[Path]) -> list[str]:
    """Return a line with how many files in class folders are no photos, by suffix."""
    files = (path for folder in class_paths for path in folder.rglob("*") if _is_visible_file(path))
    suffixes = Counter(path.suffix.lower() or "without a suffix" for path in files)
    others = sorted((-count, suffix) for suffix, count in suffixes.items() if suffix not in SUFFIXES)
    if not others:
        return []
    listed = ", ".join(f"{-count} {suffix}" for count, suffix in others)
    images = [suffix for _, suffix in others if suffix in _CONVERTIBLE]
    advice = f". Convert {' and '.join(images)} to JPEG to train on them, too" if images else ""
    total = -sum(count for count, _ in others)
    return [
        f"Left out {total} file{'s' * (total != 1)} that cannot be read ({', '.join(SUFFIXES)} can): {listed}{advice}"
    ]


def _is_visible_file(path: Path) -> bool:
    return path.is_file() and not is_hidden(path)


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
