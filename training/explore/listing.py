"""Which photos there are, as the person arranged them: class folders, split folders, or a CSV of path and label.

Unlike `training.data.folder`, which refuses what it cannot train on, this lists everything: all faults at once.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from contract.photos import SUFFIXES, is_hidden, photos_in
from training.data.folder import SPLIT_FOLDERS, class_folders, split_folder
from training.errors import DataError

WHOLE = "all"  # the split of photos that are not split
COLUMNS = {
    "path": ("path", "image", "file", "filename"),
    "label": ("label", "class"),
    "split": ("split",),
}


@dataclass(frozen=True)
class Listed:
    """A photo where it lies."""

    path: Path
    split: str
    label: str


@dataclass
class Listing:
    """What was found.

    Attributes:
        root: What paths are told relative to.
        photos: By split, class and path.
        classes: The classes of each split, also those without photos.
        ignored: Files that are no photos by their suffix, or lie outside of the class folders.
        missing: Paths in a CSV where there is no file.
        unlabelled: Files in a CSV without a label.
    """

    root: Path
    photos: list[Listed] = field(default_factory=list)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: list[Path] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)

    @property
    def all_classes(self) -> tuple[str, ...]:
        """The classes of all splits, in the order of their names."""
        return tuple(sorted({name for names in self.classes.values() for name in names}))

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Photos by split and class."""
        return Counter((photo.split, photo.label) for photo in self.photos)

    def name(self, path: Path) -> str:
        """Return how a path is told: relative to the folder that was given."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def read(source: Path) -> Listing:
    """List a folder or a CSV.

    Raises:
        DataError: Neither of them, or one without any photo.
    """
    if source.is_dir():
        listing = _read_folder(source)
    elif source.is_file() and source.suffix.lower() == ".csv":
        listing = _read_csv(source)
    else:
        raise DataError(f"Expected a folder of photos, or a .csv of path and label. Received: {source}")
    if not listing.photos:
        raise DataError(f"Expected photos ({', '.join(SUFFIXES)}) in class folders of {source}. Received: none")
    return listing


def _read_folder(folder: Path) -> Listing:
    found = {split: split_folder(folder, names) for split, names in SPLIT_FOLDERS.items()}
    folders = {split: path for split, path in found.items() if path} or {WHOLE: folder}
    listing = Listing(folder)
    for split, path in folders.items():
        listing.classes[split] = tuple(each.name for each in class_folders(path))
        for each in class_folders(path):
            listing.photos += [Listed(photo, split, each.name) for photo in photos_in(each)]
    taken = {photo.path for photo in listing.photos}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in taken)
    listing.ignored = [path for path in files if not any(map(is_hidden, (path, *path.relative_to(folder).parents)))]
    return listing


def _read_csv(path: Path) -> Listing:
    listing = Listing(path.parent)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"Expected a CSV in UTF-8. Received {path}: {exc}") from exc
    names = {name.strip().lower(): name for name in rows[0] if name} if rows else {}
    columns = {
        column: next((names[each] for each in spellings if each in names), None)
        for column, spellings in COLUMNS.items()
    }
    if not (columns["path"] and columns["label"]):
        raise DataError(
            f"Expected columns path and label, and perhaps split, in {path}. Received: {', '.join(names) or 'no rows'}"
        )
    spelling = {each: split for split, spellings in SPLIT_FOLDERS.items() for each in spellings}
    for row in rows:
        photo = path.parent / (row[columns["path"]] or "").strip()  # an absolute path stays as it is
        split = ((columns["split"] and row[columns["split"]]) or WHOLE).strip().lower()
        label = row[columns["label"]] or ""
        if not photo.is_file():
            listing.missing.append(photo)
        elif not label.strip():
            listing.unlabelled.append(photo)
        else:
            listing.photos.append(Listed(photo, spelling.get(split, split), label))
    for split in dict.fromkeys(photo.split for photo in listing.photos):
        listing.classes[split] = tuple(sorted({each.label for each in listing.photos if each.split == split}))
    return listing
