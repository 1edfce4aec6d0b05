"""serverless/: what each of Lambda's front doors gets, and which models a function starts with."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contract.document import find_identity
from contract.image import decode
from contract.release import Release, Trial
from gateway.errors import ModelFailed, ModelTimeout
from gateway.model.gate import Refusal
from gateway.model.versions import Versions
from gateway.settings import Settings
from serverless.events import Handler, create_handler
from serverless.model import OwnModel
from serving.engines import open_engine
from serving.errors import NotFoundError
from tests.conftest import ROOT, Origin
from tests.programs.aws_lambda import EVENTS, REQUEST_ID, Event, RuntimeApi, http_event, rest_event
from tests.programs.model_server import FakeModelServer
from tests.programs.photos import encode, photo
from tests.programs.stack import running

RED = encode(Image.new("RGB", (64, 48), (255, 0, 0)), "PNG")
JSON = {"Content-Type": "application/json"}


@dataclass
class Context:
    """The part of Lambda's context that the function reads."""

    aws_request_id: str = REQUEST_ID


@pytest.fixture
def handle(model_server: FakeModelServer, origin: Origin, connect: Callable[[str], Versions]) -> Handler:
    """The function around a fake model, which may fetch from `origin`."""
    settings = Settings(fetch_allow=origin.authority, model_name="tiny")
    return create_handler(settings, connect(model_server.address))


def ask(handle: Handler, event: Event) -> tuple[int, dict[str, str], Any]:
    """Return status, headers in lower case, and body of an answer, after either format."""
    answer = json.loads(json.dumps(handle(event, Context())))  # as Lambda passes it on
    many = answer.get("multiValueHeaders") or {name: [value] for name, value in answer["headers"].items()}
    headers = {name.lower(): value for name, (value,) in many.items()}
    body = base64.b64decode(answer["body"]) if answer["isBase64Encoded"] else answer["body"].encode()
    return answer["statusCode"], headers, json.loads(body) if "json" in headers["content-type"] else body


@pytest.fixture(params=EVENTS.values(), ids=list(EVENTS))
def event(request: pytest.FixtureRequest) -> Callable[..., Event]:
    """What makes an event, for each of the front doors."""
    return request.param  # type: ignore[no-any-return]


def test_a_url_is_answered_as_by_the_gateway(
    handle: Handler, model_server: FakeModelServer, origin: Origin, event: Callable[..., Event]
) -> None:
    """The whole answer, by each front door."""
    body = json.dumps({"url": origin.add("red.png", RED), "top_k": 1}).encode()
    status, headers, answer = ask(handle, event("POST", "/predict", body, JSON))
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert (answer["model"]["name"], answer["model"]["version"]) == ("tiny", 1)
    assert answer["model"]["identity"] == model_server.versions[1].identity
    assert answer["predictions"] == [{"class": "red", "index": 0, "probability": pytest.approx(1.0, abs=1e-3)}]
    assert answer["image"] == {"format": "PNG", "width": 64, "height": 48, "bytes": len(RED)}
    assert list(answer["timing_ms"]) == ["fetch", "decode", "predict", "total"]


@pytest.mark.parametrize("form", [{}, {"Transfer-Encoding": "chunked"}])
def test_an_image_in_the_body_arrives_whole(handle: Handler, event: Callable[..., Event], form: dict[str, str]) -> None:
    """Bytes come in base64, also those that a client sent in chunks; top_k comes in the URL."""
    sent = event("POST", "/predict", RED, {"Content-Type": "image/png"} | form, "top_k=2")
    assert sent["isBase64Encoded"]
    status, _, answer = ask(handle, sent)
    assert (status, answer["image"]["bytes"], len(answer["predictions"])) == (200, len(RED), 2)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/predict", b"{}", 400, "bad_request"),
        ("POST", "/predict", b"", 400, "bad_request"),
        ("POST", "/predict", b'{"image": "AAAA"}', 415, "unsupported_media"),
        ("POST", "/predict", b'{"url": "http://127.0.0.1:9001/"}', 403, "url_not_allowed"),
        ("GET", "/predict", b"", 405, "method_not_allowed"),
        ("GET", "/nothing/of%20ours", b"", 404, "not_found"),
    ],
)
def test_errors_are_the_gateways(
    handle: Handler, event: Callable[..., Event], method: str, path: str, body: bytes, status: int, code: str
) -> None:
    """Problem details as text, never an exception, which API Gateway would hide behind a 502."""
    received, headers, answer = ask(handle, event(method, path, body, JSON))
    assert (received, answer["code"]) == (status, code)
    assert headers["content-type"] == "application/problem+json"


def test_a_key_opens_a_closed_function(model_server: FakeModelServer, connect: Callable[[str], Versions]) -> None:
    """GATEWAY_API_KEYS counts here too."""
    digest = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of "key"
    handle = create_handler(Settings(api_keys=digest), connect(model_server.address))
    headers = {"Content-Type": "image/png"}
    assert ask(handle, rest_event("POST", "/predict", RED, headers))[0] == 401
    assert ask(handle, rest_event("POST", "/predict", RED, {**headers, "Authorization": "Bearer key"}))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["", "/", *(f"/page/{name}" for name in ("page.js", "page.css", "icon.svg")),
     *(f"/docs/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"))],
)  # fmt: skip
def test_files_arrive_whole(handle: Handler, event: Callable[..., Event], path: str) -> None:
    """Those of the pages; only a PNG is in base64, because some front doors do not decode it."""
    name, is_binary = path.rpartition("/")[2] or "index.html", path.endswith(".png")
    home = files("flask_swagger_ui") / "dist" if path.startswith("/docs/") else files("gateway") / "static"
    status, _, body = ask(handle, event("GET", path, b"", {}))
    assert (status, body) == (200, (home / name).read_bytes())
    assert handle(event("GET", path, b"", {}), Context())["isBase64Encoded"] == is_binary


def test_the_request_id_is_the_callers_or_lambdas(handle: Handler, event: Callable[..., Event]) -> None:
    """So that the function's log lines match Lambda's."""
    assert ask(handle, event("GET", "/livez", b"", {}))[1]["x-request-id"] == REQUEST_ID
    assert ask(handle, event("GET", "/livez", b"", {"X-Request-ID": "abc"}))[1]["x-request-id"] == "abc"


@pytest.mark.parametrize(
    ("path", "stage", "members", "status"),
    [
        ("/prod/livez", "prod", {}, 200),
        ("/prod", "prod", {}, 308),
        ("/prod/", "prod", {}, 200),
        ("/production/livez", "prod", {}, 404),
        ("/livez", "livez", {"domainName": "photos.example.com"}, 200),
        ("/livez", "$default", {}, 200),
    ],
)
def test_the_stage_of_an_http_api_is_no_part_of_the_path(
    handle: Handler, path: str, stage: str, members: dict[str, str], status: int
) -> None:
    """A named stage is in front of it, except behind a domain of your own; the page's links need a slash after it."""
    event = http_event("GET", path, b"", {}, "top_k=2")
    event["requestContext"] |= {"domainName": "id.execute-api.eu-west-1.amazonaws.com", "stage": stage} | members
    received, headers, _ = ask(handle, event)
    assert (received, headers.get("location")) == (status, "prod/?top_k=2" if status == 308 else None)


def test_a_path_of_a_domain_of_your_own_is_a_prefix(
    model_server: FakeModelServer, connect: Callable[[str], Versions], event: Callable[..., Event]
) -> None:
    """GATEWAY_PATH_PREFIX names it; plain events have no path and no key, as AWS checks who invokes the function."""
    settings = Settings(model_name="tiny", path_prefix="/v1", api_keys="0" * 64)
    handle = create_handler(settings, connect(model_server.address))
    assert ask(handle, event("GET", "/v1/livez", b"", {}))[0] == 200
    assert "predictions" in handle({"image": base64.b64encode(RED).decode()}, Context())


def test_the_path_of_a_rest_api_keeps_what_reads_like_its_stage(handle: Handler) -> None:
    """AWS has already taken the stage away."""
    event = rest_event("GET", "/livez", b"", {})
    event["requestContext"]["stage"] = "livez"
    assert ask(handle, event)[0] == 200


def test_a_plain_event_is_answered_plainly(handle: Handler, origin: Origin) -> None:
    """What `aws lambda invoke` sends gets the JSON of an answer, or of an error."""
    answer = handle({"url": origin.add("red.png", RED), "top_k": 1}, Context())
    assert [each["class"] for each in answer["predictions"]] == ["red"]
    assert handle({"url": "http://127.0.0.1/"}, Context())["code"] == "url_not_allowed"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"Records": []}, "Expected an event of API Gateway.* Received one with the members Records"),
        ({"requestContext": None}, "Expected an event of API Gateway"),
        ({"requestContext": {"connectionId": "x"}}, "Expected an event of API Gateway"),
        *(
            (event, "Expected a JSON object, such as .*")
            for event in (None, [{"url": "https://a.test"}], "https://a.test", 3)
        ),
    ],
)
def test_another_kind_of_event_is_refused(handle: Handler, event: Any, message: str) -> None:
    """Whoever connects the function to something else learns what it wants."""
    with pytest.raises(ValueError, match=message):
        handle(event, Context())


@pytest.mark.tensorflow
def test_the_newest_version_answers(tiny_store: Path, tmp_path: Path) -> None:
    """Its number, and probabilities for each class; for no image, none."""
    shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / "9")
    shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / "10")
    model = OwnModel(tmp_path, "tiny")
    version = model.newest()
    assert (version.number, model.health.versions, model.health.ready) == (10, [10], True)
    assert list(model.candidates(0.0)) == [version]
    probabilities = model.predict(version, np.zeros((2, 16, 16, 3), np.uint8), float("inf")).probabilities
    assert (probabilities.shape, probabilities.dtype) == ((2, 3), np.float32)
    assert model.predict(version, np.zeros((0, 16, 16, 3), np.uint8), float("inf")).probabilities.shape == (0, 3)


@pytest.mark.tensorflow
def test_the_stable_version_answers(tiny_store: Path, tmp_path: Path) -> None:
    """It is older than the newest here; without it on disk, nothing starts."""
    for number in ("9", "10"):
        shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / number)
    document = tmp_path / "tiny" / "release.json"
    document.write_text(Release(9, trial=Trial(10, "shadow")).to_json())
    model = OwnModel(tmp_path, "tiny")
    assert (model.newest().number, model.health.versions) == (9, [9])
    document.write_text(Release(8).to_json())
    with pytest.raises(NotFoundError, match="names version 8 as stable, which is not there"):
        OwnModel(tmp_path, "tiny")


@pytest.mark.tensorflow
def test_failures_of_the_model_are_the_gateways(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that has passed, pixels that the model does not take, and numbers that are none."""
    model = OwnModel(tiny_store, "tiny")
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(ModelTimeout):
        model.predict(model.newest(), pixels, 0.0)
    with pytest.raises(ModelFailed, match="The model failed; see the log"):
        model.predict(model.newest(), pixels[:, :8], float("inf"))
    monkeypatch.setattr(model._engine, "run", lambda *_: {"probabilities": np.full((1, 3), np.nan, np.float32)})
    with pytest.raises(ModelFailed, match="a probability for each class"):
        model.predict(model.newest(), pixels, float("inf"))


@pytest.mark.tensorflow
def test_a_version_that_decodes_otherwise_does_not_start(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden gate is closed: the image's build ends, and so does a function's start."""
    monkeypatch.setattr("gateway.model.gate.decode", lambda _, spec: decode(encode(photo(seed=9)), spec))
    with pytest.raises(Refusal, match="Golden example"):
        OwnModel(tiny_store, "tiny")


@pytest.fixture
def runtime_api() -> Iterator[RuntimeApi]:
    """Lambda's side of a function."""
    api = RuntimeApi()
    yield api
    api.close()


@contextmanager
def function(api: RuntimeApi, store: Path, **settings: str) -> Iterator[None]:
    """Run the function as its image does."""
    environ = {"AWS_LAMBDA_RUNTIME_API": api.address, "MODEL_STORE": str(store), "GATEWAY_MODEL_NAME": "tiny"}
    with running("-m", "awslambdaric", "serverless.handler.handle", **environ, **settings):
        yield


@pytest.mark.tensorflow
@pytest.mark.processes
def test_lambdas_client_runs_the_function(runtime_api: RuntimeApi, tiny_store: Path) -> None:
    """Settings come from the environment, the model is there before the first event, and an answer can be sent."""
    image = {"image": base64.b64encode(encode(photo())).decode()}
    with function(runtime_api, tiny_store, GATEWAY_TOP_K="2"):
        path, answer = runtime_api.invoke(http_event("POST", "/predict", json.dumps(image).encode(), JSON))
        assert path == f"invocation/{REQUEST_ID}/response"
        assert answer["statusCode"] == 200
        body = json.loads(answer["body"])
        identity = find_identity(open_engine(tiny_store / "tiny" / "1", "auto", threads=1).signatures)
        assert body["model"] == {"name": "tiny", "version": 1, "identity": identity}
        assert len(body["predictions"]) == 2


@pytest.mark.processes
@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "Expected a version of 'tiny'"), ({"GATEWAY_TOP_K": "0"}, "GATEWAY_TOP_K: Expected an integer")],
)
def test_a_function_that_cannot_start_says_why(
    runtime_api: RuntimeApi, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """Lambda's log gets the message, and no event is asked for."""
    with function(runtime_api, tmp_path, **settings):
        path, error = runtime_api.wait()
    assert path == "init/error"
    assert error["errorMessage"].startswith(message)
    assert not runtime_api.asked.is_set()


@pytest.mark.tensorflow
def test_the_function_has_neither_tensorflow_nor_grpc(tiny_store: Path) -> None:
    """It starts where neither can be imported."""
    script = """
import sys
sys.modules |= dict.fromkeys(("tensorflow", "keras", "grpc", "gunicorn"))
import serverless.handler
"""
    environ = {**os.environ, "MODEL_STORE": str(tiny_store), "GATEWAY_MODEL_NAME": "tiny"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, check=True)
