"""A gateway in front of a stable version 1 and a version 2 that is tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from contract.release import Release, Trial
from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

IMAGE = encode(photo(seed=3))


class Tried:
    """The gateway, and what a test changes.

    Attributes:
        server: Its model server; `server.versions[2]` is the version that is tried.
    """

    def __init__(self, server: FakeModelServer, file: Path, golden: list[bytes]) -> None:
        self.server, self._file, self._golden = server, file, golden
        self.metrics = Metrics()
        settings = Settings(
            model_address=server.address, model_name="tiny", model_timeout_s=10.0, release_file=str(file)
        )
        self.model = Versions(settings, self.metrics.show)
        self.client: FlaskClient

    def start(self, trial: Trial | None, **settings: Any) -> FlaskClient:
        self.client = create_app(Settings(model_name="tiny", **settings), self.model, self.metrics).test_client()
        self.follow(trial)
        return self.client

    def follow(self, trial: Trial | None, stable: int = 1) -> None:
        self._file.write_text(Release(stable, trial=trial).to_json())
        self.model._look_again()
        assert self.model.health.release_error is None

    def replace(self, **facts: Any) -> None:
        """Put another version 2 into its place."""
        self.server.versions[2] = FakeVersion.of(self._golden, **facts)
        self.model._look_again()

    def ask(self, **headers: str) -> Any:
        response = self.client.post("/predict", data=IMAGE, content_type="image/jpeg", headers=headers)
        assert response.status_code == 200, response.text
        return response.get_json()

    @property
    def is_comparing(self) -> bool:
        """Whether a photo is being compared; until that ends, others are let go."""
        predict: Any = self.client.application.view_functions["predict"]
        return bool(predict.__self__._comparisons._is_busy)

    def count(self, line: str) -> float:
        """Return the value of a metric; the start of its line says which, without the identity."""
        identity = self.server.versions[2].identity
        lines = self.metrics.render().decode().replace(f'identity="{identity}",', "").splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(line))


@pytest.fixture
def tried(golden: list[bytes], tmp_path: Path) -> Iterator[Tried]:
    """Not started yet."""
    server = FakeModelServer({number: FakeVersion.of(golden) for number in (1, 2)})
    tried = Tried(server, tmp_path / "release.json", golden)
    yield tried
    tried.model.close()
    server.stop()
