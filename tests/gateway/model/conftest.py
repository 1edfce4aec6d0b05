"""Model servers whose versions come and go, and a client that asks them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from contract.document import ImageSpec
from contract.image import decode
from gateway.errors import VersionGone
from gateway.model.protocol import Version
from gateway.model.versions import Versions
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

Connect = Callable[[str], Versions]


Serve = Callable[..., FakeModelServer]


IMAGE = encode(photo(seed=3))


PIXELS = np.zeros((1, 8, 8, 3), np.uint8)


def constant(*probabilities: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model that answers the same for any pixels."""
    return lambda pixels: np.tile(np.array(probabilities, np.float32), (len(pixels), 1))


# Other exports than the one that calls IMAGE blue: what each is made of, and what it calls any image.
OTHERS = {
    "other weights": ((("red", "green", "blue"), ImageSpec(8, 8), constant(0.1, 0.2, 0.7)), "blue"),
    "other classes": ((("ant", "bee", "fly"), ImageSpec(8, 8), constant(0.1, 0.2, 0.7)), "fly"),
    "another count": ((("a", "b"), ImageSpec(8, 8), constant(0.3, 0.7)), "b"),
    "another size": ((("small", "large", "huge"), ImageSpec(5, 9), constant(0.7, 0.2, 0.1)), "small"),
}


FLIES, SMALL = OTHERS["other classes"][0], OTHERS["another size"][0]


def without_identity(golden: list[bytes], *facts: Any) -> FakeVersion:
    """Return a version as it was exported before there were identities."""
    return FakeVersion.of(golden, *facts, identity="")


@pytest.fixture
def client(model_server: FakeModelServer, connect: Connect) -> Versions:
    """A client of `model_server`, which looks only when asked."""
    return connect(model_server.address)


@pytest.fixture
def serve(golden: list[bytes]) -> Iterator[Serve]:
    """A function that starts one more model server, with one version."""
    servers: list[FakeModelServer] = []

    def serve(*facts: Any, number: int = 1, address: str = "127.0.0.1:0") -> FakeModelServer:
        servers.append(FakeModelServer({number: FakeVersion.of(golden, *facts)}, address))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def both(*servers: FakeModelServer) -> str:
    """Return one address behind which servers take turns, call by call."""
    return "ipv4:" + ",".join(server.address for server in servers)


def ask(client: Versions, image: bytes = IMAGE) -> tuple[int, str]:
    """Answer as the gateway does: the version's number, and its name for the most probable class."""
    version, name = ask_version(client, image)
    return version.number, name


def ask_version(client: Versions, image: bytes = IMAGE) -> tuple[Version, str]:
    """Answer as the gateway does: the version, and its name for the most probable class."""
    deadline = time.monotonic() + 5
    for version in client.candidates(deadline):
        pixels = decode(image, version.contract.image).pixels
        try:
            probabilities = client.predict(version, pixels[np.newaxis], deadline).probabilities[0]
        except VersionGone:
            continue
        return version, version.contract.classes[int(probabilities.argmax())]
    raise AssertionError


def ask_many(client: Versions, count: int = 500) -> Counter[tuple[str, str]]:
    """Ask from four threads; return how often each export gave its image which name."""
    answers: Counter[tuple[str, str]] = Counter()

    def load() -> None:
        for _ in range(count // 4):
            version, name = ask_version(client)
            answers[version.contract.identity, name] += 1

    with ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(load) for _ in range(4)]:
            run.result()
    return answers


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
