"""Encoded images drawn by code, for tests."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Return smooth random colour, so that JPEG keeps it and a resize matters a little."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encode(img: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """Return the encoded image."""
    buffer = BytesIO()
    img.save(buffer, format, **options)
    return buffer.getvalue()
