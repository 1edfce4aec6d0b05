"""Which image formats are accepted, and which files of a folder are photos."""

from __future__ import annotations

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
    """Return the photos in a folder and below it, by their suffixes in any case."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(is_hidden(part) for part in (path, *path.relative_to(folder).parents))
    )


def is_hidden(path: Path) -> bool:
    """Tell whether a path is hidden, as what file managers, notebooks, macOS archives and NAS leave beside photos."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
