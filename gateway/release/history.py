"""The history of a model's releases: `history.jsonl`, a line for each change, each with the hash of the one before.

A change is written here first, and then to the document. So the last line says what a killed command still owes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from contract.release import Release, expect_serial

FILE_NAME = "history.jsonl"
BY_HAND = "by hand"
CLOCKS_DIFFER = timedelta(minutes=1)  # at most, of machines that make changes, while none is wrong


@dataclass(frozen=True)
class Entry:
    """A line.

    Attributes:
        serial: That of the document, or the next one where the document was removed.
        when: In UTC, as ISO 8601.
        who: user@host; empty where nobody knows, because the document was edited by hand.
        what: `promote`, `try`, `rollback` or `by hand`.
        why: The reason that was given, if any.
        document: What the change made; None if it removed the document.
        digests: What `digest` said of each version that the document names, when it was named last.
        before: SHA-256 of the line before, its end included; empty in the first line.
    """

    serial: int
    when: str
    who: str
    what: str
    why: str
    document: Release | None
    digests: Mapping[str, str]
    before: str = ""

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """Read a line.

        Raises:
            ValueError: It is none of a history.
        """
        try:
            values: dict[str, Any] = json.loads(line)
            document = values["document"]
            texts = {name: str(values[name]) for name in ("when", "who", "what", "why", "before")}
            digests = {str(number): str(each) for number, each in values["digests"].items()}
            release = None if document is None else Release.from_dict(document)
            expect_serial(values["serial"])
            entry = cls(serial=values["serial"], document=release, digests=digests, **texts)
            entry.time  # noqa: B018  # raises where it is none
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
            raise ValueError(f"It is no line of a history: {exc!r}") from exc
        return entry

    def to_line(self) -> bytes:
        """Return the line without its end; all of it is ASCII."""
        document = self.document.to_dict() if self.document else None
        return json.dumps({**asdict(self), "document": document}).encode()

    @property
    def time(self) -> datetime:
        """When it was, in UTC."""
        time = datetime.fromisoformat(self.when)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


@dataclass(frozen=True)
class History:
    """What the file contained.

    Attributes:
        entries: The lines that could be read, in order.
        problems: Where the chain is broken, and how; each names its line.
        last_hash: That of the last line; empty if there is none.
        size: Bytes of all whole lines.
        last_start: Bytes before the last line that could be read.
        torn: What follows them: the start of a line that a command was writing when it was ended, or still writes.
        is_open: Whether the last whole line lacks its end.
    """

    entries: list[Entry]
    problems: tuple[str, ...] = ()
    last_hash: str = ""
    size: int = 0
    last_start: int = 0
    torn: bytes = b""
    is_open: bool = False

    @property
    def last(self) -> Entry | None:
        """The last line that could be read."""
        return self.entries[-1] if self.entries else None

    @property
    def before_last(self) -> Release | None:
        """The document before the last line."""
        return self.entries[-2].document if len(self.entries) > 1 else None

    @property
    def next_serial(self) -> int:
        """A serial that no line has."""
        return max((each.serial for each in self.entries), default=0) + 1

    @property
    def clock_notes(self) -> list[str]:
        """Which lines are later than the next one, or than now; `at` goes by their times."""
        times = [(each.time, f"release {each.serial}") for each in self.entries] + [(datetime.now(UTC), "now")]
        return [
            f"The time of {which} is later than {following}: a clock was wrong, so `at` may name another version."
            for (time, which), (limit, following) in pairwise(times)
            if time - limit > CLOCKS_DIFFER
        ]

    def at(self, time: datetime, *, is_owed: bool) -> Entry | None:
        """Return the last change up to a time; what the last line says has not happened while it is owed."""
        happened = self.entries[:-1] if is_owed else self.entries
        return next((each for each in reversed(happened) if each.time <= time), None)


def read_history(file: Path) -> History:
    """Read and check a history; one that does not exist is empty.

    Raises:
        OSError: It cannot be read.
    """
    content = file.read_bytes() if file.exists() else b""
    *lines, torn = content.split(b"\n")
    is_open = False
    with suppress(ValueError):  # an editor left its end out, or a command was ended just before
        Entry.from_line(torn)
        lines, torn, is_open = [*lines, torn], b"", True
    entries: list[Entry] = []
    problems = []
    last_hash, start, last_start = "", 0, 0
    for number, line in enumerate(lines, start=1):
        try:
            entry = Entry.from_line(line)
        except ValueError as exc:
            problems.append(f"Line {number} cannot be read: {exc}")
        else:
            entries.append(entry)
            last_start = start
            if entry.before != last_hash:
                what = f"line {number - 1} was edited, or lines between them removed"
                what = what if number > 1 else "lines before it were removed"
                problems.append(f"Line {number} does not continue line {number - 1}: {what}")
        last_hash = hashlib.sha256(line + b"\n").hexdigest()
        start += len(line) + 1
    return History(entries, tuple(problems), last_hash, len(content) - len(torn), last_start, torn, is_open)


def append(file: Path, history: History, entry: Entry) -> None:
    """Add a line to the history as it was read, in the place of a torn one; either all of it is on disk, or nothing.

    Raises:
        OSError: It cannot be written.
    """
    line = b"\n" * history.is_open + replace(entry, before=history.last_hash).to_line() + b"\n"
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.ftruncate(handle, history.size)
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)  # a file system of another machine may say only now that it is full
    except OSError as exc:
        with suppress(OSError):
            os.ftruncate(handle, history.size)
        raise OSError(exc.errno, exc.strerror, str(file)) from exc
    finally:
        os.close(handle)


def digest(version: Path) -> str:
    """Return what says whether a version's files are still the same.

    It is what this prints in its folder:
    `find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`

    Raises:
        OSError: A file cannot be read, or there is none.
    """
    files = {os.fsencode(path.relative_to(version)): path for path in version.rglob("*") if path.is_file()}
    if not files:
        raise FileNotFoundError(errno.ENOENT, "It has no files", str(version))
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").hexdigest().encode() + b"  " + name + b"\n")
    return total.hexdigest()
