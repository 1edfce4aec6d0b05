"""The model-store's rule: a version appears whole or not at all, and its number is never used twice."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contract.disk import locked, sync, sync_all, written_whole
from contract.store import versions_of
from training.errors import ExportError

WAIT_S = 3600  # for another export, whose search for an int8 file may take minutes
_LOCK, _STAGING = ".lock", ".staging"
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@contextmanager
def staged_version(store: Path, model: str) -> Iterator[Path]:
    """Open the next version of a model for writing, in a folder that no server takes for one, see `publish`.

    There is one writer at a time. What a killed one left is cleared.

    Raises:
        ExportError: The name cannot be a model's, or another export of the same model does not end.
    """
    check_name(model)
    home = store / model
    home.mkdir(parents=True, exist_ok=True)
    busy = ExportError(f"Another export of {model!r} is running. Wait until it has ended.")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(home / _LOCK, busy))
        except ExportError:
            _log.info(f"Waiting until another export of {model!r} has ended")
            stack.enter_context(locked(home / _LOCK, busy, WAIT_S))
        staging = home / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path) -> Path:
    """Sync what was written to disk, and rename it to the next number, after what was copied in meanwhile too."""
    sync_all(staging)
    home = staging.parent
    number = _next_number(home)
    with written_whole(_last_file(home)) as draft:  # a full disk must not empty the file itself
        draft.write_text(f"{number}\n")
        sync(draft)
    version = staging.rename(home / str(number))
    sync(home)
    return version


def check_name(model: str) -> None:
    """Refuse what cannot be a model's name, before work is spent on it.

    Raises:
        ExportError: The name is not made of letters, digits, `.`, `_` and `-`.
    """
    if not _NAME.fullmatch(model):
        raise ExportError(f"Expected a model name of letters, digits, '.', '_' and '-'. Received: {model!r}")


def _next_number(home: Path) -> int:
    """Return the number after every one that the model had, though its versions, or all of its folder, were removed.

    Never 0: that is the version that an image makes by itself.
    """
    last = _last_file(home)
    text = last.read_text().strip() if last.is_file() else ""
    return max([int(text) if text.isdecimal() else 0, *versions_of(home.parent, home.name)]) + 1


def _last_file(home: Path) -> Path:
    """Return where the highest number ever released stands: beside the model's folder, which people remove."""
    return home.with_name(f".{home.name}.last-version")
