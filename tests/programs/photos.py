"""Encoded images drawn by code, for tests."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw


def photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Return smooth random colour, so that JPEG keeps it and a resize matters a little."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def clock(size: int = 480) -> Image.Image:
    """Draw what ImageNet's models call an analog clock."""
    image = Image.new("RGB", (size, size), (200, 190, 170))
    draw, middle = ImageDraw.Draw(image), size / 2
    draw.ellipse((40, 40, size - 40, size - 40), fill=(250, 250, 250), outline=(30, 30, 30), width=14)

    def point(turn: float, length: float) -> tuple[float, float]:
        return middle + math.sin(math.tau * turn) * length, middle - math.cos(math.tau * turn) * length

    for hour in range(1, 13):
        draw.text(point(hour / 12, middle - 80), str(hour), fill=(0, 0, 0), anchor="mm", font_size=36)
    for turn, length, width in ((0.85, 0.4, 14), (0.17, 0.62, 9)):
        draw.line(((middle, middle), point(turn, middle * length)), fill=(0, 0, 0), width=width)
    return image


def flip_bit(png: bytes) -> bytes:
    """Return a PNG with a bit flipped in the middle of its pixels, and with the checksum around them made anew."""
    start = png.index(b"IDAT")
    end = start + 4 + int.from_bytes(png[start - 4 : start])
    middle = (start + end) // 2
    part = png[start:middle] + bytes([png[middle] ^ 1]) + png[middle + 1 : end]
    return png[:start] + part + crc32(part).to_bytes(4) + png[end + 4 :]


def encode(img: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """Return the encoded image."""
    buffer = BytesIO()
    img.save(buffer, format, **options)
    return buffer.getvalue()
