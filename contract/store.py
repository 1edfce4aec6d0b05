"""The layout of the model-store: `<name>/<version>/`, a version being a whole number."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def find_versions(base_path: Path) -> dict[int, Path]:
    """Return the directories below a base path whose names are signed 64-bit integers.

    `0011` is version 11; if both spellings exist, the last in byte order is taken. The directories are not opened.

    Raises:
        OSError: The base path is missing or not a readable directory.
    """
    folder = os.open(base_path, os.O_RDONLY)  # by its number, so that a rename in the middle of it hides no version
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _NUMBER.fullmatch(entry.name) and entry.is_dir())
    finally:
        os.close(folder)
    return {int(name): base_path / name for name in names if int(name) in _INT64}


def versions_of(store: Path, model: str) -> dict[int, Path]:
    """Return a model's versions, lowest first; none where the store has no such model."""
    home = store / model
    return dict(sorted(find_versions(home).items())) if home.is_dir() else {}
