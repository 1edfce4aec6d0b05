"""contract/disk.py: files that appear whole or not at all."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import pytest

from contract.disk import locked, written_whole


def test_two_writers_of_a_file_have_a_draft_each(tmp_path):
    """Also in containers that share a volume, where each process has number 1; what is whole last stays."""
    path = tmp_path / "file"
    with written_whole(path) as first, written_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert {first, second} == set(tmp_path.glob("file.draft-*"))
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """By the file that is there; an error of `flock` names none."""
    path = tmp_path / "lock"
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    with pytest.raises(OSError, match=f"The file system cannot lock files: '{path}'"), locked(path, AssertionError()):
        pass
