"""serving/rest.py over HTTP, with a fake engine; texts as TensorFlow Serving gives them."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from contract import messages_pb2 as messages
from serving.engines import Signature, TensorSpec
from serving.errors import UnavailableError
from serving.lifecycle import Lifecycle
from serving.rest import RestServer
from serving.service import Service
from serving.versions import ModelConfig, default_policy


class Echo:
    """An engine that answers its inputs."""

    def __init__(self):
        pixels = TensorSpec(messages.DT_UINT8, (None, 2), "images:0")
        number = TensorSpec(messages.DT_FLOAT, (None,), "number:0")
        text = TensorSpec(messages.DT_STRING, (None,), "text:0")
        self.signatures = {
            "serving_default": Signature({"images": pixels}, {"images": pixels}),
            "describe": Signature({"query": text}, {"query": text}),
            "binary": Signature({"x_bytes": text}, {"x_bytes": text}),
            "pair": Signature({"images": pixels, "number": number}, {"images": pixels, "number": number}),
        }

    def run(self, signature, inputs, timeout_s=None):
        return inputs


@pytest.fixture
def server(tmp_path):
    """REST for version 7 of model m."""
    (tmp_path / "m" / "7").mkdir(parents=True)
    lifecycle = Lifecycle([ModelConfig("m", tmp_path / "m", default_policy())], lambda directory: Echo())
    lifecycle.start()
    assert lifecycle.wait_until_available(threading.Event())
    server = RestServer(Service(lifecycle), lifecycle, "127.0.0.1", 0)
    yield server
    server.shutdown()
    server.server_close()
    lifecycle.stop()


@pytest.fixture
def call(server):
    """A function that asks for a path, with a body by POST; it returns status and JSON."""

    def call(path, body=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", data, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)

    return call


@pytest.mark.parametrize("path", ["/v1/models/m", "/V1/Models/m", "/v1/models/m/versions/7", "/v1/models/%6D"])
def test_the_status_of_a_model_and_of_a_version(call, path):
    """Numbers of 64 bits are texts; paths are not case-sensitive."""
    status = {"error_code": "OK", "error_message": ""}
    expected = {"model_version_status": [{"version": "7", "state": "AVAILABLE", "status": status}]}
    assert call(path) == (200, expected)


def test_the_metadata_lists_all_signatures(call):
    """Under the double name that the original has."""
    status, answer = call("/v1/models/m/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": "7"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["pair"]["inputs"]["number"]["dtype"] == "DT_FLOAT"
    assert signatures["describe"]["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"instances": [[1, 2], [3, 255]]}, [[1, 2], [3, 255]]),
        ({"signature_name": "describe", "instances": ["a", "ü"]}, ["a", "ü"]),
        ({"signature_name": "binary", "instances": [{"b64": "/wA="}]}, [{"b64": "/wA="}]),
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
    ("path", "body", "status", "message"),
    [
        ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
        ("/v1/models/m/versions/9", None, 404, "Could not find version 9 of model m"),
        ("/v1/models/nope:predict", {"instances": [[1, 2]]}, 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/m:predict", None, 400, "Malformed request: GET /v1/models/m:predict"),
        ("/v1/models/m", {}, 400, "Malformed request: POST /v1/models/m"),
        ("/v1/models/m:classify", {}, 400, "Malformed request: POST /v1/models/m:classify"),
        ("/v1/models/m:predict", b"{", 400, "JSON Parse error: "),
        ("/v1/models/m:predict", {"instances": []}, 400, "Expected a JSON object with a list of `instances`"),
        ("/v1/models/m:predict", [1], 400, "Expected a JSON object with a list of `instances`"),
        (
            "/v1/models/m:predict",
            {"signature_name": "x", "instances": [1]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        ("/v1/models/m:predict", {"instances": [[1, 2.5]]}, 400, "JSON Value is not of expected type: uint8"),
        ("/v1/models/m:predict", {"instances": [[1, 256]]}, 400, "JSON Value is not of expected type: uint8"),
        ("/v1/models/m:predict", {"instances": [[True, False]]}, 400, "JSON Value is not of expected type: uint8"),
        ("/v1/models/m:predict", {"instances": [[1, 2], [3]]}, 400, "Expected images to have one shape and type"),
        ("/v1/models/m:predict", {"instances": [[1, 2, 3]]}, 400, "Expected images of shape (n, 2)"),
        ("/v1/models/m:predict", {"signature_name": "describe", "instances": [1]}, 400, "Expected query to have"),
        ("/v1/models/m:predict", {"signature_name": "pair", "instances": [[1]]}, 400, "Expected every instance to be"),
        ("/v1/models/m:predict", {"signature_name": "describe", "instances": [{"b64": "/w=="}]}, 500, "UnicodeDecode"),
    ],
)
def test_errors_have_the_originals_status(call, path, body, status, message):
    """In JSON, with what was wrong."""
    received, answer = call(path, body)
    assert received == status
    assert answer["error"].startswith(message)


def test_a_taken_port_is_an_error(server):
    """It is told at start."""
    with pytest.raises(UnavailableError, match=f"Expected port {server.server_port} to be free"):
        RestServer(server.service, server.lifecycle, "127.0.0.1", server.server_port)
