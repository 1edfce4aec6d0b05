"""gateway/server/front.py: the line before the threads, overload, and what ends a process."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import pytest

from gateway.memory import Held, Room
from gateway.server.front import Front, Request
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.gateway.server.conftest import IMAGE, in_threads, post, start, status_of, working
from tests.programs.model_server import FakeModelServer
from tests.programs.stack import Gateway, wait_until

pytestmark = pytest.mark.processes

ASKED = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict"}


def test_beyond_threads_and_line_requests_are_refused_at_once_and_health_is_answered(
    client: Gateway, server: FakeModelServer
) -> None:
    """Two at work, two in line; the rest get 503 with Retry-After in well under a second (F14)."""
    server.gate.clear()
    calls = in_threads(5, post, client.port)
    wait_until(lambda: any(call.done() for call in calls))
    (refused,) = (call for call in calls if call.done())
    status, problem, headers = refused.result()
    assert (status, problem["code"], headers["retry-after"]) == (503, "overloaded", "1")
    assert client.get("/livez")[0] == 200
    assert client.get("/readyz")[0] == 200
    assert [call for call in calls if call.done()] == [refused]
    server.gate.set()
    assert sorted(call.result()[0] for call in calls) == [200, 200, 200, 200, 503]


def test_a_request_that_waited_for_half_of_its_time_is_refused(server: FakeModelServer) -> None:
    """Those at work reach their deadline; for those in line no work begins that would be in vain (F14)."""
    with start(server, GATEWAY_REQUEST_TIMEOUT_S="4") as (gateway, _):
        server.gate.clear()
        codes = sorted(call.result()[1]["code"] for call in in_threads(4, post, gateway.port))
        server.gate.set()
        assert codes == ["model_timeout", "model_timeout", "overloaded", "overloaded"]


def test_clients_that_leave_keep_their_places_until_their_work_ends(client: Gateway, server: FakeModelServer) -> None:
    """Requests that were given up do not let more in than there are places."""
    server.gate.clear()
    head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n" + f"Content-Length: {len(IMAGE)}\r\n\r\n"
    for _ in range(2):  # the two threads
        before = len(server.calls)
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head.encode() + IMAGE)
            reset = struct.pack("ii", 1, 0)  # when it closes: the end of its half would leave the request as it is
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            wait_until(lambda before=before: len(server.calls) > before)  # type: ignore[misc]
    calls = in_threads(6, status_of, client.port)
    wait_until(lambda: sum(call.done() for call in calls) == 4)
    assert [call.result() for call in calls if call.done()] == [503] * 4  # two wait in line
    server.gate.set()
    assert sorted(call.result() for call in calls) == [200, 200, 503, 503, 503, 503]


async def send_to(front: Front, body: bytes = b"") -> None:
    """Send a request, and do not look at the answer."""
    request = Request(ASKED, Held(front.room), body)
    request.held.add(len(body))
    await front.answer(request)


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


def test_a_thread_that_cannot_start_keeps_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit of processes; the request is refused as busy, and so are no later ones."""
    room, worked = Room(1000), list[int]()
    app = working(lambda: worked.append(1))

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> list[int]:
        front = Front(app, Settings(), Metrics(), room)

        async def status() -> int:
            request = Request(ASKED, Held(room), b"x" * 600)
            request.held.add(600)
            return (await front.answer(request))[0]

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            statuses = [await status(), await status()]
        return [*statuses, await status()]

    assert asyncio.run(ask()) == [503, 503, 200] and room.held_bytes == 0
    assert len(worked) == 1, "what was refused is not done later"


@pytest.mark.parametrize(("work_s", "ends"), [(20.0, []), (31.0, [1])])
def test_a_request_that_hangs_ends_the_process(monkeypatch: pytest.MonkeyPatch, work_s: float, ends: list[int]) -> None:
    """Nothing else ends a library that does not return; gunicorn starts another process in its place."""
    begun, may_end, ended = threading.Event(), threading.Event(), list[int]()
    monkeypatch.setattr("gateway.server.front.os._exit", ended.append)

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time

        async def pass_s(seconds: float) -> None:
            monkeypatch.setattr(loop, "time", lambda: now() + seconds)
            await asyncio.sleep(0.01)

        app = working(lambda: (begun.set(), may_end.wait(10)))
        request = asyncio.create_task(send_to(Front(app, Settings(), Metrics(), Room(1000))))
        await asyncio.to_thread(begun.wait, 10)
        await pass_s(work_s)
        may_end.set()
        await request
        await pass_s(60.0)

    asyncio.run(ask())
    assert ended == ends
