"""gateway/fetch/: limits of time and size, whatever an image's host does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pytest
import trustme

from gateway.errors import FetchFailed, FetchTimeout, GatewayError, TooLarge
from gateway.fetch.fetcher import MAX_LOOK_UPS
from gateway.fetch.limits import Budget, PlainSocket, connect
from gateway.fetch.urls import Address
from tests.gateway.fetch.conftest import (
    CHUNKED,
    INFORMING,
    PHOTO,
    Listen,
    Names,
    fetch,
    make_fetcher,
    server_tls,
    takes,
)
from tests.programs.origins import endless, http_answer
from tests.programs.stack import wait_until

TIMEOUT_S = 0.25
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


def ends_at(timeout_s: float) -> AbstractContextManager[None]:
    """Check that the block ends at a deadline, or within a second on a busy machine: without a deadline it never ends.

    `make faults` checks it within 10 %.
    """
    return takes(0.99 * timeout_s, timeout_s + 1)


@pytest.mark.parametrize("every_s", [1.0, 0.01], ids=["1 byte/s", "100 bytes/s"])
@pytest.mark.parametrize(
    ("scheme", "start", "slow"),
    [
        ("http", b"", HEAD),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
        ("http", HEAD, PHOTO * 100),
        ("https", HEAD, PHOTO * 100),
        ("http", CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 99),
    ],
    ids=["headers", "more answers", "body", "body by TLS", "trailers"],
)
def test_slow_answers_end_at_the_deadline(
    listen: Listen, authority: trustme.CA, scheme: str, start: bytes, slow: bytes, every_s: float
) -> None:
    """Give up on an answer that trickles in, in any of its parts (S11, F6)."""
    origin = listen(tls=server_tls(authority, "photos.test") if scheme == "https" else None)
    origin.answer = lambda sock: (sock.sendall(start), origin.drip(slow, every_s)(sock))[1]
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout, match=f"did not arrive within {TIMEOUT_S:g} s"):
        fetch(origin, url=f"{scheme}://photos.test:PORT/", fetch_timeout_s=TIMEOUT_S)


def test_silent_handshake_ends_at_the_deadline(listen: Listen) -> None:
    """Count the TLS handshake in the deadline (S11)."""
    origin = listen(lambda sock: origin.stopped.wait(5))
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        fetch(origin, url="https://photos.test:PORT/", fetch_timeout_s=TIMEOUT_S)


def test_deadline_spans_redirects(listen: Listen) -> None:
    """Count all hops in one deadline (S11)."""
    redirect = http_answer(status="302 Found", Location="/")
    origin = listen(lambda sock: (origin.stopped.wait(TIMEOUT_S / 2.5), sock.sendall(redirect)))
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        fetch(origin, fetch_timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(("timeout_s", "setting_s"), [(0.2, 5.0), (5.0, 0.2)])
def test_caller_can_shorten_the_deadline(listen: Listen, timeout_s: float, setting_s: float) -> None:
    """Take the shorter one of the caller's limit and the setting."""
    origin = listen(lambda sock: origin.stopped.wait(5))
    with ends_at(0.2), pytest.raises(FetchTimeout):
        make_fetcher(fetch_timeout_s=setting_s).fetch(f"http://photos.test:{origin.port}/", timeout_s)


def test_no_time_left_reaches_nobody(listen: Listen) -> None:
    """Connect to nobody when the request's time is over already."""
    origin = listen(http_answer(PHOTO))
    with pytest.raises(FetchTimeout):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/", 0)
    assert origin.connections == 0


@contextmanager
def deaf(host: str, port: int = 0) -> Iterator[int]:
    """Listen on a port where new connections get no answer at all, since the backlog is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((host, port))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def test_unanswered_connect_ends_at_the_deadline() -> None:
    """Count connecting in the deadline, over all addresses (S11)."""
    fetcher = make_fetcher(Names(deaf=[["127.0.0.1"] * 2]), fetch_timeout_s=TIMEOUT_S)
    with deaf("127.0.0.1") as port, ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        fetcher.fetch(f"http://deaf.test:{port}/")


def test_unanswered_connect_leaves_time_for_the_next(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each address an equal part of the time, so that the next one has its chance."""
    origin, limits = listen(http_answer(PHOTO)), list[float]()

    def connect_in_a_hurry(address: Address, port: int, budget: Budget, timeout_s: float) -> PlainSocket:
        limits.append(timeout_s)
        return connect(address, port, budget, timeout_s / 200)

    monkeypatch.setattr("gateway.fetch.fetcher.connect", connect_in_a_hurry)
    names = Names(two=[["127.0.0.3", "127.0.0.1"]])
    with deaf("127.0.0.3", origin.port):
        url = "http://two.test:PORT/"
        assert fetch(origin, names, url=url, allow="127.0.0.0/8", fetch_timeout_s=60) == PHOTO
    assert 25 < limits[0] <= 30 and 45 < limits[1] <= 60


def test_stuck_resolver_ends_at_the_deadline_and_recovers(listen: Listen) -> None:
    """Give up on a look-up that hangs, with a limit for its threads, and serve again once it has ended (S11)."""
    origin, release = listen(http_answer(PHOTO)), threading.Event()

    def stuck(host: str, port: int) -> list[str]:
        release.wait()
        return ["127.0.0.1"]

    fetcher, url = make_fetcher(stuck, fetch_timeout_s=TIMEOUT_S), f"http://a.test:{origin.port}/"
    callers = [
        threading.Thread(target=pytest.raises, args=(FetchTimeout, fetcher.fetch, url)) for _ in range(MAX_LOOK_UPS + 4)
    ]
    try:
        with ends_at(TIMEOUT_S):
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert [thread.name for thread in threading.enumerate()].count("look-up") == MAX_LOOK_UPS
    finally:
        release.set()
    assert fetcher.fetch(url) == PHOTO


LARGE_BODY = (TooLarge, "at most 100000 bytes")
LARGE_HEAD = (FetchFailed, "sent over 32768 bytes of headers")


@pytest.mark.parametrize(
    ("start", "piece", "refusal"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536, LARGE_BODY),
        (CHUNKED, b"8000\r\n" + b"a" * 32768 + b"\r\n", LARGE_BODY),
        (CHUNKED, b"1\r\na\r\n" * 4096, LARGE_BODY),
        (CHUNKED + b"1;", b"a" * 60000 + b"\r\na\r\n1;", LARGE_BODY),
        (CHUNKED + b"-1\r\n", b"a" * 65536, LARGE_BODY),
        (CHUNKED + b"0\r\n", b"a: b\r\n" * 4096, LARGE_BODY),
        (b"HTTP/1.1 200 OK\r\nA: ", b"a" * 65536, LARGE_HEAD),
        (b"HTTP/1.1 200 OK\r\n", b"Abcdefgh: " + b"a" * 1000 + b"\r\n", LARGE_HEAD),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, LARGE_HEAD),
        (b"", INFORMING * 100, LARGE_HEAD),
        (b"", b"H" * 65536, LARGE_HEAD),
    ],
    ids=[
        *("plain", "chunked", "tiny chunks", "long chunk extensions", "chunk of size -1", "trailers"),
        *("one line", "many lines", "many answers", "of many kinds", "status line"),
    ],
)
def test_endless_answers_are_cut(
    listen: Listen, start: bytes, piece: bytes, refusal: tuple[type[GatewayError], str]
) -> None:
    """Stop reading at the limits of body and headers, whatever the bytes are spent on (S11)."""
    origin, (error, message) = listen(endless(start, piece)), refusal
    with takes(0, 2), pytest.raises(error, match=message):
        fetch(origin, fetch_timeout_s=5, max_image_bytes=100_000)


def sized(head: int, body: int) -> bytes:
    """Return an answer with so many bytes of headers, which name no length, and of body."""
    start = b"HTTP/1.1 200 OK\r\nA: \r\n\r\n"
    return start.replace(b"A: ", b"A: " + b"a" * (head - len(start))) + b"a" * body


@pytest.mark.parametrize(
    ("head", "body", "outcome"),
    [
        (100, 1000, nullcontext()),
        (100, 1001, pytest.raises(TooLarge)),
        (32 * 1024, 7, nullcontext()),
        (32 * 1024 + 1, 7, pytest.raises(FetchFailed, match="bytes of headers")),
    ],
)
def test_limits_are_exact(listen: Listen, head: int, body: int, outcome: AbstractContextManager[object]) -> None:
    """Take a body of the limit, and 32 KiB of headers, and nothing above."""
    with outcome:
        assert len(fetch(listen(sized(head, body)), max_image_bytes=1000)) == body


def test_announced_size_is_refused_before_reading(listen: Listen) -> None:
    """Refuse a Content-Length above the limit without waiting for the body (S11)."""
    origin = listen(lambda sock: (sock.sendall(http_answer(Content_Length="1001")), origin.stopped.wait(5)))
    with takes(0, 1), pytest.raises(TooLarge):
        fetch(origin, max_image_bytes=1000)


def test_slow_origins_do_not_slow_others(listen: Listen) -> None:
    """Serve other fetches while slow origins are waited for (F6)."""
    slow, quick = listen(), listen(http_answer(PHOTO))
    slow.answer = slow.drip(HEAD + PHOTO * 100, 0.05)
    fetcher = make_fetcher(fetch_timeout_s=10)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(fetcher.fetch, f"http://photos.test:{slow.port}/") for _ in range(20)]
        wait_until(lambda: slow.connections == 20)
        for _ in range(20):
            assert fetcher.fetch(f"http://photos.test:{quick.port}/") == PHOTO
        assert not any(each.done() for each in waiting)
        slow.stopped.set()
        assert {type(each.exception()) for each in waiting} == {FetchFailed}
