"""python -m gateway.release: what each command writes, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contract.release import read_release
from gateway.release import ledger
from gateway.release.__main__ import main
from tests.gateway.release.conftest import Store, add_version


def test_a_release_from_the_first_promotion_to_going_back(store: Store) -> None:
    """Each step says what answers, and the document is what gateways read."""
    assert "newest version that gateways accept" in store.do("status")
    assert "version 1 answers. Newer versions wait" in store.do("promote", "1")
    assert "version 1 answers, and version 2 is tried in shadow. End it with" in store.do("try", "2", "--shadow")
    assert "version 2 answers 10 % of the requests" in store.do("try", "2", "--share", "10%")
    assert "version 2 answers. Version 1 stays loaded" in store.do("promote")
    assert "version 1 answers. Before, version 2 did" in store.do("rollback", "--reason", "wrong\nlabels")
    assert store.document == {"serial": 5, "stable": 1, "previous": 2, "trial": None}
    assert [(line["what"], line["why"]) for line in store.lines] == [
        ("promote", ""),
        ("try", ""),
        ("try", ""),
        ("promote", ""),
        ("rollback", "wrong labels"),
    ]
    assert all(line["document"]["serial"] == line["serial"] for line in store.lines)


def test_a_trial_that_grows_keeps_its_beginning(store: Store) -> None:
    """Its serial divides the requests, so nobody moves back; the same share again changes nothing."""
    store.do("promote", "1")
    store.do("try", "2", "--share", "0.1")
    first = store.document
    store.do("try", "2", "--share", "50%")
    assert store.document == {**first, "serial": 3, "trial": {**first["trial"], "share": 0.5}}
    assert "Nothing to change" in store.do("try", "2", "--share", "0.5")
    assert "Nothing to change" not in store.do("rollback")
    assert store.document == {"serial": 4, "stable": 1, "previous": None, "trial": None}
    store.do("try", "2", "--share", "0.1")
    assert store.document["trial"]["serial"] == 5


@pytest.mark.parametrize(
    ("before", "command", "reason"),
    [
        ([], "try 2 --shadow", "First say which version is stable"),
        ([], "promote", "Nothing is being tried"),
        ([], "promote 9", "Version 9 is not on disk. On disk: 1, 2, 3, 4."),
        ([], "rollback", "no release.json"),
        (["promote 1"], "try 1 --shadow", "Version 1 is the stable one"),
        (["promote 1"], "try 9 --share 10%", "Version 9 is not on disk"),
        (["promote 1"], "promote", "Nothing is being tried"),
        (["promote 1"], "rollback", "No version was stable before version 1"),
        (["promote 1", "try 2 --shadow"], "try 3 --shadow", "Version 2 is being tried"),
        (["promote 1", "try 2 --shadow"], "promote 3", "Version 2 is being tried"),
        (["promote 1", "try 2 --shadow"], "promote 1", "Version 2 is being tried"),
        (["promote 1", "promote 2", "rollback"], "rollback", "last change was a rollback already"),
        (["promote 2", "promote 3", "try 4 --shadow", "rollback"], "rollback", "last change was a rollback already"),
        (["promote 1"], "at 2999-01-01", "a time that has passed"),
        (["promote 1"], "at yesterday", "a time such as"),
        (["promote 1"], "at 0001-01-01", "a time such as"),
    ],
)
def test_refusals(store: Store, before: list[str], command: str, reason: str) -> None:
    """They change nothing, and say why."""
    for each in before:
        store.do(*each.split())
    assert reason in store.refuse(*command.split())


def test_a_full_disk_fails_what_only_shows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is made, and its status says so."""
    for command, expected in (("promote 1", 0), ("status", 1), ("history", 1)):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            status, _, err = store.run(*command.split())
        assert (status, err) == (expected, "Not all lines could be written: No space left on device.\n")
    assert store.document["stable"] == 1


@pytest.mark.parametrize("text", ["0", "0%", "10", "101%", "1.1", "-0.1", "nan", "ten", "%", ""])
def test_what_is_no_share(store: Store, text: str) -> None:
    """A bare 10 could be a tenth or all."""
    with pytest.raises(SystemExit) as refusal:
        store.run("try", "2", f"--share={text}")
    assert refusal.value.code == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((each, "(clothing)") for each in ("shoes", "../clothing", "..", ".", "", "clothing/1")),
        ("a" * 300, "too long"),
    ],
)
def test_names_that_are_no_model(store: Store, name: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the models, or says why the store cannot be read."""
    assert main([name, "--store", str(store.path), "status"]) == 1
    assert reason in capsys.readouterr().err


def test_names_with_dots(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """They are names like any other."""
    add_version(store.path / "v1.2-b_c", 7)
    assert main(["v1.2-b_c", "promote", "7", "--store", str(store.path)]) == 0
    assert main(["v1.2-b_c", "--store", str(store.path), "status"]) == 0
    assert "v1.2-b_c: release 1\n  answers      version 7\n" in capsys.readouterr().out


def test_a_version_that_was_removed(store: Store) -> None:
    """It is named; nothing goes back to it, and a promotion does not keep it."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "1").rename(store.home / "gone")
    assert "stays loaded version 1, which is NOT on disk" in store.do("status")
    assert "Version 1 is not on disk" in store.run("rollback")[2]
    (store.home / "2").rename(store.home / "gone too")
    store.do("promote", "3")
    assert store.document["previous"] is None


def test_a_refused_rollback_does_not_say_that_a_removed_version_answers(store: Store) -> None:
    """It is the stable one all the same, and the message lists what is on disk."""
    for command in (["promote", "1"], ["promote", "2"], ["rollback"]):
        store.do(*command)
    (store.home / "1").rename(store.home / "gone")
    status, _, refusal = store.run("rollback")
    assert status == 1 and "Version 1 is the stable one; before it was version 2." in refusal
    assert "answers" not in refusal and "On disk: 2, 3, 4." in refusal


def test_a_store_of_many_versions_is_not_listed_whole(store: Store) -> None:
    """The newest ones are what somebody may mean."""
    for number in range(5, 26):
        add_version(store.home, number)
    shown = ", ".join(map(str, range(6, 26)))
    assert f"On disk: {shown}, and 5 lower ones." in store.refuse("promote", "99")


def test_an_empty_version(store: Store) -> None:
    """A folder without files is a mistake."""
    (store.home / "5").mkdir()
    assert "It has no files" in store.refuse("promote", "5")


def test_a_version_that_changed_during_its_trial(store: Store) -> None:
    """What was tried is what is promoted; going back works."""
    store.do("promote", "1")
    store.do("try", "2", "--shadow")
    (store.home / "2" / "saved_model.pb").write_bytes(b"another")
    assert "have changed since its trial began" in store.refuse("promote")
    store.do("rollback")


def test_digests_are_what_sha256sum_says(store: Store) -> None:
    """So anybody can check them; a link to a file counts, and what is in a linked folder does not."""
    (store.home / "2" / "variables").symlink_to(store.home / "1" / "saved_model.pb")
    (store.home / "2" / "linked").symlink_to(store.home / "1")
    store.do("promote", "2")
    command = "find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=store.home / "2", capture_output=True, text=True, check=True)
    assert store.lines[0]["digests"] == {"2": done.stdout.split()[0]}


def test_status(store: Store) -> None:
    """It says all that a person needs before acting, also that a gateway was not asked."""
    assert "so none was asked" in store.run("status", "--gateway", "http://127.0.0.1:9")[2]
    store.do("promote", "1")
    store.do("promote", "2")
    store.do("try", "3", "--share", "2.5%", "--reason", "new photos \x1b[31m")
    rows = dict(line.split(maxsplit=1) for line in store.do("status").splitlines()[1:4])
    assert rows == {
        "answers": "version 2",
        "on": "trial     version 3 answers 2.5 % of the requests",
        "stays": "loaded version 1",
    }
    rest = store.do("status").splitlines()[4:]
    assert rest[0] == "  on disk      1, 2, 3, 4"
    assert rest[1] == "  waiting      4: newer than what answers; try or promote it"
    assert rest[2].startswith("  last change  20") and rest[2].endswith("(new photos ?[31m)")


def test_at_with_and_without_a_zone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone, a time is that of this machine; either way the answer names both."""
    store.do("promote", "1")
    store.do("try", "2", "--share", "10%")
    when = datetime.fromisoformat(store.lines[0]["when"])
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # five hours and three quarters before UTC
    time.tzset()
    for text in (
        when.isoformat(),
        when.astimezone().replace(tzinfo=None).isoformat(" "),
        when.astimezone().isoformat(),
    ):
        out = store.do("at", *text.split())
        assert "version 1 answers.\nSince release 1" in out and f"+05:45 ({when:%Y-%m-%d %H:%M:%S} UTC)" in out
    assert "version 2 answers 10 %" in store.do("at", datetime.now().isoformat())
    assert "the newest accepted version answers" in store.do("at", (when - timedelta(days=1)).isoformat())
    monkeypatch.undo()
    time.tzset()


def test_history(store: Store) -> None:
    """A line for each change."""
    store.do("promote", "1", "--reason", "the first")
    store.do("promote", "2")
    lines = store.do("history").splitlines()
    assert " UTC, promote by " in lines[0] and lines[0].endswith("(the first): version 1 answers")
    assert lines[2] == "2 changes; each line continues the one before it."


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda now: now + timedelta(days=1), "release 2 is later than now"),
        (lambda now: datetime.max.replace(tzinfo=UTC), "release 2 is later than now"),
        (lambda now: now - timedelta(days=365), "release 1 is later than release 2"),
    ],
    ids=["tomorrow", "the last second", "a year ago"],
)
def test_a_clock_that_was_wrong_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[datetime], datetime], said: str
) -> None:
    """By what shows times, which is no damage of the history."""
    store.do("promote", "1")
    text = ledger._text
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_text", lambda time: text(wrong(time)))
        store.do("promote", "2")
    for command in (["history"], ["at", datetime.now().isoformat()]):
        status, _, err = store.run(*command)
        assert status == 0 and f"The time of {said}: a clock was wrong, so `at` may name another version." in err


def test_who_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sudo, the one who called it; in a container, the number of a user without a name."""
    monkeypatch.setenv("SUDO_USER", "ann")
    store.do("promote", "1")
    monkeypatch.delenv("SUDO_USER")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", dict[int, object]().__getitem__)
    monkeypatch.setattr("os.getuid", lambda: 10001)
    store.do("promote", "2")
    assert [line["who"].partition("@")[0] for line in store.lines] == ["ann", "10001"]


def test_the_document_is_read_by_everyone(store: Store) -> None:
    """Gateways run as another user; files are as open as their folder."""
    store.home.chmod(0o775)
    store.do("promote", "1")
    modes = {path.stat().st_mode & 0o777 for path in store.home.iterdir() if path.is_file()}
    assert modes == {0o664}
    release = read_release(store.home / "release.json")
    assert release and release.stable == 1


def test_history_into_a_pipe_that_closes(store: Store) -> None:
    """`history | head` is no failure."""
    for number in (1, 2, 3, 4) * 3:
        store.do("promote", str(number))
    line = f"{sys.executable} -m gateway.release clothing --store {store.path} history | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("release 1 ") and not done.stderr


def test_help_has_examples_and_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Someone at three in the morning finds what to type, and a pipeline's author what comes back."""
    for arguments in (["--help"], ["clothing", "rollback", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        out = capsys.readouterr().out
        assert all(f"\n  {status}  " in out for status in (0, 1, 2, 3)) and "%%" not in out


def test_it_needs_no_tensorflow(store: Store) -> None:
    """The gateway's image has none."""
    run = f"main(['clothing', '--store', {str(store.path)!r}, 'promote', '1'])"
    code = f"import sys; from gateway.release.__main__ import main; {run}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_lines_are_json_of_known_members(store: Store) -> None:
    """Other programs may read the history."""
    store.do("promote", "1")
    (line,) = Path(store.home / "history.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["serial", "when", "who", "what", "why", "document", "digests", "before"]
