"""gateway/server/front.py under gunicorn, as it runs: slow clients, overload, health when busy, and a clean end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.memory import Room
from gateway.server.front import Front
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import Gateway, free_port, running, wait_until

pytestmark = pytest.mark.processes

IMAGE = encode(photo())
SETTINGS = {
    "GATEWAY_WORKERS": "1",
    "GATEWAY_THREADS": "2",
    "GATEWAY_MAX_WAITING": "2",
    "GATEWAY_BODY_TIMEOUT_S": "1",
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
def start(server: FakeModelServer, **settings: str) -> Iterator[tuple[Gateway, subprocess.Popen[str]]]:
    """Run a gateway in front of a model server."""
    port = free_port()
    environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": server.address, "GATEWAY_PORT": str(port), **settings}
    with running("-m", "gateway", **environ) as process:
        gateway = Gateway(port, process.pid)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 200)
        yield gateway, process


def post(port: int, body: Any = IMAGE, **options: bool) -> tuple[int, Any, dict[str, str]]:
    """Send an image and return status, JSON and headers, with names in lower case."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"}, **options)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, json.loads(response.read()), headers
    finally:
        connection.close()


def status_of(port: int) -> int:
    return post(port)[0]


def metrics(gateway: Gateway) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/metrics", timeout=5) as response:
        return bytes(response.read())


def in_threads(count: int, work: Callable[..., Any], *arguments: Any) -> list[Future[Any]]:
    """Do some work in so many threads at once."""
    pool = ThreadPoolExecutor(count)
    return [pool.submit(work, *arguments) for _ in range(count)]


def test_a_body_in_chunks_is_a_body(client: Gateway) -> None:
    """`curl -T -`, and proxies that pass a body on as it arrives, give no length."""
    in_chunks = post(client.port, iter([IMAGE[:500], IMAGE[500:]]), encode_chunked=True)[1]
    assert in_chunks["predictions"] == post(client.port)[1]["predictions"]


def test_clients_that_dribble_take_no_thread(client: Gateway) -> None:
    """While fifty clients send a byte now and then, others are answered as ever; the fifty get 408 in time (F15)."""
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head)
    for _ in range(5):
        for connection in slow:
            connection.sendall(b"x")
        started = time.monotonic()
        assert post(client.port)[0] == 200
        assert client.get("/livez")[0] == 200
        assert time.monotonic() - started < 0.5
    for connection in slow:
        connection.settimeout(5)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        connection.close()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Content-Length: 100001", b""),
        (b"Transfer-Encoding: chunked", (b"2000\r\n" + b"x" * 0x2000 + b"\r\n") * 13),
    ],
)
def test_a_huge_body_is_refused_before_it_is_read(client: Gateway, header: bytes, body: bytes) -> None:
    """By its Content-Length, or once the limit is passed (F15); the refusal has an id, and is in the metrics."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\n" + header + b"\r\n\r\n" + body)
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413") and b"x-request-id: mine" in answer.lower()
    assert b'gateway_answers_total{code="too_large",path="front",status="413"}' in metrics(client)


def test_beyond_threads_and_line_requests_are_refused_at_once_and_health_is_answered(
    client: Gateway, server: FakeModelServer
) -> None:
    """Two at work, two in line; the rest get 503 with Retry-After in well under a second (F14)."""
    server.gate.clear()
    calls = in_threads(4, status_of, client.port)
    time.sleep(0.5)
    started = time.monotonic()
    status, problem, headers = post(client.port)
    assert (status, problem["code"], headers["retry-after"]) == (503, "overloaded", "1")
    assert client.get("/livez")[0] == 200
    assert client.get("/readyz")[0] == 200
    assert time.monotonic() - started < 0.5
    server.gate.set()
    assert [call.result() for call in calls] == [200] * 4


def test_a_request_that_waited_for_half_of_its_time_is_refused(server: FakeModelServer) -> None:
    """Those at work reach their deadline; for those in line no work begins that would be in vain (F14)."""
    with start(server, GATEWAY_REQUEST_TIMEOUT_S="2") as (gateway, _):
        server.gate.clear()
        codes = sorted(call.result()[1]["code"] for call in in_threads(4, post, gateway.port))
        server.gate.set()
        assert codes == ["model_timeout", "model_timeout", "overloaded", "overloaded"]


def test_a_client_that_leaves_early_harms_nothing(client: Gateway) -> None:
    """Half a request and a closed connection is no error."""
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nxx")
    assert post(client.port)[0] == 200


def test_clients_that_leave_keep_their_places_until_their_work_ends(client: Gateway, server: FakeModelServer) -> None:
    """Requests that were given up do not let more in than there are places."""
    server.gate.clear()
    head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n" + f"Content-Length: {len(IMAGE)}\r\n\r\n"
    for _ in range(2):  # the two threads
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head.encode() + IMAGE)
            time.sleep(0.3)
    calls = in_threads(6, status_of, client.port)
    time.sleep(1)
    assert [call.result() for call in calls if call.done()] == [503] * 4  # two wait in line
    server.gate.set()
    assert sorted(call.result() for call in calls) == [200, 200, 503, 503, 503, 503]


async def send_to(front: Front, body: bytes = b"") -> None:
    """Send a request, and do not look at the answer."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "query_string": b""}
    await front({**scope, "headers": []}, receive, send)


def working(work: Callable[[], object]) -> Callable[..., list[bytes]]:
    """Return a WSGI application that does some work and answers nothing."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        work()
        start_response("200 OK", [])
        return []

    return app


def test_bytes_are_kept_until_the_work_that_needs_them_ends() -> None:
    """A client that sends a body and leaves makes no room for another while a thread still has it."""
    begun, may_end, room = threading.Event(), threading.Event(), Room(1000)

    async def leave_early() -> None:
        app = working(lambda: (begun.set(), may_end.wait(10)))
        request = asyncio.create_task(send_to(Front(app, Settings(), Metrics(), room), b"x" * 600))
        await asyncio.to_thread(begun.wait, 10)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert room.held_bytes == 600
        may_end.set()
        while room.held_bytes:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave_early(), 20))


@pytest.mark.parametrize(("work_s", "ends"), [(0.05, []), (1.0, [1])])
def test_a_request_that_hangs_ends_the_process(monkeypatch: pytest.MonkeyPatch, work_s: float, ends: list[int]) -> None:
    """Nothing else ends a library that does not return; gunicorn starts another process in its place."""
    ended: list[int] = []
    monkeypatch.setattr("gateway.server.front.STUCK_AFTER_S", 0.1)
    monkeypatch.setattr("gateway.server.front.os._exit", ended.append)

    async def ask() -> None:
        app = working(lambda: time.sleep(work_s))
        await send_to(Front(app, Settings(request_timeout_s=0.2), Metrics(), Room(1000)))
        await asyncio.sleep(0.5)

    asyncio.run(ask())
    assert ended == ends


def test_sigterm_lets_accepted_requests_finish_and_exits_with_0(server: FakeModelServer) -> None:
    """What was accepted is answered (F11)."""
    with start(server) as (gateway, process):
        server.gate.clear()
        calls = in_threads(3, status_of, gateway.port)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        server.gate.set()
        assert [call.result() for call in calls] == [200] * 3
        assert process.wait(20) == 0


def test_sigterm_ends_workers_that_still_start() -> None:
    """A worker that waits for its first look at the model server has accepted nothing, so it ends at once."""
    with Origin(lambda _: time.sleep(9)) as silent:  # takes connections and says nothing
        environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": silent.authority, "GATEWAY_PORT": str(free_port())}
        with running("-m", "gateway", **environ) as process:
            wait_until(lambda: silent.connections, 20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(4) == 0


def test_sigterm_ends_a_worker_that_still_starts_after_it_answered_who_waits() -> None:
    """The system has taken their connections, although no worker has."""
    with Origin(lambda _: time.sleep(9)) as silent:
        environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": silent.authority, "GATEWAY_PORT": str(free_port())}
        with running("-m", "gateway", **environ) as process:
            wait_until(lambda: silent.connections, 20)
            (call,) = in_threads(1, status_of, int(environ["GATEWAY_PORT"]))
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert call.result() == 503
            assert process.wait(20) == 0


def test_sigterm_turns_readiness_off_before_anything_closes(server: FakeModelServer) -> None:
    """During the delay requests and new connections are answered as before, each with `Connection: close`."""
    with start(server, GATEWAY_SHUTDOWN_DELAY_S="3") as (gateway, process):
        process.send_signal(signal.SIGTERM)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 503)
        assert gateway.get("/readyz")[1]["status"] == "draining"
        status, _, headers = post(gateway.port)
        assert (status, headers["connection"]) == (200, "close")
        assert gateway.get("/livez")[0] == 200
        assert process.wait(20) == 0


def test_connections_without_a_request_end_in_time(server: FakeModelServer) -> None:
    """Silent, or in the middle of a request's head."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="2") as (gateway, _):
        for beginning in (b"", b"POST /predict HTTP/1.1\r\nHost: a"):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
                connection.sendall(beginning)
                assert connection.recv(100) == b""


def test_connections_without_a_request_delay_no_shutdown(server: FakeModelServer) -> None:
    """Silent, in the middle of a request's head, or kept open after an answer."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="60") as (gateway, process):
        silent = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(3)]
        silent[1].sendall(b"POST /predict HTTP/1.1\r\nHost: a")
        silent[2].sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert silent[2].recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0  # not after the grace period of 25 s
        for connection in silent:
            connection.close()


def test_an_answer_that_is_not_taken_is_given_up(server: FakeModelServer) -> None:
    """The gateway keeps answers for a client that never reads no longer than a request may take."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="1") as (gateway, _), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", gateway.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
        time.sleep(4)
        received = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):  # all of them would come within this test's time
                received += part
    assert received.count(b"HTTP/1.1 200") < 500


def test_a_killed_worker_is_replaced(server: FakeModelServer) -> None:
    """Within two seconds another answers; its gauges do not count twice (F12)."""
    with start(server, GATEWAY_WORKERS="2") as (gateway, _):
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        gateway.wait(lambda: len(gateway.worker_pids()) == 2, timeout_s=3)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 200, timeout_s=3)  # 0 while the killed one's port goes
        assert post(gateway.port)[0] == 200
        assert b"gateway_ready 1.0" in metrics(gateway)


def test_connections_wait_for_a_worker_that_is_replaced(client: Gateway) -> None:
    """Also where there is only one, as in the cluster: none is refused."""
    os.kill(client.worker_pids()[0], signal.SIGKILL)
    time.sleep(0.05)
    for _ in range(5):
        assert post(client.port)[0] == 200
        time.sleep(0.1)


def test_connections_are_spread_over_the_workers(server: FakeModelServer) -> None:
    """A load balancer keeps a few connections open: one worker must not have them all."""
    with start(server, GATEWAY_WORKERS="2") as (gateway, _):
        connections = []
        for _ in range(32):
            connections.append(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5))
            connections[-1].request("GET", "/livez")
            assert connections[-1].getresponse().read()
        pids = gateway.worker_pids()
        opened = [sockets(pid) for pid in pids]
        for connection in connections:
            connection.close()
        gateway.wait(lambda: sum(opened) - sum(map(sockets, pids)) == 32)
        spread = [before - sockets(pid) for pid, before in zip(pids, opened, strict=True)]
    assert min(spread) >= 2  # fewer once in 65 million runs, were it a coin that decides


def sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            count += str(each.readlink()).startswith("socket:")
    return count


def test_a_taken_port_ends_the_start(server: FakeModelServer) -> None:
    """Also one that another gateway listens on, which could be shared."""
    with start(server) as (gateway, _):
        environ = {**os.environ, "GATEWAY_PORT": str(gateway.port)}
        second = subprocess.run(
            [sys.executable, "-m", "gateway"], env=environ, capture_output=True, text=True, timeout=20
        )
    assert second.returncode == 1
    assert "in use" in second.stderr
