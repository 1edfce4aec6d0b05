"""Fixtures that several test files share: an image origin, a model server, the gateway, and one tiny real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.release.ledger import Ledger, open_ledger
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Take signals as at a terminal; `nohup` and a shell's `&` hand down that some are ignored, to all programs."""
    for number, handler in {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what downloads and what takes minutes, unless it is asked for."""
    for mark in {"network", "slow"} - set(config.option.markexpr.split()):
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"ask for it by -m {mark}"))


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An image origin on a free port."""
    with Origin() as server:
        yield server


@pytest.fixture
def golden() -> list[bytes]:
    """Two encoded images to make golden examples of."""
    return [encode(photo(seed=1)), encode(photo(seed=2), "PNG")]


@pytest.fixture
def model_server(golden: list[bytes]) -> Iterator[FakeModelServer]:
    """A model server with version 1."""
    server = FakeModelServer({1: FakeVersion.of(golden)})
    yield server
    server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., Versions]]:
    """A function that connects a model client to an address; it looks only when asked."""
    clients: list[Versions] = []

    def connect(address: str, timeout_s: float = 20.0) -> Versions:
        settings = Settings(model_address=address, model_name="tiny", model_poll_s=0.05, model_timeout_s=timeout_s)
        client = Versions(settings)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def gateway(model_server: FakeModelServer, origin: Origin, connect: Callable[[str], Versions]) -> FlaskClient:
    """The gateway in front of `model_server`, which may fetch from `origin`; it looks for versions only when asked."""
    settings = Settings(fetch_allow=origin.authority, model_name="tiny", request_timeout_s=5.0)
    return create_app(settings, connect(model_server.address), Metrics()).test_client()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model-store with `tiny/1`: a real export of a small Keras model, images (n, 16, 16, 3), three classes."""
    store = tmp_path_factory.mktemp("model-store")
    run_export(store, "tiny")
    return store


def run_export(store: Path, name: str, *models: dict[str, Any]) -> None:
    """Export small models as the next versions, in another process: TensorFlow stays out of this one."""
    subprocess.run(
        [sys.executable, "-m", "tests.programs.tiny_model", str(store), name, *map(json.dumps, models or [{}])],
        cwd=ROOT,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def make_store(store: Path, *folders: str) -> Ledger:
    """Make a store with folders of a model m; return what changes its release."""
    for name in folders:
        (store / "m" / name).mkdir(parents=True, exist_ok=True)
        (store / "m" / name / "model.tflite").touch()
    return open_ledger(store, "m")
