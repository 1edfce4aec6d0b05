"""serving/rest.py over HTTP, with a fake engine; texts as TensorFlow Serving gives them."""

import gzip
import json
import socket
import struct
import threading
from contextlib import ExitStack
from functools import partial
from http.client import HTTPResponse
from typing import ClassVar

import numpy as np
import pytest

from contract import messages_pb2 as messages
from serving import rest
from serving.errors import UnavailableError
from serving.rest import RestServer, _Handler
from tests.programs.stack import wait_until
from tests.serving.conftest import by_rest, echo


class Echo:
    """An engine that answers its inputs."""

    choice = "echo: a fake"
    signatures: ClassVar = {
        "serving_default": echo(images=(messages.DT_UINT8, -1, 2)),
        "describe": echo(query=(messages.DT_STRING, -1)),
        "scalar": echo(x=(messages.DT_FLOAT,)),
        "binary": echo(x_bytes=(messages.DT_STRING, -1)),
        "pair": echo(images=(messages.DT_UINT8, -1, 2), number=(messages.DT_FLOAT, -1)),
    }

    def run(self, signature, inputs, timeout_s=None):
        return inputs


@pytest.fixture
def engine():
    """The fake engine behind every version."""
    return Echo()


@pytest.fixture
def server(lifecycle):
    """REST for version 7 of model m."""
    server = RestServer(lifecycle, "127.0.0.1", 0)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def call(server):
    """A function that asks for a path, with a body by POST; it returns status and JSON."""
    return partial(by_rest, server.server_port)


def post(server, headers, body=b""):
    """Return a connection that has sent a prediction, or its beginning."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
    connection.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n%s" % (headers, body))
    return connection


def answer(connection):
    """Return the status of an answer, and whether it has predictions."""
    response = HTTPResponse(connection)
    response.begin()
    return response.status, "predictions" in json.load(response)


@pytest.mark.parametrize("path", ["/v1/models/m", "/V1/Models/m", "/v1/models/m/versions/7", "/v1/models/%6D"])
def test_the_status_of_a_model_and_of_a_version(call, path):
    """Numbers of 64 bits are texts; paths are not case-sensitive."""
    status = {"error_code": "OK", "error_message": ""}
    expected = {
        "model_version_status": [{"version": "7", "state": "AVAILABLE", "status": status, "engine": "echo: a fake"}]
    }
    assert call(path) == (200, expected)


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"instances": [[1, 2], [3, 255]]}, [[1, 2], [3, 255]]),
        ({"signature_name": "describe", "instances": ["a", "ü"]}, ["a", "ü"]),
        ({"signature_name": "describe", "instances": [{"b64": "Yf8="}]}, ["a\ufffd"]),
        ({"instances": [{"images": [1, 2]}, {"images": [3, 4]}]}, [[1, 2], [3, 4]]),
        ({"signature_name": "binary", "instances": [{"b64": "/w\nA="}]}, [{"b64": "/wA="}]),
        (
            {
                "signature_name": "pair",
                "instances": [{"images": [1, 2], "number": 1}, {"images": [3, 4], "number": 2.5}],
            },
            [{"images": [1, 2], "number": 1.0}, {"images": [3, 4], "number": 2.5}],
        ),
    ],
)
def test_predict_answers_row_by_row(call, body, predictions):
    """A single input or output is bare, several are objects."""
    assert call("/v1/models/m:predict", body) == (200, {"predictions": predictions})
    assert call("/v1/models/m/versions/7:predict", body) == (200, {"predictions": predictions})


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ({"inputs": [[1, 2], [3, 255]]}, [[1, 2], [3, 255]]),
        ({"inputs": {"images": [[1, 2]], "other": "ignored"}}, [[1, 2]]),
        ({"signature_name": "scalar", "inputs": 2.5}, 2.5),
        ({"signature_name": "describe", "inputs": "a"}, "a"),
        ({"signature_name": "binary", "inputs": {"b64": "/wA="}}, {"b64": "/wA="}),
        (
            {"signature_name": "pair", "inputs": {"images": [[1, 2]], "number": 1}},
            {"images": [[1, 2]], "number": 1.0},
        ),
    ],
)
def test_predict_answers_by_columns(call, body, outputs):
    """Whole tensors, also of rank 0; a single input or output is bare, several are objects."""
    assert call("/v1/models/m:predict", body) == (200, {"outputs": outputs})


def test_a_body_may_come_in_chunks(server):
    """As clients send what they do not know the length of; together they are as limited as another body."""
    good = b'e\r\n{"instances": \r\n9;a=b\r\n[[1, 2]]}\r\n0\r\n\r\n'
    for chunks, status in {good: 200, b"-1\r\n{}\r\n0\r\n\r\n": 400, b"4000001\r\n": 400, b"": 400}.items():
        with post(server, b"Transfer-Encoding: chunked", chunks) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert answer(connection) == (status, status == 200)


def test_a_body_may_be_gzip(server):
    """As in the original; refused are other codings, what is none, what is cut off, and what unpacks to too much."""
    packed = gzip.compress(b'{"instances": [[1, 2]]}')
    large = gzip.compress(b" " * (rest.MAX_BODY_BYTES + 1), 1)
    for coding, body, expected in (
        (b"gzip", packed, b'{"predictions": '),
        (b"X-Gzip ", packed, b'{"predictions": '),
        (b"br", packed, b'{"error": "Expected a body that is plain or gzip. Received: Content-Encoding: br"}'),
        (b"gzip", b"{}", b'{"error": "Expected gzip, as Content-Encoding says. Received: '),
        (b"gzip", packed[:10], b'{"error": "JSON Parse error: '),
        (b"gzip", large, b'{"error": "Expected a body of at most 67108864 bytes unpacked. Received: more"}'),
    ):
        headers = b"Content-Encoding: %s\r\nContent-Length: %d" % (coding, len(body))
        with post(server, headers, body) as connection:
            response = HTTPResponse(connection)
            response.begin()
            assert response.read().startswith(expected)


def test_a_body_that_a_client_asks_to_send_is_awaited(server):
    """curl asks before it sends 1 MB, and waits a second where nobody answers."""
    body = b'{"instances": [[1, 2]]}'
    with post(server, b"Expect: 100-continue\r\nContent-Length: %d" % len(body)) as connection:
        assert connection.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert answer(connection) == (200, True)


def test_a_body_too_large_is_refused_while_it_is_sent(server):
    """A close with bytes unread would reset the connection, and the client would not see why."""
    with post(server, b"Content-Length: 67108865", b"0" * 2**20) as connection:
        for _ in range(9):
            connection.sendall(b"0" * 2**20)
        assert answer(connection) == (400, False)


def test_a_refused_body_is_not_read_without_end(server, monkeypatch):
    """It would keep a thread and a core busy for as long as the client likes."""
    monkeypatch.setattr(rest, "RUN_TIMEOUT_S", 0)
    with post(server, b"Content-Length: 67108865") as connection, pytest.raises(ConnectionError):
        for _ in range(2**12):
            connection.sendall(b"0" * 2**16)


@pytest.mark.parametrize(("length", "limit_s"), [(1, rest.RUN_TIMEOUT_S), (67108865, 0.1)])
def test_a_client_that_stays_after_its_answer_holds_no_thread(server, monkeypatch, length, limit_s):
    """Nothing is awaited after a body that was read, and a refused one no longer than the limit."""
    monkeypatch.setattr(rest, "RUN_TIMEOUT_S", limit_s)
    with post(server, b"Content-Length: %d" % length, b"{") as connection:
        assert answer(connection) == (400, False)
        wait_until(lambda: not any("process_request" in thread.name for thread in threading.enumerate()))


def test_a_client_that_stays_silent_or_leaves_is_no_defect(server, monkeypatch, caplog, capfd):
    """A body that does not come is an error with words; neither client gets a traceback."""
    with post(server, b"Content-Length: 5") as leaving:
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that the close resets
    monkeypatch.setattr(_Handler, "timeout", 2)
    with post(server, b"Content-Length: 5") as silent:
        assert answer(silent) == (400, False)
    wait_until(lambda: not any("process_request" in thread.name for thread in threading.enumerate()))
    assert caplog.text == capfd.readouterr().err == ""


def test_clients_who_come_at_once_wait_in_line(server):
    """One for whom there is no place would ask again after a second; here nobody is let in any more."""
    server.shutdown()
    with ExitStack() as clients:
        for _ in range(64):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=0.5))


def test_a_query_is_no_part_of_the_path(call):
    """It means nothing here."""
    assert call("/v1/models/m?x=1")[0] == call("/v1/models/m:predict?x=1", {"instances": [[1, 2]]})[0] == 200


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros(0, np.float32)},
            "Expected outputs of one common number of rows, at least 1. Received: {'y': 0}",
        ),
        ({"y": np.zeros(1), "z": np.zeros(2)}, "Expected outputs of one common number of rows"),
    ],
)
def test_outputs_that_are_no_rows_are_refused(call, engine, monkeypatch, outputs, message):
    """By rows, as TensorFlow Serving does; by columns they have an answer."""
    monkeypatch.setattr(engine, "run", lambda *_: {alias: np.asarray(value) for alias, value in outputs.items()})
    status, answer = call("/v1/models/m:predict", {"instances": [[1, 2]]})
    assert status == 400 and answer["error"].startswith(message)
    assert call("/v1/models/m:predict", {"inputs": [[1, 2]]})[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nope", None, 404, "Could not find any versions of model nope"),
        *((f"m/versions/{n}", None, 404, f"Could not find version {n} of model m") for n in (9, 2**63 - 1)),
        (f"m/versions/{2**63}", None, 400, f"Failed to convert version: {2**63} to numeric."),
        ("nope:predict", {"instances": [[1, 2]]}, 404, "Servable not found for request: Latest(nope)"),
        ("m:predict", None, 400, "Malformed request: GET /v1/models/m:predict"),
        ("m", {}, 400, "Malformed request: POST /v1/models/m"),
        ("m:classify", {}, 400, "Malformed request: POST /v1/models/m:classify"),
        ("m:predict", b"{", 400, "JSON Parse error: "),
        ("m:predict", [1], 400, "Expected a JSON object with either a list of `instances` or `inputs`"),
        ("m:predict", {}, 400, "Expected a JSON object with either a list of `instances` or `inputs`"),
        ("m:predict", {"instances": [[1, 2]], "inputs": [[1, 2]]}, 400, "Expected a JSON object with either"),
        ("m:predict", {"inputs": {"other": [[1, 2]]}}, 400, "Missing named input: images in 'inputs' object."),
        (
            "m:predict",
            {"signature_name": "pair", "inputs": [1]},
            400,
            "Missing named input: images in 'inputs' object.",
        ),
    ],
)
def test_errors_have_the_originals_status(call, path, body, status, message):
    """The answer is JSON that says what is wrong."""
    received, answer = call(f"/v1/models/{path}", body)
    assert received == status
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("signature", "instances", "status", "message"),
    [
        ("serving_default", [], 400, "Expected `instances` to be a list of at least one"),
        ("x", [1], 400, 'Serving signature name: "x" not found in signature def'),
        ("serving_default", [[1, 2.5]], 400, "JSON Value is not of expected type: uint8"),
        ("serving_default", [[1, 256]], 400, "JSON Value is not of expected type: uint8"),
        ("serving_default", [[True, False]], 400, "JSON Value is not of expected type: uint8"),
        ("serving_default", [[1, 2], [3]], 400, "Expected images to have one shape and type"),
        ("describe", [1], 400, "Expected query to have"),
        ("pair", [[1]], 400, "Expected every instance to be"),
        ("serving_default", [[1, True]], 400, "JSON Value is not of expected type: uint8"),
        ("serving_default", [[1, "2"]], 400, "JSON Value is not of expected type: uint8"),
        ("serving_default", [[1, 2], 3], 400, "Expected images to have one shape and type"),
        ("serving_default", [{"images": [1, 2], "junk": 1}], 400, "Expected every instance to be an object of images"),
        *(("binary", [{"b64": text}], 400, "Expected x_bytes to have") for text in ("!!!!", "_w==", "/wÄ=")),
    ],
)
def test_instances_that_do_not_fit_are_refused(call, signature, instances, status, message):
    """The answer says what does not fit the signature."""
    received, answer = call("/v1/models/m:predict", {"signature_name": signature, "instances": instances})
    assert received == status
    assert answer["error"].startswith(message)


def test_a_port_in_use_is_an_error(server, lifecycle):
    """The server does not start."""
    with pytest.raises(UnavailableError, match=f"Cannot listen on port {server.server_port}: "):
        RestServer(lifecycle, "127.0.0.1", server.server_port)


def test_an_output_that_cannot_be_sent_is_a_501(call, engine, monkeypatch):
    """As over gRPC; JSON has no complex numbers, and a type such as bfloat16 would lose its name."""
    monkeypatch.setattr(engine, "run", lambda *_: {"y": np.array([1j], np.complex64)})
    status, answer = call("/v1/models/m:predict", {"signature_name": "describe", "instances": [""]})
    assert status == 501 and "The output y has a type that cannot be sent" in answer["error"]
