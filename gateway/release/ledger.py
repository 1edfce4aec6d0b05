"""Changes of a model's release document, one at a time, each written to the history first.

What a command that was killed leaves, the next change finds and finishes:

| killed after it wrote | history | document | lock | models.config | then the next change |
|---|---|---|---|---|---|
| a part of a line | torn | old | old | old | removes that part; nothing has changed |
| the line | new | old | old | old | writes the rest, which is owed |
| the document | new | new | old | old | writes the lock and models.config |
| the lock | new | new | new | old | writes models.config |

A `rollback` takes back a change that the document lacks, unless that is a trial, and goes back from what really
answers.

If the document is the old one though the lock has the serial of the new one, a person put it back: that counts as a
change by hand, as does any other document that the history's last line does not have.
"""

from __future__ import annotations

import errno
import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from contract.disk import locked, sync, written_whole
from contract.release import FILE_NAME, REMOVED_S, SERIALS, Mode, Release, ReleaseError, Trial, read_release
from contract.store import find_versions
from gateway.release import history, model_config
from gateway.release.history import BY_HAND, Entry, History, append, digest, read_history

LOCK_NAME = ".release-lock"  # it contains the serial of the last change whose document was written
LOCK_WAIT_S = 10.0  # the longest step of a change is the digest of a version, at about a second for a gigabyte
RECENT_S = 60.0  # of a folder's last change, by a file server's clock, which may differ from ours
SERIALS_BY_HAND = SERIALS - 10**9  # a person's end below this, so that commands never run out of them
NUMBERS_SHOWN = 20  # of the versions on disk, in a refusal


class Refused(Exception):
    """A change that is not made; the message says why, and what to do."""


class Passing(Refused):
    """One that a second try may not meet: the store is away for a moment, or somebody else is quicker."""


class Unwritable(Refused):
    """One of a store that cannot be written, or not by this user."""


@dataclass(frozen=True)
class State:
    """What the store says of a model.

    Attributes:
        release: The document, or the last one if it cannot be used; None if the newest version answers.
        history: What changed before.
        on_disk: The folder of each version.
        notes: What is wrong, and what the next change does about it.
        is_owed: Whether the document still lacks what the last line of the history says.
        by_hand: The line that the history lacks, because somebody edited the document.
    """

    release: Release | None
    history: History
    on_disk: Mapping[int, Path]
    notes: tuple[str, ...] = ()
    is_owed: bool = False
    by_hand: Entry | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether a command was ended between two of its steps, or is between them, or somebody edited the document."""
        return self.is_owed or bool(self.by_hand or self.history.torn)


@dataclass(frozen=True)
class Change:
    """What a command did.

    Attributes:
        before: The document before.
        after: The one after, which is the same if nothing had to change.
        notes: What was wrong before.
        lag: Why `models.config` does not say so; empty if it does.
    """

    before: Release | None
    after: Release
    notes: tuple[str, ...]
    lag: str


class Ledger:
    """The document, the history and the `models.config` of one model. Every method may raise `Refused`."""

    def __init__(self, home: Path) -> None:
        """Open a model's folder."""
        self.home = home
        self._seen: Release | None = None  # the last document that could be used, unless it was removed
        self._is_removed = False  # as far as the last look waited to see

    def read(self) -> State:
        """Return what the store says, and change nothing."""
        state = self._look()
        if state.is_unfinished:  # perhaps a command is between two of its steps
            time.sleep(0.2)
            state = self._look()
        return state

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from changing anything meanwhile; a store that cannot be written is refused."""
        busy = Passing(f"Another command is changing {self.home}. Try again when it has ended.")
        lock = self.home / LOCK_NAME
        with _explained(), locked(lock, busy, LOCK_WAIT_S):
            self._share(lock)
            yield

    def try_version(self, version: int, mode: Mode, share: float = 1.0, *, reason: str = "") -> Change:
        """Begin the trial of a version, or go on with it at another share."""

        def decide(state: State, serial: int) -> Release:
            release = state.release
            if not release:
                raise Refused(
                    f"There is no {FILE_NAME}, so the newest version answers everything. First say which version"
                    f" is stable: promote VERSION. {_on_disk(state)}"
                )
            if release.stable == version:
                raise Refused(f"Version {version} is the stable one. Try another. {_on_disk(state)}")
            trial = release.trial or Trial(version, mode, share, _text(datetime.now(UTC)), serial)
            if trial.version != version:
                raise Refused(f"Version {trial.version} is being tried. First end that: rollback, or promote.")
            _expect_on_disk(state, version)
            trial = replace(trial, mode=mode, share=share)
            return release if trial == release.trial else replace(release, serial=serial, trial=trial)

        return self._change("try", reason, decide)

    def promote(self, version: int | None = None, *, reason: str = "", trial_serial: int | None = None) -> Change:
        """Make a version the stable one: that of the trial, or another if nothing is tried.

        Args:
            version: Its number; None for the trial's.
            reason: For the history.
            trial_serial: Refuse unless the trial under way has this serial.
        """

        def decide(state: State, serial: int) -> Release:
            release = state.release
            trial = release.trial if release else None
            _expect_trial(trial, trial_serial)
            number = trial.version if trial and version is None else version
            if number is None:
                raise Refused(f"Nothing is being tried. Name the version to promote. {_on_disk(state)}")
            if trial and trial.version != number:
                raise Refused(f"Version {trial.version} is being tried. First end that: rollback.")
            _expect_on_disk(state, number)
            if release and release.stable == number:
                return release
            others = (release.stable, release.previous) if release else ()
            kept = [each for each in others if each in state.on_disk and each != number]
            return Release(number, serial, previous=kept[0] if kept else None)

        return self._change("promote", reason, decide)

    def rollback(self, reason: str = "", *, trial_serial: int | None = None) -> Change:
        """End the trial; without one, make the previous version the stable one.

        Args:
            reason: For the history.
            trial_serial: Refuse unless the trial under way has this serial.
        """

        def decide(state: State, serial: int) -> Release:
            release, last = state.release, state.history.last
            instead = f"To make a version answer: promote VERSION. {_on_disk(state)}"
            if not release:
                raise Refused(f"There is no {FILE_NAME}, so the newest version answers. {instead}")
            _expect_trial(release.trial, trial_serial)
            if release.trial:
                return replace(release, serial=serial, trial=None)
            if last and last.what == "rollback":  # two people in a hurry would bring the bad version back
                before = f"; before it was version {release.previous}" if release.previous is not None else ""
                raise Refused(
                    f"The last change was a rollback already, by {last.who} at {last.when}."
                    f" Version {release.stable} is the stable one{before}. {instead}"
                )
            if release.previous in (None, release.stable):
                raise Refused(f"No version was stable before version {release.stable}. {instead}")
            _expect_on_disk(state, release.previous)
            return Release(release.previous, serial, previous=release.stable)

        return self._change("rollback", reason, decide)

    def _change(self, what: str, reason: str, decide: Callable[[State, int], Release]) -> Change:
        """Make a change under the lock, after what an ended command left undone."""
        with self.alone():
            state, lag = self._recover(self._look(), takes_back=what == "rollback")
            before, last = state.release, state.history.last
            try:
                after = decide(state, max(state.history.next_serial, before.serial + 1 if before else 0))
            except Refused as exc:
                raise type(exc)("\n".join((*state.notes, str(exc)))) from exc
            if after == before:
                return Change(before, after, state.notes, lag)
            known = dict(last.digests) if last else {}
            if (named := _named_anew(what, before, after)) is not None:
                seen, known[str(named)] = known.get(str(named)), digest(state.on_disk[named])
                if before and before.trial and seen not in (None, known[str(named)]):
                    raise Refused(f"The files of version {named} have changed since its trial began. Release it anew.")
            entry = Entry(after.serial, _text(datetime.now(UTC)), _who(), what, " ".join(reason.split()), after, {})
            lag = self._write(_with_digests(entry, known, state.on_disk), state.history)
            return Change(before, after, state.notes, lag)

    def _look(self) -> State:
        with _explained():
            past, on_disk = read_history(self.home / history.FILE_NAME), find_versions(self.home)
            state = self._compare(past, on_disk)
            notes = [f"{history.FILE_NAME}: {problem}." for problem in past.problems]
            if past.torn:
                notes.append(f"The last line of {history.FILE_NAME} has no end, because its command was ended.")
            return replace(state, notes=(*notes, *state.notes))

    def _compare(self, past: History, on_disk: Mapping[int, Path]) -> State:
        """Compare the document with the last line of the history."""
        file, last = self.home / FILE_NAME, past.last
        logged = last.document if last else None
        try:
            found = self._find(file, logged)
            if found and found != logged and found.stable not in on_disk:
                raise ReleaseError(f"{file} names version {found.stable} as stable, which is not on disk")
            if found and found != logged and found.serial >= SERIALS_BY_HAND:
                raise ReleaseError(f"Expected a serial below {SERIALS_BY_HAND} in {file}. Received: {found.serial}")
        except ReleaseError as exc:
            instead = f"release {logged.serial} of the history counts" if logged else "it does not count"
            note = f"{exc}. So {instead}, and the next change replaces the document."
            return State(logged or self._seen, past, on_disk, (note,))
        self._seen = found
        if found == logged:
            return State(found, past, on_disk)
        if last and found == past.before_last and not self._is_published(last):
            note = f"The command of release {last.serial} was ended before it wrote {FILE_NAME}."
            note = f"{note} The next change does"
            back = "" if last.what == "try" else "; `rollback` takes it back, and goes back from what answers now"
            note = f"{note}{back}."
            return State(found, past, on_disk, (note,), is_owed=True)
        when = datetime.now(UTC)
        if found:
            when = min(when, datetime.fromtimestamp(file.stat().st_mtime, UTC))
        if last:  # a file that was copied may be older
            when = max(when, last.time)
        edited = "edited" if found else "removed"
        entry = Entry(found.serial if found else past.next_serial, _text(when), "", BY_HAND, edited, found, {})
        note = f"{FILE_NAME} was {edited} by hand; the next change adds that to {history.FILE_NAME}."
        return State(found, past, on_disk, (note,), by_hand=entry)

    def _find(self, file: Path, logged: Release | None) -> Release | None:
        """Return the document; of one that has just gone, wait until it is back, or was removed."""
        found, give_up = read_release(file), time.monotonic() + REMOVED_S
        age = time.time() - self.home.stat().st_mtime
        was_there = self._seen or (logged and abs(age) < RECENT_S and not self._is_removed)
        while was_there and not found and time.monotonic() < give_up:
            time.sleep(0.1)
            found = read_release(file)
        self._is_removed = found is None
        return found

    def _recover(self, state: State, *, takes_back: bool) -> tuple[State, str]:
        """Finish or take back what an ended command left undone; return what the store says then, and what is wrong.

        A trial is finished: who rolls it back wants to end it, and to keep the stable version.
        """
        for name in (FILE_NAME, model_config.FILE_NAME):
            for draft in self.home.glob(f"{name}.draft-*"):
                draft.unlink(missing_ok=True)
        last, lag = state.history.last, ""
        if takes_back and state.is_owed and last and last.what != "try":
            os.truncate(self.home / history.FILE_NAME, state.history.last_start)
            state = replace(self._look(), notes=state.notes)
            last = state.history.last
        if state.by_hand:
            lag = self._write(_with_digests(state.by_hand, last.digests if last else {}, state.on_disk), state.history)
        elif last:
            lag = self._publish(last)
        return replace(self._look(), notes=state.notes) if state.is_unfinished else state, lag

    def _write(self, entry: Entry, past: History) -> str:
        """Make a change: the history first, so that it can be finished when this command is ended; return as below."""
        file = self.home / history.FILE_NAME
        append(file, past, entry)
        self._share(file)
        try:
            if not past.size:  # its name is new
                sync(self.home)
            return self._publish(entry)
        except OSError:  # the document is as it was
            os.truncate(file, past.size)
            raise

    def _publish(self, entry: Entry) -> str:
        """Write what a line of the history says into the other files, unless they say so; return what went wrong."""
        if entry.document:
            self._write_text(self.home / FILE_NAME, entry.document.to_json())
        else:
            (self.home / FILE_NAME).unlink(missing_ok=True)
        sync(self.home)  # the lock says next that this is done
        with suppress(OSError):
            (self.home / LOCK_NAME).write_text(str(entry.serial))
        try:
            self._write_text(self.home / model_config.FILE_NAME, self._config(entry.document, entry.serial))
        except OSError as exc:
            reason = f"was not written: {exc.strerror}"
        except ValueError as exc:
            reason = f"is not understood, and stays as it is: {exc}"
        else:
            return ""
        release = entry.document  # with a trial, the command is `try`; others may be refused when they are repeated
        again = "repeat the command" if not release or release.trial else f"`promote {release.stable}`"
        reason = f"{model_config.FILE_NAME} {reason.rstrip('.')}"
        return f"{reason}. So TensorFlow Serving does not follow. Mend that, then {again}."

    def _is_published(self, entry: Entry) -> bool:
        lock = self.home / LOCK_NAME
        return lock.exists() and lock.read_bytes() == str(entry.serial).encode()

    def _write_text(self, path: Path, text: str) -> None:
        if path.exists() and path.read_bytes() == text.encode():
            return
        with written_whole(path) as draft:
            draft.write_text(text, encoding="utf-8")
            self._share(draft)
            sync(draft)

    def _config(self, release: Release | None, serial: int) -> str:
        file = self.home / model_config.FILE_NAME
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        versions = release.versions & find_versions(self.home).keys() if release else set()
        return model_config.compose(text, self.home, versions, serial)

    def _share(self, path: Path) -> None:
        """Give a file to the folder's owner, as far as this user may, and let those write it who may write there."""
        folder = self.home.stat()
        with suppress(OSError):
            os.chown(path, folder.st_uid if os.geteuid() == 0 else -1, folder.st_gid)
        with suppress(OSError):
            path.chmod(folder.st_mode & 0o666)


def open_ledger(store: Path, model: str) -> Ledger:
    """Return the ledger of a store's model.

    Raises:
        Refused: There is no such model, or the store cannot be read.
    """
    home = store / model
    with _explained():
        if model and Path(model).name == model and model[0] != "." and home.is_dir():
            return Ledger(home)
        models = sorted(each.name for each in store.glob("[!.]*") if each.is_dir())
    names = ", ".join(models) or "it has none; --store names another"
    raise Refused(f"Expected a model of {store} ({names}). Received: {model!r}")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = f"{exc.filename or 'The store'}: {exc.strerror}."
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Unwritable(f"{reason} Changes need a store that can be written, and a user who may.") from exc
        raise Passing(reason) from exc


def _named_anew(what: str, before: Release | None, after: Release) -> int | None:
    """Return the version whose files a change takes as they are now; none for a rollback, which must be quick."""
    if what == "promote":
        return after.stable
    return after.trial.version if after.trial and not (before and before.trial) else None


def _with_digests(entry: Entry, known: Mapping[str, str], on_disk: Mapping[int, Path]) -> Entry:
    """Add the digests of the versions that a document names, where they are known or can be computed."""
    digests = {}
    for number in sorted(entry.document.versions if entry.document else ()):
        with suppress(OSError, KeyError):  # a version that was damaged must not keep another from answering
            digests[str(number)] = known.get(str(number)) or digest(on_disk[number])
    return replace(entry, digests=digests)


def _expect_on_disk(state: State, version: int) -> None:
    if version not in state.on_disk:
        raise Refused(f"Version {version} is not on disk. {_on_disk(state)}")


def _expect_trial(trial: Trial | None, serial: int | None) -> None:
    if serial is not None and (not trial or trial.serial != serial):
        raise Passing(f"The trial of release {serial} has ended.")


def _on_disk(state: State) -> str:
    numbers = sorted(state.on_disk)
    lower = f", and {len(numbers) - NUMBERS_SHOWN} lower ones" if len(numbers) > NUMBERS_SHOWN else ""
    return f"On disk: {', '.join(map(str, numbers[-NUMBERS_SHOWN:])) or 'none'}{lower}."


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _who() -> str:
    """Return who runs this, and where: of sudo, the one who called it; in a container, $USER if it was passed on."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
