"""Reports as one HTML file each: a template, its style, and pictures inside, so that it opens without a network."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from training.words import counted, plural

THUMBNAIL_PX = 128


def write(path: Path, template: str, **values: Any) -> Path:
    """Render `training/templates/<template>` to a file, and return it."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"breakable": _breakable, "readable": _readable}
    templates.filters |= {"counted": counted, "plural": plural, "thumbnail": thumbnail}
    html = templates.get_template(template).render(**values)
    path.write_text(html, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
    return path


def _breakable(name: str) -> Markup:
    """Return a name that may go on in the next line after a slash or an underscore."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(name))))


def _readable(time: str) -> str:
    """Return a time in ISO format as people write it, without its seconds."""
    return f"{time[:10]}, {time[11:16]} UTC"


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return pixels (h, w, 3) as a small JPEG in a data: URL, about 4 kB."""
    img = Image.fromarray(np.asarray(pixels))
    img.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = BytesIO()
    img.save(buffer, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def picture(path: Path) -> str:
    """Return a PNG file as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
