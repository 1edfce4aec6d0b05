"""gateway/openapi.py: the description fits the routes and their answers."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig

from gateway.app import HEALTH_PATHS, create_app
from gateway.model.versions import Versions
from gateway.openapi import document
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer
from tests.programs.photos import encode, photo


@pytest.fixture
def api(model_server: FakeModelServer, connect: Callable[[str], Versions], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The gateway's description, with the gateway behind it; to it no host name exists."""

    def look_up(*_: Any, **__: Any) -> Any:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = connect(model_server.address)
    client.newest()  # looks
    app = create_app(Settings(model_name="tiny"), client, Metrics())
    # A schema cannot say which bytes are an image, nor which hosts deliver one. A request that fits it may be refused
    # for its content, with a status that means that. 502 means that the image's host failed, not the gateway.
    checks = {
        "positive_data_acceptance": ["2xx", "403", "413", "415", "422", "502"],
        "negative_data_rejection": ["400", "403", "413", "415", "422"],
        "not_a_server_error": ["2xx", "4xx", "502"],
    }
    config = SchemathesisConfig.from_dict(
        {"checks": {name: {"expected-statuses": statuses} for name, statuses in checks.items()}}
    )
    return schemathesis.openapi.from_wsgi("/openapi.json", app, config=config)


@pytest.mark.parametrize(
    ("path", "mode"),
    # In a request without parameters there is nothing that could be wrong.
    [(path, GenerationMode.POSITIVE) for path in document(Settings())["paths"]]
    + [("/predict", GenerationMode.NEGATIVE)],
)
def test_no_request_gets_a_500_or_an_undocumented_answer(api: Any, path: str, mode: GenerationMode) -> None:
    """Generated requests, good and bad, against every operation, with all of the tool's checks."""
    (method,) = document(Settings())["paths"][path]
    operation = api[path][method.upper()]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def send(case: Case) -> None:
        case.call_and_validate()

    send()


def test_every_route_is_described(gateway: FlaskClient) -> None:
    """What the application answers and what the description lists are the same paths and methods."""
    described = {(path, method.upper()) for path, item in document(Settings())["paths"].items() for method in item}
    routes = {
        (rule.rule, method)
        for rule in gateway.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "static" and not rule.endpoint.startswith("page.")
    }
    assert described == routes
    assert {path for path, _ in routes} >= set(HEALTH_PATHS)


def test_every_path_may_be_overloaded() -> None:
    """Also that which answers 503 while it is not ready: as itself, or as a problem."""
    for path, operations in document(Settings())["paths"].items():
        (operation,) = operations.values()
        types = set(operation["responses"]["503"]["content"]) - {"application/problem+json"}
        assert types == ({"application/json"} if path == "/readyz" else set())
        assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_an_example_of_a_failure_is_one_of_its_status() -> None:
    """And has a code that the description names."""
    for status, response in document(Settings())["paths"]["/predict"]["post"]["responses"].items():
        example = response.get("content", {}).get("application/problem+json", {}).get("example")
        assert status == "200" or (str(example["status"]) == status and example["code"] in response["description"])


@pytest.mark.parametrize("form", ["image", "images"])
def test_real_answers_fit_the_description(api: Any, gateway: FlaskClient, form: str) -> None:
    """Single and list answers are valid against the schema they are described by."""
    text = base64.b64encode(encode(photo())).decode()
    body = {form: text if form == "image" else [text, "AAAA"], "top_k": 2}
    operation = api["/predict"]["POST"]
    response = operation.Case(body=body, media_type="application/json").call()
    assert response.status_code == 200
    operation.validate_response(response)
