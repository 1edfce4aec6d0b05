"""What the tests that need a Docker engine share: `make test-docker`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Origin
from tests.programs.containers import bridge, clone, docker, has_engine, run
from tests.programs.photos import clock, encode, photo


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone with a model-store that is someone else's, its images built by `make images`."""
    if not has_engine():
        pytest.skip("needs a Docker engine")
    folder = clone(tmp_path_factory.mktemp("clone"))
    if os.geteuid() == 0:
        os.chown(folder / "model-store", 1234, 1234)
    run("make", "images", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def images(repository: Path) -> Iterator[Origin]:
    """An image origin that containers reach; it has a drawing of a clock, and a photo of 12 megapixels."""
    with Origin(host=bridge()) as server:
        server.add("clock.jpg", encode(clock()))
        server.add("large.jpg", encode(photo(4000, 3000)))
        yield server


@pytest.fixture(scope="session")
def added_bytes(repository: Path) -> Callable[[str], int]:
    """A function that returns the size of an image on top of its base: its layers from the environment on."""

    def added(image: str) -> int:
        history = docker("history", "--human=false", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}",
                         f"image-classifier-{image}:test").splitlines()  # fmt: skip
        (first,) = [i for i, line in enumerate(history) if "COPY /opt/venv" in line]
        return sum(int(line.split()[0]) for line in history[: first + 1])

    return added


@pytest.fixture(scope="session")
def ask_python(repository: Path) -> Callable[[str, str], list[str]]:
    """A function that runs a script by the Python of an image, as root; it returns the words that it prints."""

    def ask(image: str, script: str) -> list[str]:
        options = ("--rm", "--entrypoint", "python", "--user", "root", f"image-classifier-{image}:test")
        return docker("run", *options, "-c", script).split()

    return ask
