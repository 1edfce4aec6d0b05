"""contract/image.py: encoded bytes to pixels."""

from __future__ import annotations

import struct
import time
from io import BytesIO
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image, ImageOps

from contract.document import ImageSpec
from contract.image import (
    BrokenImageError,
    ContractPreprocessor,
    ImageTooLargeError,
    UnsupportedImageError,
    decode,
)
from contract.photos import FORMATS
from tests.programs.photos import encode, photo

SPEC = ImageSpec(32, 32)
ORIENTATION = 0x0112


def test_pixels_are_rgb_bytes_of_the_asked_size() -> None:
    """Any image becomes uint8 (h, w, 3) of the contract's height and width."""
    decoded = decode(encode(photo(100, 60)), ImageSpec(20, 30))
    assert (decoded.pixels.shape, decoded.pixels.dtype) == ((20, 30, 3), np.uint8)
    assert (decoded.format, decoded.width, decoded.height) == ("JPEG", 100, 60)


@pytest.mark.parametrize("format", FORMATS)
def test_every_accepted_format_decodes_to_nearly_the_same_pixels(format: str) -> None:
    """The format changes pixels by its losses only."""
    img = photo(240, 180)
    expected = decode(encode(img, "PNG"), SPEC).pixels.astype(int)
    decoded = decode(encode(img, format), SPEC)
    assert decoded.format == format
    assert np.abs(decoded.pixels - expected).mean() < (12 if format == "GIF" else 4)


@pytest.mark.parametrize(
    ("spec", "filter", "box"),
    [
        (ImageSpec(16, 16, filter="lanczos", crop=0.5), Image.Resampling.LANCZOS, (30.0, 10.0, 50.0, 30.0)),
        (ImageSpec(16, 16, aspect="stretch"), Image.Resampling.BICUBIC, (0.0, 0.0, 80.0, 40.0)),
    ],
)
def test_resize_is_pillows_with_the_contracts_filter_and_box(
    spec: ImageSpec, filter: Image.Resampling, box: tuple[float, float, float, float]
) -> None:
    """`crop` takes the centre box, and `stretch` all of the image."""
    img = photo(80, 40)
    expected = np.asarray(img.resize((16, 16), filter, box=box))
    np.testing.assert_array_equal(decode(encode(img, "PNG"), spec).pixels, expected)


def test_any_size_fits_any_target() -> None:
    """No pair of sizes, odd or tiny, trips the crop's arithmetic."""
    random = np.random.default_rng(0)
    for _ in range(300):
        width, height, target_width, target_height = (int(n) for n in random.integers(1, 70, 4))
        data = encode(Image.new("L", (width, height), 7), "BMP")
        for aspect in ("crop", "pad", "stretch"):
            spec = ImageSpec(target_height, target_width, aspect=aspect, crop=float(random.uniform(0.1, 1)))  # type: ignore[arg-type]
            pixels = decode(data, spec).pixels
            assert pixels.shape == (target_height, target_width, 3)


def test_pad_fits_the_image_on_the_background() -> None:
    """`pad` keeps the aspect and fills the rest with the background colour."""
    pixels = decode(encode(photo(80, 40), "PNG"), ImageSpec(16, 16, aspect="pad", background=(1, 2, 3))).pixels
    assert (pixels[:4] == (1, 2, 3)).all()
    assert (pixels[12:] == (1, 2, 3)).all()
    assert not (pixels[4:12] == (1, 2, 3)).all(axis=-1).any()


def turned(orientation: int) -> bytes:
    """Return an image with this EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(photo(90, 50), "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_tag_says(orientation: int) -> None:
    """Each of the eight orientations gives the pixels and the size of the upright image (S14)."""
    data = turned(orientation)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    decoded = decode(data, ImageSpec(20, 30))
    np.testing.assert_array_equal(decoded.pixels, decode(encode(upright, "PNG"), ImageSpec(20, 30)).pixels)
    assert (decoded.width, decoded.height) == upright.size == ((90, 50) if orientation < 5 else (50, 90))


def test_orientation_can_be_ignored() -> None:
    """A contract that says so takes the pixels as they are stored."""
    spec = ImageSpec(20, 30, orientation="ignore")
    np.testing.assert_array_equal(decode(turned(6), spec).pixels, decode(turned(1), spec).pixels)


def test_a_large_jpeg_is_scaled_while_decoding_and_stays_nearly_the_same() -> None:
    """Decoding at a fraction of the size changes pixels by a few steps at most."""
    img = photo(1600, 1200)
    whole = np.asarray(img.resize((64, 64), Image.Resampling.BICUBIC, box=(200, 0, 1400, 1200)), dtype=int)
    decoded = decode(encode(img, quality=95), ImageSpec(64, 64)).pixels
    assert np.abs(decoded - whole).mean() < 2


BACKGROUND = (10, 20, 30)
PALETTE = Image.new("P", (40, 40), 0)
PALETTE.putpalette([0, 0, 255])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("L", (40, 40), 100), "PNG"), (100, 100, 100)),
        (encode(Image.new("1", (40, 40), 1), "PNG"), (255, 255, 255)),
        (encode(Image.new("RGBA", (40, 40), (200, 0, 0, 0)), "PNG"), BACKGROUND),
        (encode(Image.new("LA", (40, 40), (200, 255)), "PNG"), (200, 200, 200)),
        (encode(Image.new("I;16", (40, 40), 0x8080), "PNG"), (128, 128, 128)),
        (encode(PALETTE, "PNG", transparency=0), BACKGROUND),
        (encode(Image.new("CMYK", (40, 40), (255, 0, 0, 0))), (0, 255, 255)),
    ],
    ids=["L", "1", "RGBA", "LA", "I;16", "P", "CMYK"],
)
def test_every_mode_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    """Grey, one bit, transparent, 16-bit and CMYK images become the colours that a viewer shows (S15)."""
    pixels = decode(data, ImageSpec(8, 8, background=BACKGROUND)).pixels
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_the_first_frame_counts() -> None:
    """Of an animation, the first picture is the image."""
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    pixels = decode(encode(first, "GIF", save_all=True, append_images=[second]), ImageSpec(8, 8)).pixels
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("data", [b"", b"<html>", b"%PDF-1.7", b"II*\0aaaa", b"hello", b"\x89PNG"])
def test_other_content_is_unsupported(data: bytes) -> None:
    """What is no image of an accepted format is refused as such."""
    with pytest.raises(UnsupportedImageError, match="Expected a JPEG, PNG, WebP, GIF, BMP or AVIF image"):
        decode(data, SPEC)


@pytest.mark.parametrize("format", ["TIFF", "PDF", "EPS", "ICNS", "ICO", "PPM", "TGA", "SGI", "PCX", "JPEG2000"])
def test_real_files_of_other_formats_are_unsupported(format: str) -> None:
    """What Pillow could open, some of it by other programs, is closed, whatever it calls itself (S16)."""
    with pytest.raises(UnsupportedImageError):
        decode(encode(photo(64, 64), format), SPEC)


def test_what_follows_an_image_does_not_matter() -> None:
    """A GIF with an archive behind it is the GIF (S16)."""
    data = encode(photo(), "GIF")
    np.testing.assert_array_equal(decode(data + b"PK\x03\x04" * 50, SPEC).pixels, decode(data, SPEC).pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_broken(format: str) -> None:
    """Half an image is refused, not guessed."""
    data = encode(photo(400, 300), format)
    with pytest.raises((BrokenImageError, UnsupportedImageError)):
        decode(data[: len(data) // 2], SPEC)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    """The limit is checked on the header."""
    with pytest.raises(ImageTooLargeError, match=r"at most 1,000 pixels.*Received: 64 by 48"):
        decode(encode(photo(64, 48)), SPEC, max_pixels=1000)


def test_a_bomb_is_too_large() -> None:
    """A file whose header promises a billion pixels is refused by its header alone."""
    data = encode(Image.new("1", (40, 30)), "PNG")
    header = b"IHDR" + (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big") + data[24:29]
    with pytest.raises(ImageTooLargeError):
        decode(data[:12] + header + crc32(header).to_bytes(4, "big") + data[33:], SPEC)


JPEG = encode(photo(640, 480), progressive=True)
PNG, GIF = encode(photo(), "PNG"), encode(photo(), "GIF")
SCAN = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"  # of one component's AC coefficients, with nothing in it
PACKED = b"k\0\0" + compress(b"a" * 1_000_000)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Return a part of a PNG."""
    return len(content).to_bytes(4, "big") + kind + content + crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (JPEG[:-2] + SCAN * 4000 + JPEG[-2:], r"in fewer scans\. Received: 4,010 of 640 by 480"),
        (JPEG[:2] + b"\xff\xe1\0\x09Exif\0\0M" * 5000 + JPEG[2:], "in fewer parts"),
        (JPEG[:2] + b"\xff" * 10_000 + JPEG[2:], "in fewer parts"),
        (PNG[:33] + chunk(b"prVt") * 5000 + PNG[33:], "in fewer parts"),
        (PNG[:33] + chunk(b"iCCP", PACKED) * 65 + PNG[33:], r"64 parts of packed text\. Received: 65"),
        (PNG[:33] + (chunk(b"zTXt", PACKED) + chunk(b"iTXt", PACKED)) * 40 + PNG[33:], r"packed text\. Received: 80"),
        (GIF[:13] + b"\0" * 10_000 + GIF[13:], "in fewer parts"),
    ],
)
def test_what_takes_far_longer_to_decode_than_to_write_is_too_large(data: bytes, message: str) -> None:
    """Each costs seconds or minutes at ten megabytes, and is refused by what it is made of."""
    started = time.process_time()
    with pytest.raises(ImageTooLargeError, match=f"Expected .*{message}"):
        decode(data, SPEC)
    assert time.process_time() - started < 0.5


def test_parts_that_real_files_have_are_taken() -> None:
    """A JPEG with a hundred scans, and a PNG in parts of 4 kB."""
    assert decode(JPEG[:-2] + SCAN * 90 + JPEG[-2:], SPEC).format == "JPEG"
    rows = b"".join(b"\0" + row.tobytes() for row in np.random.default_rng(0).integers(0, 256, (1500, 3000), np.uint8))
    packed = compress(rows, 0)
    header = chunk(b"IHDR", (1000).to_bytes(4, "big") + (1500).to_bytes(4, "big") + b"\x08\x02\0\0\0")
    parts = b"".join(chunk(b"IDAT", packed[start : start + 4096]) for start in range(0, len(packed), 4096))
    assert decode(PNG[:8] + header + parts + chunk(b"IEND"), SPEC).format == "PNG"


def test_a_bmp_of_runs_is_unsupported() -> None:
    """Its few bytes may stand for all pixels, which Pillow fills in one by one, in Python."""
    lines = b"\x01\x05\0\0" * 3000 + b"\0\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 16_000, 3000, 1, 8, 1, len(lines), 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 1078 + len(lines), 0, 0, 1078) + header + b"\0\1\2\0" * 256 + lines
    started = time.process_time()
    with pytest.raises(UnsupportedImageError, match="BMP without run-length encoding"):
        decode(data, SPEC)
    assert time.process_time() - started < 0.5


def test_the_preprocessor_is_decode_behind_keras_image_helpers_interface(tmp_path: Path) -> None:
    """From a path or an open image it makes a batch of one with decode's pixels; it downloads nothing."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    preprocessor, expected = ContractPreprocessor(SPEC), decode(JPEG, SPEC).pixels[np.newaxis]
    np.testing.assert_array_equal(preprocessor.from_path(tmp_path / "a.jpg"), expected)
    with Image.open(tmp_path / "a.jpg") as img:
        np.testing.assert_array_equal(preprocessor.convert_to_tensor(img), expected)
    with pytest.raises(NotImplementedError, match="no network"):
        preprocessor.from_url("https://example.com/a.jpg")
