"""Follows the release document: which version answers first, and which one is tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import suppress
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
        is_missed: Whether no look has met the stable version for as long as such a gateway waits.
    """

    def __init__(self, file: str) -> None:
        """Follow a document; an empty name means none."""
        self._file = ReleaseFile(Path(file)) if file else None
        self.release: Release | None = None
        self.error: str | None = None
        self.is_pending, self.is_missed = bool(file), False
        self._found: Release | None = None  # what the document says now, if it can be read
        self._awaited: Release | None = None  # what is in force, or should be, while its stable version is missing
        self._waits_until = 0.0

    def look(self, usable: Collection[int]) -> None:
        """Read the document anew; `usable` are the numbers that are loaded and passed the golden gate."""
        if not self._file:
            return
        path, error, found = self._file.path, None, None
        try:
            found = self._file.read()
        except ReleaseError as exc:
            error = str(exc)
        else:
            if not found or found.stable in usable:
                self._follow(found)
            else:
                error = f"{path} names version {found.stable} as stable, which is not loaded or not accepted"
            if found and found.trial and found.trial.version not in usable:
                error = error or f"{path} tries version {found.trial.version}, which is not loaded or not accepted"
        self._found = found
        self._miss(self.release or found, usable)
        if error and error != self.error:
            _log.warning("%s; %s", error, self._in_force())
        self.error = error

    def stable(self) -> int | None:
        """Return the version that the document names as stable now, whether it can be followed or not."""
        with suppress(ReleaseError):
            found = self._file.read() if self._file else None
            return found.stable if found else None
        return None

    def rank(self, number: int) -> Any:
        """Return the key of an order: what answers first comes first, and what is newer than the stable one last."""
        if not self.release:
            return -number
        stable = self.release.stable
        return number != stable, number > stable, number != self.release.previous, -number

    def lets_answer(self, number: int) -> bool:
        """Tell whether a version may answer: not one in shadow, nor one just rolled back, for the stable one.

        They may once that was missed for long. Other versions answer at once where it is not loaded, also newer ones.
        """
        if not self.release or number == self.release.stable or self.is_missed:
            return True
        return not any(_holds_back(each, number) for each in (self.release, self._found) if each)

    def _miss(self, awaited: Release | None, usable: Collection[int]) -> None:
        """Find out for how long no look has met a stable version; at a start, the one before it then stands in."""
        if not awaited or not usable or awaited.stable in usable:
            awaited = None  # while nothing is loaded, a model server has only begun to load
        elif awaited != self._awaited:
            self._waits_until = time.monotonic() + LOADING_S
        self._awaited = awaited
        self.is_missed = awaited is not None and time.monotonic() >= self._waits_until
        if awaited and self.is_missed and self.is_pending:
            self._let_stand_in(awaited, usable)

    def _let_stand_in(self, found: Release, usable: Collection[int]) -> None:
        """Follow the version that was stable before, if it is older: a newer one was probably rolled back."""
        before = found.previous
        if before is not None and before < found.stable and before in usable:
            self.is_missed = False
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


def _holds_back(release: Release, number: int) -> bool:
    """Tell whether a document names a version that is tried in shadow, or was just rolled back."""
    trial = release.trial
    is_in_shadow = trial is not None and trial.mode == "shadow" and trial.version == number
    return is_in_shadow or release.stable < number == release.previous
