"""What the tests of the whole share: exports to release, images to ask for, and a DNS server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_export
from tests.programs.name_server import NameServer
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo


@pytest.fixture(scope="session")
def exports(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four exports that answer differently: by their weights and names, by the count of classes, and by the size."""
    store = tmp_path_factory.mktemp("exports")
    names, count, size = {"classes": ["ant", "bee", "fly"]}, {"classes": [*"abcde"]}, {"size": 24}
    run_export(store, "tiny", {"seed": 1, **names}, {"seed": 2, **count}, {"seed": 3, **size})
    return [tiny_store / "tiny" / "1", *(store / "tiny" / number for number in "123")]


@pytest.fixture
def urls(origin: Origin) -> dict[str, bytes]:
    """Three images by URL."""
    images = [encode(photo(seed=seed)) for seed in range(3)]
    return {origin.add(f"{seed}.jpg", image): image for seed, image in enumerate(images)}


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A DNS server that knows no address yet."""
    with NameServer() as server:
        yield server
