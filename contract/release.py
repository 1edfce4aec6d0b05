"""The release document: which version of a model answers, and which one is tried beside it.

It is `<store>/<name>/release.json`. Without it, the newest accepted version answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

FILE_NAME = "release.json"
MOST_BYTES = 64 * 1024  # it is read twice a second, and a document takes 200 bytes
SERIALS = 9 * 10**15  # a little below 2**53, where jq and metrics begin to round
REMOVED_S = 3.0  # longer than an editor, a copy or a slow disk takes to put a new file in the place of the old one

Mode = Literal["shadow", "share"]


class ReleaseError(ValueError):
    """A document that does not say what to release; the message says what is wrong with it."""


@dataclass(frozen=True)
class Trial:
    """A version that is tried.

    Attributes:
        version: Its number.
        mode: `share` lets it answer a share of the requests. In `shadow` the stable version answers all of them.
        share: Part of the requests that it is tried with, in (0, 1].
        began: When the trial began, in UTC.
        serial: That of the document that began it. Requests are divided anew in each trial.
    """

    version: int
    mode: Mode
    share: float = 1.0
    began: str = ""
    serial: int = 0

    def __post_init__(self) -> None:
        _expect_number("trial.version", self.version)
        _expect_number("trial.serial", self.serial)
        _expect(self.mode in get_args(Mode), f"trial.mode to be {' or '.join(get_args(Mode))}", self.mode)
        is_number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        _expect(is_number and 0 < self.share <= 1, "trial.share to be a number above 0 and up to 1", self.share)
        _expect(isinstance(self.began, str), "trial.began to be text", self.began)

    @property
    def identity(self) -> tuple[int, int, str]:
        """What stays the same while its share changes."""
        return self.version, self.serial, self.began

    def includes(self, key: str) -> bool:
        """Tell whether the version is tried with the requests of a key; if it is, a larger share includes it too."""
        digest = sha256(f"{self.serial}:{key}".encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64


@dataclass(frozen=True)
class Release:
    """What the document says.

    Attributes:
        stable: The version that answers.
        serial: One more with each change.
        trial: What is tried beside it, if anything.
        previous: The stable version before, which stays loaded, so that going back loads nothing.
    """

    stable: int
    serial: int = 0
    trial: Trial | None = None
    previous: int | None = None

    def __post_init__(self) -> None:
        _expect_number("stable", self.stable)
        expect_serial(self.serial)
        if self.previous is not None:
            _expect_number("previous", self.previous)
        if self.trial:
            _expect(self.trial.version != self.stable, "another trial.version than the stable one", self.stable)

    @property
    def versions(self) -> set[int]:
        """All numbers that the document names: they stay loaded."""
        trial = self.trial.version if self.trial else None
        return {number for number in (self.stable, trial, self.previous) if number is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the document as JSON values."""
        return {
            "serial": self.serial,
            "stable": self.stable,
            "previous": self.previous,
            "trial": vars(self.trial) if self.trial else None,
        }

    def to_json(self) -> str:
        """Return the document, as it is written."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Any) -> Release:
        """Read a document's JSON values.

        Raises:
            ReleaseError: They are no document; one with a member that this release does not know is none.
        """
        members = _members(cls, "a document", values)
        if (trial := members.get("trial")) is not None:
            members["trial"] = Trial(**_members(Trial, "trial", trial))
        return cls(**members)


def read_release(file: Path) -> Release | None:
    """Return what a document says; None where there is none.

    Raises:
        ReleaseError: It cannot be read, or is no document.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ReleaseError(f"{file} cannot be read: {exc.strerror}") from exc
    if len(text) > MOST_BYTES:
        raise ReleaseError(f"Expected a release document of at most {MOST_BYTES} bytes. Received: more, in {file}")
    try:
        return Release.from_dict(json.loads(text))
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, ReleaseError) else f"Expected JSON. Received text that is not: {exc}"
        raise ReleaseError(f"{file}: {reason}") from exc


class ReleaseFile:
    """A document that is read again and again: one that is missing for a moment was not removed."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is read yet."""
        self.path = path
        self._is_known = False
        self._missing_since: float | None = None

    def read(self) -> Release | None:
        """Return what the document says; None if none was there before, or if it was removed.

        Raises:
            ReleaseError: As of `read_release`; or it is missing, and nobody knows yet if it was removed.
        """
        missing_since, self._missing_since = self._missing_since or time.monotonic(), None
        try:
            release = read_release(self.path)
        except ReleaseError as exc:
            self._is_known |= not isinstance(exc.__cause__, OSError)  # a bad one was there; a disk may fail without one
            raise
        if release or not self._is_known:
            self._is_known = release is not None
            return release
        if not self.path.parent.is_dir():
            raise ReleaseError(f"{self.path.parent} is not there")  # a volume may be away, which removes nothing
        if time.monotonic() < missing_since + REMOVED_S:
            self._missing_since = missing_since
            raise ReleaseError(f"{self.path} is not there, which counts after {REMOVED_S:.0f} s")
        self._is_known = False
        return None


def expect_serial(value: Any) -> None:
    """Refuse what is no serial.

    Raises:
        ReleaseError: It is none.
    """
    _expect_number("serial", value, SERIALS)


def _members(kind: type, name: str, values: Any) -> dict[str, Any]:
    _expect(isinstance(values, Mapping), f"{name} to be a JSON object", values)
    known = [each.name for each in fields(kind)]
    unknown = sorted(map(str, set(values) - set(known)))
    _expect(not unknown, f"{name} of the members {', '.join(known)}", ", ".join(unknown))
    missing = [each.name for each in fields(kind) if each.default is MISSING and each.name not in values]
    _expect(not missing, f"{name} with {' and '.join(missing)}", "none")
    return dict(values)


def _expect_number(name: str, value: Any, end: int = 2**63) -> None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
    _expect(is_number, f"{name} to be an integer from 0 and below {end}", value)


def _expect(condition: object, expected: str, received: object) -> None:
    if not condition:
        raise ReleaseError(f"Expected {expected}. Received: {str(received)[:100]}")
