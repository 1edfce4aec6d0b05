"""gateway/server/ under gunicorn, as it runs: hostile and slow clients, overload, health when busy, and a clean end."""

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
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.memory import Held, Room
from gateway.server.connection import READ_BYTES, Connection, Turns
from gateway.server.front import Front, Request
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


def test_what_the_server_refuses_has_the_origin_and_the_prefix(server: FakeModelServer) -> None:
    """A page of another origin sees why, and images under a prefix may be as large as without."""
    settings = {"GATEWAY_ALLOWED_ORIGINS": "https://shop.test", "GATEWAY_PATH_PREFIX": "/classifier"}
    with start(server, **settings) as (gateway, _):
        for target, length, status in (("/classifier/predict", 90_000, 415), ("/classifier/predict", 200_000, 413),
                                       ("/classifier/model", 90_000, 413)):  # fmt: skip
            lines = ("Origin: https://shop.test", "Content-Type: image/jpeg", f"Content-Length: {length}")
            request = head(*lines, "Connection: close", target=target) + b"a" * length
            ((answered, headers, _),) = exchange(gateway.port, request)
            assert (answered, headers["Access-Control-Allow-Origin"]) == (status, "https://shop.test")
            assert headers["Vary"] == "Origin"


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


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (head("Content-Length: " + "1" * 5000), "400 bad_request"),
        *((head(f"Content-Length: {value}"), "400 bad_request") for value in ("-5", "+5", "5, 5", "0x5", "5_0", "")),
        (head("Content-Length: 5", "Content-Length: 6") + b"12345", "400 bad_request"),
        (head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", "400 bad_request"),
        (head("Transfer-Encoding: gzip"), "400 bad_request"),
        (head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", "501 unsupported_coding"),
        (head("Transfer-Encoding: other") + b"0\r\n\r\n", "501 unsupported_coding"),
        *((CHUNKED + size + b"\r\nx", "400 bad_request") for size in (b"-1", b"0x1", b" 1", b"1_0", b"", b"F" * 9000)),
        (CHUNKED + b"1\r\nxyz\r\n", "400 bad_request"),
        (CHUNKED + b"F" * 5000 + b"\r\nx", "413 too_large"),
        (head("Content-Length: 100001", "Expect: 100-continue"), "413 too_large"),
        (head(target="/" + "a" * 9000), "414 uri_too_long"),
        (b"a" * 9000, "414 uri_too_long"),
        (head("X: " + "a" * 9000), "431 headers_too_large"),
        (head(*["X: 1"] * 100), "431 headers_too_large"),
        (head(*["X: " + "a" * 7000] * 10), "431 headers_too_large"),
        (b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n", "505 unsupported_version"),
        (b"GET /livez HTTP/11\r\nHost: a\r\n\r\n", "400 bad_request"),
        (b"GET /livez\r\n\r\n", "400 bad_request"),
        (b"GET /livez HTTP/1.1\nHost: a\n\n", "400 bad_request"),
        (b"GET /livez HTTP/1.1\r\n\r\n", "400 bad_request"),
        *((head(f"Host: {host}", method="GET"), "400 bad_request") for host in ("a", "b")),
        *((b"GET /livez HTTP/1.1\r\nHost: %s\r\n\r\n" % host, "400 bad_request") for host in (b"a b", b"a,b", b"a/b")),
        *((head(target=target), "400 bad_request") for target in ("livez", "ftp://a/livez", "http:///livez", "a:80")),
        (head("X : 1", method="GET"), "400 bad_request"),
        (LIVE[:-2] + b" folded\r\n\r\n", "400 bad_request"),
    ],
)
def test_what_is_not_http_is_refused_by_name(client: Gateway, data: bytes, code: str) -> None:
    """As JSON with a code, whatever was wrong, and the connection closes."""
    [(status, headers, problem)] = exchange(client.port, data)
    assert f"{status} {problem['code']}" == code == f"{problem['status']} {problem['code']}"
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["X-Request-ID"]


def test_refusals_are_counted_and_logged(client: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """With what is known of the request, as its id, but without its query."""
    before = metrics(client).count(b'code="unsupported_version"')
    exchange(client.port, b"GET /livez HTTP/3.0\r\nHost: a\r\n\r\n")
    [(_, headers, _)] = exchange(client.port, head("X-Request-ID: mine", target="ftp://a/"))
    assert headers["X-Request-ID"] == "mine"
    assert b'gateway_answers_total{code="unsupported_version",path="front",status="505"}' in metrics(client) or before
    front = Front(working(lambda: None), Settings(), Metrics(), Room(1))
    with caplog.at_level("INFO", "gateway.server.front"):
        asyncio.run(send_bytes_to(front, head("no colon", target="/a?key=secret")))
    (record,) = caplog.records
    assert (record.fields["path"], record.fields["code"]) == ("/a", "bad_request")  # type: ignore[attr-defined]


async def send_bytes_to(front: Front, data: bytes) -> bytes:
    """Send bytes to a connection of this process; return all that it answers."""
    loop = asyncio.get_running_loop()
    worker = SimpleNamespace(
        asgi=front, loop=loop, connections=set(), nr_conns=0, turns=Turns(), buffer=bytearray(READ_BYTES), alive=True
    )
    async with await loop.create_server(lambda: Connection(worker), "127.0.0.1", 0) as listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        *(
            head("Connection: close", method="GET", target=f"{url}")
            for url in ("http://b/livez", "HTTPS://b:1/livez?a=b")
        ),
        *(b"GET /livez HTTP/1.1\r\nConnection: close\r\nHost: %s\r\n\r\n" % host for host in (b"", b"[::1]:1", b"a_b")),
    ],
)
def test_what_http_allows_is_answered(client: Gateway, data: bytes) -> None:
    """No Host before HTTP/1.1; a URL as the target, as for a proxy; any host."""
    assert [answer[2] for answer in exchange(client.port, data)] == [{"status": "alive"}]


def test_a_header_with_an_underscore_is_dropped(client: Gateway) -> None:
    """Otherwise it would be taken for the one with a dash, which a proxy in front may set or remove."""
    data = head("X-Request-ID: dash", "X_Request_ID: underscore", "Connection: close", method="GET", target="/livez")
    [(_, headers, _)] = exchange(client.port, data)
    assert headers["X-Request-ID"] == "dash"


@pytest.mark.parametrize(
    "data",
    [LIVE, PREDICT, CHUNKED + chunks(IMAGE, 1), LIVE + PREDICT, PREDICT * 3],
    ids=["no body", "body", "chunks", "after another", "three"],
)
def test_a_client_that_closes_its_half_gets_its_answers(client: Gateway, data: bytes) -> None:
    """All of them, in order; then the gateway closes too."""
    answers = exchange(client.port, data, half_close=True)
    assert [status for status, _, _ in answers] == [200] * data.count(b"HTTP/1.1")
    assert "predictions" in answers[-1][2] or data == LIVE


def test_half_a_request_and_a_closed_half_end_the_connection(client: Gateway) -> None:
    """There is nothing to answer."""
    for data in (b"", LIVE[:-2], PREDICT[:-1]):
        assert exchange(client.port, data, half_close=True) == []


def test_requests_on_one_connection_are_answered_in_order(client: Gateway) -> None:
    """Sent at once, with bodies of each kind; HEAD gets no body, and the last one closes."""
    paths = [head(method="GET", target="/none"), PREDICT, CHUNKED + chunks(IMAGE, 100), LIVE]
    answers = exchange(client.port, b"".join(paths) + head("Connection: close", method="GET", target="/readyz"))
    assert [status for status, _, _ in answers] == [404, 200, 200, 200, 200]
    assert [headers.get("Connection") for _, headers, _ in answers] == [None] * 4 + ["close"]
    [(status, headers, body)] = exchange(client.port, head("Connection: close", method="HEAD", target="/livez"), "HEAD")
    assert (status, body) == (200, None) and int(headers["Content-Length"]) > 0


def test_a_client_that_waits_for_100_continue_gets_it(client: Gateway) -> None:
    """Before it sends its body."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.sendall(head("Content-Type: image/jpeg", f"Content-Length: {len(IMAGE)}", "Expect: 100-Continue"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(IMAGE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    before_1_1 = head("Content-Length: 1", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert [status for status, _, _ in exchange(client.port, before_1_1)] == [408]


def test_clients_that_never_stop_asking_take_no_memory(client: Gateway, server: FakeModelServer) -> None:
    """Ten connections send requests without pause; each is read on once it has answered what has come."""
    server.gate.clear()  # some wait behind a prediction
    kinds = [
        LIVE,
        head(method="GET", target="/none"),
        head(method="GET"),
        PREDICT,
        head("Content-Length: 9") + b"x" * 9,
    ]
    (pid,) = client.worker_pids()
    before = memory_bytes(pid)
    connections = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(10)]
    end = time.monotonic() + 5

    def flood(connection: socket.socket, request: bytes) -> None:
        connection.setblocking(False)
        waiting = b""
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                waiting = waiting or request * 1000
                waiting = waiting[connection.send(waiting) :]
            with suppress(BlockingIOError):
                connection.recv(1 << 20)
            time.sleep(0.001)
        connection.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(flood, connections, kinds * 2))
    server.gate.set()
    assert memory_bytes(pid) - before < 20e6
    assert client.get("/livez")[0] == 200


def memory_bytes(pid: int) -> int:
    """Return what a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("data", [head("Content-Length: 50000"), CHUNKED + b"FFFF\r\n"])
def test_a_byte_at_the_last_moment_wins_no_time(client: Gateway, data: bytes) -> None:
    """A hundred bodies that come a byte each millisecond all end with 408 at the limit of a second."""

    async def drip() -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        started = time.monotonic()
        writer.write(data)
        answer = asyncio.create_task(reader.read(12))
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.001)
        writer.close()
        return await answer, time.monotonic() - started

    async def drip_all() -> list[tuple[bytes, float]]:
        return await asyncio.gather(*(drip() for _ in range(100)))

    for answer, seconds in asyncio.run(drip_all()):
        assert answer == b"HTTP/1.1 408"
        assert seconds < 2


def test_bodies_in_short_chunks_delay_nobody(server: FakeModelServer) -> None:
    """While eight clients send bodies in chunks of one and two bytes, health is answered at once."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="4", GATEWAY_MAX_BODY_BYTES="33000000") as (gateway, _):
        slow = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(8)]
        bodies = [CHUNKED + b"1\r\nx\r\n" * 1_000_000, CHUNKED + b"2;a=b\r\nxx\r\n" * 1_000_000] * 4
        sent, times = [0] * 8, []
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for i, connection in enumerate(slow):
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    sent[i] += connection.send(memoryview(bodies[i])[sent[i] : sent[i] + 100_000])
            started = time.monotonic()
            assert gateway.get("/livez")[0] == 200
            times.append(time.monotonic() - started)
        for connection in slow:
            connection.close()
    assert sorted(times)[len(times) * 9 // 10] < 0.25


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
    request = Request("POST", "/predict", Held(front.room), body=body)
    request.held.add(len(body))
    await front.answer(request)


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_accepted_requests_finish_and_exits_with_0(
    server: FakeModelServer, number: signal.Signals
) -> None:
    """What was accepted is answered (F11), also if the workers get the signal too, as from a terminal and systemd."""
    with start(server) as (gateway, process):
        server.gate.clear()
        calls = in_threads(3, status_of, gateway.port)
        time.sleep(0.5)
        for pid in (process.pid, *gateway.worker_pids()):
            os.kill(pid, number)
        time.sleep(0.5)
        server.gate.set()
        assert [call.result() for call in calls] == [200] * 3
        assert process.wait(20) == 0


def test_a_second_ctrl_c_ends_at_once(server: FakeModelServer) -> None:
    """Without waiting for requests."""
    with start(server) as (gateway, process):
        server.gate.clear()
        calls = in_threads(2, post, gateway.port)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        server.gate.set()
        assert all(isinstance(call.exception(), http.client.RemoteDisconnected) for call in calls)


def test_signals_for_other_kinds_of_gunicorn_change_nothing(server: FakeModelServer) -> None:
    """More or fewer workers than listeners would lose connections; under nohup, so would the end of a terminal."""
    program = "import signal; signal.signal(1, signal.SIG_IGN); from gateway.__main__ import main; main()"
    environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": server.address, "GATEWAY_PORT": str(free_port())}
    with running("-c", program, **environ) as process:
        gateway = Gateway(int(environ["GATEWAY_PORT"]), process.pid)
        gateway.wait(lambda: gateway.get("/livez")[0] == 200)
        before = gateway.worker_pids()
        for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
            time.sleep(0.3)
        assert gateway.worker_pids() == before
        assert gateway.get("/livez")[0] == 200


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_connections_wait_for_a_worker_that_is_replaced(client: Gateway, number: signal.Signals) -> None:
    """Also where there is only one, as in the cluster: none is refused."""
    os.kill(client.worker_pids()[0], number)
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
