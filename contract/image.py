"""Encoded bytes to pixels: the only decode and resize of the project, used by training and by the gateway."""

from __future__ import annotations

import re
import struct
from codecs import BOM_UTF8
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from zlib import crc32, decompressobj

import numpy as np
from keras_image_helper.base import BasePreprocessor
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.WebPImagePlugin import WebPImageFile

from contract.document import ImageSpec
from contract.photos import FORMATS

MAX_PIXELS = 50_000_000
MAX_SIDE_PX = 16_384
# Limits on what costs far more to decode than to write, above what real files have: Pillow's 1,060 test images have at
# most 12 scans and 117 reads. Without limits 300 kB of empty scans took 18 s, and 2 MB of EXIF in small parts 2 s;
# twice as much takes four times as long.
MAX_SCANS = 20  # of a JPEG with as many pixels as allowed; a smaller one may have more

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
# The passes of an interlaced PNG: the first column and row, and the steps. Source: PNG specification, 8.1.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG = b"\x89PNG\r\n\x1a\n"
# The texts of a PNG that may say how it is turned.
_TURNING_TEXT = re.compile(rb"(?:exif|Raw profile type exif)\0")
_SCAN = re.compile(rb"\xff\xda\0")  # how each scan of a JPEG begins; other parts contain this only by chance
# How accepted formats begin: with such bytes, content that cannot be opened is broken rather than something else.
_STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]", re.DOTALL)
# What people send by mistake, by how it begins, so that the error can name it.
_OTHER_KINDS = (
    (rb"<", "an HTML, SVG or XML document"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS", "a PostScript document"),
    (rb"\{", "a JSON document"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF image, or a camera's raw one. Convert it to JPEG or PNG"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"(?s)....ftyp(hei|hev|mif1|msf1)", "a HEIC image, as iPhones take them. Convert it to JPEG"),
    (rb"\xff\x0a|\0\0\0\x0c(JXL |jP  )", "a JPEG XL or JPEG 2000 image. Convert it to JPEG or PNG"),
    (rb"(?s)....ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "compressed data"),
    (rb"version https://git-lfs", "a pointer of Git LFS, in place of the image. Run git lfs pull"),
    (rb"data:image/|/9j/|iVBORw0KGgo", "an image in base64"),
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
    encoded = open_image(data)
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
        img = _whole_png(encoded, data) if kind == "PNG" else encoded
        del encoded  # of a PNG, it has the pixels once more
        if kind == "PNG" and (key := img.info.get("transparency")) is not None:  # Pillow scales samples, but no key
            bits = data[24]
            if img.mode == "L":
                img.info["transparency"] = (key & 2**bits - 1) * 255 // (2**bits - 1)
            elif img.mode == "RGB" and bits == 16:
                img.info["transparency"] = tuple(each >> 8 for each in key)
        pixels = _to_pixels(img, spec)
        if exif_orientation(img, spec) in _SIDEWAYS:
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
        self.reads = 5_000 + len(data) // 1_000

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.reads:
            raise ImageTooLargeError("Expected an image in fewer parts. Received: more than any photo has")
        self.reads -= 1
        return super().read(size)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image of an accepted format, as `decode` does.

    Raises:
        ImageError: It does not open.
    """
    if data.startswith(_PNG):
        data = _plain_png(data)
    try:
        img = Image.open(_File(data), formats=FORMATS)
        if isinstance(img, WebPImageFile) and img.rawmode == "RGBX" and data[12:16] == b"VP8X" and data[20] & 2:
            img.rawmode = img._mode = "RGBA"  # of an animation, the first picture may be smaller than the image
        return img
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError("Expected an image of fewer pixels. Received a decompression bomb") from exc
    except Exception as exc:
        if _STARTS.match(data):
            raise BrokenImageError(
                f"Expected a complete image. Received {len(data):,} bytes that begin as one and do not open"
            ) from exc
        if str(exc).startswith("Unsupported BMP"):  # by its header, its compression, or the bits of its colours
            raise UnsupportedImageError(f"Expected a BMP of a common kind. Received: {exc}") from exc
        start = data[:64].removeprefix(BOM_UTF8).lstrip()
        other = "another format" if data else "nothing"
        received = next((kind for begins, kind in _OTHER_KINDS if re.match(begins, start)), other)
        raise UnsupportedImageError(
            f"Expected a JPEG, PNG, WebP, GIF, BMP or AVIF image. Received: {received}"
        ) from exc


def _plain_png(data: bytes) -> bytes:
    """Return a PNG without the parts that its pixels do not depend on, and with its pixel data in one part.

    What is left out cannot make it fail: browsers show an image whatever its text or colour profile contain. Each part
    must match its checksum, which Pillow does not look at where the pixels are.
    """
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise BrokenImageError("Expected a complete PNG image. Received one that does not begin with its header")
    view, start, kept, pixels = memoryview(data), len(_PNG), dict[bytes, memoryview](), list[memoryview]()
    parts_left = 2_000 + len(data) // 3_000  # ffmpeg writes parts of 4 KB
    while len(kind := data[start + 4 : start + 8]) == 4 and kind != b"IEND":
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise BrokenImageError(f"Expected a complete PNG image. Received one whose part {kind!r} is damaged")
        if kind == b"IDAT":
            pixels.append(view[start + 8 : end])
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf"):
            kept[kind] = view[start : end + 4]
        elif kind[:1].isupper():  # what a reader must know
            raise BrokenImageError(f"Expected a complete PNG image. Received one with a part that is unknown: {kind!r}")
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and (text := _TURNING_TEXT.match(data, start + 8)):
            kept[text[0]] = view[start : end + 4]
        start = end + 4
        parts_left -= 1
        if not parts_left:
            raise ImageTooLargeError("Expected an image in fewer parts. Received: more than any photo has")
    if not pixels or (data[25] == 3 and b"PLTE" not in kept):
        raise BrokenImageError("Expected a complete PNG image. Received one without pixels, or without their palette")
    length = sum(map(len, pixels)).to_bytes(4)
    return b"".join([_PNG, *kept.values(), length, b"IDAT", *pixels, bytes(4), bytes(4), b"IEND", bytes(4)])


def _whole_png(img: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Return a PNG of which every row is there and matches the checksum behind them; Pillow alone sees to neither.

    Pillow gets one row more to fill. If it fills the last real row and not the other one, its data ended where it
    should, and the checksum was compared. In all other cases the data is inflated once more, to look at it.
    """
    width, height = img.size
    tall = (0, 0, width, height + 1)
    img.im = Image.new(img.mode, tall[2:], 1).im
    img._size, img.tile, img.decodermaxblock = tall[2:], [img.tile[0]._replace(extents=tall)], len(data)
    untouched = Image.new(img.mode, (width, 1), 1).tobytes()
    if not img.info.get("interlace"):
        with suppress(Exception):
            img.load()
            last, extra = (img.crop((0, y, width, y + 1)).tobytes() for y in (height - 1, height))
            if last != untouched == extra:
                return img.crop((0, 0, width, height))
    plain = _plain_png(data)
    _check_rows(plain)
    return Image.open(BytesIO(plain), formats=("PNG",))


def _check_rows(plain: bytes) -> None:
    """Refuse a PNG whose data ends before the last row, or does not match the checksum behind it."""
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBBxxB", plain, 16)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(ceil((width - x) / step_x), ceil((height - y) / step_y)) for x, y, step_x, step_y in passes]
    missing = size = sum(rows * (1 + ceil(columns * bits / 8)) for columns, rows in sizes if columns > 0)
    stream = decompressobj()
    for start in range(plain.index(b"IDAT") + 4, len(plain), 4096):  # 4 kB become 4 MB at most
        missing -= len(stream.decompress(plain[start : start + 4096]))
        if stream.eof or missing < -size:  # some encoders write more than the rows need
            break
    if missing > 0 or not stream.eof:
        raise BrokenImageError("Expected a complete PNG image. Received one whose pixels end before its last row")


def _to_pixels(img: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    if img.format in ("JPEG", "MPO"):
        _scale_while_decoding(img, spec, sideways=exif_orientation(img, spec) in _SIDEWAYS)
    # Before the orientation is asked for: for that, a PNG loads its pixels by itself, and what is wrong with them would
    # be taken for a fault of its EXIF.
    frame = img.tile[0].extents if isinstance(img, GifImageFile) and img.tile else None
    img.load()
    if img.format == "BMP" and img.mode == "RGBA" and not img.getchannel("A").getbbox():
        img.putalpha(255)  # Windows leaves the alpha at 0 in images without it, and viewers show them as opaque
    if frame and frame != (0, 0, *img.size):  # a GIF's first picture may be smaller than the image
        canvas = Image.new("RGB", img.size, spec.background)
        canvas.paste(_to_rgb(img.crop(frame), spec.background), frame)
        img = canvas
    orientation = exif_orientation(img, spec)
    upright = img.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else img
    return np.asarray(_resize(_to_rgb(upright, spec.background), spec), dtype=np.uint8)


def exif_orientation(img: Image.Image, spec: ImageSpec) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or the contract ignores it."""
    bare = Image.Image()  # Pillow would take the orientation of an XMP block where EXIF has none; browsers do not
    bare.info = {name: value for name, value in img.info.items() if name not in ("xmp", "XML:com.adobe.xmp")}
    try:
        return int(bare.getexif().get(_ORIENTATION_TAG, 1)) if spec.orientation == "exif" else 1
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
        samples = np.asarray(img)
        high_bytes = np.clip(samples, 0, 65535).astype(np.uint16) >> 8
        layer = Image.fromarray(high_bytes.astype(np.uint8))
        mask = Image.fromarray(samples != img.info.get("transparency"))
    elif img.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in img.info:
        layer = mask = img if img.mode == "RGBA" else img.convert("RGBA")
    else:
        return img.convert("RGB")
    canvas = Image.new("RGB", layer.size, background)
    canvas.paste(layer, mask=mask)  # 9 bytes a pixel; alpha_composite() and two conversions take 20
    return canvas
