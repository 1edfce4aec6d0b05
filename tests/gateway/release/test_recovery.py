"""What stays when a command is killed, two run at once, or a person edits the files."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from contract.disk import locked
from contract.release import SERIALS, Release, read_release
from gateway.release import history, ledger
from gateway.release.__main__ import main
from gateway.release.history import read_history
from gateway.release.ledger import Ledger, Refused
from tests.gateway.release.conftest import Store, files

# For each line that it reads, it makes changes as the command does, and kills that command after so many seconds.
KILLS = """
import os, signal, sys, time
from itertools import count
from gateway.release.__main__ import main

def change(number):
    for command in ([f"try 2 --share {number}%", "rollback", "promote 1"], ["try 2 --shadow", "promote", "promote 1"]):
        for each in command:
            main(["clothing", "--store", sys.argv[1], *each.split()])

for line in sys.stdin:
    child = os.fork()
    if not child:
        for number in count(1):
            change(number)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", file=sys.stderr, flush=True)
"""


@contextmanager
def killing(store: Path) -> Iterator[Callable[[float], None]]:
    """Yield a function that makes changes for so many seconds, and returns when their command was killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", KILLS, store], text=True, **pipes) as process:
        assert process.stdin and process.stderr

        def kill_after(seconds: float) -> None:
            print(seconds, file=process.stdin, flush=True)
            assert "killed\n" in iter(process.stderr.readline, "")

        yield kill_after
        process.stdin.close()


@pytest.mark.processes
def test_a_kill_at_any_instant_leaves_all_whole(store: Store) -> None:
    """The document is of the last or the last but one line, the chain holds, and the next command works."""
    store.do("promote", "1")
    with killing(store.path) as kill_after:
        for instant in range(20):
            kill_after(random.uniform(0, 0.3))
            past, found = read_history(store.home / "history.jsonl"), read_release(store.home / "release.json")
            assert past.last and past.last.document and not past.problems
            assert found in (past.last.document, past.before_last)
            state = Ledger(store.home).read()
            assert not state.by_hand and state.is_owed == (found != past.last.document)
            if past.last.document.trial:
                assert store.run("rollback")[0] == 0 or state.is_owed
            store.do("promote", str(3 + instant % 2), "--reason", "after a kill")
            assert not Ledger(store.home).read().notes
    assert files(store.home).keys() == {"release.json", "history.jsonl", "models.config"}


@pytest.mark.parametrize("step", ["_share", "_publish", "_config"])
def test_a_command_that_ends_between_two_steps_is_finished(
    store: Store, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history has its line; `status` says what is owed, and the next command writes it first."""
    store.do("promote", "1")

    class Killed(BaseException):
        pass

    def kill(self: Ledger, path: Path, *_: object) -> None:
        if step != "_share" or path.name == "history.jsonl":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, step, kill)
        if step != "_share":
            patch.setattr(Ledger, "_recover", lambda self, state, **_: (state, ""))
        store.run("promote", "2")
    _, _, err = store.run("status")
    assert ("ended before it wrote release.json" in err) == (step != "_config")
    answered = f"version {1 if step != '_config' else 2} answers."
    assert answered in store.do("at", datetime.now().isoformat())
    store.do("try", "3", "--shadow")
    assert store.document["stable"] == 2 and store.document["serial"] == 3
    assert store.run("history")[0] == 0
    assert re.findall(r"versions: (\d)", (store.home / "models.config").read_text()) == ["1", "2", "3"]


def test_a_change_reads_a_history_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be long, and others wait meanwhile; what was finished first is read again."""
    store.do("promote", "1")
    read = Mock(side_effect=history.read_history)
    monkeypatch.setattr(ledger, "read_history", read)
    store.do("promote", "2")
    assert read.call_count == 1
    store.remove_document()
    store.do("promote", "3")
    assert read.call_count == 3


def test_a_torn_line_is_cut_off(store: Store) -> None:
    """A command was ended while it wrote; what it wanted did not happen."""
    store.do("promote", "1")
    whole = (store.home / "history.jsonl").read_bytes()
    (store.home / "history.jsonl").write_bytes(whole + whole[:100])
    status, _, err = store.run("history")
    assert status == 0 and "has no end" in err
    assert "has no end" in store.run("promote", "2")[2]
    assert store.run("history")[2] == "" and len(store.lines) == 2


def test_an_editor_that_leaves_the_last_end_out_loses_no_line(store: Store) -> None:
    """A last line that is whole but for its end counts."""
    store.do("promote", "1")
    whole = (store.home / "history.jsonl").read_bytes()
    (store.home / "history.jsonl").write_bytes(whole[:-1])
    store.do("promote", "2")
    assert (store.home / "history.jsonl").read_bytes().startswith(whole)
    assert store.run("history")[0] == 0 and len(store.lines) == 2


def test_commands_at_once_take_turns(store: Store) -> None:
    """None is lost."""
    store.do("promote", "1")
    store.do("try", "2", "--share", "1%")
    errors: list[str] = []

    def grow(share: float) -> None:
        try:
            Ledger(store.home).try_version(2, "share", share)
        except Refused as exc:
            errors.append(str(exc))

    threads = [threading.Thread(target=grow, args=(number / 100,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(store.lines) == 10
    assert [line["serial"] for line in store.lines] == list(range(1, 11))
    assert store.run("history")[0] == 0


def test_a_command_that_has_waited_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing."""
    monkeypatch.setattr(ledger, "LOCK_WAIT_S", 0.1)
    with locked(store.home / ".release-lock", AssertionError()):
        assert "Another command is changing" in store.refuse("promote", "1")


@pytest.mark.parametrize("serial", [40, ledger.SERIALS_BY_HAND - 1])
def test_a_document_edited_by_hand_gets_its_line(store: Store, serial: int) -> None:
    """It counts, as gateways follow it; the next change goes on from it, under a serial that nobody used."""
    store.do("promote", "1")
    (store.home / "release.json").write_text(Release(3, serial).to_json())
    _, out, err = store.run("status")
    assert "answers      version 3" in out and "edited by hand" in err
    assert "version 3 answers." in store.do("at", datetime.now().isoformat())
    store.do("try", "4", "--shadow")
    assert [(line["what"], line["serial"], line["who"] == "") for line in store.lines] == [
        ("promote", 1, False),
        ("by hand", serial, True),
        ("try", serial + 1, False),
    ]
    assert list(store.lines[1]["digests"]) == ["3"]
    assert store.run("history")[2] == ""


@pytest.mark.parametrize("config", ["", "model_config_list { config { not_known: 1 } }"])
def test_a_document_put_back_by_hand_is_not_taken_for_a_kill(store: Store, config: str) -> None:
    """The command had ended, so the person is right, whatever `models.config` is."""
    (store.home / "models.config").write_text(config)
    store.run("promote", "1")
    old = (store.home / "release.json").read_text()
    store.run("promote", "2")
    (store.home / "release.json").write_text(old)
    assert "edited by hand" in store.run("status")[2]
    store.run("try", "3", "--shadow")
    assert store.document["stable"] == 1
    assert [line["what"] for line in store.lines] == ["promote", "promote", "by hand", "try"]


@pytest.mark.parametrize("changes", [1, 2])
def test_a_document_removed_by_hand(store: Store, changes: int) -> None:
    """The newest version answers again, and the next change says so in the history."""
    for number in range(changes):
        store.do("promote", str(number + 1))
    (store.home / "models.config").unlink()
    store.remove_document()
    _, out, err = store.run("status")
    assert "no release yet" in out and "removed by hand" in err
    assert "First say which version is stable" in store.run("try", "3", "--shadow")[2]
    assert "latest" in (store.home / "models.config").read_text()
    store.do("promote", "4")
    assert [line["what"] for line in store.lines] == ["promote"] * changes + ["by hand", "promote"]
    assert store.document == {"serial": changes + 2, "stable": 4, "previous": None, "trial": None}
    assert store.run("history")[2] == ""


@pytest.mark.parametrize("ahead_s", [-30, 0, 30])
def test_a_document_that_is_missing_for_a_moment_was_not_removed(store: Store, ahead_s: float) -> None:
    """Somebody may replace it in two steps. A command waits until it is back, whatever a file server's clock says."""
    for number in ("1", "2"):
        store.do("promote", number)
    for command in ("status", "rollback"):
        store.remove_document_for_a_moment()
        os.utime(store.home, (time.time() + ahead_s,) * 2)
        assert f"version {2 if command == 'status' else 1}" in store.do(command)
    assert [line["what"] for line in store.lines] == ["promote", "promote", "rollback"]


def test_a_removed_document_is_waited_for_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if others export into the folder while a command waits, perhaps under the lock; and it looks twice."""

    def read_and_touch(file: Path) -> Release | None:
        os.utime(store.home)
        assert next(reads)
        return read_release(file)

    store.do("promote", "1")
    (store.home / "release.json").unlink()
    reads = iter([True] * 6 + [False])
    monkeypatch.setattr(ledger, "REMOVED_S", 0.3)
    monkeypatch.setattr(ledger, "read_release", read_and_touch)
    assert "removed by hand" in store.run("status")[2]


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"stable": 77}', '{"stable": "x"}', "\0" * 10**5, "\udcff"),
        *(f'{{"stable": 3, "serial": {serial}}}' for serial in (ledger.SERIALS_BY_HAND, SERIALS - 1, 2**63 - 1)),
    ],
)
def test_a_document_that_cannot_be_used(store: Store, text: str) -> None:
    """It is named, and the history counts: going back works, as it must at night."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "release.json").write_bytes(text.encode(errors="surrogateescape"))
    _, out, err = store.run("status")
    assert "answers      version 2" in out and "release 2 of the history counts" in err
    status, _, err = store.run("rollback")
    assert status == 0 and "release.json" in err
    assert store.document["stable"] == 1 and store.run("status")[2] == ""


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"stable": 2', b'"stable": 4'), *lines[2:]], "continue line 2"),
        (lambda lines: [lines[0], lines[1].replace(b"2", b"9" * 16, 1), *lines[2:]], "Line 2 cannot be read"),
        (
            lambda lines: [lines[0], re.sub(rb'"20.*?Z"', b'"9999-12-31T23:59-01:00"', lines[1]), *lines[2:]],
            "Line 2 cannot",
        ),
        (lambda lines: [lines[0], *lines[2:]], "Line 2 does not continue line 1"),
        (lambda lines: lines[1:], "Line 1 "),
        (lambda lines: [lines[0], b"\xff\n", *lines[2:]], "Line 2 cannot be read"),
        (lambda lines: [lines[0], b"[" * 10**5 + b"\n", *lines[2:]], "Line 2 cannot be read"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "Line 1 "),
    ],
)
def test_an_edited_history_names_the_line(store: Store, edit, problem: str) -> None:
    """`history` fails, and commands still work."""
    for number in (1, 2, 3):
        store.do("promote", str(number))
    file = store.home / "history.jsonl"
    file.write_bytes(b"".join(edit(file.read_bytes().splitlines(keepends=True))))
    status, _, err = store.run("history")
    assert status == 1 and problem in err
    status, out, err = store.run("rollback")
    assert status == 0 and "version 2 answers" in out and problem in err
    assert store.run("history")[0] == 1


def test_a_history_that_was_removed(store: Store) -> None:
    """The document counts, and a new history begins with it."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "history.jsonl").unlink()
    store.do("rollback")
    assert store.document["stable"] == 1 and store.document["serial"] == 3
    assert [line["what"] for line in store.lines] == ["by hand", "rollback"]


def test_a_damaged_version_keeps_no_other_from_answering(store: Store) -> None:
    """Its digest is left out, even where a history begins anew."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "history.jsonl").unlink()
    shutil.rmtree(store.home / "2")
    (store.home / "2").mkdir()
    store.do("rollback")
    assert store.document["stable"] == 1
    assert [list(line["digests"]) for line in store.lines] == [["1"], ["1"]]


@pytest.mark.parametrize(
    ("before", "killed", "stable"),
    [
        ([], "promote 4", 1),
        ([], "rollback", 1),
        ([], "try 4 --shadow", 2),
        (["try 4 --shadow"], "promote", 2),
        (["try 4 --shadow"], "try 4 --share 50%", 2),
        (["try 4 --shadow"], "rollback", 2),
    ],
)
def test_a_rollback_goes_back_from_what_really_answers(
    store: Store, before: list[str], killed: str, stable: int
) -> None:
    """No version answers that has not: what a killed command wanted never happened, but for a trial, which ends."""
    for each in ("promote 1", "promote 2", *before):
        store.do(*each.split())
    names = ("release.json", "models.config", ".release-lock")
    old = {name: (store.home / name).read_bytes() for name in names}
    lines = store.lines
    store.do(*killed.split())
    lines += store.lines[-1:] if (is_try := killed.startswith("try")) else []
    for name, content in old.items():
        (store.home / name).write_bytes(content)
    status, out, err = store.run("rollback")
    assert status == 0 and "was ended before it wrote release.json" in err and f"version {stable} answers." in out
    assert ("The trial of version 4 has ended" in out) == bool(before or is_try)
    assert store.lines[:-1] == lines and store.lines[-1]["what"] == "rollback"
    assert (store.document["stable"], store.document["trial"]) == (stable, None)
    assert "was a rollback already" in store.refuse("rollback") and store.run("history")[2] == ""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_a_line(handle: int) -> None:
    if Path(f"/proc/self/fd/{handle}").readlink().name == "history.jsonl":
        full()


write = os.write


@pytest.mark.parametrize(
    ("call", "fails"),
    [
        ("os.write", full),
        ("os.write", lambda handle, line: write(handle, line[:50])),
        ("os.fsync", full_for_a_line),
        ("pathlib.Path.rename", full),
    ],
    ids=["none of a line", "half of it", "all of it, to say so later", "no document"],
)
def test_a_full_disk_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, fails: Callable[..., object]
) -> None:
    """What was written of a line is taken back, so that no later command finishes the change."""
    store.do("promote", "1")
    with monkeypatch.context() as patch:
        patch.setattr(call, fails)
        why = store.refuse("promote", "2")
    assert "No space left" in why and ("history.jsonl: " in why or call == "pathlib.Path.rename")
    store.do("promote", "2")
    assert store.run("history")[2] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_store_that_is_read_only(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What reads works; a change is refused with what it needs."""
    store.do("promote", "1")
    before = files(store.home)
    monkeypatch.chdir(store.path)
    os.seteuid(12345)
    try:
        for command, expected in (("status", 0), ("history", 0), ("at 2026-01-01", 0), ("promote 2", 1)):
            assert main(["clothing", "--store", ".", *command.split()]) == expected
    finally:
        os.seteuid(0)
    assert "Permission denied. Changes need a store that can be written" in capsys.readouterr().err
    assert files(store.home) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(store: Store) -> None:
    """So that both may change it later."""
    os.chown(store.home, 12345, 12346)
    store.do("promote", "1")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in store.home.iterdir() if path.is_file()}
    assert owners == {(12345, 12346)}


def test_a_watch_cannot_end_another_trial(store: Store) -> None:
    """Whoever watches names its trial by the serial."""
    book = Ledger(store.home)
    book.promote(1)
    serial = book.try_version(2, "shadow").after.serial
    book.rollback("by a person")
    book.try_version(2, "shadow")
    for act in (book.promote, book.rollback):
        with pytest.raises(Refused, match="has ended"):
            act(reason="the watch", trial_serial=serial)
    assert json.loads((store.home / "release.json").read_text())["trial"]["serial"] == 4
    assert isinstance(book.read().release, Release)
