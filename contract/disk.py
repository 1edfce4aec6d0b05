"""Files that appear whole or not at all, and folders that one process uses at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it once the file is complete."""
    draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
    try:
        yield draft
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: Exception) -> Iterator[None]:
    """Lock a file; raise the refusal if another process has locked it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise refusal from exc
        yield
