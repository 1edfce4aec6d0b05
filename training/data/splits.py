"""Which folders of a folder of photos are its splits, by the names that archives give them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from contract.photos import SUFFIXES, is_hidden
from training.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "validate", "valid", "val", "development", "dev", "evaluation", "eval"),
    "test": ("test", "testing", "holdout"),
}
# What stands around them in training_set, seg_train, test-images, val2017 and trainset.
_AROUND = "(?:dataset|data|set|images?|imgs?|photos?|pictures|pics|samples|split|folder|dir|seg)*"
_PATTERNS = {split: re.compile(f"{_AROUND}(?:{'|'.join(names)}){_AROUND}") for split, names in SPLIT_NAMES.items()}


@dataclass(frozen=True)
class Splits:
    """Where the class folders are.

    Attributes:
        root: The folder, or the one inside that an archive wrapped in it.
        folders: The folder of each split that there is, in the order of `SPLIT_NAMES`; none if the classes are in root.
        remarks: What was left out, or taken for a class although it reads like a split, and why.
    """

    root: Path
    folders: dict[str, Path]
    remarks: tuple[str, ...]


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for, or None."""
    letters = re.sub(r"[\W\d_]", "", name.lower())
    return next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(letters)), None)


def find_splits(folder: Path) -> Splits:
    """Find the split folders, which have class folders inside.

    A folder that only reads like a split is a class: `train` beside `bus` and `car`, if these have photos.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of photos. Received a path where there is none: {folder}")
    while len(only := class_folders(folder)) == 1 and not _has_photos(folder):
        if split_of(only[0].name) or not class_folders(only[0]):
            break
        folder = only[0]
    inside = class_folders(folder)
    others = [path for path in inside if not split_of(path.name)]
    named = {path: {each.name for each in class_folders(path)} for path in inside if split_of(path.name)}
    named_with_classes = {path: names for path, names in named.items() if names}
    seen = Counter(name for names in named_with_classes.values() for name in names)
    # A class stands in several splits, or beside the split; what is inside a class called train does not.
    shared = {name for name, count in seen.items() if count > 1} | {path.name for path in others}
    if any(map(_has_photos, others)) and not shared & set(seen):
        classes = [f"{path.name}/ is taken for a class: folders beside it have photos" for path in named_with_classes]
        return Splits(folder, {}, tuple(classes))
    if not named_with_classes:
        return Splits(folder, {}, ())
    folders: dict[str, Path] = {}
    remarks = [f"Left out {path.name}/: it does not read like a split" for path in others]
    for path in sorted(named, key=lambda path: (len(path.name), path.name)):
        split = split_of(path.name) or ""
        if path not in named_with_classes:
            remarks.append(f"Left out {path.name}/: it has no class folders")
        elif split in folders:
            remarks.append(f"Left out {path.name}/: {folders[split].name}/ is taken for {split}")
        else:
            folders[split] = path
    return Splits(folder, {split: _unwrap(folders[split]) for split in SPLIT_NAMES if split in folders}, tuple(remarks))


def class_folders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def _unwrap(split: Path) -> Path:
    """Return the folder with the classes: some archives contain seg_train/seg_train/CLASS."""
    inside = class_folders(split)
    is_wrapped = len(inside) == 1 and split_of(inside[0].name) == split_of(split.name) and class_folders(inside[0])
    return inside[0] if is_wrapped else split


def _has_photos(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and not is_hidden(path) for path in folder.iterdir())
