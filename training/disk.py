"""What several processes may do to one folder: files appear whole or not at all, and one process works at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import TrainingError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield another name to write a file under, and rename it once it is complete."""
    draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
    try:
        yield draft
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: TrainingError) -> Iterator[None]:
    """Hold a file that one process at a time may hold; raise the refusal if another does."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise refusal from exc
        yield
