"""Follows the release document: which version answers first, and which one is tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from contract.release import Release, ReleaseError, read_release
from gateway.model.unloaded import LOADING_S

_log = logging.getLogger(__name__)


class Following:
    """The document in force: the last one that could be read, and whose stable version was usable then.

    Attributes:
        release: What it says; None while the newest version answers.
        error: What is wrong with the document as it is now, or None.
        is_pending: Whether nothing should answer yet, because the stable version still loads, as at a start.
    """

    def __init__(self, file: str) -> None:
        """Follow a document; an empty name means none."""
        self._file = Path(file) if file else None
        self.release: Release | None = None
        self.error: str | None = None
        self.is_pending = False
        self._pending_until: float | None = None

    def look(self, usable: Collection[int], loading: Collection[int]) -> None:
        """Read the document anew.

        Args:
            usable: Numbers that are loaded and passed the golden gate.
            loading: Numbers that the model server is about to load.
        """
        if not self._file:
            return
        error, self.is_pending = None, False
        try:
            found = read_release(self._file)
        except ReleaseError as exc:
            error = str(exc)
        else:
            if not found and self.release and not self._file.parent.is_dir():
                error = f"{self._file.parent} is not there"  # a volume may be away, which releases nothing
            elif not found or found.stable in usable:
                self._follow(found)
            else:
                error = f"{self._file} names version {found.stable} as stable, which is not loaded or was refused"
                self.is_pending = not self.release and found.stable in loading and self._may_wait()
            if found and found.trial and found.trial.version not in usable:
                error = error or f"{self._file} tries version {found.trial.version}, which is not loaded or was refused"
        if error and error != self.error:
            _log.warning("%s; %s", error, self._in_force())
        self.error = error

    def rank(self, number: int) -> Any:
        """Return the key of an order: what answers first comes first, and what was never released comes last."""
        if not self.release:
            return -number
        stable = self.release.stable
        return number != stable, number != self.release.previous, number > stable, -number

    def _may_wait(self) -> bool:
        """Tell whether the time is left in which a stable version may load; one that fails would load for minutes."""
        if self._pending_until is None:
            self._pending_until = time.monotonic() + LOADING_S
        return time.monotonic() < self._pending_until

    def _follow(self, found: Release | None) -> None:
        if found != self.release:
            self.release = found
            _log.info("%s", self._in_force())

    def _in_force(self) -> str:
        if not self.release:
            return "the newest version answers"
        trial = self.release.trial
        beside = f", and version {trial.version} is tried ({trial.mode} {trial.share:.0%})" if trial else ""
        return f"version {self.release.stable} answers{beside} (release {self.release.serial})"
