"""gateway/fetch/kept.py: a connection serves the next fetch from its host, and no other."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme
from urllib3.connection import HTTPConnection

from gateway.errors import FetchFailed, FetchTimeout, TooLarge, UrlNotAllowed
from gateway.fetch import kept
from gateway.fetch.fetcher import Fetcher
from gateway.fetch.urls import parse_url
from tests.gateway.fetch.conftest import CHUNKED, INFORMING, PHOTO, Listen, Names, make_fetcher, server_tls, takes
from tests.gateway.fetch.test_proxy import PUBLIC, tunnel_to
from tests.programs.origins import Origin, http_answer

OTHER = b"\xff\xd8another photo"


def fetch_twice(fetcher: Fetcher, origin: Origin, first: str = "http://photos.test:PORT/", second: str = "") -> bytes:
    """Fetch a URL, then the same or another one, and return what came then."""
    fetcher.fetch(first.replace("PORT", str(origin.port)))
    return fetcher.fetch((second or first).replace("PORT", str(origin.port)))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "answer",
    [http_answer(PHOTO), CHUNKED + b"7\r\n" + PHOTO + b"\r\n0\r\n\r\n", INFORMING + http_answer(PHOTO)],
    ids=["length", "chunked", "after others that inform"],
)
def test_one_connection_serves_a_host(listen: Listen, authority: trustme.CA, scheme: str, answer: bytes) -> None:
    """Its name is looked up once, as nothing connects again."""
    names, tls = Names(), server_tls(authority, "photos.test") if scheme == "https" else None
    origin = listen(answer, tls=tls, keeps=True)
    origin.answers["/b"] = http_answer(OTHER)
    first, second = (f"{scheme}://photos.test:PORT/{path}" for path in "ab")
    assert fetch_twice(make_fetcher(names), origin, first, second) == OTHER
    assert (origin.connections, len(origin.requests), names.look_ups) == (1, 2, ["photos.test"])


@pytest.mark.parametrize("second", ["http://127.0.0.1:PORT/", "http://other.test:PORT/"])
def test_another_name_gets_its_own(listen: Listen, second: str) -> None:
    """Although it has the same address: what is allowed, and whose certificate counts, goes by the name."""
    origin = listen(http_answer(PHOTO), keeps=True)
    assert fetch_twice(make_fetcher(Names(other=[["127.0.0.1"]])), origin, second=second) == PHOTO
    assert origin.connections == 2


def test_https_does_not_use_a_connection_without_it(listen: Listen) -> None:
    """Of the same host and port."""
    origin = listen(http_answer(PHOTO), keeps=True)
    with pytest.raises(FetchFailed, match="SSLError"):
        fetch_twice(make_fetcher(), origin, second="https://photos.test:PORT/")
    assert origin.connections == 2


def test_a_proxy_s_tunnel_is_kept(listen: Listen) -> None:
    """It leads to the same host."""
    origin = listen(http_answer(PHOTO), keeps=True)
    proxy = listen(tunnel_to(origin))
    fetcher = make_fetcher(Names(**PUBLIC), fetch_proxy=f"http://127.0.0.1:{proxy.port}")
    assert fetch_twice(fetcher, origin, "http://public.test/a", "http://public.test/b") == PHOTO
    assert (proxy.connections, origin.connections, len(origin.requests)) == (1, 1, 2)


@pytest.mark.parametrize("tells", [True, False])
def test_a_host_that_closes_is_asked_again(listen: Listen, tells: bool) -> None:
    """Its name is looked up and checked again: it may have moved to an address that is closed."""
    origin = listen(http_answer(PHOTO, **({"Connection": "close"} if tells else {})))
    insider = listen(host="127.0.0.2", port=origin.port)
    names = Names(flip=[["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]])
    fetcher = make_fetcher(names)
    assert fetch_twice(fetcher, origin, "http://flip.test:PORT/") == PHOTO
    assert origin.connections == 2
    with pytest.raises(UrlNotAllowed):
        fetch_twice(fetcher, origin, "http://flip.test:PORT/")
    assert insider.connections == 0


@pytest.mark.parametrize("last", [b"", http_answer(status="408 Request Timeout")], ids=["silent", "408"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_closes_as_it_is_asked_is_asked_again(
    listen: Listen, authority: trustme.CA, scheme: str, last: bytes
) -> None:
    """It had not seen the request, had not begun with an answer, or waited too long for one: a GET may be repeated."""
    tls = server_tls(authority, "photos.test") if scheme == "https" else None
    origin = listen(http_answer(PHOTO), tls=tls, keeps=True)

    def close(sock: socket.socket) -> None:
        origin.answer = http_answer(OTHER)
        sock.sendall(last)
        raise OSError

    url = f"{scheme}://photos.test:{origin.port}/"
    fetcher = make_fetcher()
    fetcher.fetch(url)
    origin.answer = close
    assert fetcher.fetch(url) == OTHER
    assert (origin.connections, len(origin.requests)) == (2, 3)


def test_a_host_that_is_slow_to_read_is_not_asked_again(listen: Listen) -> None:
    """Its 408 on a new connection is its answer."""
    origin = listen(http_answer(status="408 Request Timeout"), keeps=True)
    with pytest.raises(FetchFailed, match="status 408"):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")
    assert origin.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(PHOTO, status="404 Not Found"),
        http_answer(PHOTO * 1000),
        http_answer(PHOTO, Content_Encoding="gzip"),
        http_answer(PHOTO, Content_Length="99"),
    ],
    ids=["status", "too large", "compressed", "incomplete"],
)
def test_only_a_whole_answer_keeps_a_connection(listen: Listen, answer: bytes) -> None:
    """What is left of another one would be read as the next answer."""
    origin = listen(answer, keeps=True)
    fetcher, url = make_fetcher(max_image_bytes=100, fetch_timeout_s=0.5), f"http://photos.test:{origin.port}/"
    with pytest.raises((FetchFailed, FetchTimeout, TooLarge)):
        fetcher.fetch(url)
    origin.answer = http_answer(PHOTO)
    assert fetcher.fetch(url) == PHOTO
    assert origin.connections == 2


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["chunks in 1.0", "length and chunks"],
)
def test_an_answer_whose_end_is_in_doubt_keeps_none(listen: Listen, head: bytes) -> None:
    """Another reader would find its end elsewhere."""
    origin = listen(head + b"7\r\n" + PHOTO + b"\r\n0\r\n\r\n", keeps=True)
    assert fetch_twice(make_fetcher(), origin) == PHOTO
    assert origin.connections == 2


def test_a_redirect_with_a_body_keeps_none(listen: Listen) -> None:
    """The body is not read, and would be the next answer."""
    origin = listen(http_answer(PHOTO), keeps=True)
    origin.answers["/a"] = http_answer(status="302 Found", Location="/b", Content_Length="99")
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/a") == PHOTO
    assert origin.connections == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_nobody_asked_for_is_no_answer(listen: Listen, authority: trustme.CA, scheme: str) -> None:
    """A host may say that it closes an idle connection, or send more than an answer has."""
    tls = server_tls(authority, "photos.test") if scheme == "https" else None
    origin, fetched, sent = listen(tls=tls, keeps=True), threading.Event(), threading.Event()

    def send(sock: socket.socket) -> None:
        sock.sendall(http_answer(PHOTO))
        fetched.wait(5)
        origin.answer = http_answer(PHOTO)
        sock.sendall(http_answer(OTHER, status="408 Request Timeout"))
        sent.set()

    origin.answer = send
    fetcher, url = make_fetcher(), f"{scheme}://photos.test:{origin.port}/"
    fetcher.fetch(url)
    fetched.set()
    assert sent.wait(5) and fetcher.fetch(url) == PHOTO
    assert origin.connections == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_second_answer_goes_to_nobody(listen: Listen, authority: trustme.CA, scheme: str) -> None:
    """It comes with the first, and fills one read to the byte: over TLS, it is decrypted, and the socket is empty."""
    tls = server_tls(authority, "photos.test") if scheme == "https" else None
    origin = listen(http_answer(PHOTO), tls=tls, keeps=True)
    origin.answers["/a"] = http_answer(bytes(8192 - len(http_answer(bytes(8000))) + 8000)) + http_answer(OTHER)
    first, second = (f"{scheme}://photos.test:PORT/{path}" for path in "ab")
    assert fetch_twice(make_fetcher(), origin, first, second) == PHOTO
    assert origin.connections == 2


def test_a_host_that_sends_no_answer_is_asked_again(listen: Listen) -> None:
    """As the end of what did not belong to its answer before."""
    origin = listen(http_answer(PHOTO), keeps=True)
    origin.answers["/b"] = lambda sock: (origin.answers.pop("/b"), sock.sendall(b"surplus\r\n\r\n"))[0]
    first, second = (f"http://photos.test:PORT/{path}" for path in "ab")
    assert fetch_twice(make_fetcher(), origin, first, second) == PHOTO
    assert origin.connections == 2


def test_a_host_that_breaks_tls_is_asked_again(listen: Listen, authority: trustme.CA) -> None:
    """On a new connection; what it broke was kept."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, "photos.test"), keeps=True)
    origin.answers["/b"] = lambda sock: (origin.answers.pop("/b"), os.write(sock.fileno(), b"junk" * 5))[0]
    first, second = (f"https://photos.test:PORT/{path}" for path in "ab")
    assert fetch_twice(make_fetcher(), origin, first, second) == PHOTO
    assert origin.connections == 2


def test_limits_count_anew(listen: Listen) -> None:
    """Time, bytes, and where bytes are counted, are those of the fetch that uses a connection."""
    origin = listen(http_answer(PHOTO), keeps=True)
    origin.answers["/slow"] = origin.drip(http_answer(PHOTO * 100), every_s=0.05)
    origin.answers["/large"] = http_answer(PHOTO * 100)
    fetcher, url = make_fetcher(max_image_bytes=500, fetch_timeout_s=5.0), f"http://photos.test:{origin.port}/"
    first: list[int] = []
    second: list[int] = []
    fetcher.fetch(url, hold=first.append)
    with takes(0.9, 4), pytest.raises(FetchTimeout):
        fetcher.fetch(url + "slow", 1.0, second.append)
    assert sum(first) == len(http_answer(PHOTO)) and sum(second) > 0
    fetcher.fetch(url)
    with pytest.raises(TooLarge):
        fetcher.fetch(url + "large")
    assert origin.connections == 2


def test_an_idle_connection_is_closed(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not used again."""
    origin = listen(http_answer(PHOTO), keeps=True)
    fetcher, url = make_fetcher(), f"http://photos.test:{origin.port}/"
    fetcher.fetch(url)
    monkeypatch.setattr(kept, "IDLE_S", 0.0)
    assert fetcher.fetch(url) == PHOTO
    assert origin.connections == 2


def test_the_connection_that_was_used_last_comes_first() -> None:
    """Its host is the least likely to have closed it."""
    pool, url = kept.KeptConnections(2), parse_url("http://photos.test/")
    pairs = [socket.socketpair() for _ in range(2)]
    connections = [HTTPConnection("photos.test") for _ in pairs]
    for connection, (near, _) in zip(connections, pairs, strict=True):
        connection.sock = near
        pool.give(url, connection)
    assert [pool.take(url) for _ in range(3)] == [*reversed(connections), None]
    for each in (*connections, *(far for _, far in pairs)):
        each.close()


def test_at_most_as_many_are_kept_as_are_fetched_at_once(listen: Listen) -> None:
    """Those beyond it are closed, the one that was used longest ago first."""
    origins = [listen(http_answer(PHOTO), keeps=True) for _ in range(3)]
    fetcher = make_fetcher(fetch_limit=2)
    for origin in [*origins, *reversed(origins)]:
        fetcher.fetch(f"http://photos.test:{origin.port}/")
    assert [origin.connections for origin in origins] == [2, 1, 1]


def test_threads_do_not_share_a_connection(listen: Listen) -> None:
    """While one waits for its answer, another connects, or takes one that is idle."""
    origin = listen(keeps=True)
    for number in range(200):
        origin.answers[f"/{number}"] = http_answer(f"photo {number}".encode())
    fetcher = make_fetcher(fetch_limit=8)
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda number: fetcher.fetch(f"http://photos.test:{origin.port}/{number}"), range(200)))
    assert bodies == [f"photo {number}".encode() for number in range(200)]
    assert origin.connections <= 8
