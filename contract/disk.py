"""Files that appear whole or not at all, and folders that one process uses at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it once the file is complete."""
    # No process id: containers that share a volume may all have 1.
    draft = path.with_name(f"{path.name}.draft-{secrets.token_hex(4)}")
    try:
        yield draft
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: Exception, wait_s: float = 0.0) -> Iterator[None]:
    """Lock a file, and keep what it contains; raise the refusal if another process keeps it locked for so long."""
    give_up = time.monotonic() + wait_s
    with path.open("a") as lock:
        while True:
            try:
                lock_now(lock)
                break
            except BlockingIOError as exc:
                if time.monotonic() >= give_up:
                    raise refusal from exc
            time.sleep(0.02)
        yield


def lock_now(file: IO[Any]) -> None:
    """Lock an open file until it is closed.

    Raises:
        BlockingIOError: Another process keeps it locked.
        OSError: Its file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as exc:
        raise OSError(exc.errno, "The file system cannot lock files", file.name) from exc


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Return when all that is in a folder is on the disk."""
    for inside, _, files in os.walk(folder, topdown=False):
        for name in (*files, "."):
            sync(Path(inside) / name)
