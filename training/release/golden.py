"""Golden examples: images that exercise the whole decode, and the probabilities that a model file gives for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from contract.document import MAX_SPEC_PX, NOVELTY, PROBABILITIES, GoldenExample, ImageSpec
from contract.image import MAX_PIXELS, MAX_SIDE_PX, ImageError, decode
from training.errors import ExportError

MAX_PHOTO_BYTES = 1024 * 1024  # of those that the contract contains as they are
PHOTOS = 3  # of a run
# Largest difference in a probability between an fp32 file and the Keras model. Seen: 4e-6.
KERAS_TOLERANCE = 1e-3
# Largest difference between a file as checked and the golden examples inside it: the same file, run twice.
REPLAY_TOLERANCE = 1e-5
# Largest difference that a replay of an int8 file may show; of the others, the default of `Contract.tolerance`. It is 0
# for any threads and batch on one processor. Other kernels can round a value the other way: XNNPACK and TFLite's own
# differed by up to 0.037 on 120 photos.
INT8_TOLERANCE = 0.05

_ORIENTATION_TAG, _ROTATED_RIGHT = 0x0112, 6


@dataclass(frozen=True)
class GoldenImage:
    """An encoded image, and the pixels uint8 (1, h, w, 3) that the contract's decode makes of it."""

    name: str
    image: bytes
    pixels: NDArray[np.uint8]


def telling_photos(paths: Sequence[Path], probabilities: NDArray[np.float32]) -> list[bytes]:
    """Return the held-out photos (n) that a model is least sure of, by its probabilities (n, k).

    They show a change of pixels first.
    """
    found: list[bytes] = []
    for position in np.argsort(probabilities.max(axis=1)):
        with suppress(OSError):  # it may have been moved while the network trained
            found.append(paths[position].read_bytes())
        if len(found) == PHOTOS:
            break
    return found


def golden_images(spec: ImageSpec, photos: Sequence[bytes] = ()) -> list[GoldenImage]:
    """Return images that reach each branch of the decode.

    A JPEG of four times the target's sides (scaled while decoding), a JPEG with an EXIF rotation, a PNG with alpha, and
    the photos themselves, if they are small. The aspects are not the target's, so that another crop shows. None is too
    large to decode.

    Args:
        spec: The target size.
        photos: Encoded held-out photos to make them of; without any, they are drawn.

    Raises:
        ExportError: One of the photos does not decode.
    """
    sources = [_source(position, photo, spec) for position, photo in enumerate(photos)]
    sources = sources or [_draw(seed) for seed in range(3)]
    large, rotated, layered = (sources[index % len(sources)] for index in range(3))
    width, height = spec.width, spec.height
    encoded = [
        ("large-jpeg", _encode(_fit(large, 5 * width, 4 * height), "JPEG", quality=90)),
        ("rotated-jpeg", _encode_rotated(_fit(rotated, 2 * width, round(1.5 * height)))),
        ("alpha-png", _encode(_with_alpha(_fit(layered, round(1.2 * width), round(1.5 * height))), "PNG")),
        *((f"photo-{index}", photo) for index, photo in enumerate(photos) if len(photo) <= MAX_PHOTO_BYTES),
    ]
    return [GoldenImage(name, image, decode(image, spec).pixels[np.newaxis]) for name, image in encoded]


def answer(
    images: Sequence[GoldenImage], run: Callable[[NDArray[np.uint8]], Mapping[str, Any]]
) -> tuple[GoldenExample, ...]:
    """Return examples with what `run` gives for each image's pixels: the probabilities, and perhaps the score."""
    examples = []
    for each in images:
        outputs = run(each.pixels)
        # By their shortest text that reads back the same, which is half as long as that of float64.
        probabilities, *score = (
            tuple(float(str(value)) for value in np.ravel(outputs[name]))
            for name in (PROBABILITIES, NOVELTY)
            if name in outputs
        )
        examples.append(GoldenExample(each.name, each.image, probabilities, *(values[0] for values in score)))
    return tuple(examples)


def largest_difference(received: Sequence[GoldenExample], expected: Sequence[GoldenExample]) -> float:
    """Return the largest absolute difference in a probability or a score; NaN if one is."""
    pairs = zip(received, expected, strict=True)
    return float(np.max([np.abs(np.subtract(a.values, b.values)).max() for a, b in pairs]))


def check_probabilities(examples: Sequence[GoldenExample]) -> None:
    """Refuse a model whose outputs are not probabilities.

    Raises:
        ExportError: Some are negative or NaN, or do not sum to 1.
    """
    for example in examples:
        probabilities = np.array(example.probabilities)
        if not (np.isfinite(probabilities).all() and abs(probabilities.sum() - 1) < 1e-3 and probabilities.min() >= 0):
            raise ExportError(
                f"Expected probabilities that sum to 1 for golden example {example.name!r}. Received a sum of"
                f" {probabilities.sum():g}, from {probabilities.min():g} to {probabilities.max():g}"
            )


def _source(position: int, photo: bytes, spec: ImageSpec) -> Image.Image:
    """Return a photo in the colours that the model sees, whatever it shows elsewhere: 16 bits, or behind its alpha."""
    width, height = (min(times * side, MAX_SPEC_PX) for times, side in ((5, spec.width), (4, spec.height)))
    try:
        decoded = decode(photo, replace(spec, width=width, height=height, aspect="crop", crop=1.0))
    except ImageError as exc:
        raise ExportError(f"Photo {position} for golden examples does not decode: {exc}") from exc
    return Image.fromarray(decoded.pixels)


def _fit(img: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image of a size, or of the largest one of that shape that decodes."""
    scale = min(1.0, sqrt(MAX_PIXELS / (width * height)), MAX_SIDE_PX / max(width, height))
    return ImageOps.fit(img, (int(scale * width), int(scale * height)))


def _encode(img: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    img.save(buffer, format, **options)
    return buffer.getvalue()


def _encode_rotated(img: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = _ROTATED_RIGHT
    return _encode(img.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def _with_alpha(img: Image.Image) -> Image.Image:
    ramp = np.linspace(0, 255, img.width, dtype=np.uint8)
    img.putalpha(Image.fromarray(np.tile(ramp, (img.height, 1))))
    return img


def _draw(seed: int) -> Image.Image:
    """Draw shapes over a gradient with fine texture, so that another filter or crop changes the pixels visibly."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:480, 0:640]
    waves = [
        127 + 60 * np.sin(columns * random.uniform(0.02, 0.9) + rows * random.uniform(0.02, 0.9)) for _ in range(3)
    ]
    img = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(img)
    for _ in range(12):
        x, y, size = (int(value) for value in random.integers((0, 0, 40), (560, 400, 240)))
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + size, y + size), fill=tuple(int(c) for c in random.integers(0, 256, 3)))
    return img
