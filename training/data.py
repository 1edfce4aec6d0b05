"""A folder of photos to labelled pixels: classes, splits, and a cache of decoded images on disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

import contract.image
from contract.document import ImageSpec
from contract.image import ImageError, decode
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


@dataclass(frozen=True)
class Pixels:
    """One split, decoded.

    Attributes:
        images: uint8 (n, h, w, 3), mapped from disk.
        labels: int64 (n).
        paths: The file of each image.
        digest: SHA-256 over labels and file contents.
        skipped: Files that do not decode, and why.
    """

    images: NDArray[np.uint8] | Rows
    labels: NDArray[np.int64]
    paths: list[Path]
    digest: str
    skipped: dict[str, str]

    def part(self, positions: NDArray[np.int64]) -> Pixels:
        """Return the photos at some positions; digest and skipped files stay those of the whole."""
        paths = [self.paths[position] for position in positions]
        return replace(self, images=Rows(self.images, positions), labels=self.labels[positions], paths=paths)


@dataclass(frozen=True)
class Rows:
    """Some rows of an array on disk, in memory only when they are asked for."""

    array: Any
    positions: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array, with fewer rows."""
        return (len(self.positions), *self.array.shape[1:])

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[Any]:
        return self.array[self.positions[chosen]]


def read_folder(folder: Path, seed: int = 0) -> Dataset:
    """Find classes and splits in a folder: `FOLDER/CLASS/photo` or `FOLDER/SPLIT/CLASS/photo`.

    Splits that are not there are taken from train, a tenth of each class, the same for the same seed. A folder with a
    validation split of its own needs no test split.

    Raises:
        DataError: No photos, fewer than two classes, an empty class, or a class that train does not have.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of photos. Received a path where there is none: {folder}")
    folders = {split: split_folder(folder, names) for split, names in SPLIT_FOLDERS.items()}
    others = [str(path) for split, path in folders.items() if path and split != "train"]
    if others and not folders["train"]:
        raise DataError(f"Expected a folder {folder / 'train'}, with a folder for each class. Received only: {others}")
    train_folder = folders["train"] or folder
    classes = tuple(path.name for path in class_folders(train_folder))
    if len(classes) < 2:
        raise DataError(
            f"Expected a folder for each class in {train_folder}, two or more, each with photos"
            f" ({', '.join(SUFFIXES)}). Received: {', '.join(classes) or 'no folder'}"
        )
    splits = {"train": read_split(train_folder, classes, complete=True)}
    for split in ("validation", "test"):
        if path := folders[split]:
            splits[split] = read_split(path, classes, complete=False)
    if "validation" not in splits:
        missing = ["validation"] if "test" in splits else ["validation", "test"]
        splits |= _hold_out(splits, missing, seed)
    return Dataset(classes, splits)


def load(
    photos: Sequence[Photo], spec: ImageSpec, cache: Path, progress: Callable[[int, int], None] | None = None
) -> Pixels:
    """Decode photos with the contract's decode, on all cores, or map what an earlier call left in the cache.

    Args:
        photos: One split.
        spec: How images become pixels.
        cache: A folder for decoded pixels, 3 bytes each; files whose size or time changed are decoded again, and all
            are by another decoder.
        progress: Called with how many are done, and of how many.

    Raises:
        DataError: None of the photos decodes.
    """
    stats = [(str(photo.path.resolve()), photo.label, photo.path.stat()) for photo in photos]
    files = [(path, label, stat.st_size, stat.st_mtime_ns) for path, label, stat in stats]
    key = hashlib.sha256(json.dumps([decoder(), asdict(spec), files]).encode()).hexdigest()[:32]
    index, array = cache / f"{key}.json", cache / f"{key}.pixels"
    if not (index.is_file() and array.is_file()):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _decode_all(photos, spec, index, array, progress)
        except OSError as exc:
            raise DataError(f"Expected to write decoded photos to {cache}. Received: {exc}") from exc
    found = json.loads(index.read_text())
    kept = [photos[i] for i in found["kept"]]
    return Pixels(
        images=np.memmap(array, np.uint8, "r", shape=(len(kept), spec.height, spec.width, 3)),
        labels=np.array([photo.label for photo in kept], np.int64),
        paths=[photo.path for photo in kept],
        digest=found["digest"],
        skipped=found["skipped"],
    )


def decoder() -> list[str]:
    """Return what else decides on pixels than the files and the contract: Pillow's version, and our own code."""
    return [PIL.__version__, hashlib.sha256(Path(contract.image.__file__).read_bytes()).hexdigest()]


def _decode_all(
    photos: Sequence[Photo],
    spec: ImageSpec,
    index: Path,
    array: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write decoded pixels, then the index that makes them count; each appears whole, by a rename."""

    def read(photo: Photo) -> tuple[bytes, NDArray[np.uint8]] | Exception:
        try:
            data = photo.path.read_bytes()
            return hashlib.sha256(photo.label.to_bytes(4, "big") + data).digest(), decode(data, spec).pixels
        except (OSError, ImageError) as exc:
            return exc

    kept: list[int] = []
    skipped: dict[str, str] = {}
    digest = hashlib.sha256()
    draft = array.with_suffix(f".draft-{os.getpid()}")
    try:
        # Threads suffice: Pillow lets go of the interpreter lock while it decodes and resizes.
        with ThreadPoolExecutor(os.cpu_count()) as pool, draft.open("wb") as file:
            for position, result in enumerate(pool.map(read, photos)):
                if isinstance(result, Exception):
                    skipped[str(photos[position].path)] = str(result)
                else:
                    part, pixels = result
                    file.write(pixels.tobytes())
                    digest.update(part)
                    kept.append(position)
                if progress:
                    progress(position + 1, len(photos))
        if not kept:
            raise DataError(f"Expected photos that decode. Received {len(photos)} that do not: {skipped}")
        draft.rename(array)
        draft.write_text(json.dumps({"kept": kept, "skipped": skipped, "digest": digest.hexdigest()}))
        draft.rename(index)
    finally:
        draft.unlink(missing_ok=True)


def split_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the folder of a split, by its name in any case; without folders inside it is a class of that name."""
    for path in class_folders(folder):
        if path.name.lower() in names and (inside := class_folders(path)):
            # Some archives hold seg_train/seg_train/CLASS.
            return inside[0] if [each.name for each in inside] == [path.name] else path
    return None


def class_folders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def read_split(folder: Path, classes: Sequence[str], complete: bool) -> list[Photo]:
    """Return the photos of a folder of class folders.

    Raises:
        DataError: No photos, a class that is not expected, or, if it is to be complete, an empty one.
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
