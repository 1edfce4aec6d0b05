"""serving/service.py over real gRPC, with a fake engine; test_official_client.py has the rest."""

import socket
import threading
import time
from contextlib import suppress
from typing import ClassVar

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract import messages_pb2 as messages
from contract.messages_pb2 import Code
from contract.tensor import to_proto
from serving import service
from serving.errors import DeadlineExceededError, GraphError, UnavailableError
from serving.service import Server
from serving.settings import Settings
from tests.programs.stack import wait_until
from tests.serving.conftest import echo, failure, predict


class Echo:
    """An engine that answers its input; it waits for `gate`, and fails where the first value is 13 or 14."""

    choice = ""
    clock = staticmethod(time.thread_time)
    signatures: ClassVar = {"serving_default": echo(images=(messages.DT_UINT8, -1))}

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.timeouts = []

    def run(self, signature, inputs, timeout_s=None):
        self.running.release()
        self.timeouts.append(timeout_s)
        if not self.gate.wait(min(timeout_s, 10)):
            raise DeadlineExceededError("too late")
        if inputs["images"][0] == 13:
            raise GraphError(Code.OUT_OF_RANGE, "x" * 2000)
        if inputs["images"][0] == 14:
            raise ZeroDivisionError("oops")
        return inputs


class Client:
    """The methods under test on one channel; each returns the response, or raises grpc.RpcError."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.predict = predict(self.channel)
        self.status = self.channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request_serializer=messages.GetModelStatusRequest.SerializeToString,
            response_deserializer=messages.GetModelStatusResponse.FromString,
        )
        self.health = health_pb2_grpc.HealthStub(self.channel)


@pytest.fixture
def engine():
    """The fake engine behind every version."""
    return Echo()


@pytest.fixture
def server(lifecycle):
    """A server with room for three requests, on a free port."""
    server = Server(lifecycle, ["127.0.0.1:0"], Settings(grpc_max_threads=3))
    yield server
    server.drain(0)


@pytest.fixture
def client(server):
    """A client of that server."""
    client = Client(f"127.0.0.1:{server.ports[0]}")
    yield client
    client.channel.close()


def ask(value=1):
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="m"))
    request.inputs["images"].CopyFrom(to_proto(np.array([value], np.uint8)))
    return request


def test_our_codes_are_all_of_grpcs():
    """Every status of gRPC has the same name and number here, so that any error can be answered."""
    assert dict(Code.items()) == {code.name: code.value[0] for code in grpc.StatusCode}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [(13, "OUT_OF_RANGE", "x" * 1024 + "...TRUNCATED"), (14, "INTERNAL", "ZeroDivisionError: oops")],
)
def test_an_error_of_the_engine_is_answered(client, value, code, message):
    """A model's error keeps its code, any other is INTERNAL; a long message is cut as TensorFlow Serving cuts it."""
    assert failure(client.predict, ask(value)) == (code, message)


def test_bytes_that_are_no_request_are_internal(client):
    """As in the original, they are INTERNAL."""
    assert failure(client.predict, b"\xff\xff")[0] == "INTERNAL"


def test_more_requests_than_threads_are_refused(client, engine):
    """The fourth request at a time gets RESOURCE_EXHAUSTED at once, the other three are answered."""
    engine.gate.clear()
    running = [client.predict.future(ask()) for _ in range(3)]
    for _ in running:
        assert engine.running.acquire(timeout=5)
    assert failure(client.predict, ask())[0] == "RESOURCE_EXHAUSTED"
    status = client.status(messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name="m")))
    assert status.model_version_status  # gateways and probes get in
    assert client.health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    engine.gate.set()
    assert all(future.result(5).outputs for future in running)


def test_the_clients_deadline_reaches_the_engine(client, engine):
    """Requests that wait for the engine end there with their deadline, and free their threads, all three."""
    engine.gate.clear()
    for future in [client.predict.future(ask(), timeout=2) for _ in range(3)]:
        assert future.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(engine.timeouts) == 3 and all(0 < timeout_s < 2.05 for timeout_s in engine.timeouts)
    engine.gate.set()

    def has_answered_three():
        with suppress(grpc.RpcError):  # a thread that is not free yet refuses
            client.predict(ask())
        return len(engine.timeouts) == 6

    wait_until(has_answered_three)


def test_an_answer_says_how_long_the_engine_ran(client, engine):
    """By its own clock, which need not count what it waited."""
    ticks = iter((1.0, 1.25))
    engine.clock = lambda: next(ticks)
    _, call = client.predict.with_call(ask())
    assert dict(call.trailing_metadata()) == {"engine-seconds": "0.250000"}


def test_health_is_serving(client):
    """The server and its services are healthy; a health check for something else is NOT_FOUND."""
    names = ["PredictionService", "ModelService"]
    for name in ("", *names, *(f"tensorflow.serving.{name}" for name in names)):
        response = client.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert failure(client.health.Check, health_pb2.HealthCheckRequest(service="other"))[0] == "NOT_FOUND"


def test_drain_finishes_what_is_under_way(server, client, engine):
    """While a request finishes, watchers see NOT_SERVING and new requests are refused."""
    watch = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    engine.gate.clear()
    running = client.predict.future(ask())
    assert engine.running.acquire(timeout=5)
    drain = threading.Thread(target=server.drain, args=(60,))
    drain.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    wait_until(lambda: failure(client.predict, ask(), timeout=0.2)[0] == "UNAVAILABLE")
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


def test_a_unix_socket_in_use_is_an_error(lifecycle, tmp_path):
    """The first server keeps it; one that a killed server left is taken."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    first = Server(lifecycle, [f"unix:{path}"], Settings(grpc_max_threads=1))
    with pytest.raises(UnavailableError, match=f"Cannot listen on unix:{path}: another server does"):
        Server(lifecycle, [f"unix:{path}"], Settings(grpc_max_threads=1))
    client = Client(f"unix:{path}")
    assert client.predict(ask(), timeout=5).outputs
    client.channel.close()
    first.drain(0)


def test_a_client_that_is_gone_frees_its_thread(lifecycle, engine, monkeypatch):
    """It began to send a request, and answers no ping; one that waits for a slow answer does."""
    monkeypatch.setattr(service, "KEEPALIVE_MS", 100)
    arguments = (("grpc.http2.ping_timeout_ms", 100),)
    server = Server(lifecycle, ["127.0.0.1:0"], Settings(grpc_max_threads=1, grpc_channel_arguments=arguments))
    names = {":method": "POST", ":scheme": "http", ":path": "/tensorflow.serving.PredictionService/Predict"}
    names |= {":authority": "a", "te": "trailers", "content-type": "application/grpc"}
    block = b"".join(b"\0%c%s%c%s" % (len(k), k.encode(), len(v), v.encode()) for k, v in names.items())
    frames = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, len(block), 1, 4, 0, 0, 0, 1]) + block  # settings, and headers
    engine.gate.clear()
    slow = Client(f"127.0.0.1:{server.ports[0]}")
    running = slow.predict.future(ask())
    assert engine.running.acquire(timeout=5)
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=5) as gone:
        gone.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
        while gone.recv(4096):
            pass
    engine.gate.set()
    assert running.result(5).outputs
    slow.channel.close()
    server.drain(0)


def test_a_port_in_use_is_an_error(lifecycle):
    """Two servers never share a port, which SO_REUSEPORT would let them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"Cannot listen on {address}: "):
            Server(lifecycle, [address], Settings(grpc_max_threads=1))
    first = Server(lifecycle, ["127.0.0.1:0"], Settings(grpc_max_threads=1))
    with pytest.raises(UnavailableError):
        Server(lifecycle, [f"127.0.0.1:{first.ports[0]}"], Settings(grpc_max_threads=1))
    first.drain(0)
