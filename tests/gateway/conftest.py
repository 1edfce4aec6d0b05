"""What the tests of the gateway share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer


@pytest.fixture
def gateway_with(model_server: FakeModelServer, connect: Callable[[str], Versions]) -> Callable[..., FlaskClient]:
    """A function that makes a gateway with some settings, in front of `model_server`."""

    def make(**settings: Any) -> FlaskClient:
        model = connect(model_server.address)
        return create_app(Settings(model_name="tiny", **settings), model, Metrics()).test_client()

    return make
