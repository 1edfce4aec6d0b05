"""Encoded bytes to pixels: the only decode and resize of the project, used by training and by the gateway."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
from keras_image_helper.base import BasePreprocessor
from numpy.typing import NDArray
from PIL import Image, ImageFile

from contract.document import ImageSpec
from contract.photos import FORMATS

MAX_PIXELS = 50_000_000
MAX_SIDE_PX = 16_384
# Limits on what costs far more to decode than to write, above what real files have: Pillow's 1,060 test images have at
# most 12 scans, 8 packed parts and 117 reads. Without limits 300 kB of empty scans took 18 s, and 2 MB of EXIF in
# small parts 2 s; twice as much takes four times as long.
MAX_SCANS = 20  # of a JPEG with as many pixels as allowed; a smaller one may have more
MAX_PACKED = 64  # text and colour profiles of a PNG, each of which may unpack to a megabyte

_ORIENTATION_TAG = 0x0112
# EXIF orientation to the transposition that undoes it. Source: Exif 2.32, tag 0x0112.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_SCAN = re.compile(rb"\xff\xda\0")  # how each scan of a JPEG begins; other parts contain this only by chance
# How accepted formats begin: with such bytes, content that cannot be opened is broken rather than something else.
_STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]", re.DOTALL)
# What people send by mistake, by how it begins, so that the error can name it.
_OTHER_KINDS = (
    (rb"<", "an HTML, SVG or XML document"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS", "a PostScript document"),
    (rb"\{", "a JSON document"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"(?s)....ftyp(hei|mif1)", "a HEIC image"),
)


class ImageError(ValueError):
    """Bytes that do not become pixels.

    ImageError
    ├── UnsupportedImageError   not one of the accepted formats
    ├── ImageTooLargeError      more pixels, or work, than allowed
    └── BrokenImageError        an accepted format whose content does not decode
    """


class UnsupportedImageError(ImageError):
    """The bytes are not an image of an accepted format."""


class ImageTooLargeError(ImageError):
    """The image has more pixels, a longer side, or more parts than allowed; it was not decoded."""


class BrokenImageError(ImageError):
    """The image is truncated or corrupt."""


@dataclass(frozen=True)
class DecodedImage:
    """Pixels uint8 (h, w, 3), RGB, and what they were made of; `width` and `height` as a viewer shows the image."""

    pixels: NDArray[np.uint8]
    format: str
    width: int
    height: int
    size_bytes: int


def decode(data: bytes, spec: ImageSpec, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Turn an encoded image into the pixels that the contract asks for.

    The first frame counts. Transparent pixels show the contract's background, and 16-bit images are scaled to 8 bit. A
    JPEG much larger than needed is scaled down while it is decoded: a 4000 by 3000 photo takes 34 ms instead of 196 ms.
    That changes pixels slightly, which is harmless because training decodes here too.

    Raises:
        ImageError: One of its three kinds; never another exception for bad bytes.
    """
    encoded = _open(data)
    width, height = encoded.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
        raise ImageTooLargeError(
            f"Expected an image of at most {max_pixels:,} pixels and {MAX_SIDE_PX:,} pixels a side. "
            f"Received: {width} by {height}"
        )
    kind = "JPEG" if encoded.format == "MPO" else encoded.format or "?"
    if kind == "JPEG" and (scans := sum(1 for _ in _SCAN.finditer(data))) * width * height > MAX_SCANS * max_pixels:
        raise ImageTooLargeError(f"Expected a JPEG in fewer scans. Received: {scans:,} of {width} by {height}")
    if kind == "BMP" and encoded.tile[0][0] == "bmp_rle":  # 13 kB may take 12 s, and hardly anybody writes it
        raise UnsupportedImageError("Expected a BMP without run-length encoding. Received: one with it")
    try:
        pixels = _to_pixels(encoded, spec)
        if _orientation(encoded, spec) in _SIDEWAYS:
            width, height = height, width
    except ImageError:
        raise
    except Exception as exc:  # Pillow's plugins raise nearly anything on bad content (Pillow #9814)
        raise BrokenImageError(
            f"Expected a complete {kind} image. Received {len(data):,} bytes that do not decode: {exc}"
        ) from exc
    return DecodedImage(pixels, kind, width, height, len(data))


class ContractPreprocessor(BasePreprocessor):  # type: ignore[misc]  # keras-image-helper has no types
    """keras-image-helper's interface to `decode`: a tensor is uint8 (1, h, w, 3), since the graph normalises."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(target_size=(spec.width, spec.height))
        self.spec = spec

    def from_path(self, path: str | Path) -> NDArray[np.uint8]:
        return decode(Path(path).read_bytes(), self.spec).pixels[np.newaxis]

    def from_url(self, url: str) -> NDArray[np.uint8]:
        raise NotImplementedError("The contract has no network: fetch the bytes (gateway/fetch/), then decode them.")

    def convert_to_tensor(self, img: Image.Image) -> NDArray[np.uint8]:
        return _to_pixels(img, self.spec)[np.newaxis]


class _File(BytesIO):
    """An encoded image with a limit on reads: Pillow reads each part by itself, and joins some by copying all."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 5_000 + len(data) // 1_000  # a PNG takes three for each part, of 4 KB where ffmpeg wrote it

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.reads:
            raise ImageTooLargeError("Expected an image in fewer parts. Received: more than any photo has")
        self.reads -= 1
        return super().read(size)


def _open(data: bytes) -> ImageFile.ImageFile:
    if data.startswith(b"\x89PNG") and (packed := sum(map(data.count, (b"iCCP", b"zTXt", b"iTXt")))) > MAX_PACKED:
        raise ImageTooLargeError(f"Expected a PNG with at most {MAX_PACKED} parts of packed text. Received: {packed:,}")
    try:
        return Image.open(_File(data), formats=FORMATS)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError("Expected an image of fewer pixels. Received a decompression bomb") from exc
    except Exception as exc:
        if _STARTS.match(data):
            raise BrokenImageError(
                f"Expected a complete image. Received {len(data):,} bytes that begin as one and do not open"
            ) from exc
        start = data[:64].lstrip()
        other = "another format" if data else "nothing"
        received = next((kind for begins, kind in _OTHER_KINDS if re.match(begins, start)), other)
        raise UnsupportedImageError(
            f"Expected a JPEG, PNG, WebP, GIF, BMP or AVIF image. Received: {received}"
        ) from exc


def _to_pixels(img: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    orientation = _orientation(img, spec)
    _scale_while_decoding(img, spec, sideways=orientation in _SIDEWAYS)
    img.load()
    upright = img.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else img
    return np.asarray(_resize(_to_rgb(upright, spec.background), spec), dtype=np.uint8)


def _orientation(img: Image.Image, spec: ImageSpec) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or the contract ignores it."""
    try:
        return int(img.getexif().get(_ORIENTATION_TAG, 1)) if spec.orientation == "exif" else 1
    except Exception:  # a malformed EXIF block says nothing about the pixels
        return 1


def _scale_while_decoding(img: Image.Image, spec: ImageSpec, sideways: bool) -> None:
    """Ask a JPEG for the smallest of its 1/1, 1/2, 1/4 and 1/8 sizes that still has every target pixel."""
    width, height = (img.height, img.width) if sideways else img.size
    if spec.aspect == "stretch":
        needed = spec.width, spec.height
    else:
        box_width = _source_box(width, height, spec)[2]
        factor = spec.width / box_width if spec.aspect == "crop" else min(spec.width / width, spec.height / height)
        needed = max(1, ceil(width * factor)), max(1, ceil(height * factor))
    img.draft(None, needed[::-1] if sideways else needed)  # None leaves the mode alone


def _source_box(width: int, height: int, spec: ImageSpec) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the part of the image that becomes pixels."""
    if spec.aspect != "crop":
        return 0.0, 0.0, float(width), float(height)
    aspect = spec.width / spec.height
    box_width = min(float(width), height * aspect) * spec.crop
    box_height = min(height * spec.crop, box_width / aspect)  # a rounding error above it would be out of the image
    return (width - box_width) / 2, (height - box_height) / 2, box_width, box_height


def _resize(img: Image.Image, spec: ImageSpec) -> Image.Image:
    resample = Image.Resampling[spec.filter.upper()]
    if spec.aspect == "pad":
        fit = min(spec.width / img.width, spec.height / img.height)
        inner = img.resize((max(1, round(img.width * fit)), max(1, round(img.height * fit))), resample)
        canvas = Image.new("RGB", (spec.width, spec.height), spec.background)
        canvas.paste(inner, ((spec.width - inner.width) // 2, (spec.height - inner.height) // 2))
        return canvas
    left, top, width, height = _source_box(img.width, img.height, spec)
    return img.resize((spec.width, spec.height), resample, box=(left, top, left + width, top + height))


def _to_rgb(img: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if img.mode == "RGB" and "transparency" not in img.info:
        return img
    if img.mode.startswith("I") or img.mode == "F":  # a plain convert() clips 16-bit images to white
        high_bytes = np.clip(np.asarray(img), 0, 65535).astype(np.uint16) >> 8
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if img.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in img.info:
        layer = img if img.mode == "RGBA" else img.convert("RGBA")
        canvas = Image.new("RGB", layer.size, background)
        canvas.paste(layer, mask=layer)  # 9 bytes a pixel; alpha_composite() and two conversions take 20
        return canvas
    return img.convert("RGB")
