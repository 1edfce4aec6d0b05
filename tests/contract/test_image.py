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
from PIL.PngImagePlugin import PngInfo

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
JPEG = encode(photo(640, 480), progressive=True)
PNG, GIF = encode(photo(), "PNG"), encode(photo(), "GIF")


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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("tags", [{}, {0x010F: "a camera"}, {ORIENTATION: 3}], ids=["no EXIF", "no tag", "a tag"])
def test_an_xmp_block_turns_no_image(format: str, tags: dict[int, object]) -> None:
    """Only the EXIF tag counts, as in browsers."""
    exif, xmp, text = Image.Exif(), b'<x tiff:Orientation="6"/>', PngInfo()
    exif.update(tags)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    plain = decode(encode(photo(90, 50), format, exif=exif.tobytes()), SPEC)
    decoded = decode(encode(photo(90, 50), format, exif=exif.tobytes(), xmp=xmp, pnginfo=text), SPEC)
    assert (decoded.width, decoded.height) == (90, 50)
    np.testing.assert_array_equal(decoded.pixels, plain.pixels)


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


def small_gif(**options: int) -> bytes:
    """Return a GIF of 16 by 16, whose first picture is blue, 8 by 8, at (8, 0)."""
    frame = Image.new("P", (8, 8), 0)
    frame.putpalette([0, 0, 255, 0, 0, 0])
    data = bytearray(encode(frame, "GIF", **options))
    data[6:10] = struct.pack("<HH", 16, 16)
    position = data.index(b",\0\0\0\0\x08\0\x08\0")
    data[position + 1 : position + 5] = struct.pack("<HH", 8, 0)
    return bytes(data)


def small_webp(alpha: int) -> bytes:
    """Return the same as a WebP, which says that it has transparent pixels, or not."""

    def part(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content

    frame = encode(Image.new("RGB", (8, 8), "blue"), "WEBP", lossless=True)[12:]
    place = bytes([4, 0, 0, 0, 0, 0, 7, 0, 0, 7, 0, 0, 100, 0, 0, 0])  # x and y are halved, sides are one less
    head = part(b"VP8X", bytes([2 + alpha, 0, 0, 0, 15, 0, 0, 15, 0, 0])) + part(b"ANIM", bytes(6))
    return part(b"RIFF", b"WEBP" + head + part(b"ANMF", place + frame))


@pytest.mark.parametrize(
    "data",
    [small_gif(), small_gif(transparency=5), small_webp(0), small_webp(0x10)],
    ids=["GIF", "transparent GIF", "WebP", "transparent WebP"],
)
def test_the_background_shows_beside_a_small_first_frame(data: bytes) -> None:
    """Where no pixel of an animation's first picture is, browsers show what is behind the image."""
    pixels = decode(data, ImageSpec(16, 16, background=BACKGROUND, filter="nearest")).pixels
    assert (pixels[:8, 8:] == (0, 0, 255)).all()
    assert (pixels[8:] == BACKGROUND).all() and (pixels[:, :8] == BACKGROUND).all()


def test_the_first_frame_counts() -> None:
    """Of an animation, the first picture is the image."""
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    pixels = decode(encode(first, "GIF", save_all=True, append_images=[second]), ImageSpec(8, 8)).pixels
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("data", [b"", b"<html>", b"%PDF-1.7", b"II*\0aaaa", b"hello", b"\x89PNG"])
def test_other_content_is_unsupported(data: bytes) -> None:
    """What is no image of an accepted format is refused as such."""
    with pytest.raises(UnsupportedImageError, match="Expected a JPEG, PNG, WebP, GIF, BMP or AVIF image") as refused:
        decode(data, SPEC)
    assert all(name in str(refused.value).upper() for name in FORMATS)


@pytest.mark.parametrize(
    ("start", "received"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC image, as iPhones take them. Convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1", "a HEIC image"),
        (b"\xef\xbb\xbf<svg>", "an HTML, SVG or XML document"),
        (b"MM\0*", "a TIFF image, or a camera's raw one. Convert it to JPEG or PNG"),
        (b"II+\0", "a TIFF image"),
        (b"\xff\x0a", "a JPEG XL or JPEG 2000 image. Convert it to JPEG or PNG"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, in place of the image. Run git lfs"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b\x08", "compressed data"),
        (b"/9j/4AAQSkZJRg", "an image in base64"),
    ],
)
def test_other_kinds_are_named_with_what_to_do(start: bytes, received: str) -> None:
    """By how they begin."""
    with pytest.raises(UnsupportedImageError, match=f"Received: {received}"):
        decode(start + bytes(100), SPEC)


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
def test_a_truncated_image_is_refused_or_whole(format: str) -> None:
    """An image that is cut anywhere is not guessed; only what follows its pixels may be missing."""
    data = encode(photo(400, 300), format)
    whole = decode(data, SPEC).pixels
    for end in [*range(0, len(data), len(data) // 16), *range(len(data) - 20, len(data), 2)]:
        try:
            np.testing.assert_array_equal(decode(data[:end], SPEC).pixels, whole)
        except (BrokenImageError, UnsupportedImageError):
            continue
        assert end > len(data) - 20


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


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Return a part of a PNG."""
    return len(content).to_bytes(4, "big") + kind + content + crc32(kind + content).to_bytes(4, "big")


def png(
    width: int, height: int, rows: bytes, colour: int = 2, interlaced: int = 0, before: bytes = b"", depth: int = 8
) -> bytes:
    """Return a PNG of filtered rows, with other parts before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return PNG[:8] + chunk(b"IHDR", header) + before + chunk(b"IDAT", compress(rows)) + chunk(b"IEND")


@pytest.mark.parametrize("checksum", ["as it was", "made anew"])
def test_a_png_with_a_flipped_bit_is_broken(checksum: str) -> None:
    """Wherever in its pixel data it is; Pillow's own load() finds most of them, but only the first time."""
    img = photo(200, 150)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    data = encode(Image.blend(img, noise, 0.2), "PNG")
    start, length = data.index(b"IDAT") + 4, int.from_bytes(data[data.index(b"IDAT") - 4 : data.index(b"IDAT")], "big")
    for bit in np.random.default_rng(1).integers(0, 8 * length, 150):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        if checksum == "made anew":
            damaged[start + length : start + length + 4] = crc32(damaged[start - 4 : start + length]).to_bytes(4, "big")
        with pytest.raises(BrokenImageError):
            decode(bytes(damaged), SPEC)


@pytest.mark.parametrize(("height", "interlaced"), [(8, 0), (7, 0), (1, 0), (8, 1), (7, 1)])
@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_png_whose_pixels_end_early_is_broken(height: int, interlaced: int, value: int) -> None:
    """Also if the data is well-formed, and whatever colour the rest would have."""
    row = b"\0" + bytes([value]) * 8
    rows = [row] * height
    if interlaced:  # in seven passes: the pixels of a row of eight, the first row, and each how many rows
        passes = [(1, 0, 8), (1, 0, 8), (2, 4, 8), (2, 0, 4), (4, 2, 4), (4, 0, 2), (8, 1, 2)]
        rows = [row[: 1 + count] for count, first, step in passes for _ in range(first, height, step)]
    assert (decode(png(8, height, b"".join(rows), 0, interlaced), SPEC).pixels == value).all()
    with pytest.raises(BrokenImageError):
        decode(png(8, height, b"".join(rows[:-1]), 0, interlaced), SPEC)


@pytest.mark.parametrize(
    "part",
    [
        *(chunk(kind) for kind in (b"cHRM", b"gAMA", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"prVt")),
        chunk(b"zTXt", b"k\0\0" + compress(b"a" * 10_000_000)),
        chunk(b"iCCP", b"k\0\x07"),
        chunk(b"fcTL", struct.pack(">5I2H2B", 0, 1, 1, 0, 0, 1, 1, 0, 0)),
        chunk(b"iCCP", b"k\0\0" + compress(b"a" * 1_000_000)) * 100,
    ],
    ids=lambda part: f"{part[4:8].decode()} {len(part)}",
)
def test_parts_that_pixels_do_not_depend_on_do_not_matter(part: bytes) -> None:
    """Browsers show a PNG whatever they contain."""
    np.testing.assert_array_equal(decode(PNG[:33] + part + PNG[33:], SPEC).pixels, decode(PNG, SPEC).pixels)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_shows_the_background(depth: int) -> None:
    """At each depth, and exactly: the next grey stays."""
    key, most = 2 ** (depth - 1), 2**depth - 1
    bits = "".join(f"{value:0{depth}b}" for value in (key, key - 1) * 4)
    rows = (b"\0" + int(bits, 2).to_bytes(depth, "big")) * 8
    data = png(8, 8, rows, 0, before=chunk(b"tRNS", struct.pack(">H", key)), depth=depth)
    pixels = decode(data, ImageSpec(8, 8, filter="nearest", background=BACKGROUND)).pixels
    assert pixels[0, :2].tolist() == [[*BACKGROUND], [(key - 1) * 255 // most] * 3]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_shows_the_background(depth: int) -> None:
    """With 16 bits to the next of 256 steps, as Pillow keeps those."""
    key = [128 << depth - 8] * 3
    colours = [value for colour in (key, [0, 0, 0]) * 4 for value in colour]
    rows = (b"\0" + b"".join(value.to_bytes(depth // 8, "big") for value in colours)) * 8
    data = png(8, 8, rows, 2, before=chunk(b"tRNS", struct.pack(">HHH", *key)), depth=depth)
    pixels = decode(data, ImageSpec(8, 8, filter="nearest", background=BACKGROUND)).pixels
    assert pixels[0, :2].tolist() == [[*BACKGROUND], [0, 0, 0]]


@pytest.mark.parametrize(
    "data",
    [
        PNG[:33] + chunk(b"IEND"),
        PNG.replace(b"IDAT", b"iDAT"),
        PNG.replace(b"IDAT", b"IDAU"),
        PNG[:33] + chunk(b"ABCD") + PNG[33:],
        PNG[:33] + chunk(b"tEXt")[:-1] + b"\0" + PNG[33:],
        png(8, 8, (b"\0" + bytes(8)) * 8, colour=3),
        PNG[:8] + chunk(b"IDAT"),
        PNG[:8] + chunk(b"eXIf") + PNG[8:],
    ],
    ids=["no pixels", "other name", "unknown name", "unknown part", "checksum", "no palette", "no header", "not first"],
)
def test_a_png_of_damaged_parts_is_broken(data: bytes) -> None:
    """Without header, pixels or palette, with a wrong checksum, or with a part that a reader must know and does not."""
    with pytest.raises(BrokenImageError):
        decode(data, SPEC)


SCAN = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"  # of one component's AC coefficients, with nothing in it


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (JPEG[:-2] + SCAN * 4000 + JPEG[-2:], r"in fewer scans\. Received: 4,010 of 640 by 480"),
        (JPEG[:2] + b"\xff\xe1\0\x09Exif\0\0M" * 5000 + JPEG[2:], "in fewer parts"),
        (JPEG[:2] + b"\xff" * 10_000 + JPEG[2:], "in fewer parts"),
        (PNG[:33] + chunk(b"prVt") * 5000 + PNG[33:], "in fewer parts"),
        (GIF[:13] + b"\0" * 10_000 + GIF[13:], "in fewer parts"),
    ],
)
def test_what_takes_far_longer_to_decode_than_to_write_is_too_large(data: bytes, message: str) -> None:
    """Each costs seconds or minutes at ten megabytes, and is refused by what it is made of."""
    started = time.thread_time()
    with pytest.raises(ImageTooLargeError, match=f"Expected .*{message}"):
        decode(data, SPEC)
    assert time.thread_time() - started < 0.5


def test_parts_that_real_files_have_are_taken() -> None:
    """A JPEG with a hundred scans, and a PNG in parts of 4 kB."""
    assert decode(JPEG[:-2] + SCAN * 90 + JPEG[-2:], SPEC).format == "JPEG"
    rows = b"".join(b"\0" + row.tobytes() for row in np.random.default_rng(0).integers(0, 256, (1500, 3000), np.uint8))
    packed = compress(rows, 0)
    header = chunk(b"IHDR", (1000).to_bytes(4, "big") + (1500).to_bytes(4, "big") + b"\x08\x02\0\0\0")
    parts = b"".join(chunk(b"IDAT", packed[start : start + 4096]) for start in range(0, len(packed), 4096))
    assert decode(PNG[:8] + header + parts + chunk(b"IEND"), SPEC).format == "PNG"


@pytest.mark.parametrize(
    ("bits", "compression", "message"),
    [(16, 3, "Unsupported BMP bitfields layout"), (24, 4, r"Unsupported BMP compression \(4\)"), (2, 0, "depth")],
)
def test_an_unusual_bmp_is_unsupported(bits: int, compression: int, message: str) -> None:
    """The message says why: 4444 and other bits for a colour, compression, and depth."""
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, 128, 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF00, 0xF0, 0xF)
    with pytest.raises(UnsupportedImageError, match=f"Expected a BMP of a common kind. Received: .*{message}"):
        decode(b"BM" + struct.pack("<IHHI", 194, 0, 0, 66) + header + masks + bytes(128), SPEC)


@pytest.mark.parametrize(("alphas", "shown"), [((0, 0), (200, 200)), ((0, 255), (255, 200)), ((255, 255), (200, 200))])
def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque(alphas: tuple[int, int], shown: tuple[int, int]) -> None:
    """As viewers show it; where one pixel has an alpha, that of the others counts too."""
    header = struct.pack("<IiiHHIIiiII4I", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = b"".join(bytes([200, 200, 200, alpha]) * 4 for alpha in alphas) * 8
    data = b"BM" + struct.pack("<IHHI", 378, 0, 0, 122) + header + bytes(52) + pixels
    spec = ImageSpec(8, 8, filter="nearest", background=(255, 255, 255))
    assert decode(data, spec).pixels[0, [0, 7]].tolist() == [[shown[0]] * 3, [shown[1]] * 3]


def test_a_long_side_is_too_large() -> None:
    """Also with few pixels."""
    assert decode(encode(Image.new("L", (16_384, 2)), "PNG"), SPEC).width == 16_384
    with pytest.raises(ImageTooLargeError, match=r"16,384 pixels a side\. Received: 16385 by 2"):
        decode(encode(Image.new("L", (16_385, 2)), "PNG"), SPEC)


def test_a_bmp_of_runs_is_unsupported() -> None:
    """Its few bytes may stand for all pixels, which Pillow fills in one by one, in Python."""
    lines = b"\x01\x05\0\0" * 3000 + b"\0\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 16_000, 3000, 1, 8, 1, len(lines), 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 1078 + len(lines), 0, 0, 1078) + header + b"\0\1\2\0" * 256 + lines
    started = time.thread_time()
    with pytest.raises(UnsupportedImageError, match="BMP without run-length encoding"):
        decode(data, SPEC)
    assert time.thread_time() - started < 0.5


def test_the_preprocessor_is_decode_behind_keras_image_helpers_interface(tmp_path: Path) -> None:
    """From a path or an open image it makes a batch of one with decode's pixels; it downloads nothing."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    preprocessor, expected = ContractPreprocessor(SPEC), decode(JPEG, SPEC).pixels[np.newaxis]
    np.testing.assert_array_equal(preprocessor.from_path(tmp_path / "a.jpg"), expected)
    with Image.open(tmp_path / "a.jpg") as img:
        np.testing.assert_array_equal(preprocessor.convert_to_tensor(img), expected)
    with pytest.raises(NotImplementedError, match="no network"):
        preprocessor.from_url("https://example.com/a.jpg")
