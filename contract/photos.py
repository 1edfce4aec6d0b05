"""Which files of a folder are photos: the same for training, and for whoever asks a gateway about a folder."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")


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
    """Tell what file managers, notebooks and macOS archives leave beside photos."""
    return path.name.startswith(".") or path.name == "__MACOSX"
