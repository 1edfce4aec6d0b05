"""gateway/fetch/proxy.py: a proxy is asked for checked addresses, and opens nothing that is closed without it."""

from __future__ import annotations

import base64
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trustme

from gateway.errors import FetchFailed, FetchTimeout, GatewayError, UrlNotAllowed
from gateway.fetch.proxy import Proxy
from tests.gateway.fetch.conftest import INFORMING, PHOTO, Listen, Names, make_fetcher, server_tls, takes
from tests.programs.origins import Origin, http_answer

PUBLIC = {"public": [["8.8.8.8"]], "two": [["2606:4700::1111", "8.8.8.8"]], "inner": [["10.0.0.1"]]}
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def tunnel_to(origin: Origin) -> Callable[[socket.socket], None]:
    """Return what a proxy does that informs first, and leads every tunnel to one origin."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", origin.port)) as server:
            client.sendall(INFORMING + OPENED)
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    return serve


def fetch_by(proxy: Origin, url: str, login: str = "", **settings: Any) -> bytes:
    """Fetch a URL by a fetcher with a proxy, from whose table names have public addresses."""
    settings["fetch_proxy"] = f"http://{login}127.0.0.1:{proxy.port}"
    return make_fetcher(Names(**PUBLIC), **settings).fetch(url)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("host", "target"), [("public.test", "8.8.8.8"), ("[2606:4700::1111]", "[2606:4700::1111]")])
def test_the_proxy_is_asked_for_the_checked_address(
    listen: Listen, authority: trustme.CA, scheme: str, host: str, target: str
) -> None:
    """It never learns the name, which it could look up otherwise; the image's host does, in TLS and in Host."""
    tls = server_tls(authority, host.strip("[]")) if scheme == "https" else None
    origin = listen(http_answer(PHOTO), tls=tls)
    proxy = listen(tunnel_to(origin))
    assert fetch_by(proxy, f"{scheme}://{host}/a.jpg") == PHOTO
    port = 443 if tls else 80
    assert proxy.requests == [f"CONNECT {target}:{port} HTTP/1.1\r\nHost: {target}:{port}\r\n\r\n"]
    assert origin.requests[0].startswith("GET /a.jpg HTTP/1.1\r\n") and f"\r\nHost: {host}\r\n" in origin.requests[0]


def test_the_certificate_is_checked_through_a_proxy(listen: Listen, authority: trustme.CA) -> None:
    """A proxy that leads elsewhere cannot pretend to be the host."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, "other.test"))
    with pytest.raises(FetchFailed, match="no TLS certificate"):
        fetch_by(listen(tunnel_to(origin)), "https://public.test/")


@pytest.mark.parametrize(
    "url", ["http://inner.test/", "http://127.0.0.2/", "http://[::1]/", "http://169.254.169.254/", "http://8.8.8.8:22/"]
)
@pytest.mark.parametrize("redirects", [False, True])
def test_a_proxy_opens_nothing(listen: Listen, url: str, redirects: bool) -> None:
    """What is closed without a proxy is not asked for, also after a redirect, whatever the proxy could reach."""
    origin = listen(http_answer(status="302 Found", Location=url))
    proxy = listen(tunnel_to(origin))
    with pytest.raises(UrlNotAllowed):
        fetch_by(proxy, "http://public.test/" if redirects else url)
    assert proxy.connections == origin.connections == int(redirects)


def test_a_private_host_of_the_allow_list_is_asked_directly(listen: Listen) -> None:
    """It is on this side of the proxy."""
    origin, proxy = listen(http_answer(PHOTO)), listen()
    assert fetch_by(proxy, f"http://127.0.0.1:{origin.port}/") == PHOTO
    assert proxy.connections == 0


def test_the_proxy_gets_its_password_and_the_host_does_not(listen: Listen) -> None:
    """As Basic, with what cannot stand in a URL percent-encoded."""
    origin = listen(http_answer(PHOTO))
    proxy = listen(tunnel_to(origin))
    assert fetch_by(proxy, "http://public.test/", login="me:p%40ss@") == PHOTO
    assert f"\r\nProxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}\r\n" in proxy.requests[0]
    assert "Proxy" not in origin.requests[0]


def test_the_next_address_is_tried_through_a_proxy(listen: Listen) -> None:
    """A proxy without IPv6 refuses the first."""
    origin = listen(http_answer(PHOTO))
    proxy = listen(tunnel_to(origin))
    asked: list[str] = []

    def answer(client: socket.socket) -> None:
        asked.append(proxy.requests[-1].split()[1])
        client.sendall(b"HTTP/1.1 503 No\r\n\r\n") if len(asked) == 1 else tunnel_to(origin)(client)

    proxy.answer = answer
    assert fetch_by(proxy, "http://two.test/") == PHOTO
    assert asked == ["[2606:4700::1111]:80", "8.8.8.8:80"]


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"secret", status="403 secret"),
        http_answer(status="407 Proxy Authentication Required"),
        http_answer(status="302 Found", Location="http://secret.test/"),
        b"secret\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    ],
)
def test_a_proxy_that_does_not_connect_is_named(
    listen: Listen, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns that it was the proxy, the log more, and neither its words or password."""
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(FetchFailed, match="The gateway's proxy did not connect") as failed,
    ):
        fetch_by(listen(answer), "http://public.test/", login="me:secret@")
    assert "GATEWAY_FETCH_PROXY" in caplog.text and "secret" not in caplog.text + str(failed.value)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.test:3128"])
def test_a_proxy_that_is_not_there_is_named(host: str) -> None:
    """Nobody looks for the fault at the image's host."""
    fetcher = make_fetcher(Names(**PUBLIC), fetch_proxy=f"http://{host}")
    with pytest.raises(FetchFailed, match="The gateway's proxy did not connect"):
        fetcher.fetch("http://public.test/")


@pytest.mark.parametrize("start", [b"", OPENED], ids=["proxy", "host"])
def test_the_time_limit_holds_through_a_proxy(listen: Listen, start: bytes) -> None:
    """For a proxy that sends a byte at a time, and for a host behind it."""
    proxy = listen()
    drip = proxy.drip(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 99, 0.05)

    def answer(client: socket.socket) -> None:
        client.sendall(start)
        drip(client)

    proxy.answer = answer
    with takes(0.45, 10), pytest.raises(FetchTimeout):
        fetch_by(proxy, "http://public.test/", fetch_timeout_s=0.5)


@pytest.mark.parametrize(
    "text", ["proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://", "http://a/b", "http://secret@:1"]
)
def test_another_form_is_refused_without_its_password(text: str) -> None:
    """Only an HTTP proxy; the text may contain a password."""
    with pytest.raises(ValueError, match="Expected http://HOST:PORT") as refused:
        Proxy(text)
    assert "secret" not in str(refused.value)
    assert not isinstance(refused.value, GatewayError)
