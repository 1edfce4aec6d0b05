"""Photos as training will see them, with the facts of their files."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.document import ImageSpec
from contract.image import ImageError, ImageTooLargeError, decode, exif_orientation, open_image
from training.cores import CORES
from training.data.folder import Photo
from training.data.pixels import Pixels, load_pixels
from training.explore.listing import Listed, Listing
from training.words import counted

_log = logging.getLogger(__name__)

# What training's default architecture sees, so that findings are about those pixels.
SPEC = ImageSpec(224, 224, filter="bicubic", aspect="crop")


@dataclass(frozen=True)
class InspectedPhoto(Listed):
    """A photo that decodes, and the facts of its file.

    Attributes:
        turned: Whether its EXIF tag turns it.
        brightness: Mean of the pixels' luminance, 0-255.
        sharpness: Natural logarithm of the variance of the luminance's Laplacian.
    """

    format: str
    mode: str
    width: int
    height: int
    turned: bool
    size_bytes: int
    sha256: str
    brightness: float
    sharpness: float


@dataclass(frozen=True)
class Inspection:
    """All photos of a listing.

    Attributes:
        photos: Those that decode.
        pixels: Their pixels.
        broken: Why the others do not decode.
    """

    listing: Listing
    photos: list[InspectedPhoto]
    pixels: Pixels
    broken: dict[Path, str]


def inspect(listing: Listing, cache: Path) -> Inspection:
    """Decode every photo and read the facts of its file.

    Raises:
        DataError: None of them decodes.
    """
    _log.info(f"Reading {counted(len(listing.photos), 'photo')}")
    index = {name: position for position, name in enumerate(listing.all_classes)}
    labelled = [Photo(photo.path, index[photo.label]) for photo in listing.photos]
    decoded = load_pixels(labelled, SPEC, cache)
    broken = {Path(path): reason for path, reason in decoded.skipped.items()}
    kept = [photo for photo in listing.photos if photo.path not in broken]
    with ThreadPoolExecutor(CORES) as pool:
        photos = list(pool.map(_read, kept, decoded.images))
    return Inspection(listing, photos, decoded, broken)


def _read(listed: Listed, pixels: NDArray[np.uint8]) -> InspectedPhoto:
    content = listed.path.read_bytes()
    img = open_image(content)
    luminance = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    inner = luminance[1:-1, 1:-1]
    laplacian = luminance[:-2, 1:-1] + luminance[2:, 1:-1] + luminance[1:-1, :-2] + luminance[1:-1, 2:] - 4 * inner
    return InspectedPhoto(
        **vars(listed),
        format=img.format or "?",
        mode=img.mode,
        width=img.width,
        height=img.height,
        turned=exif_orientation(img, SPEC) in range(2, 9),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        brightness=float(luminance.mean()),
        sharpness=float(np.log(laplacian.var() + 1e-3)),
    )


def is_too_large(path: Path) -> bool:
    """Tell whether a photo does not decode because it is too large, rather than broken."""
    try:
        decode(path.read_bytes(), SPEC)
    except (OSError, ImageError) as exc:
        return isinstance(exc, ImageTooLargeError)
    return False
