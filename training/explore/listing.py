"""Which photos there are: in class folders, in split folders, or in a CSV of path and label.

`training.data.folder` refuses what it cannot train on; this lists everything, so that all faults are found at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from contract.photos import SUFFIXES, files_in, photos_in
from training.data.folder import left_out_files
from training.data.splits import class_folders, class_name, find_splits
from training.data.table import WHOLE, is_table, no_photos, read_table, real_path
from training.errors import DataError


@dataclass(frozen=True)
class Listed:
    """A photo: where it is, and its split and class."""

    path: Path
    split: str
    label: str


@dataclass
class Listing:
    """What was found.

    Attributes:
        root: Reports name paths relative to it.
        photos: By split, class and path.
        classes: The classes of each split, also those without photos.
        outside: Photos that are in no class folder, or in one of a folder that is left out.
        ignored: Files with a suffix that no photo has.
        missing: Paths in a CSV without a file.
        unlabelled: Files in a CSV without a label.
    """

    root: Path
    photos: list[Listed] = field(default_factory=list)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outside: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)

    @property
    def all_classes(self) -> tuple[str, ...]:
        """The classes of all splits, in the order of their names."""
        return tuple(sorted({name for names in self.classes.values() for name in names}))

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """Photos by split and class."""
        return Counter((photo.split, photo.label) for photo in self.photos)

    def name(self, path: Path) -> str:
        """Return a path relative to the root, if it is below it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def place(self, split: str, label: str) -> str:
        """Return the name of a split's class: `SPLIT/CLASS`, or the class alone where nothing is split."""
        return label if split == WHOLE else f"{split}/{label}"


def read(source: Path) -> Listing:
    """List a folder or a CSV.

    Raises:
        DataError: It is neither, or has no photo.
    """
    if source.is_dir():
        listing = _read_folder(source)
    elif is_table(source):
        listing = _read_csv(source)
    else:
        raise DataError(f"Expected a folder of photos, or a .csv of path and label. Received: {source}")
    if not listing.photos and is_table(source):
        raise no_photos(source, [*listing.missing, *listing.unlabelled])
    if not listing.photos:
        received = ". ".join(["none", *left_out_files([source])])
        raise DataError(f"Expected photos ({', '.join(SUFFIXES)}) in class folders of {source}. Received: {received}")
    return listing


def _read_folder(folder: Path) -> Listing:
    listing = Listing(folder)
    found = find_splits(folder)
    for split, path in (found.folders or {WHOLE: found.root}).items():
        folders = class_folders(path)
        listing.classes[split] = tuple(sorted({class_name(each.name) for each in folders}))
        listing.photos += [Listed(photo, split, class_name(each.name)) for each in folders for photo in photos_in(each)]
    read = {real_path(photo.path) for photo in listing.photos}  # also where a link leads to them
    for path in files_in(folder):
        if real_path(path) not in read:
            (listing.outside if path.suffix.lower() in SUFFIXES else listing.ignored).append(path)
    return listing


def _read_csv(path: Path) -> Listing:
    listing, rows = Listing(path.parent), read_table(path)
    unsplit = "train" if any(row.split for row in rows) else WHOLE  # as training takes them
    photos: dict[tuple[str, str, str], Listed] = {}  # each once, by whichever of its paths
    for row in rows:
        if not row.has_file():
            listing.missing.append(row.path)
        elif not row.label.strip():
            listing.unlabelled.append(row.path)
        else:
            photo = Listed(row.path, row.split or unsplit, class_name(row.label))
            photos[real_path(photo.path), photo.split, photo.label] = photo
    listing.photos = list(photos.values())
    for split in dict.fromkeys(photo.split for photo in listing.photos):
        listing.classes[split] = tuple(sorted({each.label for each in listing.photos if each.split == split}))
    return listing
