"""Which image formats are accepted, and which files of a folder are photos."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES_BY_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),  # Chrome on Windows saves .jfif
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
}
"""The accepted image formats, by Pillow's names, and the suffixes of their files."""
FORMATS = tuple(SUFFIXES_BY_FORMAT)
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)


def photos_in(folder: Path) -> list[Path]:
    """Return the photos in a folder and below it, in linked folders too, by their suffixes in any case."""
    found, seen = list[Path](), set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # by another link, or in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        paths = (Path(place, name) for name in files if not is_hidden(Path(name)))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found)


def is_hidden(path: Path) -> bool:
    """Tell whether a path is hidden, as what file managers, notebooks, macOS archives and NAS leave beside photos."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
