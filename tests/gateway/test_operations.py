"""What an operator sees: keys, metrics, logs and identifiers of requests."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from gateway.app import create_app
from gateway.model.protocol import Export
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.telemetry.logs import JsonFormatter
from gateway.telemetry.metrics import FOLDER, Metrics
from gateway.trace import Trace, current_trace
from tests.conftest import Origin
from tests.gateway.test_app import assert_problem
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

IMAGE = encode(photo())
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def locked(gateway_with: Callable[..., FlaskClient]) -> FlaskClient:
    """A gateway that some keys open."""
    keys = (b"first", b"second", "schlüssel".encode())
    return gateway_with(api_keys=",".join(hashlib.sha256(key).hexdigest() for key in keys))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"Authorization": "bearer second"},
        {"X-API-Key": "second"},
        {"X-API-Key": "second", "Authorization": "Bearer of-a-proxy"},
        {"X-API-Key": "of-a-proxy", "Authorization": "Bearer first"},
        {"X-API-Key": "schlüssel".encode().decode("latin-1")},  # as WSGI hands on what curl sends
    ],
)
def test_each_key_opens_the_gateway(locked: FlaskClient, headers: dict[str, str]) -> None:
    """By either header, and any of the keys."""
    assert locked.post("/predict", data=IMAGE, content_type="image/jpeg", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}, {"X-API-Key": ""}]
)
def test_without_a_known_key_only_the_status_is_answered(locked: FlaskClient, headers: dict[str, str]) -> None:
    """Predictions, the contract, metrics and the versions are closed; a probe needs no more than a status."""
    answer = locked.post("/predict", data=IMAGE, content_type="image/jpeg", headers=headers)
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/model", "/metrics"):
        assert_problem(locked.get(path, headers=headers), 401, "unauthorized")
    assert locked.get("/readyz", headers=headers).json == {"status": "unavailable"}  # it has not looked yet
    for path in ("/livez", "/", "/openapi.json"):
        with locked.get(path, headers=headers) as answer:
            assert answer.status_code == 200


def test_a_key_opens_metrics_and_the_details_of_readiness(locked: FlaskClient) -> None:
    """To Prometheus, and to an operator who asks why a version was refused."""
    key = {"Authorization": "Bearer first"}
    assert b"gateway_answers_total" in locked.get("/metrics", headers=key).data
    assert locked.get("/model", headers=key).status_code == 200  # looks
    ready = locked.get("/readyz", headers=key).json
    assert ready and ready["model"]["versions"] == [1]


def test_metrics_show_answers_stages_classes_and_versions(model_server: FakeModelServer) -> None:
    """Each with the version that it belongs to."""
    shown, identity = Metrics(), model_server.versions[1].identity
    settings = Settings(model_address=model_server.address, model_name="tiny")
    client = Versions(settings, shown.show)
    model_server.versions[2] = FakeVersion(b"bad")
    app = create_app(settings, client, shown).test_client()
    try:
        for body in (IMAGE, IMAGE, b"no image"):
            app.post("/predict", data=body, content_type="image/jpeg")
        for bad in ({"image": "#"}, {"images": ["#", "#"]}, {"url": "#"}):  # alone or in a list
            app.post("/predict", json=bad)
        text = app.get("/metrics").get_data(as_text=True)
    finally:
        client.close()
    for line in (
        'gateway_answers_total{code="",path="predict",status="200"} 3.0',
        'gateway_answers_total{code="unsupported_media",path="predict",status="415"} 1.0',
        'gateway_image_failures_total{code="unsupported_media"} 1.0',
        'gateway_image_failures_total{code="bad_request"} 4.0',
        f'gateway_stage_seconds_count{{identity="{identity}",stage="predict",version="1"}} 2.0',
        f'gateway_stage_seconds_count{{identity="{identity}",stage="decode",version="1"}} 6.0',
        f'gateway_confidence_count{{identity="{identity}",version="1"}} 2.0',
        f'gateway_version_accepted{{identity="{identity}",version="1"}} 1.0',
        'gateway_version_refused{identity="",version="2"} 1.0',
        "gateway_ready 1.0",
    ):
        assert line in text
    assert re.search(r'gateway_predictions_total\{class="(red|green|blue)",identity="\w+",version="1"\} 2.0', text)


@pytest.mark.parametrize("limit", [("MOST_CLASSES", 2), ("ROOM_BYTES", 1 << 62)])
def test_a_worker_makes_no_more_series_than_its_file_has_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: tuple[str, int]
) -> None:
    """Or it would die, as /dev/shm of a container is small: further classes are counted together, known ones go on.

    The log says so once.
    """
    shown = Metrics()
    for name in ("red", "green"):
        shown.observe(Export(1, "a"), {}, [{"predictions": [{"class": name, "probability": 1.0}]}])
    monkeypatch.setattr(metrics, *limit)
    monkeypatch.setenv(FOLDER, "")  # so that it ends as it was
    metrics.share()
    for name in ("blue", "red", "grey"):
        shown.observe(Export(1, "a"), {}, [{"predictions": [{"class": name, "probability": 1.0}]}])
    metrics.unshare()
    assert limit[0] != "ROOM_BYTES" or not os.environ[FOLDER].startswith("/dev/shm/")
    monkeypatch.delenv(FOLDER)
    lines = [line for line in shown.render().decode().splitlines() if line.startswith("gateway_predictions_total{")]
    counts = {line.split('"')[1]: line.split()[-1] for line in lines}
    assert counts == {"red": "2.0", "green": "1.0", "(others)": "2.0"}
    assert caplog.messages == ["no room to count each class; until the gateway restarts, further ones are (others)"]


def test_request_id_is_taken_over_or_made_and_always_echoed(gateway: FlaskClient) -> None:
    """The caller's, if it is well formed."""
    assert gateway.get("/livez", headers={"X-Request-ID": "my-id.1"}).headers["X-Request-ID"] == "my-id.1"
    made = gateway.get("/livez", headers={"X-Request-ID": "a b\x7f"}).headers["X-Request-ID"]
    assert re.fullmatch(r"[0-9a-f]{16}", made)
    assert gateway.get("/nothing").headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("header", "taken"),
    [(PARENT, True), (None, False), ("00-" + "0" * 32 + "-b7ad6b7169203331-01", False), ("ff" + PARENT[2:], False)],
)
def test_traceparent_goes_on_with_a_span_of_our_own(header: str | None, taken: bool) -> None:
    """By W3C Trace Context: the trace stays, the parent changes, malformed ones are replaced."""
    trace = Trace.of(None, header)
    assert (trace.trace_id == PARENT.split("-")[1]) == taken
    assert trace.span_id != PARENT.split("-")[2]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", trace.traceparent)


def test_a_request_takes_its_identifiers_along(
    model_server: FakeModelServer, gateway: FlaskClient, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """To the model server, and into the lines of the threads that fetch a list."""
    seen: list[str] = []
    log = logging.getLogger("gateway.fetch.fetcher")
    catch = logging.Handler()
    catch.emit = lambda record: seen.append(JsonFormatter().format(record))  # type: ignore[method-assign]
    log.addHandler(catch)
    caplog.set_level(logging.INFO)
    try:
        urls = [origin.add("a.jpg", IMAGE), "http://127.0.0.1:1/", "http://127.0.0.1:2/"]
        headers = {"X-Request-ID": "mine", "traceparent": PARENT}
        assert gateway.post("/predict", json={"urls": urls}, headers=headers).status_code == 200
    finally:
        log.removeHandler(catch)
    assert [json.loads(line)["request_id"] for line in seen] == ["mine", "mine"]
    assert model_server.metadata["x-request-id"] == "mine"
    assert model_server.metadata["traceparent"].split("-")[1] == PARENT.split("-")[1]


def test_log_lines_are_json_with_the_requests_identifiers() -> None:
    """Extra fields and tracebacks are members, and one record is one line."""
    token = current_trace.set(Trace("id-1", "a" * 32, "b" * 16, "01"))
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError as exc:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed %d", (3,), (type(exc), exc, exc.__traceback__))
    finally:
        record.fields = {"status": 500}
        line = JsonFormatter().format(record)
        current_trace.reset(token)
    assert "\n" not in line
    members = json.loads(line)
    assert (members["message"], members["level"], members["status"]) == ("failed 3", "error", 500)
    assert (members["request_id"], members["trace_id"]) == ("id-1", "a" * 32)
    assert "RuntimeError" in members["traceback"]
