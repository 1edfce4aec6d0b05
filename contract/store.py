"""The layout of the model-store: `<name>/<version>/`, a version being a whole number."""

from __future__ import annotations

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
    numbered = sorted(path for path in base_path.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir())
    return {int(path.name): path for path in numbered if int(path.name) in _INT64}


def versions_of(store: Path, model: str) -> dict[int, Path]:
    """Return a model's versions, lowest first; none where the store has no such model."""
    home = store / model
    return dict(sorted(find_versions(home).items())) if home.is_dir() else {}
