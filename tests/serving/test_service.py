"""serving/service.py and serving/prediction.py over real gRPC, with a fake engine."""

import socket
import threading
import time
from contextlib import suppress

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract import messages_pb2 as messages
from contract.tensor import to_array, to_proto
from serving.engines import Signature, TensorSpec
from serving.errors import Code, DeadlineExceededError, GraphError, UnavailableError
from serving.lifecycle import Lifecycle
from serving.service import Server, Service
from serving.versions import ModelConfig, default_policy


class Doubler:
    """An engine that answers twice its input; it waits for `gate`, and fails where the first value is 13."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.timeouts = []
        images = TensorSpec(messages.DT_UINT8, (None, 2, None), "serving_default_images:0")
        self.signatures = {
            "serving_default": Signature({"images": images}, {"y": images, "z": images}),
            "pair": Signature({"a": images, "b": TensorSpec(messages.DT_INT32, (), "b:0")}, {"y": images}),
            "free": Signature({"x": TensorSpec(messages.DT_STRING, None, "x:0")}, {"x": images}),
        }

    def run(self, signature, inputs, timeout_s=None):
        self.running.release()
        self.timeouts.append(timeout_s)
        if not self.gate.wait(min(timeout_s, 10)):
            raise DeadlineExceededError("too late")
        value = inputs.get("images", next(iter(inputs.values())))
        if value.size and value.reshape(-1)[0] == 13:
            raise GraphError(Code.OUT_OF_RANGE, "x" * 2000)
        if value.size and value.reshape(-1)[0] == 14:
            raise ZeroDivisionError("oops")
        return dict.fromkeys(self.signatures[signature].outputs, value)


class Client:
    """The methods under test on one channel; each returns the response, or raises grpc.RpcError."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.predict = self._method("PredictionService/Predict", messages.PredictResponse)
        self.metadata = self._method("PredictionService/GetModelMetadata", messages.GetModelMetadataResponse)
        self.status = self._method("ModelService/GetModelStatus", messages.GetModelStatusResponse)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def _method(self, path, response):
        return self.channel.unary_unary(
            f"/tensorflow.serving.{path}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )


@pytest.fixture
def engine():
    """The fake engine behind every version."""
    return Doubler()


@pytest.fixture
def lifecycle(tmp_path, engine):
    """Version 7 of model m, available."""
    (tmp_path / "m" / "7").mkdir(parents=True)
    lifecycle = Lifecycle([ModelConfig("m", tmp_path / "m", default_policy())], lambda directory: engine)
    lifecycle.start()
    assert lifecycle.wait_until_available(threading.Event())
    yield lifecycle
    lifecycle.stop()


@pytest.fixture
def server(lifecycle):
    """A server with room for three requests, on a free port."""
    server = Server(Service(lifecycle), ["127.0.0.1:0"], max_threads=3)
    yield server
    server.drain(0)


@pytest.fixture
def client(server):
    """A client of that server."""
    client = Client(f"127.0.0.1:{server.ports[0]}")
    yield client
    client.channel.close()


def ask(array=None, name="m", version=None, signature="", inputs=None):
    request = messages.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    inputs = {"images": np.ones((1, 2, 3), np.uint8) if array is None else array} if inputs is None else inputs
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(value))
    return request


def failure(call, request, **options):
    with pytest.raises(grpc.RpcError) as raised:
        call(request, **options)
    return raised.value.code().name, raised.value.details()


def test_our_codes_are_all_of_grpcs():
    """Every status of gRPC has the same name and number here, so that any error can be answered."""
    assert {code.name: code.value for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}


def test_an_answer_says_which_version_and_signature_gave_it(client):
    """The spec comes back with the concrete version and the signature filled in, tensors in typed fields."""
    response = client.predict(ask())
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "serving_default")
    assert list(response.outputs["y"].int_val) == [1] * 6
    assert response.outputs["y"].tensor_content == b""
    assert to_array(response.outputs["z"]).shape == (1, 2, 3)


def test_only_the_asked_outputs_are_answered(client):
    """output_filter names the outputs of the answer."""
    request = ask()
    request.output_filter.append("z")
    assert list(client.predict(request).outputs) == ["z"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((0, 2, 3), np.uint8), "Expected images of shape (n, 2, any) with n >= 1. Received: (0, 2, 3)"),
        (np.ones((1, 4, 3), np.uint8), "Expected images of shape (n, 2, any) with n >= 1. Received: (1, 4, 3)"),
        (np.ones((2, 3), np.uint8), "Expected images of shape (n, 2, any) with n >= 1. Received: (2, 3)"),
        (np.uint8(1).reshape(()), "Expected images of shape (n, 2, any) with n >= 1. Received: ()"),
    ],
)
def test_a_wrong_shape_never_reaches_the_engine(client, engine, array, message):
    """Rank, fixed sizes and an empty batch are checked before the run, which may not survive them."""
    assert failure(client.predict, ask(array)) == ("INVALID_ARGUMENT", message)
    assert not engine.running.acquire(blocking=False)


def test_a_fixed_shape_may_be_scalar_and_a_free_one_anything(client):
    """Only what the signature fixes is checked."""
    inputs = {"a": np.ones((1, 2, 3), np.uint8), "b": np.ones(2, np.int32)}
    assert failure(client.predict, ask(inputs=inputs, signature="pair")) == (
        "INVALID_ARGUMENT",
        "Expected b of shape (). Received: (2,)",
    )
    assert client.predict(ask(inputs={"x": np.array([[b"q"]], object)}, signature="free"))


def test_a_long_message_is_cut(client):
    """A message over 1024 characters is cut as TensorFlow Serving cuts it, and keeps the runtime's code."""
    code, message = failure(client.predict, ask(np.full((1, 2, 3), 13, np.uint8)))
    assert (code, message) == ("OUT_OF_RANGE", "x" * 1024 + "...TRUNCATED")


def test_an_unexpected_error_is_internal(client):
    """An exception that is not ours is answered as INTERNAL with its text."""
    assert failure(client.predict, ask(np.full((1, 2, 3), 14, np.uint8))) == (
        "INTERNAL",
        "ZeroDivisionError: oops",
    )


def test_bytes_that_are_no_request_are_internal(client):
    """As in the original, garbage is INTERNAL."""
    assert failure(client.predict, b"\xff\xff")[0] == "INTERNAL"


def test_more_requests_than_threads_are_refused(client, engine):
    """The fourth request at a time gets RESOURCE_EXHAUSTED at once, the other three are answered."""
    engine.gate.clear()
    running = [client.predict.future(ask()) for _ in range(3)]
    for _ in running:
        assert engine.running.acquire(timeout=5)
    assert failure(client.predict, ask())[0] == "RESOURCE_EXHAUSTED"
    engine.gate.set()
    assert all(future.result(5).outputs for future in running)


def test_the_clients_deadline_reaches_the_engine(client, engine):
    """Requests that wait for the engine end there with their deadline, and free their threads, all three."""
    engine.gate.clear()
    for future in [client.predict.future(ask(), timeout=0.3) for _ in range(3)]:
        assert future.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(engine.timeouts) == 3 and all(0 < timeout_s <= 0.3 for timeout_s in engine.timeouts)
    engine.gate.set()
    deadline = time.monotonic() + 2
    while len(engine.timeouts) < 6 and time.monotonic() < deadline:
        with suppress(grpc.RpcError):  # a thread that is not free yet refuses
            client.predict(ask())
    assert len(engine.timeouts) == 6


@pytest.mark.parametrize(
    "name",
    [
        "",
        "PredictionService",
        "ModelService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
    ],
)
def test_health_is_serving(client, name):
    """The server and its services are healthy."""
    response = client.health.Check(health_pb2.HealthCheckRequest(service=name))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_an_unknown_name_has_no_health(client):
    """A health check for something else is NOT_FOUND."""
    assert failure(client.health.Check, health_pb2.HealthCheckRequest(service="other"))[0] == "NOT_FOUND"


def test_drain_finishes_what_is_under_way(server, client, engine):
    """While a request finishes, watchers see NOT_SERVING and new requests are refused."""
    watch = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    engine.gate.clear()
    running = client.predict.future(ask())
    assert engine.running.acquire(timeout=5)
    drain = threading.Thread(target=server.drain, args=(5,))
    drain.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    time.sleep(0.1)
    assert failure(client.predict, ask())[0] == "UNAVAILABLE"
    engine.gate.set()
    assert running.result(5).outputs
    drain.join(5)
    assert not drain.is_alive()


def test_drain_ends_with_its_grace(server, client, engine):
    """A request that takes longer than the grace is cancelled."""
    engine.gate.clear()
    running = client.predict.future(ask())
    assert engine.running.acquire(timeout=5)
    started = time.monotonic()
    server.drain(0.1)
    assert time.monotonic() - started < 2
    with pytest.raises(grpc.RpcError):
        running.result(5)
    engine.gate.set()


def test_a_taken_port_is_an_error(lifecycle):
    """Two servers never share a port, which SO_REUSEPORT would let them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"Expected {address} to be free to listen on"):
            Server(Service(lifecycle), [address], max_threads=1)
    first = Server(Service(lifecycle), ["127.0.0.1:0"], max_threads=1)
    with pytest.raises(UnavailableError):
        Server(Service(lifecycle), [f"127.0.0.1:{first.ports[0]}"], max_threads=1)
    first.drain(0)


def test_a_unix_socket_is_enough(lifecycle, tmp_path):
    """The server answers on a UNIX socket."""
    server = Server(Service(lifecycle), [f"unix:{tmp_path}/s"], max_threads=1)
    assert Client(f"unix:{tmp_path}/s").predict(ask()).outputs
    server.drain(0)
