"""The release document: reading, refusing, and dividing requests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract import release
from contract.release import MOST_BYTES, Release, ReleaseError, ReleaseFile, Trial, read_release

WHOLE = Release(3, serial=7, trial=Trial(4, "share", 0.1, "2026-11-28T21:00:00Z", 6), previous=2)


def test_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every member comes back, and all versions that it names are to stay loaded."""
    file = tmp_path / "release.json"
    file.write_text(WHOLE.to_json())
    assert read_release(file) == WHOLE
    assert WHOLE.versions == {2, 3, 4}


def test_written_by_hand_a_document_needs_the_stable_version_only(tmp_path: Path) -> None:
    """Whoever keeps it in git leaves out what the command keeps count of."""
    file = tmp_path / "release.json"
    file.write_text('{"stable": 3, "trial": {"version": 4, "mode": "shadow"}}')
    assert read_release(file) == Release(3, trial=Trial(4, "shadow"))


def test_without_a_document_there_is_no_release(tmp_path: Path) -> None:
    """A missing file, and a missing folder, mean the newest version."""
    assert read_release(tmp_path / "release.json") is None
    assert read_release(tmp_path / "none" / "release.json") is None


def test_a_document_that_is_missing_for_a_moment_was_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may replace it in two steps, and a volume may be away. Where none was before, there is none at once.

    One that was there but could not be used was one too.
    """

    def read_after(seconds: float) -> Release | str | None:
        now.append(now[-1] + seconds)
        try:
            return file.read()
        except ReleaseError as exc:
            return str(exc)

    now = [100.0]
    monkeypatch.setattr(release, "time", SimpleNamespace(monotonic=lambda: now[-1]))
    path, away = tmp_path / "store" / "release.json", tmp_path / "away"
    file, missing = ReleaseFile(path), f"{path} is not there, which counts after 3 s"
    assert read_after(0) is None
    path.parent.mkdir()
    for text in ("{", WHOLE.to_json(), WHOLE.to_json()):
        path.write_text(text)
        assert (read_after(0) == WHOLE) == (text != "{")
        path.unlink()
        assert [read_after(9), read_after(2.9)] == [missing] * 2
    path.parent.rename(away)
    assert read_after(9) == f"{path.parent} is not there"
    away.rename(path.parent)
    assert [read_after(9), read_after(2.9)] == [missing] * 2
    assert read_after(0.2) is read_after(0) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expected JSON"),
        ("{", "Expected JSON"),
        ('{"stable": 3', "Expected JSON"),
        ("[" * 60_000, "Expected JSON"),
        ("\0" * (MOST_BYTES + 1), "at most 65536 bytes"),
        ("[]", "a JSON object"),
        ("{}", "with stable"),
        ('{"stable": "3"}', "stable to be an integer"),
        ('{"stable": true}', "stable to be an integer"),
        ('{"stable": 3.0}', "stable to be an integer"),
        ('{"stable": -1}', "stable to be an integer"),
        ('{"stable": 9223372036854775808}', "stable to be an integer"),
        ('{"stable": 3, "serial": 9007199254740991}', "serial to be an integer from 0 and below 9000000000000000. "),
        ('{"stable": 3, "trail": {}}', "Received: trail"),
        ('{"stable": 3, "trial": 4}', "trial to be a JSON object"),
        ('{"stable": 3, "trial": {}}', "with version and mode"),
        ('{"stable": 3, "trial": {"version": 3, "mode": "shadow"}}', "another trial.version"),
        ('{"stable": 3, "trial": {"version": 4, "mode": "canary"}}', "shadow or share"),
        ('{"stable": 3, "trial": {"version": 4, "mode": []}}', "shadow or share"),
        ('{"stable": 3, "trial": {"version": 4, "mode": "share", "share": 0}}', "above 0"),
        ('{"stable": 3, "trial": {"version": 4, "mode": "share", "share": 10}}', "up to 1"),
        ('{"stable": 3, "trial": {"version": 4, "mode": "share", "share": NaN}}', "above 0"),
        ('{"stable": 3, "trial": {"version": 4, "mode": "share", "share": "0.1"}}', "a number"),
        ('{"stable": 3, "previous": "2"}', "previous to be an integer"),
    ],
)
def test_refused_documents_say_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    """A document that does not parse, or says what it cannot mean, is refused with the file and the member."""
    file = tmp_path / "release.json"
    file.write_text(text)
    with pytest.raises(ReleaseError, match=words) as caught:
        read_release(file)
    assert str(file) in str(caught.value)


def test_folder_in_place_of_the_document_is_refused(tmp_path: Path) -> None:
    """As a mistaken mount makes one."""
    with pytest.raises(ReleaseError, match="cannot be read"):
        read_release(tmp_path)


def test_larger_share_moves_nobody_back() -> None:
    """Whoever is in a trial stays in it while its share grows; the share is met; another trial divides anew."""
    keys = [f"user {number}" for number in range(10_000)]
    parts = [{key for key in keys if Trial(4, "share", share, serial=6).includes(key)} for share in (0.01, 0.1, 0.5, 1)]
    assert parts[0] < parts[1] < parts[2] < parts[3] == set(keys)
    assert [len(part) / len(keys) for part in parts] == pytest.approx([0.01, 0.1, 0.5, 1.0], abs=0.015)
    other = {key for key in keys if Trial(4, "share", 0.1, serial=9).includes(key)}
    assert len(other & parts[1]) / len(keys) == pytest.approx(0.01, abs=0.005)


def test_document_is_json_that_people_can_read() -> None:
    """One member a line, as a diff in git shows it."""
    assert json.loads(WHOLE.to_json())["trial"]["share"] == 0.1
    assert '  "stable": 3,\n' in WHOLE.to_json()
