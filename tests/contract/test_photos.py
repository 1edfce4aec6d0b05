"""contract/photos.py: which files of a folder are photos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.photos import photos_in


def test_photos_lie_anywhere_below_a_folder(tmp_path: Path) -> None:
    """In folders, and in links to folders, each once though they go in circles; not above it, and no hidden ones."""
    folder, elsewhere = tmp_path / "cats", tmp_path / "elsewhere"
    files = ("a.JPG", "b.txt", ".c.jpg", "deep/d.png", "@eaDir/e.jpg", ".git/f.jpg", "g.jpg/h.webp")
    for file in (*(folder / each for each in files), elsewhere / "i.jpg"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(folder)
    (folder / "twice").symlink_to("deep")
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "k.jpg").touch()
    for above in (folder / "above", elsewhere / "above"):
        above.symlink_to(tmp_path)
    (folder / "broken.jpg").symlink_to("nothing")
    (folder / "j.jpg").symlink_to(elsewhere / "i.jpg")
    names = ("a.JPG", "broken.jpg", "deep/d.png", "g.jpg/h.webp", "j.jpg", "linked/i.jpg")
    assert photos_in(folder) == [folder / name for name in names]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its photos would be missing without a word."""
    (tmp_path / "cats" / "deep").mkdir(parents=True)
    (tmp_path / "cats" / "a.jpg").touch()
    (tmp_path / "cats" / "deep").chmod(0)
    monkeypatch.chdir(tmp_path / "cats")  # as another user need not see where this is
    user = os.geteuid()
    os.seteuid(user or 12345)  # root may read all
    try:
        with pytest.raises(PermissionError, match="deep"):
            photos_in(Path())
    finally:
        os.seteuid(user)
