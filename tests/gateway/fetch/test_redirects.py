"""gateway/fetch/fetcher.py: a redirect is a new URL, with all its checks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import trustme

from gateway.errors import FetchFailed, GatewayError, UrlNotAllowed
from tests.gateway.fetch.conftest import PHOTO, Listen, Names, fetch, server_tls
from tests.programs.origins import Origin, http_answer


def redirect(location: str, status: str = "302 Found", **headers: str) -> bytes:
    answer = http_answer(status=status, Location="LOCATION", **headers)
    return answer.replace(b"LOCATION", location.encode(errors="surrogateescape"))


def answer_later(origin: Origin, first: bytes, redirects: int = 1) -> None:
    """Let an origin answer the same redirect some times, and then a photo."""
    origin.answer = lambda sock: sock.sendall(first if len(origin.requests) <= redirects else http_answer(PHOTO))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(listen: Listen, status: int) -> None:
    """Follow each status that means a redirect, also to another port (S7)."""
    target = listen(http_answer(PHOTO))
    assert fetch(listen(redirect(f"http://photos.test:{target.port}/b.jpg", f"{status} Moved"))) == PHOTO
    assert target.requests[0].startswith("GET /b.jpg ")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b.jpg", "/b.jpg"),
        ("b.jpg", "/a/b.jpg"),
        ("../b.jpg", "/b.jpg"),
        ("?c=d", "/a/a.jpg?c=d"),
        ("//photos.test:PORT/b", "/b"),
        ("/grün", "/gr%C3%BCn"),
        ("/gr\udcfcn", "/gr%FCn"),
        ("b c.jpg?d e", "/a/b%20c.jpg?d%20e"),
        ("http://photos.test:PORT/a b", "/a%20b"),
        ("http://☕.test:PORT/", "/"),
        ("b\\c.jpg", "/a/b/c.jpg"),
    ],
)
def test_relative_redirect_is_resolved(listen: Listen, location: str, target: str) -> None:
    """Resolve a Location against the URL that sent it (S7), and bring no cookie along (S9)."""
    origin = listen()
    answer_later(origin, redirect(location.replace("PORT", str(origin.port)), Set_Cookie="a=b"))
    assert fetch(origin, url="http://photos.test:PORT/a/a.jpg?x#y") == PHOTO
    assert origin.requests[1].startswith(f"GET {target} ")
    assert "cookie" not in origin.requests[1].lower()


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://127.0.0.2:PORT/", UrlNotAllowed),
        ("http://inside.test:PORT/", UrlNotAllowed),
        ("http://[::1]:PORT/", UrlNotAllowed),
        ("//127.0.0.2:PORT/", UrlNotAllowed),
        ("http://0x7f.2:PORT/", UrlNotAllowed),
        ("http://me@photos.test:PORT/", UrlNotAllowed),
        ("http://169.254.169.254/latest/meta-data/", UrlNotAllowed),
        ("file:///etc/passwd", UrlNotAllowed),
        ("ftp://photos.test/", UrlNotAllowed),
        ("http://photos.test:PORT\\@inside.test/", FetchFailed),
        ("http://[photos", FetchFailed),
        ("\\\\127.0.0.2:PORT/", FetchFailed),
        ("/\\127.0.0.2:PORT/", FetchFailed),
        ("http:\\\\127.0.0.2:PORT/", FetchFailed),
        ("http://127.0.0.2\\@photos.test:PORT/", FetchFailed),
        ("/a\tb", FetchFailed),
        ("/" + "a" * 2048, FetchFailed),
        ("javascript:alert(1)", FetchFailed),
    ],
)
def test_redirect_elsewhere_is_refused(listen: Listen, location: str, error: type[GatewayError]) -> None:
    """Refuse a redirect to a closed URL, reach nobody, and do not say where it led (S7)."""
    origin = listen()
    insiders = [listen(host=host, port=origin.port) for host in ("127.0.0.2", "::1")]
    origin.answer = redirect(location.replace("PORT", str(origin.port)))
    with pytest.raises(error, match=r"^The URL redirects to (one that is not allowed|something that is not a URL)\.$"):
        fetch(origin)
    assert [server.connections for server in (origin, *insiders)] == [1, 0, 0]


def test_rebinding_by_redirect_is_refused(listen: Listen) -> None:
    """Look up and check again at each redirect, once (S6)."""
    origin = listen(redirect("/again"))
    insider = listen(host="127.0.0.2", port=origin.port)
    names = Names(flip=[["127.0.0.1"], ["127.0.0.2"]])
    with pytest.raises(UrlNotAllowed, match="redirects to one that is not allowed"):
        fetch(origin, names, url="http://flip.test:PORT/")
    assert (names.look_ups, origin.connections, insider.connections) == (["flip.test"] * 2, 1, 0)


@pytest.mark.parametrize(
    ("redirects", "limit", "outcome"),
    [
        (3, 3, nullcontext()),
        (4, 3, pytest.raises(FetchFailed, match="The URL redirects more than 3 times")),
        (1, 0, pytest.raises(FetchFailed, match="The URL redirects more than 0 times")),
    ],
)
def test_redirects_are_limited(
    listen: Listen, redirects: int, limit: int, outcome: AbstractContextManager[object]
) -> None:
    """Follow as many redirects as the limit says, and not one more (S7)."""
    origin = listen()
    answer_later(origin, redirect("/"), redirects)
    with outcome:
        assert fetch(origin, fetch_max_redirects=limit) == PHOTO
    assert origin.connections == min(redirects, limit) + 1


def test_redirect_from_https_to_http_is_refused(listen: Listen, authority: trustme.CA) -> None:
    """Never leave TLS once in it (S7)."""
    plain = listen(http_answer(PHOTO))
    origin = listen(redirect(f"http://photos.test:{plain.port}/"), tls=server_tls(authority, "photos.test"))
    with pytest.raises(UrlNotAllowed, match="redirects to one that is not allowed"):
        fetch(origin, url="https://photos.test:PORT/")
    assert plain.connections == 0
