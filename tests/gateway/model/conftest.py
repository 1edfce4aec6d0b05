"""Model servers whose versions come and go, and a client that asks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from flask import Flask

from contract.document import ImageSpec
from gateway.app import create_app
from gateway.errors import ModelUnavailable
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

Connect = Callable[..., Versions]


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


def ask(client: Versions) -> tuple[int, str]:
    """Ask the gateway: the version's number, and its name for the most probable class."""
    answer = _answer(client)
    return answer["model"]["version"], answer["predictions"][0]["class"]


def ask_many(client: Versions, count: int = 500) -> Counter[tuple[str, str]]:
    """Ask from four threads; return how often each export gave its image which name."""

    def load() -> Counter[tuple[str, str]]:
        answers = (_answer(client) for _ in range(count // 4))
        return Counter((answer["model"]["identity"], answer["predictions"][0]["class"]) for answer in answers)

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(load) for _ in range(4)]
        return sum((run.result() for run in runs), Counter())


def _answer(client: Versions) -> Any:
    answer = _app(client).test_client().post("/predict", data=IMAGE, content_type="image/jpeg").get_json()
    if answer.get("code") == ModelUnavailable.code:
        raise ModelUnavailable(answer["detail"])
    return answer


@cache
def _app(client: Versions) -> Flask:
    return create_app(Settings(model_name="tiny"), client, Metrics())
