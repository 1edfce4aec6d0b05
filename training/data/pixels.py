"""Photos as pixels: decoded on all cores, and kept in a cache on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
from numpy.typing import NDArray

import contract.image
from contract.disk import written_whole
from contract.document import ImageSpec
from contract.image import ImageError, decode
from training.cores import CORES
from training.data.folder import Dataset, Photo, read_folder
from training.errors import DataError
from training.progress import estimated
from training.words import counted

_log = logging.getLogger(__name__)

AT_ONCE = 256  # photos that are decoded ahead of the disk: all of them would fill the memory where it is slow
ABANDONED_S = 3600  # that a killed process' draft has not grown; one that is still written grows many times a second


@dataclass(frozen=True)
class Pixels:
    """One split, decoded.

    Attributes:
        images: uint8 (n, h, w, 3), mapped from disk; `Rows` stand in for it in a part.
        labels: int64 (n).
        paths: The file of each image.
        digest: SHA-256 over labels and file contents.
        skipped: Files that do not decode, and why.
        file: Where the images of the whole split are, in the cache.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: list[Path]
    digest: str
    skipped: dict[str, str]
    file: Path

    def part(self, positions: NDArray[np.int64]) -> Pixels:
        """Return the photos at some positions; digest, skipped files and file stay as they are."""
        paths = [self.paths[position] for position in positions]
        rows = cast(NDArray[np.uint8], Rows(self.images, positions))
        return replace(self, images=rows, labels=self.labels[positions], paths=paths)


@dataclass(frozen=True)
class Rows:
    """Some rows of an array, perhaps on disk, read only when they are indexed."""

    array: Any
    positions: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape, with fewer rows."""
        return (len(self.positions), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[Any]:
        return self.array[self.positions[chosen]]


@dataclass(frozen=True)
class Photos:
    """A folder of photos, and the folder where their pixels are kept once they are decoded."""

    folder: Path
    cache: Path

    def splits(self) -> Dataset:
        """Return the classes and splits, see `read_folder`."""
        return read_folder(self.folder)

    def pixels(self, photos: Sequence[Photo], spec: ImageSpec) -> Pixels:
        """Return the pixels of some of the photos, see `load_pixels`."""
        return load_pixels(photos, spec, self.cache)

    def read(self, split: str, photos: Sequence[Photo], spec: ImageSpec) -> Pixels:
        """Return the pixels of a split, and log what was read and skipped.

        Raises:
            DataError: No photo of a class decodes, in a split to train on; in others that is a warning.
        """
        started = time.monotonic()
        pixels = self.pixels(photos, spec)
        for path, reason in pixels.skipped.items():
            _log.info(f"Skipped {path}: {reason}")
        given, kept = Counter(photo.label for photo in photos), Counter(pixels.labels.tolist())
        for label in (label for label in given if 2 * kept[label] < given[label]):
            folder = os.path.commonpath([photo.path.parent.absolute() for photo in photos if photo.label == label])
            lost = f"{given[label] - kept[label]} of {counted(given[label], 'photo')} for {split} in {folder}"
            lost += " cannot be decoded"
            if split == "train" and not kept[label]:
                raise DataError(f"Expected photos of each class. {lost}; the lines above say why")
            _log.info(f"Warning: {lost}")
        _log.info(f"Read {counted(len(pixels.labels), 'photo')} for {split} in {time.monotonic() - started:.1f} s")
        return pixels


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return the positions of at most so many of some things, evenly spread over all of them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def spread_by_class(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the positions of at most so many photos with labels (n): all of rare classes, equally many of the others.

    Of more classes than that, some have none.
    """
    counts = np.bincount(labels)
    each = max((n for n in range(1, most + 1) if np.minimum(counts, n).sum() <= most), default=1)
    of_classes = np.split(np.argsort(labels, kind="stable"), counts.cumsum()[:-1])
    chosen = np.concatenate([positions[spread(len(positions), each)] for positions in of_classes])
    return np.sort(chosen[spread(len(chosen), most)])


def load_pixels(photos: Sequence[Photo], spec: ImageSpec, cache: Path) -> Pixels:
    """Decode photos with the contract's decode, on all cores, or map what an earlier call left in the cache.

    Args:
        photos: One split.
        spec: How images become pixels.
        cache: A folder for decoded pixels, 3 bytes each. They are decoded again if a file or the decoder has changed.

    Raises:
        DataError: None of the photos decodes, or the disk has no room for their pixels.
    """
    files = [(os.path.realpath(photo.path), photo.label, *_state(photo.path)) for photo in photos]
    made_of = [decoder(), asdict(spec), files, "positions"]  # by which an index names photos; before, by paths
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    index, array = cache / f"{key}.json", cache / f"{key}.pixels"
    missing = {position for position, (_, _, *state) in enumerate(files) if not state}
    _remove_abandoned(cache)
    if not (found := _find_decoded(index, array, spec, missing)):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _check_room(len(photos) * spec.height * spec.width * 3, cache)
            _decode_all(photos, spec, index, array)
        except OSError as exc:
            raise DataError(f"Expected to write decoded photos to {cache}. Received: {exc}") from exc
        found = json.loads(index.read_text())
    kept = [photos[i] for i in found["kept"]]
    return Pixels(
        images=np.memmap(array, np.uint8, "r", shape=(len(kept), spec.height, spec.width, 3)),
        labels=np.array([photo.label for photo in kept], np.int64),
        paths=[photo.path for photo in kept],
        digest=found["digest"],
        skipped={str(photos[position].path): reason for position, reason in found["skipped"]},
        file=array,
    )


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with a file: its size in bytes and times in ns; nothing for a broken link."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, os.access(path, os.R_OK)


def decoder() -> list[str]:
    """Return what else pixels depend on: Pillow's version, and the code of the decode."""
    return [PIL.__version__, hashlib.sha256(Path(contract.image.__file__).read_bytes()).hexdigest()]


def _find_decoded(index: Path, array: Path, spec: ImageSpec, missing: Set[int]) -> dict[str, Any] | None:
    """Return an earlier call's index; None if the pixels are not whole, or if a file that is there could not be read.

    Permissions and files that were missing need no other try: with them, the name of the index changes.
    """
    try:
        found: dict[str, Any] = json.loads(index.read_text())
        is_whole = array.stat().st_size == len(found["kept"]) * spec.height * spec.width * 3
    except (OSError, ValueError):
        return None
    return found if is_whole and missing >= set(found["unread"]) else None


def has_rows(file: Path, count: int) -> bool:
    """Tell whether a file in the cache is an array of so many rows: one of a crash may be short, or empty."""
    try:
        return len(np.load(file, mmap_mode="r")) == count
    except (OSError, ValueError, EOFError):
        return False


def _check_room(needed: int, cache: Path) -> None:
    """Refuse what would fill the disk, before it is decoded."""
    if needed > (free := shutil.disk_usage(cache).free):
        raise DataError(
            f"Decoded, the photos need {needed / 1e9:.1f} GB in {cache.absolute()}, where {free / 1e9:.1f} GB are free."
            " All in that folder is safe to delete while no other command reads it. --cache takes another folder"
        )


def _remove_abandoned(cache: Path) -> None:
    """Remove what killed processes had written; one that runs, perhaps elsewhere, adds to its draft."""
    for draft in cache.glob(f"{'[0-9a-f]' * 32}.*.draft-{'[0-9a-f]' * 8}"):
        with suppress(OSError):  # of a cache that can only be read
            if time.time() - draft.stat().st_mtime > ABANDONED_S:
                draft.unlink()


def _decode_all(photos: Sequence[Photo], spec: ImageSpec, index: Path, array: Path) -> None:
    """Write decoded pixels, then the index that refers to them; each appears whole."""

    def read(photo: Photo) -> tuple[bytes, NDArray[np.uint8]] | Exception:
        try:
            data = photo.path.read_bytes()
            return hashlib.sha256(photo.label.to_bytes(4, "big") + data).digest(), decode(data, spec).pixels
        except (OSError, ImageError) as exc:
            return exc

    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    unread: list[int] = []
    digest = hashlib.sha256()
    for features in array.parent.glob(f"{array.stem}.*.npy"):  # of pixels that are made anew
        features.unlink(missing_ok=True)
    # Threads suffice: Pillow releases the interpreter lock while it decodes and resizes.
    with written_whole(array) as draft, ThreadPoolExecutor(CORES) as pool, draft.open("wb") as file:
        parts = (pool.map(read, photos[start : start + AT_ONCE]) for start in range(0, len(photos), AT_ONCE))
        results = chain.from_iterable(parts)
        for position, result in zip(estimated(range(len(photos)), "Reading photos"), results, strict=True):
            if isinstance(result, Exception):
                skipped.append((position, str(result)))
                if isinstance(result, OSError) and not isinstance(result, PermissionError):
                    unread.append(position)
            else:
                part, pixels = result
                file.write(pixels.tobytes())
                digest.update(part)
                kept.append(position)
        if not kept:
            some = "; ".join(f"{photos[position].path}: {reason}" for position, reason in skipped[:3])
            raise DataError(f"Expected photos that decode. Received {len(photos)} that cannot be decoded: {some}")
    with written_whole(index) as draft:
        draft.write_text(json.dumps({"kept": kept, "skipped": skipped, "unread": unread, "digest": digest.hexdigest()}))
