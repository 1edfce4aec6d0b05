"""contract/store.py: which versions lie on disk."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from contract.store import find_versions, versions_of


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["1", "2", "10"], [1, 2, 10]),
        (["v2", "2.tmp", "best", ".in", "tmp-3", "1e3", "+4", " 5", "٣"], []),
        (["0011"], [11]),
        (["-3"], [-3]),
        (["9223372036854775807", "9223372036854775808"], [2**63 - 1]),
    ],
)
def test_only_int64_names_are_versions(tmp_path, names, numbers):
    """A directory is a version if its whole name is a signed 64-bit integer."""
    for name in names:
        (tmp_path / name).mkdir()
    assert sorted(find_versions(tmp_path)) == numbers


def test_the_last_spelling_in_byte_order_wins(tmp_path):
    """Of 011 and 11, version 11 is the directory that sorts last."""
    (tmp_path / "011").mkdir()
    (tmp_path / "11").mkdir()
    assert find_versions(tmp_path) == {11: tmp_path / "11"}


def test_files_are_not_versions(tmp_path):
    """A file with a number for a name is ignored."""
    (tmp_path / "7").write_text("notes")
    assert find_versions(tmp_path) == {}


def test_a_base_path_that_moves_away_during_the_look_hides_no_version(tmp_path):
    """Each look sees all versions or none of the path, while another thread moves it away and back."""
    home, ended = tmp_path / "m", threading.Event()
    (home / "1").mkdir(parents=True)

    def move() -> None:
        while not ended.is_set():
            home.rename(tmp_path / "away").rename(home)

    mover = threading.Thread(target=move)
    mover.start()
    seen = []
    try:
        for _ in range(2000):
            with suppress(FileNotFoundError):
                seen.append(find_versions(home))
    finally:
        ended.set()
        mover.join()
    assert seen and all(versions == {1: home / "1"} for versions in seen)


def test_a_missing_base_path_is_an_error(tmp_path):
    """A missing folder is an error; an empty one has no versions."""
    with pytest.raises(OSError):
        find_versions(tmp_path / "nowhere")


def test_versions_of_a_model_are_in_order_and_none_without_it(tmp_path):
    """As numbers, not as names."""
    for name in ("10", "9", "draft"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
    assert list(versions_of(tmp_path, "tiny")) == [9, 10]
    assert versions_of(tmp_path, "other") == {}
