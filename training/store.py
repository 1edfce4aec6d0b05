"""The model-store's rule: a version appears whole or not at all, and its number is never used twice."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import ExportError

_LOCK, _LAST, _STAGING = ".lock", ".last-version", ".staging"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class StagedVersion:
    """A version that is being written, under a name that no server takes for one."""

    path: Path
    number: int

    def release(self) -> Path:
        """Sync what was written to disk, and rename it to its number."""
        for folder, _, files in os.walk(self.path, topdown=False):
            for name in (*files, "."):
                _sync(Path(folder) / name)
        home = self.path.parent
        last = home / f"{_LAST}.draft"  # a full disk must not empty the file itself
        last.write_text(f"{self.number}\n")
        _sync(last)
        last.rename(home / _LAST)
        target = home / str(self.number)
        self.path.rename(target)
        _sync(home)
        return target


@contextmanager
def staged_version(store: Path, model: str) -> Iterator[StagedVersion]:
    """Open the next version of a model for writing; one writer at a time, leftovers of a killed one cleared.

    Raises:
        ExportError: The name cannot be a model's, or another export of the same model runs.
    """
    check_name(model)
    home = store / model
    home.mkdir(parents=True, exist_ok=True)
    with (home / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ExportError(f"Expected to be the only export of {model!r}. Received: another one is running") from exc
        staging = home / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield StagedVersion(staging, _next_number(home))
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_name(model: str) -> None:
    """Refuse what cannot be a model's name, before work is spent on it.

    Raises:
        ExportError: The name is not made of letters, digits, `.`, `_` and `-`.
    """
    if not _NAME.fullmatch(model):
        raise ExportError(f"Expected a model name of letters, digits, '.', '_' and '-'. Received: {model!r}")


def versions(store: Path, model: str) -> list[int]:
    """Return the numbers of a model's versions, lowest first."""
    home = store / model
    return sorted(int(path.name) for path in home.glob("*") if path.name.isdigit() and path.is_dir())


def _next_number(home: Path) -> int:
    last = home / _LAST
    used = int(last.read_text()) if last.is_file() and last.read_text().strip().isdigit() else 0
    return max([used, *versions(home.parent, home.name)]) + 1


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
