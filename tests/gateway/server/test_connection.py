"""gateway/server/connection.py and reader.py: what is HTTP, and hostile and slow clients."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.memory import Room
from gateway.server.connection import IDLE_S, READ_BYTES, Connection, Turns
from gateway.server.front import Front
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.gateway.server.conftest import (
    CHUNKED,
    IMAGE,
    LIVE,
    PREDICT,
    chunks,
    exchange,
    head,
    metrics,
    post,
    start,
    working,
)
from tests.programs.model_server import FakeModelServer
from tests.programs.stack import Gateway

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def hasty(server: FakeModelServer) -> Iterator[Gateway]:
    """A gateway that gives clients a second for a body, or for taking an answer."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="1") as (gateway, _):
        yield gateway


def test_a_body_in_chunks_is_a_body(client: Gateway) -> None:
    """`curl -T -`, and proxies that pass a body on as it arrives, give no length."""
    in_chunks = post(client.port, iter([IMAGE[:500], IMAGE[500:]]), encode_chunked=True)[1]
    assert in_chunks["predictions"] == post(client.port)[1]["predictions"]


def test_what_the_server_refuses_has_the_origin_and_the_prefix(server: FakeModelServer) -> None:
    """A page of another origin sees why, and images under a prefix may be as large as without."""
    settings = {"GATEWAY_ALLOWED_ORIGINS": "https://shop.test", "GATEWAY_PATH_PREFIX": "/classifier"}
    with start(server, **settings) as (gateway, _):
        for target, length, status in (("/classifier/predict", 90_000, 415), ("/classifier/predict", 200_000, 413),
                                       ("/predict", 90_000, 404)):  # fmt: skip
            lines = ("Origin: https://shop.test", "Content-Type: image/jpeg", f"Content-Length: {length}")
            request = head(*lines, "Connection: close", target=target) + b"a" * length
            ((answered, headers, _),) = exchange(gateway.port, request)
            assert (answered, headers["Access-Control-Allow-Origin"]) == (status, "https://shop.test")
            assert headers["Vary"] == "Origin"


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
        (CHUNKED + (b"2000\r\n" + b"x" * 0x2000 + b"\r\n") * 13, "413 too_large"),
        (head("Content-Length: 100001"), "413 too_large"),
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


def test_a_client_that_waits_for_100_continue_gets_it(client: Gateway, hasty: Gateway) -> None:
    """Before it sends its body."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.sendall(head("Content-Type: image/jpeg", f"Content-Length: {len(IMAGE)}", "Expect: 100-Continue"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(IMAGE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    before_1_1 = head("Content-Length: 1", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert [status for status, _, _ in exchange(hasty.port, before_1_1)] == [408]


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
def test_a_byte_at_the_last_moment_wins_no_time(hasty: Gateway, data: bytes) -> None:
    """A hundred bodies that come a byte each millisecond all end with 408 at the limit of a second."""

    async def drip() -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
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
        assert seconds < 10  # without the limit it would be 50


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
    """While fifty clients send a byte now and then, others are answered, before the fifty reach their limit (F15)."""
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head)
    for _ in range(5):
        for connection in slow:
            connection.sendall(b"x")
        assert post(client.port)[0] == 200
        assert client.get("/livez")[0] == 200
        assert not select.select(slow, [], [], 0)[0]
    for connection in slow:
        connection.close()


@pytest.mark.parametrize("body", ["Content-Length: 90000", "Transfer-Encoding: chunked\r\n\r\n15F90"])
@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        *(("POST", target, 404) for target in ("/predict/", "/predct", "/a//predict")),
        *((method, target, 405) for method, target in (("POST", "/"), ("PUT", "/predict"))),
        ("GET", "/livez", 200),
    ],
)
def test_what_needs_no_body_is_answered_without_it(
    client: Gateway, method: str, target: str, status: int, body: str
) -> None:
    """A large one to a wrong path or by a wrong method is not read, and the connection closes."""
    request = head("Expect: 100-continue", body, method=method, target=target)
    [(answered, headers, _)] = exchange(client.port, request)
    assert (answered, headers["Connection"]) == (status, "close")


@pytest.mark.parametrize("target", ["/predict", "//predict", "///predict"])
def test_an_image_may_be_large_wherever_it_is_answered(client: Gateway, target: str) -> None:
    """Slashes in front do not count for the limit either."""
    request = head("Content-Type: image/jpeg", "Content-Length: 90000", "Connection: close", target=target)
    [(status, _, _)] = exchange(client.port, request + IMAGE.ljust(90_000, b"\0"))
    assert status == 200


def test_a_stranger_takes_no_room(server: FakeModelServer) -> None:
    """Without a key, the answer comes before the body, whatever the method; whoever has one, sends it as before."""
    with start(server, GATEWAY_API_KEYS=hashlib.sha256(b"secret").hexdigest()) as (gateway, _):
        length = "Content-Length: 90000"
        assert exchange(gateway.port, head(length))[0][0] == 401
        assert exchange(gateway.port, head(length, method="PUT"))[0][0] == 405
        assert exchange(gateway.port, head(length, "Authorization: Bearer guess"))[0][0] == 401
        for key in ("Authorization: Bearer secret", "X-API-Key: secret"):
            request = head("Content-Type: image/jpeg", f"Content-Length: {len(IMAGE)}", "Connection: close", key)
            assert exchange(gateway.port, request + IMAGE)[0][0] == 200


def test_connections_without_a_request_end_in_time(server: FakeModelServer) -> None:
    """Silent, or in the middle of a request's head; after one, they last longer than those of load balancers."""
    assert IDLE_S > 600  # which Google's keep theirs
    with start(server, GATEWAY_BODY_TIMEOUT_S="2") as (gateway, _):
        connections = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(2)]
        connections[1].sendall(b"POST /predict HTTP/1.1\r\nHost: a")
        for connection in connections:
            assert connection.recv(100) == b""
            connection.close()


def test_an_answer_that_is_not_taken_is_given_up(hasty: Gateway) -> None:
    """The gateway keeps answers for a client that never reads no longer than a request may take."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", hasty.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
        time.sleep(4)
        received = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):  # all of them would come within this test's time
                received += part
    assert received.count(b"HTTP/1.1 200") < 500


def test_of_too_many_answers_that_are_not_taken_the_oldest_is_given_up(server: FakeModelServer) -> None:
    """Neither the process nor the system keeps them; who reads gets a whole one."""
    limits = {"GATEWAY_MAX_HELD_BYTES": "4000000", "GATEWAY_MAX_IMAGE_BYTES": "100000", "GATEWAY_BODY_TIMEOUT_S": "15"}
    request = head("Connection: close", method="GET", target="/docs/swagger-ui-bundle.js")
    received = []
    with start(server, **limits) as (gateway, _), socket.socket() as first, socket.socket() as second:
        for connection in (first, second):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect(("127.0.0.1", gateway.port))
            connection.sendall(request)
            connection.recv(1, socket.MSG_PEEK)  # the answer has begun
        for connection in (second, first):
            with connection.makefile("rb") as stream, suppress(ConnectionResetError):
                received.append(len(stream.read()))
    assert received[0] > 1_600_000 > sum(received[1:])
