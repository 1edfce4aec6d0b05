"""Folders of photos for the tests of this room."""

import pytest

from tests.programs.photos import encode, photo


@pytest.fixture(scope="module")
def jpegs():
    """Encoded photos, each another."""
    return [encode(photo(24, 16, seed)) for seed in range(40)]


@pytest.fixture
def fill(tmp_path, jpegs):
    """A function that writes photos into class folders, perhaps of a split, and returns the topmost folder."""

    def fill(counts, below=""):
        for name, count in counts.items():
            folder = tmp_path / "photos" / below / name
            folder.mkdir(parents=True, exist_ok=True)
            for position in range(count):
                (folder / f"{position:03}.jpg").write_bytes(jpegs[position])
        return tmp_path / "photos"

    return fill
