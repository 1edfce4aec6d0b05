"""Which photos of many tell most about a model: its mistakes, what it is unsure of, and a few at random."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.document import ImageSpec
from contract.image import ImageError, decode
from training.cores import CORES
from training.data.splits import class_name, split_of
from training.errors import DataError
from training.judge.predict import expand
from training.judge.predictors import Predict
from training.progress import estimated
from training.words import counted

_log = logging.getLogger(__name__)

MOST_SCORED = 500  # in half a minute on 2 cores, most of it for the network
SECTION_PHOTOS = 10
_BATCH = 32


@dataclass(frozen=True)
class Scored:
    """A photo, the index of its class if that is known, and the probabilities (k) that a model gives it."""

    path: str
    label: int | None
    probabilities: NDArray[np.float32]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    @property
    def predicted(self) -> int:
        """The index of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())


def find_photos(sources: Sequence[str], classes: Sequence[str]) -> dict[str, int | None]:
    """Return the photos of some files and folders, each with the index of the class in whose folder it lies, or None.

    Raises:
        DataError: A path does not exist, or a folder has no photos.
    """
    found: dict[str, int | None] = {}
    for source in sources:
        for image in expand([source], urls=False):
            found.setdefault(image, _label(Path(image), Path(source), classes))
    return found


def _label(image: Path, source: Path, classes: Sequence[str]) -> int | None:
    """Return the class of the outermost class folder below a source, or of the source itself."""
    root = source if source.is_dir() else source.parent
    labels = {class_name(name): label for label, name in enumerate(classes)}
    names = [name for part in image.relative_to(root).parts[:-1] if (name := class_name(part)) in labels]
    names = [name for name in names if not split_of(name)] or names  # a class may be called train, as a split above it
    names += [name for part in (root.name, root.resolve().name) if (name := class_name(part)) in labels]
    return labels[names[0]] if names else None


def score(photos: Mapping[str, int | None], spec: ImageSpec, predict: Predict) -> list[Scored]:
    """Ask a model for the probabilities of photos, of many only for those of a sample; skip what does not decode.

    Raises:
        DataError: None of the photos decodes.
    """
    chosen = list(photos)
    if len(chosen) > MOST_SCORED:
        chosen = sorted(random.Random(0).sample(chosen, MOST_SCORED))
    found: list[Scored] = []
    with ThreadPoolExecutor(CORES) as pool:
        for start in estimated(range(0, len(chosen), _BATCH), f"Scoring {counted(len(chosen), 'photo')}"):
            batch = chosen[start : start + _BATCH]
            pixels = dict(zip(batch, pool.map(lambda path: _read(path, spec), batch), strict=True))
            decoded = {path: each for path, each in pixels.items() if each is not None}
            if decoded:
                probabilities = predict(np.stack(list(decoded.values())))
                found += [Scored(path, photos[path], row) for path, row in zip(decoded, probabilities, strict=True)]
    if not found:
        raise DataError(f"Expected photos that decode. Received {len(chosen)} that cannot be decoded")
    return found


def _read(path: str, spec: ImageSpec) -> NDArray[np.uint8] | None:
    try:
        return decode(Path(path).read_bytes(), spec).pixels
    except (ImageError, OSError) as exc:
        _log.info(f"Skipped {path}: {exc}")
        return None


def choose_sections(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Return photos by what is remarkable about them, each once; all of them if they are few."""
    if len(scored) <= SECTION_PHOTOS:
        return {counted(len(scored), "photo"): list(scored)}
    labelled = [photo for photo in scored if photo.label is not None]
    mistakes = [photo for photo in labelled if photo.predicted != photo.label]
    unknown = [photo for photo in scored if photo.label is None]
    sections: dict[str, list[Scored]] = {
        "Most confident mistakes": sorted(mistakes, key=lambda photo: -photo.confidence)[:SECTION_PHOTOS],
        "Least certain": sorted(unknown, key=lambda photo: photo.confidence)[:SECTION_PHOTOS],
    }
    shown = {photo.path for section in sections.values() for photo in section}
    rest = [photo for photo in labelled if photo.path not in shown]
    worst = sorted(rest, key=lambda photo: float(photo.probabilities[photo.label]))[:SECTION_PHOTOS]
    shown |= {photo.path for photo in worst}
    rest = [photo for photo in scored if photo.path not in shown]
    sections["Lowest probability of the true class" + " among the others" * bool(mistakes)] = worst
    sections["At random"] = random.Random(0).sample(rest, min(len(rest), SECTION_PHOTOS))
    return {name: section for name, section in sections.items() if section}
