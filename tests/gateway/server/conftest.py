"""A gateway under gunicorn, as it runs, and a client that sends any bytes."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import BytesIO
from typing import Any

import pytest

from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo
from tests.programs.stack import Gateway, free_port, running

IMAGE = encode(photo())


SETTINGS = {
    "GATEWAY_WORKERS": "1",
    "GATEWAY_THREADS": "2",
    "GATEWAY_MAX_WAITING": "2",
    "GATEWAY_BODY_TIMEOUT_S": "5",
    "GATEWAY_MAX_BODY_BYTES": "100000",
    "GATEWAY_MODEL_NAME": "tiny",
}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeModelServer]:
    """A model server that all tests here share; `gate` delays its answers."""
    fake = FakeModelServer({1: FakeVersion.of([IMAGE])})
    yield fake
    fake.gate.set()
    fake.stop()


@pytest.fixture(scope="module")
def client(server: FakeModelServer) -> Iterator[Gateway]:
    """A gateway of one process and two threads."""
    with start(server) as (gateway, _):
        yield gateway


@contextmanager
def start(server: FakeModelServer, *command: str, **settings: str) -> Iterator[tuple[Gateway, subprocess.Popen[str]]]:
    """Run a gateway in front of a model server, perhaps by another command than usual."""
    port = free_port()
    environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": server.address, "GATEWAY_PORT": str(port), **settings}
    with running(*command or ("-m", "gateway"), **environ) as process:
        gateway = Gateway(port, process.pid)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 200)
        yield gateway, process


def send(port: int, body: Any = IMAGE, **options: bool) -> http.client.HTTPConnection:
    """Send an image; nobody waits for the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"}, **options)
    return connection


def post(port: int, body: Any = IMAGE, **options: bool) -> tuple[int, Any, dict[str, str]]:
    """Send an image and return status, JSON and headers, with names in lower case."""
    with closing(send(port, body, **options)) as connection:
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, json.loads(response.read()), headers


def status_of(port: int) -> int:
    return post(port)[0]


def metrics(gateway: Gateway) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/metrics", timeout=5) as response:
        return bytes(response.read())


def in_threads(count: int, work: Callable[..., Any], *arguments: Any) -> list[Future[Any]]:
    """Do some work in so many threads at once."""
    pool = ThreadPoolExecutor(count)
    return [pool.submit(work, *arguments) for _ in range(count)]


def head(*lines: str, method: str = "POST", target: str = "/predict") -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


LIVE = head(method="GET", target="/livez")


PREDICT = head("Content-Type: image/jpeg", f"Content-Length: {len(IMAGE)}") + IMAGE


CHUNKED = head("Content-Type: image/jpeg", "Transfer-Encoding: chunked")


def chunks(data: bytes, size: int) -> bytes:
    """Return data in chunks, with their end."""
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def exchange(port: int, data: bytes, method: str = "GET", half_close: bool = False) -> list[tuple[int, Any, Any]]:
    """Send bytes, and return status, headers and JSON of each answer until the gateway closes the connection."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            while stream.peek(1):
                reader = BytesIO()
                while (line := stream.readline()) != b"\r\n":
                    reader.write(line)
                status = int(reader.getvalue().split(b" ", 2)[1])
                reader.seek(0)
                reader.readline()
                headers = http.client.parse_headers(reader)
                body = stream.read(0 if method == "HEAD" else int(headers.get("Content-Length", 0)))
                answers.append((status, headers, json.loads(body) if body else None))
    return answers


def working(work: Callable[[], object]) -> Callable[..., list[bytes]]:
    """Return a WSGI application that does some work and answers nothing."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        work()
        start_response("200 OK", [])
        return []

    return app
