"""gateway/inputs.py through the gateway: every form of input means the same."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug import Request
from werkzeug.test import TestResponse

from gateway.errors import BadRequest
from gateway.inputs import read_query
from gateway.settings import Settings
from tests.conftest import Origin
from tests.gateway.test_app import assert_problem
from tests.programs.model_server import FakeModelServer
from tests.programs.photos import encode, photo

IMAGE = encode(photo(90, 70, seed=9))


def by_form(gateway: FlaskClient, origin: Origin, image: bytes) -> dict[str, Any]:
    """Return the result of each form, without its timing and model."""
    text = base64.b64encode(image).decode()
    url = origin.add("image", image)
    answers = {
        "url": gateway.post("/predict", json={"url": url}),
        "urls": gateway.post("/predict", json={"urls": [url]}),
        "image": gateway.post("/predict", json={"image": text}),
        "data url": gateway.post("/predict", json={"image": f"DATA:image/png;Base64,{text}"}),
        "images": gateway.post("/predict", json={"images": ["\n".join([text[:40], text[40:]])]}),
        "file": gateway.post("/predict", data={"file": (BytesIO(image), "photo.jpg")}),
        "raw": gateway.post("/predict", data=image, content_type="image/jpeg"),
        "octets": gateway.post("/predict", data=image, content_type="application/octet-stream"),
    }
    assert {form: answer.status_code for form, answer in answers.items()} == dict.fromkeys(answers, 200)
    bodies = {form: answer.get_json() for form, answer in answers.items()}
    assert all(("results" in body) == (form in ("urls", "images")) for form, body in bodies.items())
    singles = {form: body["results"][0] if "results" in body else body for form, body in bodies.items()}
    return {form: {key: body[key] for key in ("predictions", "image")} for form, body in singles.items()}


def test_the_same_bytes_by_any_form_give_the_identical_answer(gateway: FlaskClient, origin: Origin) -> None:
    """URL, list of URLs, base64, data: URL, list of base64, file and raw body (S17)."""
    results = by_form(gateway, origin, IMAGE)
    assert all(result == results["url"] for result in results.values())


def test_a_list_answers_in_order_each_with_its_result_or_its_own_error(gateway: FlaskClient, origin: Origin) -> None:
    """One bad image does not spoil the others."""
    good, broken = origin.add("good", IMAGE), origin.add("broken", IMAGE[:100])
    urls = [broken, good, "http://127.0.0.1:1/", good, "DATA:image/png;base64,AAAA"]
    body = gateway.post("/predict", json={"urls": urls, "top_k": 1}).get_json()
    codes = [result.get("error", {}).get("code") for result in body["results"]]
    assert codes == ["bad_image", None, "url_not_allowed", None, "bad_request"]
    assert "a data: URL, which belongs in image or images" in body["results"][4]["error"]["detail"]
    assert body["results"][1] == body["results"][3]
    assert len(body["results"][1]["predictions"]) == 1


def test_slow_hosts_spoil_no_other_image(gateway_with: Callable[..., FlaskClient], origin: Origin) -> None:
    """Two beside good ones, and more than are fetched at once before them; what did arrive is answered in time."""
    client = gateway_with(fetch_allow=origin.authority, fetch_timeout_s=2, request_timeout_s=5, fetch_limit=8)
    good, slow = origin.add("good", IMAGE), f"http://{origin.authority}/slow"
    origin.answers["/slow"] = lambda _: origin.stopped.wait(10)
    for urls in ([good, slow, *[good] * 4, slow, good], [good, *[slow] * 12]):
        results = client.post("/predict", json={"urls": urls}).get_json()["results"]
        codes = [result.get("error", {}).get("code") for result in results]
        assert codes == ["fetch_timeout" if url == slow else None for url in urls]


def test_what_is_no_image_in_a_list_spoils_no_other(gateway_with: Callable[..., FlaskClient]) -> None:
    """Text that is not base64, a URL in the wrong place, too many bytes: each has its error, alone a 400 or 413."""
    good, bad = base64.b64encode(IMAGE).decode(), ["a!", "http://a/", base64.b64encode(IMAGE * 2).decode()]
    client, codes = gateway_with(max_image_bytes=len(IMAGE)), ["bad_request", "bad_request", "too_large"]
    results = client.post("/predict", json={"images": [*bad, good]}).get_json()["results"]
    assert [result.get("error", {}).get("code") for result in results] == [*codes, None]
    for text, code in zip(bad, codes, strict=True):
        assert_problem(client.post("/predict", json={"image": text}), 413 if code == "too_large" else 400, code)


def test_an_item_that_is_none_keeps_no_body() -> None:
    """As in test_stages.py."""
    request = Request.from_values(method="POST", json={"images": ["a!", "AAAA"]})
    error, _ = read_query(request, Settings()).images
    assert isinstance(error, BadRequest) and error.__traceback__ is None and error.__context__ is None


@pytest.mark.parametrize("text", ["QUFB " * 1_000_000, "QUFB" * 1_000_000 + "\U0001f600"])
def test_base64_takes_a_few_times_its_bytes(text: str) -> None:
    """Though it has a blank in each group, or an emoji makes Python take four bytes for each character; one at a time.

    A list of all groups took 25 times the bytes, and eight emoji 32 times those of a body.
    """
    body = json.dumps({"images": [text]}, ensure_ascii=False).encode()
    with ThreadPoolExecutor(8) as pool:
        tracemalloc.start()
        try:
            requests = [Request.from_values(method="POST", data=body) for _ in range(8)]
            before, _ = tracemalloc.get_traced_memory()
            list(pool.map(read_query, requests, [Settings()] * 8))
            assert tracemalloc.get_traced_memory()[1] - before < 18 * len(body)
        finally:
            tracemalloc.stop()


def test_a_list_of_failures_is_an_answer_too(gateway: FlaskClient) -> None:
    """Nothing is sent to the model, and each item has its error."""
    body = gateway.post("/predict", json={"images": ["AAAA", "BBBB"]}).get_json()
    assert [result["error"]["code"] for result in body["results"]] == ["unsupported_media"] * 2


def send_form(gateway: FlaskClient, *parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> TestResponse:
    """Send a form of these parts, in order, each with what follows `form-data; ` and its content."""
    head = "--B\r\nContent-Disposition: form-data; {}\r\n\r\n"
    body = b"".join(head.format(part).encode() + content + b"\r\n" for part, content in parts) + end
    return gateway.post("/predict", data=body, content_type="multipart/form-data; boundary=B")


def test_several_files_are_a_list(gateway: FlaskClient) -> None:
    """Files under one name or several, in the order in which they were sent."""
    images = [encode(photo(seed=seed)) for seed in (10, 11)] + [IMAGE]
    files = [(f'name="{name}"; filename="a.jpg"', image) for name, image in zip("aba", images, strict=True)]
    body = send_form(gateway, *files, ('name="top_k"', b"1")).get_json()
    assert [result["image"]["bytes"] for result in body["results"]] == list(map(len, images))
    assert [len(result["predictions"]) for result in body["results"]] == [1, 1, 1]


def test_an_input_without_a_chosen_file_does_not_count(gateway: FlaskClient) -> None:
    """Browsers send it as an empty file without a name; an empty file with one is an image that is none."""
    image, unchosen, empty = (
        f'name="{name}"; filename="{file}"' for name, file in (("a", "a.jpg"), ("b", ""), ("c", "c"))
    )
    assert "predictions" in send_form(gateway, (image, IMAGE), (unchosen, b"")).get_json()
    assert_problem(send_form(gateway, (unchosen, b"")), 400, "bad_request")
    assert_problem(send_form(gateway, (unchosen, b""), (empty, b"")), 415, "unsupported_media")


def test_a_form_with_a_url_beside_its_file_is_refused(gateway: FlaskClient) -> None:
    """One of them would have no answer; an input that was left empty, and one of another name, do no harm."""
    file = ('name="file"; filename="a.jpg"', IMAGE)
    assert_problem(send_form(gateway, file, ('name="url"', b"http://a/")), 400, "bad_request")
    assert "predictions" in send_form(gateway, file, ('name="url"', b""), ('name="note"', b"a")).get_json()


def test_a_form_that_is_cut_off_is_refused(gateway: FlaskClient) -> None:
    """Even after whole files: others may be missing."""
    answer = send_form(gateway, ('name="a"; filename="a.jpg"', IMAGE), end=b"--B\r\nContent-Disp")
    assert_problem(answer, 400, "bad_request")
    assert "Received a form that is malformed, cut off or" in answer.get_json()["detail"]


def test_a_form_with_much_text_is_refused(gateway: FlaskClient) -> None:
    """Fields and the headers of a part take many times their bytes; a file may be as large as it may elsewhere."""
    named, many = 'name="a"; filename="a.jpg"', "a:\r\n" * 50_000
    for part in (('name="note"', b"a" * 200_000), (f"{named}\r\n{many}", IMAGE)):
        assert_problem(send_form(gateway, part), 413, "too_large")
    assert_problem(send_form(gateway, (named, bytes(2_000_000))), 415, "unsupported_media")


def test_a_form_keeps_no_headers(gateway_with: Callable[..., FlaskClient]) -> None:
    """Each part may have many, which would take a gigabyte together."""
    part = ('name="a"; filename="a.jpg"\r\n' + "a:\r\n" * 4_000, b"")
    client = gateway_with(max_images=500)
    tracemalloc.start()
    try:
        assert len(send_form(client, *[part] * 500).get_json()["results"]) == 500
        assert tracemalloc.get_traced_memory()[1] < 60e6  # 16 MB, of which the body has 8; 138 MB with the headers
    finally:
        tracemalloc.stop()


def test_what_is_fetched_finds_room_or_is_refused(gateway_with: Callable[..., FlaskClient], origin: Origin) -> None:
    """Of four images two fit into what a process may keep at once, and an alert sees it; then there is room again."""
    client = gateway_with(fetch_allow=origin.authority, max_held_bytes=int(2.8 * len(IMAGE)))
    url = origin.add("image", IMAGE)
    results = client.post("/predict", json={"urls": [url] * 4}).get_json()["results"]
    assert sorted(result.get("error", {}).get("code", "") for result in results) == ["", "", "overloaded", "overloaded"]
    assert 'gateway_image_failures_total{code="overloaded"} 2.0' in client.get("/metrics").get_data(as_text=True)
    again = client.post("/predict", json={"urls": [url] * 2}).get_json()["results"]
    assert all("predictions" in result for result in again)


def test_top_k_is_an_argument_where_there_is_no_json(gateway: FlaskClient) -> None:
    """Raw bodies ask in the query string; a bad number is an error."""
    answer = gateway.post("/predict?top_k=2", data=IMAGE, content_type="image/jpeg")
    assert len(answer.get_json()["predictions"]) == 2
    assert_problem(gateway.post("/predict?top_k=none", data=IMAGE, content_type="image/jpeg"), 400, "bad_request")


def test_predictions_go_to_the_model_in_batches(model_server: FakeModelServer, gateway: FlaskClient) -> None:
    """Forty images are three calls of at most sixteen."""
    gateway.get("/model")
    calls = len(model_server.calls)
    text = base64.b64encode(IMAGE).decode()
    assert len(gateway.post("/predict", json={"images": [text] * 40}).get_json()["results"]) == 40
    assert len(model_server.calls) - calls == 3


@pytest.mark.parametrize("coding", ["", "identity", "UTF-8", "aws-chunked"])
def test_a_coding_that_changes_no_bytes_is_none(gateway: FlaskClient, coding: str) -> None:
    """As clients send them beside a plain image."""
    body = {"data": IMAGE, "content_type": "image/jpeg", "headers": {"Content-Encoding": coding}}
    assert gateway.post("/predict", **body).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"json": {"urls": ["http://a/"] * 4}}, 413, "too_large"),
        ({"json": {"images": ["!"] * 4}}, 413, "too_large"),  # before any is read
        ({"data": b'{"urls": [' + b"[]," * 200_000 + b"[]]}"}, 413, "too_large"),
        ({"data": b"x" * 20_001, "content_type": "image/png"}, 413, "too_large"),
        ({"data": {"note": "no file"}}, 400, "bad_request"),
        ({"data": b"", "content_type": "image/png"}, 415, "unsupported_media"),
        *(
            ({"data": IMAGE, "headers": {"Content-Encoding": each}}, 415, "unsupported_media")
            for each in ("GZIP", "x-gzip", "compress", "identity, br")
        ),
    ],
)
def test_every_form_has_the_limits(gateway_with: Callable[..., FlaskClient], body: Any, status: int, code: str) -> None:
    """Too many images, too many bytes, no file, no bytes, and compressed ones."""
    client = gateway_with(max_images=3, max_image_bytes=20_000)
    if isinstance(body.get("data"), dict):
        body["content_type"] = "multipart/form-data"
    assert_problem(client.post("/predict", **body), status, code)
