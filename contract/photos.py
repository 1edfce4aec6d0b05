"""Which image formats are accepted, and which files of a folder are photos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
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


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, in linked folders too, but for hidden ones.

    A broken link is a file: who reads it learns that it cannot be read.

    Raises:
        OSError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found, seen = list[Path](), set(map(str, folder.resolve().parents))  # photos above it are not its own
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # by another link, or in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        found += [Path(place, name) for name in files if not is_hidden(Path(name))]
    return sorted(path for path in found if path.is_file() or not path.exists())


def photos_in(folder: Path) -> list[Path]:
    """Return the photos among the files in a folder, by their suffixes in any case."""
    return [path for path in files_in(folder) if path.suffix.lower() in SUFFIXES]


def describe_others(files: Iterable[Path]) -> str:
    """Return a line with how many of some files are no photos, by suffix; it is empty if all are."""
    suffixes = Counter(path.suffix.lower() or "without a suffix" for path in files)
    others = sorted((-count, suffix) for suffix, count in suffixes.items() if suffix not in SUFFIXES)
    total = -sum(count for count, _ in others)
    listed = ", ".join(f"{-count} {suffix}" for count, suffix in others)
    files_left_out = f"Left out {total} file{'s' * (total != 1)} that cannot be read ({', '.join(SUFFIXES)} can)"
    return f"{files_left_out}: {listed}" if others else ""


def is_hidden(path: Path) -> bool:
    """Tell whether a path is hidden, as what file managers, notebooks, macOS archives and NAS leave beside photos."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
