"""gateway/app.py: what a client sees of /predict, /model, /livez and /readyz."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from contract.document import Novelty
from gateway.app import HEALTH_PATHS, create_app
from gateway.errors import GatewayError, ModelUnavailable
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.conftest import Origin
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

RED = encode(Image.new("RGB", (64, 48), (255, 0, 0)), "PNG")


def test_a_url_is_answered_with_classes_most_probable_first(
    gateway: FlaskClient, model_server: FakeModelServer, origin: Origin
) -> None:
    """The whole answer, as the README shows it."""
    answer = gateway.post("/predict", json={"url": origin.add("red.png", RED), "top_k": 2})
    assert answer.status_code == 200
    body = answer.get_json()
    assert body["model"] == {"name": "tiny", "version": 1, "identity": model_server.versions[1].identity}
    assert [each["class"] for each in body["predictions"]] == ["red", "green"]
    assert body["predictions"][0] == {"class": "red", "index": 0, "probability": pytest.approx(1.0, abs=1e-3)}
    assert body["image"] == {"format": "PNG", "width": 64, "height": 48, "bytes": len(RED)}
    assert list(body["timing_ms"]) == ["fetch", "decode", "predict", "total"]
    assert body["timing_ms"]["total"] >= body["timing_ms"]["fetch"] > 0


def redness(pixels: np.ndarray) -> np.ndarray:
    """A score: the part of red in the mean colour, 0 to 1."""
    return (pixels[..., 0].mean(axis=(1, 2)) / 255).astype(np.float32)


def test_an_image_unlike_all_is_unknown(
    gateway: FlaskClient, model_server: FakeModelServer, golden: list[bytes]
) -> None:
    """Beside the predictions of each image, by the threshold in the contract; a counter counts them."""
    model_server.versions[1] = FakeVersion.of(golden, score=redness, novelty=Novelty(0.9))
    images = [base64.b64encode(image).decode() for image in (RED, encode(photo()))]
    results = gateway.post("/predict", json={"images": images}).get_json()["results"]
    assert [each["unknown"] for each in results] == [True, False]
    assert gateway.post("/predict", json={"image": images[0]}).get_json()["unknown"] is True
    assert re.search(r'gateway_unknown_total{.*version="1"} 2.0', gateway.get("/metrics").text)


@pytest.mark.parametrize(("unknown", "novelty"), [("off", Novelty(0.9)), ("on", None)])
def test_without_a_score_or_with_the_setting_off_answers_are_as_before(
    gateway_with: Callable[..., FlaskClient],
    model_server: FakeModelServer,
    golden: list[bytes],
    unknown: str,
    novelty: Novelty | None,
) -> None:
    """They have no member `unknown`."""
    model_server.versions[1] = FakeVersion.of(golden, score=redness if novelty else None, novelty=novelty)
    answer = gateway_with(unknown=unknown).post("/predict", data=RED, content_type="image/png")
    assert set(answer.get_json()) == {"model", "predictions", "image", "timing_ms"}


@pytest.mark.parametrize(("top_k", "answered"), [({}, "gfedc"), ({"top_k": 1}, "g"), ({"top_k": 9}, "gfedcba")])
def test_five_classes_are_answered_unless_asked_otherwise(
    gateway: FlaskClient, model_server: FakeModelServer, golden: list[bytes], top_k: dict[str, int], answered: str
) -> None:
    """Of a model with seven: as many as top_k says, and never more than there are."""
    spread = lambda pixels: np.tile(np.arange(7, dtype=np.float32) / 21, (len(pixels), 1))  # noqa: E731
    model_server.versions[1] = FakeVersion.of(golden, tuple("abcdefg"), predict=spread)
    image = base64.b64encode(RED).decode()
    body = gateway.post("/predict", json={"image": image, **top_k}).get_json()
    assert [each["class"] for each in body["predictions"]] == list(answered)


def test_an_answer_of_too_many_predictions_is_refused(
    gateway: FlaskClient, model_server: FakeModelServer, golden: list[bytes]
) -> None:
    """Before anything is decoded; by the classes that there are, since top_k may be more."""
    even = lambda pixels: np.full((len(pixels), 2000), 1 / 2000, np.float32)  # noqa: E731
    model_server.versions[1] = FakeVersion.of(golden, tuple(map(str, range(2000))), predict=even)
    fits, image = {"images": ["AAAA"] * 50, "top_k": 10**8}, base64.b64encode(RED).decode()
    assert gateway.post("/predict", json=fits).status_code == 200
    answer = gateway.post("/predict", json={"images": [*fits["images"], image], "top_k": 1999})
    assert_problem(answer, 413, "too_large")
    assert "at most 100,000 predictions in an answer. Received: 101,949" in answer.get_json()["detail"]


def test_pixels_beyond_the_setting_are_refused(gateway_with: Callable[..., FlaskClient]) -> None:
    """By GATEWAY_MAX_PIXELS, below what a contract's decode would take."""
    client = gateway_with(max_pixels=64 * 48 - 1)
    assert_problem(client.post("/predict", data=RED, content_type="image/png"), 413, "too_large")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 20_000, "not JSON"),
        (b"\xff", "bytes that are no text"),
        (b"[]", "another type: list"),
        (b"{}", "Received none of them"),
        (b'{"url": 5}', "Expected url to be text. Received: 5"),
        (b'{"url": "http://a/", "image": ""}', "Received url and image"),
        (b'{"urls": []}', "list that is not empty"),
        (b'{"urls": "http://a/"}', "list that is not empty"),
        (b'{"urls": ["http://a/", null]}', "Expected each of urls to be text. Received: null"),
        (b'{"image": "a!"}', "Expected an image in base64"),
        (b'{"image": "data:image/png,abc"}', "Expected a data: URL"),
        (b'{"url": "http://a/", "top_k": 0}', "top_k"),
        (b'{"url": "http://a/", "top_k": true}', "top_k"),
        (b'{"url": "http://a/", "topk": 3}', "Received a member that is none of these: 'topk'"),
        (b'{"image": "HTTP://a/"}', "Received a URL, which belongs in url or urls"),
        (b'{"url": "Data:image/png;base64,aa"}', "Received a data: URL, which belongs in image or images"),
        (b'{"url": "not a url"}', "Received"),
    ],
)
def test_a_bad_request_says_what_was_expected(gateway: FlaskClient, body: bytes, detail: str) -> None:
    """Each mistake is a 400 that names it."""
    answer = gateway.post("/predict", data=body)
    assert_problem(answer, 400, "bad_request")
    assert detail in answer.get_json()["detail"]


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"<html>no image</html>", 415, "unsupported_media"),
        (encode(photo(400, 300))[:2000], 422, "bad_image"),
        (encode(Image.new("1", (9000, 9000)), "PNG"), 413, "too_large"),
    ],
)
def test_bytes_that_are_no_good_image_have_their_codes(
    gateway: FlaskClient, origin: Origin, image: bytes, status: int, code: str
) -> None:
    """No image, half an image, and too much of one."""
    answer = gateway.post("/predict", json={"url": origin.add("image", image)})
    assert_problem(answer, status, code)
    assert "html" not in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    ("authority", "status", "code"), [(None, 502, "fetch_failed"), ("127.0.0.1:1", 403, "url_not_allowed")]
)
def test_a_url_without_an_image_has_its_code(
    gateway: FlaskClient, origin: Origin, authority: str | None, status: int, code: str
) -> None:
    """The origin's 404 is not ours, and a private address is closed."""
    url = f"http://{authority or origin.authority}/none.jpg"
    assert_problem(gateway.post("/predict", json={"url": url}), status, code)


# What the client learns of a model server that is away, slow or busy; of all else, that it failed.
ANSWER_TO = {
    "CANCELLED": (503, "model_unavailable"),
    "ABORTED": (503, "model_unavailable"),
    "UNAVAILABLE": (503, "model_unavailable"),
    "NOT_FOUND": (503, "model_unavailable"),
    "DEADLINE_EXCEEDED": (504, "model_timeout"),
    "RESOURCE_EXHAUSTED": (503, "overloaded"),
}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_each_status_of_the_model_server_has_a_clean_answer(
    gateway: FlaskClient, origin: Origin, model_server: FakeModelServer, code: grpc.StatusCode
) -> None:
    """No status becomes a 500, and none shows the model server's own words."""
    url = origin.add("red.png", RED)
    assert gateway.post("/predict", json={"url": url}).status_code == 200
    model_server.failure = code
    if code is grpc.StatusCode.NOT_FOUND:
        model_server.versions.clear()
    answer = gateway.post("/predict", json={"url": url})
    assert_problem(answer, *ANSWER_TO.get(code.name, (502, "model_failed")))
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    assert "as the test wants it" not in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    ("answer", "size"),
    [([np.nan] * 3, 0), ([b"a", b"b", b"c"], 0), ([0.5, 0.5], 0), ([0.2, 0.3, 0.5], 2), ([0.2, 0.3, 0.5], 2**40)],
    ids=["not numbers", "text", "too few", "another shape", "a huge shape"],
)
def test_a_model_that_answers_nonsense_is_a_failed_model(
    gateway: FlaskClient, origin: Origin, model_server: FakeModelServer, answer: list[Any], size: int
) -> None:
    """What is no probability for each class is not passed on; a size is one more dimension."""
    url = origin.add("red.png", RED)
    assert gateway.post("/predict", json={"url": url}).status_code == 200
    kind = object if isinstance(answer[0], bytes) else np.float32
    model_server.versions[1].predict = lambda pixels: np.array([answer] * len(pixels), kind)
    model_server.spoil = lambda number, output: size and output.tensor_shape.dim.add(size=size)
    assert_problem(gateway.post("/predict", json={"url": url}), 502, "model_failed")


def test_the_model_is_described_without_its_golden_examples(gateway: FlaskClient) -> None:
    """Classes, image and origin are shown; the examples may be somebody's photos."""
    body = gateway.get("/model").get_json()
    assert (body["name"], body["version"]) == ("tiny", 1)
    assert body["contract"]["classes"] == ["red", "green", "blue"]
    assert "golden" not in body["contract"]


@pytest.mark.parametrize("engine", [None, "int8: 1.62 times the images/s of fp32, measured at load"])
def test_the_model_says_what_runs_it(gateway: FlaskClient, model_server: FakeModelServer, engine: str | None) -> None:
    """In the embedded server's words; TensorFlow Serving has none."""
    model_server.versions[1].engine = engine
    assert gateway.get("/model").get_json()["engine"] == engine


def test_ready_means_a_usable_version_and_alive_means_the_process(
    gateway: FlaskClient, model_server: FakeModelServer, golden: list[bytes]
) -> None:
    """Two questions, two answers."""
    assert gateway.get("/readyz").status_code == 503
    gateway.get("/model")  # looks
    ready = gateway.get("/readyz")
    assert ready.status_code == 200
    identities = {"1": model_server.versions[1].identity}
    assert ready.get_json()["model"] == {
        "name": "tiny", "versions": [1], "identities": identities, "refused": {}, "error": None
    }  # fmt: skip
    assert gateway.get("/livez").status_code == 200


def test_unknown_paths_and_methods_are_problems_too(gateway: FlaskClient) -> None:
    """Every error has the same shape."""
    assert_problem(gateway.get("/nothing"), 404, "not_found")
    wrong = gateway.get("/predict")
    assert_problem(wrong, 405, "method_not_allowed")
    assert "POST" in wrong.headers["Allow"]


def test_a_defect_is_a_500_without_a_traceback(
    gateway: FlaskClient, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expected is in the log, not in the answer."""
    monkeypatch.setattr("gateway.stages.decode", lambda *_: 1 / 0)
    answer = gateway.post("/predict", json={"url": origin.add("red.png", RED)})
    assert_problem(answer, 500, "internal_error")
    assert "ZeroDivision" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("image", [base64.b64encode(b"no image").decode(), "no base64"])
def test_an_error_keeps_no_image(gateway: FlaskClient, image: str) -> None:
    """Nothing of a request is left once it is answered, though nobody collects garbage."""
    gc.collect()
    gc.disable()
    try:
        before = [each for each in gc.get_objects() if isinstance(each, GatewayError)]  # that other tests keep
        gateway.post("/predict", json={"image": image})
        assert [each for each in gc.get_objects() if isinstance(each, GatewayError)] == before
    finally:
        gc.enable()


def test_while_the_model_server_is_away_nothing_is_fetched(
    gateway: FlaskClient, origin: Origin, model_server: FakeModelServer, connect: Callable[[str], Versions]
) -> None:
    """Once a look found nobody, requests fail at once, and image hosts are left alone."""
    client = connect(model_server.address)
    app = create_app(Settings(fetch_allow=origin.authority, model_name="tiny"), client, Metrics()).test_client()
    url = origin.add("red.png", RED)
    assert app.post("/predict", json={"url": url}).status_code == 200
    model_server.stop()
    client.start()
    deadline = time.monotonic() + 5
    with contextlib.suppress(ModelUnavailable):
        while time.monotonic() < deadline:
            client.newest()
            time.sleep(0.02)
    fetched = origin.requests
    answer = app.post("/predict", json={"url": url})
    assert_problem(answer, 503, "model_unavailable")
    assert answer.headers["Retry-After"]
    assert origin.requests == fetched


def assert_problem(answer: Any, status: int, code: str) -> None:
    """Check an answer by RFC 9457."""
    assert answer.status_code == status, answer.get_data()
    assert answer.content_type == "application/problem+json"
    body = json.loads(answer.get_data())
    assert (body["status"], body["code"]) == (status, code)
    assert set(body) == {"title", "status", "code", "detail"}


SHOP = "https://shop.test"
KEY = {"api_keys": hashlib.sha256(b"key").hexdigest()}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (SHOP, True),
        ("http://localhost:3000", True),
        ("https://xn--bcher-kva.test", True),
        ("https://shop.test:444", False),
        ("http://shop.test", False),
        ("https://a.shop.test", False),
        ("https://shop.test.evil.test", False),
        ("https://shop.test/", False),
        ("null", False),
        ("*", False),
        (None, False),
    ],
)
def test_only_origins_of_the_setting_may_read(
    gateway_with: Callable[..., FlaskClient], origin: str | None, allowed: bool
) -> None:
    """By the exact origin, also for failures; caches must keep answers for several origins apart."""
    client = gateway_with(allowed_origins=f"{SHOP}, HTTP://localhost:3000,https://xn--bcher-kva.test", **KEY)
    headers = {"Origin": origin} if origin else {}
    for path, status in (("/predict", 405), ("/model", 401), ("/openapi.json", 200), ("/none", 404)):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["Vary"]) == (status, "Origin")
        assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_preflight_needs_no_key(gateway_with: Callable[..., FlaskClient]) -> None:
    """Browsers ask without it whether a page may send one."""
    client = gateway_with(allowed_origins=SHOP, **KEY)
    answer = client.options("/predict", headers={"Origin": SHOP, "Access-Control-Request-Method": "POST"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, SHOP)
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "Content-Type", "X-API-Key"} <= set(
        answer.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert (
        "Access-Control-Allow-Methods" not in client.options("/predict", headers={"Origin": "https://a.test"}).headers
    )


def test_without_the_setting_no_origin_may_read(gateway: FlaskClient) -> None:
    """And no header says that there could be one."""
    for answer in (gateway.get("/model", headers={"Origin": SHOP}), gateway.options("/predict")):
        assert "Vary" not in answer.headers and "Access-Control" not in str(answer.headers)


def test_every_path_moves_under_a_prefix(gateway_with: Callable[..., FlaskClient]) -> None:
    """For a proxy that does not strip it; only probes and scrapes, which come beside the proxy, need none."""
    client = gateway_with(path_prefix="/my/classifier")
    assert client.post("/my/classifier/predict", data=RED, content_type="image/png").status_code == 200
    for path in ("/", "/page/page.js", "/model", "/openapi.json", "/livez", "/readyz", "/metrics"):
        with client.get(f"/my/classifier{path}") as answer:
            assert answer.status_code == 200
        with client.get(path) as answer:
            assert answer.status_code == (200 if path in HEALTH_PATHS else 404)
    assert "Expected a path that /my/classifier/openapi.json lists." in client.get("/predict").get_json()["detail"]
    assert client.get("/my/classifier/openapi.json").get_json()["servers"] == [{"url": "./"}]
    redirect = client.get("/my/classifier", headers={"Host": "public.test"})
    assert (redirect.status_code, redirect.headers["Location"]) == (308, "/my/classifier/")
    redirect = client.post("/my/classifier//predict?top_k=1", headers={"Host": "public.test"})
    assert (redirect.status_code, redirect.headers["Location"]) == (308, "/my/classifier/predict?top_k=1")
