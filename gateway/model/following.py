"""Follows the release document: which version answers first, and which one is tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.release import Release, ReleaseError, ReleaseFile
from gateway.model.unloaded import LOADING_S

_log = logging.getLogger(__name__)


class Following:
    """The document in force: the last one that could be read, and whose stable version was usable then.

    Attributes:
        release: What it says; None while the newest version answers.
        error: What is wrong with the document as it is now, or None.
        is_pending: Whether nothing should answer, as since the start the document could not be used: what is newest, or
            only tried, might be a version that nobody promoted. The one that answered before stands in after a while.
    """

    def __init__(self, file: str) -> None:
        """Follow a document; an empty name means none."""
        self._file = ReleaseFile(Path(file)) if file else None
        self.release: Release | None = None
        self.error: str | None = None
        self.is_pending = bool(file)
        self._awaited: Release | None = None  # a document whose stable version is missing
        self._waits_until = 0.0

    def look(self, usable: Collection[int]) -> None:
        """Read the document anew; `usable` are the numbers that are loaded and passed the golden gate."""
        if not self._file:
            return
        path, error = self._file.path, None
        try:
            found = self._file.read()
        except ReleaseError as exc:
            error = str(exc)
        else:
            if not found or found.stable in usable:
                self._follow(found)
            else:
                error = f"{path} names version {found.stable} as stable, which is not loaded or was refused"
                self._let_stand_in(found, usable)
            if found and found.trial and found.trial.version not in usable:
                error = error or f"{path} tries version {found.trial.version}, which is not loaded or was refused"
        if error and error != self.error:
            _log.warning("%s; %s", error, self._in_force())
        self.error = error

    def rank(self, number: int) -> Any:
        """Return the key of an order: what answers first comes first, and what was never released comes last."""
        if not self.release:
            return -number
        stable = self.release.stable
        return number != stable, number != self.release.previous, number > stable, -number

    def _let_stand_in(self, found: Release, usable: Collection[int]) -> None:
        """Follow the version that was stable before, if it is older: a newer one was probably rolled back."""
        before = found.previous
        if not self.is_pending or before is None or before > found.stable or before not in usable:
            return
        if found != self._awaited:
            self._awaited, self._waits_until = found, time.monotonic() + LOADING_S
        if time.monotonic() >= self._waits_until:
            self._follow(replace(found, stable=before, previous=None, trial=None))

    def _follow(self, found: Release | None) -> None:
        self.is_pending = False
        if found != self.release:
            self.release = found
            _log.info("%s", self._in_force())

    def _in_force(self) -> str:
        if self.is_pending:
            return "nothing answers yet"
        if not self.release:
            return "the newest version answers"
        trial = self.release.trial
        beside = f", and version {trial.version} is tried ({trial.mode} {trial.share:.0%})" if trial else ""
        return f"version {self.release.stable} answers{beside} (release {self.release.serial})"
