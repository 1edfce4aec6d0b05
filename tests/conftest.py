"""Fixtures that several test files share: an image origin, a model server, the gateway, and one tiny real model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what downloads and what takes minutes, unless it is asked for."""
    for mark in {"network", "slow"} - set(config.option.markexpr.split()):
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"ask for it by -m {mark}"))


class Origin:
    """A web server that holds images by path."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        images: dict[str, bytes] = {}
        self.requests = 0
        origin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                origin.requests += 1
                body = images.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.images = images
        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def authority(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def add(self, path: str, image: bytes) -> str:
        """Serve an image at `/path` and return its URL."""
        self.images["/" + path] = image
        return f"http://{self.authority}/{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An image origin on a free port."""
    server = Origin()
    yield server
    server.close()


@pytest.fixture
def golden() -> list[bytes]:
    """Two encoded images to make golden examples of."""
    return [encode(photo(seed=1)), encode(photo(seed=2), "PNG")]


@pytest.fixture
def model_server(golden: list[bytes]) -> Iterator[FakeModelServer]:
    """A model server that holds version 1."""
    server = FakeModelServer({1: FakeVersion.of(golden)})
    yield server
    server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[[str], Versions]]:
    """A function that connects a model client to an address; it looks only when asked."""
    clients: list[Versions] = []

    def connect(address: str) -> Versions:
        client = Versions(address, "tiny", poll_s=0.05, timeout_s=2.0)
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


def run_export(store: Path, name: str, seed: int = 0, size: int = 16, classes: Sequence[str] = ()) -> None:
    """Export the small model in a process of its own, which keeps TensorFlow out of this one."""
    subprocess.run(
        [sys.executable, "-m", "tests.programs.tiny_model", str(store), name, str(seed), str(size), *classes],
        cwd=ROOT,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
