"""What the tests of the whole share: exports to release, images to ask for, and a DNS server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import run_export
from tests.programs.name_server import NameServer
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo


@pytest.fixture(scope="session")
def exports(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exports that answer differently: by their weights and names, by the count of classes, and by the size.

    After these four come one that knows an image unlike all, and the first one with its class names permuted.
    """
    store = tmp_path_factory.mktemp("exports")
    names, count, size = {"classes": ["ant", "bee", "fly"]}, {"classes": [*"abcde"]}, {"size": 24}
    others = {"scored": True}, {"classes": ["dog", "bird", "cat"]}
    run_export(store, "tiny", {"seed": 1, **names}, {"seed": 2, **count}, {"seed": 3, **size}, *others)
    return [tiny_store / "tiny" / "1", *(store / "tiny" / number for number in "12345")]


@pytest.fixture
def urls(origin: Origin) -> dict[str, bytes]:
    """Images by URL: JPEG, PNG, a large one, and one turned by its EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "a.jpg": encode(photo(120, 90, seed=5)),
        "b.png": encode(photo(50, 70, seed=6), "PNG"),
        "large.jpg": encode(photo(480, 320, seed=7)),
        "turned.jpg": encode(photo(90, 60, seed=8), exif=exif),
    }
    return {origin.add(path, image): image for path, image in images.items()}


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A DNS server that knows no address yet."""
    with NameServer() as server:
        yield server
