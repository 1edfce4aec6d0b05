"""The safe fetch against real listeners on loopback: what it refuses, what it reaches, and how long it takes."""

from __future__ import annotations

import gzip
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path

import pytest
import trustme

from gateway.errors import BadRequest, FetchFailed, FetchTimeout, GatewayError, TooLarge, UrlNotAllowed
from gateway.fetch import fetcher
from gateway.fetch.addresses import AllowList
from gateway.fetch.fetcher import MAX_LOOK_UPS, Fetcher, FetchRules, look_up
from tests.programs.origins import Origin, endless, http_answer

PHOTO = b"\xff\xd8photo"
TIMEOUT_S = 0.25
Listen = Callable[..., Origin]


class Names:
    """A resolver from a table, which keeps what it was asked; several lists for a name are answered in turn."""

    def __init__(self, **tables: list[list[str]]) -> None:
        self.look_ups: list[str] = []
        self._tables = {
            "photos.test": [["127.0.0.1"]],
            "xn--bcher-kva.test": [["127.0.0.1"]],
            "inside.test": [["127.0.0.2"]],
        } | {f"{name}.test": answers for name, answers in tables.items()}

    def __call__(self, host: str, port: int) -> list[str]:
        answers = self._tables.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        self.look_ups.append(host)
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Start origins that end with the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Origin(*args, **kwargs))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Make a certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="session", autouse=True)
def _trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust this authority only, by OpenSSL's own variable; loading the system's takes 40 ms a fetcher."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(path))
        yield


def server_tls(authority: trustme.CA, name: str, not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=not_after).configure_cert(context)
    return context


def make_fetcher(
    names: fetcher.Resolve | None = None, allow: str = "127.0.0.1/32", deny: str = "", **rules: float | str
) -> Fetcher:
    """Make a fetcher for which 127.0.0.1 is open, and every other loopback address as closed as ever."""
    return Fetcher(
        FetchRules(allow=AllowList.parse(allow), deny=AllowList.parse(deny), **rules),  # type: ignore[arg-type]
        names or Names(),
    )


def words(text: str) -> list[str]:
    return text.split()


@contextmanager
def takes(low_s: float, high_s: float) -> Iterator[None]:
    """Hold the block to a range of seconds."""
    start = time.monotonic()
    yield
    assert low_s <= time.monotonic() - start <= high_s


def ends_at(timeout_s: float) -> AbstractContextManager[None]:
    """Hold the block to a deadline, and a second for a machine that is busy: what has none lasts for ever.

    `make faults` holds it to 10 %.
    """
    return takes(0.99 * timeout_s, timeout_s + 1)


def test_fetch_returns_the_body(listen: Listen) -> None:
    """Return exactly the bytes of a 200 answer."""
    origin = listen(http_answer(PHOTO))
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/a.jpg") == PHOTO


def test_fetch_sends_a_plain_request(listen: Listen) -> None:
    """Send the host's name, a settable User-Agent, identity encoding, and nothing that identifies anyone."""
    origin = listen(http_answer(PHOTO))
    make_fetcher(user_agent="classifier (admin@photos.test)").fetch(f"http://photos.test:{origin.port}/a.jpg")
    assert set(origin.requests[0].strip().split("\r\n")) == {
        "GET /a.jpg HTTP/1.1",
        f"Host: photos.test:{origin.port}",
        "User-Agent: classifier (admin@photos.test)",
        "Accept: image/*, */*;q=0.1",
        "Accept-Encoding: identity",
    }


def test_user_agent_must_be_a_header() -> None:
    """Refuse a User-Agent that would add headers of its own, when the rules are made."""
    with pytest.raises(ValueError, match="Expected a user agent"):
        FetchRules(user_agent="me\r\nCookie: a=b")


@pytest.mark.parametrize("body", [b"5\r\n\xff\xd8pho\r\n2;ext=1\r\nto\r\n0\r\nTrailer: x\r\n\r\n"])
def test_chunked_body(listen: Listen, body: bytes) -> None:
    """Put a chunked body together, without its extensions and trailers."""
    origin = listen(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/") == PHOTO


def test_body_until_close(listen: Listen) -> None:
    """Read a body without a length until the origin closes."""
    origin = listen(b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO)
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/") == PHOTO


# S3: encodings of 127.0.0.1 and other numbers that are not a canonical dotted quad.
DISGUISES = words("""
    0177.0.0.1 0177.0.0.01 127.0.0.01 00000177.0.0.1 2130706433 017700000001 127.1 127.0.1 1 1.2.3.4.5 256.256.256.256
    0x7f.0.0.1 0X7F.0.0.1 0x7f000001 0x7f.1 0x 127.0.0.0x1 １２７.０.０.１ 127。0。0。1 ①②⑦.0.0.1 ₁₂₇.₀.₀.₁
    %31%32%37.0.0.1 127%2e0%2e0%2e1 127.0.0.1%00
""")


@pytest.mark.parametrize("host", DISGUISES)
def test_disguised_addresses_are_refused_by_shape(host: str) -> None:
    """Refuse, without a look-up, hosts that only some resolvers read as an address (S3)."""
    names = Names()
    with pytest.raises(UrlNotAllowed, match="Expected a host name, a dotted quad"):
        make_fetcher(names, allow="0.0.0.0/0").fetch(f"http://{host}/a.jpg")
    assert names.look_ups == []


# S4 and S10: the cases of WHATWG's URL tests in which parsers disagree.
NOT_URLS = [
    *words("""
        a.jpg photos.test/a.jpg //photos.test/a.jpg http:photos.test http:/photos.test ://photos.test 1http://photos.test
        http:\\\\photos.test\\ http://photos.test\\@inside.test/ http://inside.test\\.photos.test/ javascript:alert(1)
        data:image/png;base64,AAAA
    """),
    *("", " http://photos.test/", "http://photos.test/ ", "\thttp://photos.test/", "ht\ntp://photos.test/"),
    *("http://photos .test/", "http://photos\0.test/", "http://photos.test/a b", "http://photos.test/\r\nX-Evil: 1"),
    *("http://photos.test/\nX-Evil:1", "http://photos.test/\u2028", "http://pho\u200btos.test/"),
    *(
        "http://photos.test/\ud800",
        "http://photos.test/\x7f",
        "http://photos.test/\u00a0",
        "http://a.test/" + "a" * 2035,
    ),
]
FORBIDDEN_URLS = [
    *words("""
        ftp://photos.test/a.jpg file:///etc/passwd gopher://photos.test/_x httpx://photos.test/ ws://photos.test/
        http://me@photos.test/ http://me:pw@photos.test/ http://@photos.test/ http://photos.test@inside.test/
        http://photos.test:80@inside.test/ http://a@b@photos.test/ http:// http:///a.jpg http://:80/ http://?
        http://photos.test:/ http://photos.test:0/ http://photos.test:65536/ http://photos.test:-80/ http://a.test:80:80/
        http://photos.test:８０/ http://photos.test：80/ http://a＠photos.test/ http://a.test:0x50/ http://a.test:8_0/
        http://[::1/ http://::1/ http://[::1]a/ http://[::1].test/ http://[127.0.0.1]/ http://[v1.a]/ http://[]/
        http://[fe80::1%eth0]/ http://[fe80::1%25eth0]/ http://[::1%]/ http://[photos.test]/ http://photos%2etest/
        http://pho..tos.test/ http://.photos.test/ http://photos.test../ http://./ http://pho$tos.test/ http://*.test/
        http://pho|tos.test/ http://pho,tos.test/ http://a<b>.test/ http://℀.test/ http://a／b.test/
    """),
    *("http://" + "a" * 64 + ".test/", "http://" + "a." * 127 + "test/"),
]


@pytest.mark.parametrize("url", NOT_URLS)
def test_text_that_is_no_url_is_refused(url: str) -> None:
    """Refuse what is not strictly a URL, without a look-up (S4, S10)."""
    names = Names()
    with pytest.raises(BadRequest, match="Expected "):
        make_fetcher(names).fetch(url)
    assert names.look_ups == []


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
def test_forbidden_parts_are_refused(url: str) -> None:
    """Refuse other schemes, user info, and hosts and ports that are not plain, without a look-up (S4, S10)."""
    names = Names()
    with pytest.raises(UrlNotAllowed, match="Expected "):
        make_fetcher(names).fetch(url)
    assert names.look_ups == []


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://photos.test:PORT", "/", "photos.test"),
        ("HTTP://PHOTOS.Test:PORT/A.JPG", "/A.JPG", "photos.test"),
        ("http://photos.test.:PORT/", "/", "photos.test"),
        ("http://photos.test:PORT?a=b", "/?a=b", "photos.test"),
        ("http://photos.test:PORT/a?b#c", "/a?b", "photos.test"),
        ("http://photos.test:PORT#@inside.test/", "/", "photos.test"),
        ("http://photos.test:PORT/a%20b/%2e%2E/c", "/a%20b/%2e%2E/c", "photos.test"),
        ("http://photos.test:PORT/../a/./b", "/../a/./b", "photos.test"),
        ("http://photos.test:PORT//inside.test/a", "//inside.test/a", "photos.test"),
        ("http://photos.test:PORT/@inside.test:80/", "/@inside.test:80/", "photos.test"),
        ("http://photos.test:PORT/?u=http://inside.test/", "/?u=http://inside.test/", "photos.test"),
        ("http://photos.test:PORT/grün%zz", "/gr%C3%BCn%zz", "photos.test"),
        ("http://bücher.test:PORT/", "/", "xn--bcher-kva.test"),
        ("http://BÜCHER。test:PORT/", "/", "xn--bcher-kva.test"),
        ("http://127.0.0.1:PORT/", "/", "127.0.0.1"),
    ],
)
def test_url_becomes_one_request(listen: Listen, url: str, target: str, host: str) -> None:
    """Ask the right host for the right target (S4)."""
    origin = listen(http_answer(PHOTO))
    make_fetcher().fetch(url.replace("PORT", str(origin.port)))
    assert origin.requests[0].startswith(f"GET {target} HTTP/1.1\r\nHost: {host}:{origin.port}\r\n")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "inside.test", "[::1]", "[::ffff:127.0.0.2]", "[::ffff:7f00:2]", "[::127.0.0.2]", "[::]", "0.0.0.0"],
)
def test_private_hosts_see_no_connection(listen: Listen, host: str) -> None:
    """Refuse hosts that are not public before any connection, and say how to open them."""
    insiders = [listen(host="127.0.0.2")]
    insiders += [listen(host=address, port=insiders[0].port) for address in ("::1", "127.0.0.1")]
    url = f"http://{host}:{insiders[0].port}/a.jpg"
    with pytest.raises(UrlNotAllowed, match=r"whose host is not public: .* to GATEWAY_FETCH_ALLOW\."):
        make_fetcher(allow="").fetch(url)
    assert [insider.connections for insider in insiders] == [0, 0, 0]


def test_refusal_names_the_setting() -> None:
    """Tell the developer who tries a server of his own what to set."""
    expected = (
        "Expected a public address. Received a URL whose host is not public: 'localhost'. "
        "To allow it, add 'localhost:8000' to GATEWAY_FETCH_ALLOW."
    )
    with pytest.raises(UrlNotAllowed) as refused:
        make_fetcher(fetcher.look_up, allow="").fetch("http://localhost:8000/a.jpg")
    assert str(refused.value) == expected


def test_other_ports_are_refused() -> None:
    """Refuse a public host on another port than 80 and 443, and say how to open it (S10)."""
    expected = "Expected port 80 or 443. Received: 22. To allow it, add 'public.test:22' to GATEWAY_FETCH_ALLOW."
    with pytest.raises(UrlNotAllowed) as refused:
        make_fetcher(Names(public=[["8.8.8.8"]])).fetch("http://public.test:22/")
    assert str(refused.value) == expected


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "[0:0::1]"])
def test_allowed_host_is_opened(listen: Listen, host: str) -> None:
    """Open the very host and port of an entry, however it is written."""
    origin = listen(http_answer(PHOTO), host="::1" if ":" in host else "127.0.0.1")
    fetcher = make_fetcher(
        Names(localhost=[]) if ":" in host else look_up,
        allow=f"localhost:{origin.port}, 127.0.0.1:{origin.port}, [::1]:{origin.port}",
    )
    assert fetcher.fetch(f"http://{host}:{origin.port}/") == PHOTO


def test_allowed_host_does_not_open_its_address(listen: Listen) -> None:
    """Keep the address of an allowed host, and its other ports, closed under other names."""
    origin = listen(http_answer(PHOTO))
    fetcher = make_fetcher(Names(other=[["127.0.0.1"]]), allow=f"photos.test:{origin.port}, photos.test:1")
    for url in (f"http://other.test:{origin.port}/", f"http://127.0.0.1:{origin.port}/", "http://photos.test:2/"):
        with pytest.raises(UrlNotAllowed):
            fetcher.fetch(url)
    assert origin.connections == 0


@pytest.mark.parametrize("deny", ["photos.test:PORT", "127.0.0.1:PORT", "127.0.0.0/8", "127.0.0.1/32, 10.0.0.0/8"])
def test_deny_wins_over_allow(listen: Listen, deny: str) -> None:
    """Close what both lists name."""
    origin = listen(http_answer(PHOTO))
    fetcher = make_fetcher(
        allow=f"photos.test:{origin.port}, 127.0.0.1/32", deny=deny.replace("PORT", str(origin.port))
    )
    with pytest.raises(UrlNotAllowed, match="GATEWAY_FETCH_DENY"):
        fetcher.fetch(f"http://photos.test:{origin.port}/")
    assert origin.connections == 0


def test_denied_network_holds_embedded_addresses() -> None:
    """Close an IPv6 address that carries a denied IPv4 address, even for an allowed host."""
    fetcher = make_fetcher(Names(v6=[["::ffff:10.0.0.1"]]), allow="v6.test:80", deny="10.0.0.0/8")
    with pytest.raises(UrlNotAllowed, match="GATEWAY_FETCH_DENY"):
        fetcher.fetch("http://v6.test/")


@pytest.mark.parametrize(
    ("address", "is_open"),
    [("64:ff9b::808:808", True), ("64:ff9b::a9fe:a9fe", False), ("64:ff9b::7f00:1", False), ("64:ff9b::a00:1", True)],
)
def test_what_an_allowed_network_carries_must_be_open(address: str, is_open: bool) -> None:
    """NAT64 leads to all of IPv4, and not past the rules for it."""
    rules = AllowList.parse("64:ff9b::/96, 10.0.0.0/8")
    assert (rules.refusal(IPv6Address(address)) is None) is is_open


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.2", "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["::1", "127.0.0.1"],
        ["127.0.0.1", "fe80::1%lo"],
        ["127.0.0.1", "::ffff:127.0.0.2"],
        ["127.0.0.1"] * 8 + ["127.0.0.2"],
    ],
)
def test_one_bad_answer_refuses_the_name(listen: Listen, answers: list[str]) -> None:
    """Refuse a name with mixed answers and connect to none of them (S5)."""
    origin = listen(http_answer(PHOTO))
    insiders = [listen(host=host, port=origin.port) for host in ("127.0.0.2", "::1")]
    with pytest.raises(UrlNotAllowed, match=r"not public: 'mixed\.test'"):
        make_fetcher(Names(mixed=[answers])).fetch(f"http://mixed.test:{origin.port}/")
    assert [server.connections for server in (origin, *insiders)] == [0, 0, 0]


def test_next_address_is_tried(listen: Listen) -> None:
    """Go on to the next checked address where one does not answer."""
    origin = listen(http_answer(PHOTO))
    names = Names(two=[["::1", "127.0.0.1"]])
    fetcher = make_fetcher(names, allow="127.0.0.1/32, ::1/128")
    assert fetcher.fetch(f"http://two.test:{origin.port}/") == PHOTO


def test_unknown_name_fails() -> None:
    """Name a host that does not resolve as such."""
    with pytest.raises(FetchFailed, match="Expected a host name that resolves"):
        make_fetcher().fetch("http://nowhere.test/")


def test_name_without_addresses_fails() -> None:
    """Treat an empty answer as a name that does not resolve."""
    with pytest.raises(FetchFailed, match="Expected a host name that resolves"):
        make_fetcher(Names(empty=[[]] * 2)).fetch("http://empty.test/")


def test_rebinding_finds_one_look_up(listen: Listen) -> None:
    """Connect to the address that was checked although the name has moved since (S6)."""
    origin = listen(http_answer(PHOTO))
    insider = listen(host="127.0.0.2", port=origin.port)
    names = Names(flip=[["127.0.0.1"], ["127.0.0.2"]])
    assert make_fetcher(names).fetch(f"http://flip.test:{origin.port}/") == PHOTO
    assert (names.look_ups, origin.connections, insider.connections) == (["flip.test"], 1, 0)


def test_rebinding_by_redirect_is_refused(listen: Listen) -> None:
    """Look up and check again at each redirect, once (S6)."""
    origin = listen(http_answer(status="302 Found", Location="/again"))
    insider = listen(host="127.0.0.2", port=origin.port)
    names = Names(flip=[["127.0.0.1"], ["127.0.0.2"]])
    with pytest.raises(UrlNotAllowed, match="Expected redirects to allowed URLs"):
        make_fetcher(names).fetch(f"http://flip.test:{origin.port}/")
    assert (names.look_ups, origin.connections, insider.connections) == (["flip.test"] * 2, 1, 0)


def test_peer_must_be_the_checked_address(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send nothing to a peer whose address is not the one that was checked (S6)."""
    origin = listen(http_answer(PHOTO))
    monkeypatch.setattr(fetcher.PlainSocket, "getpeername", lambda sock: ("127.0.0.2", origin.port))
    with pytest.raises(FetchFailed):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")
    assert origin.requests in ([], [""])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(listen: Listen, status: int) -> None:
    """Follow each status that means a redirect (S7)."""
    target = listen(http_answer(PHOTO))
    origin = listen(http_answer(status=f"{status} Moved", Location=f"http://photos.test:{target.port}/b.jpg"))
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/") == PHOTO
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
    ],
)
def test_relative_redirect_is_resolved(listen: Listen, location: str, target: str) -> None:
    """Resolve a Location against the URL that sent it (S7)."""
    origin = listen()
    first = http_answer(status="302 Found", Location=location.replace("PORT", str(origin.port)))
    origin.answer = lambda sock: sock.sendall(first if len(origin.requests) == 1 else http_answer(PHOTO))
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/a/a.jpg?x#y") == PHOTO
    assert origin.requests[1].startswith(f"GET {target} ")


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
        ("/a b", FetchFailed),
        ("/" + "a" * 2048, FetchFailed),
        ("javascript:alert(1)", FetchFailed),
    ],
)
def test_redirect_elsewhere_is_refused(listen: Listen, location: str, error: type[GatewayError]) -> None:
    """Refuse a redirect that the rules close, reach nobody, and keep where it led to ourselves (S7)."""
    origin = listen()
    insiders = [listen(host=host, port=origin.port) for host in ("127.0.0.2", "::1")]
    origin.answer = http_answer(status="302 Found", Location=location.replace("PORT", str(origin.port)))
    with pytest.raises(error) as refused:
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")
    assert str(refused.value).startswith("Expected redirects to ")
    assert [server.connections for server in (origin, *insiders)] == [1, 0, 0]


@pytest.mark.parametrize(("redirects", "max_redirects", "is_served"), [(3, 3, True), (4, 3, False), (1, 0, False)])
def test_redirects_are_limited(listen: Listen, redirects: int, max_redirects: int, is_served: bool) -> None:
    """Follow as many redirects as the limit says and not one more (S7)."""
    origin = listen()
    redirect = http_answer(status="302 Found", Location="/")
    origin.answer = lambda sock: sock.sendall(redirect if len(origin.requests) <= redirects else http_answer(PHOTO))
    fetcher = make_fetcher(max_redirects=max_redirects)
    if is_served:
        assert fetcher.fetch(f"http://photos.test:{origin.port}/") == PHOTO
    else:
        with pytest.raises(FetchFailed, match=f"Expected at most {max_redirects} redirects"):
            fetcher.fetch(f"http://photos.test:{origin.port}/")
    assert origin.connections == min(redirects, max_redirects) + 1


def test_tls_asks_for_the_host_name(listen: Listen, authority: trustme.CA) -> None:
    """Name the host, not its address, in SNI and in the Host header (S8)."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, "photos.test"))
    assert make_fetcher().fetch(f"https://photos.test:{origin.port}/") == PHOTO
    assert origin.names == ["photos.test"]
    assert f"\r\nHost: photos.test:{origin.port}\r\n" in origin.requests[0]


@pytest.mark.parametrize(("name", "is_served"), [("127.0.0.1", True), ("127.0.0.2", False)])
def test_tls_to_an_address(listen: Listen, authority: trustme.CA, name: str, is_served: bool) -> None:
    """Hold the certificate of a host that is an address to that address (S8)."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, name))
    if is_served:
        assert make_fetcher().fetch(f"https://127.0.0.1:{origin.port}/") == PHOTO
    else:
        with pytest.raises(FetchFailed, match="Expected TLS with a certificate valid for the host"):
            make_fetcher().fetch(f"https://127.0.0.1:{origin.port}/")


@pytest.mark.parametrize("case", ["another name", "another authority", "expired", "no TLS"])
def test_wrong_certificate_is_refused(listen: Listen, authority: trustme.CA, case: str) -> None:
    """Send no request to a host that cannot prove its name (S8, F7)."""
    contexts = {
        "another name": lambda: server_tls(authority, "inside.test"),
        "another authority": lambda: server_tls(trustme.CA(), "photos.test"),
        "expired": lambda: server_tls(authority, "photos.test", datetime.now(UTC) - timedelta(days=1)),
        "no TLS": lambda: None,
    }
    origin = listen(http_answer(PHOTO), tls=contexts[case]())
    with pytest.raises(FetchFailed, match="Expected TLS with a certificate valid for the host"):
        make_fetcher().fetch(f"https://photos.test:{origin.port}/")
    assert not any("GET" in request for request in origin.requests)


def test_redirect_from_https_to_http_is_refused(listen: Listen, authority: trustme.CA) -> None:
    """Never leave TLS once in it (S7)."""
    plain = listen(http_answer(PHOTO))
    redirect = http_answer(status="302 Found", Location=f"http://photos.test:{plain.port}/")
    origin = listen(redirect, tls=server_tls(authority, "photos.test"))
    with pytest.raises(UrlNotAllowed, match="Expected redirects to allowed URLs"):
        make_fetcher().fetch(f"https://photos.test:{origin.port}/")
    assert plain.connections == 0


def test_environment_is_ignored(
    listen: Listen, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use no proxy and no credentials that the environment offers (S9)."""
    proxy = listen(host="127.0.0.2")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{proxy.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.2:{proxy.port}")
    (tmp_path / ".netrc").write_text("machine photos.test login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for scheme, tls in (("http", None), ("https", server_tls(authority, "photos.test"))):
        origin = listen(http_answer(PHOTO), tls=tls)
        assert make_fetcher().fetch(f"{scheme}://photos.test:{origin.port}/") == PHOTO
        assert "authorization" not in origin.requests[0].lower()
    assert proxy.connections == 0


def test_cookies_are_not_kept(listen: Listen) -> None:
    """Bring no cookie from one hop to the next (S9)."""
    origin = listen()
    first = http_answer(status="302 Found", Location="/", Set_Cookie="a=b")
    origin.answer = lambda sock: sock.sendall(first if len(origin.requests) == 1 else http_answer(PHOTO))
    make_fetcher().fetch(f"http://photos.test:{origin.port}/")
    assert len(origin.requests) == 2
    assert "cookie" not in origin.requests[1].lower()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("every_s", [1.0, 0.01], ids=["1 byte/s", "100 bytes/s"])
@pytest.mark.parametrize("data", [HEAD, b"HTTP/1.1 100 Continue\r\n\r\n" * 9], ids=["headers", "more answers"])
def test_slow_headers_end_at_the_deadline(listen: Listen, data: bytes, every_s: float) -> None:
    """Give up on headers that trickle in, at the deadline within 10 % (S11, F6)."""
    origin = listen()
    origin.answer = origin.drip(data, every_s)
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout, match=rf"within {TIMEOUT_S:g} s"):
        make_fetcher(timeout_s=TIMEOUT_S).fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize("every_s", [1.0, 0.01], ids=["1 byte/s", "100 bytes/s"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_slow_body_ends_at_the_deadline(listen: Listen, authority: trustme.CA, scheme: str, every_s: float) -> None:
    """Give up on a body that trickles in, at the deadline within 10 %, with and without TLS (S11, F6)."""
    origin = listen(tls=server_tls(authority, "photos.test") if scheme == "https" else None)

    def answer(sock: socket.socket) -> None:
        sock.sendall(HEAD)
        origin.drip(PHOTO * 100, every_s)(sock)

    origin.answer = answer
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        make_fetcher(timeout_s=TIMEOUT_S).fetch(f"{scheme}://photos.test:{origin.port}/")


def test_slow_chunks_end_at_the_deadline(listen: Listen) -> None:
    """Give up on trailers that never end, at the deadline (S11)."""
    origin = listen()

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
        origin.drip(b"a: b\r\n" * 99, 0.01)(sock)

    origin.answer = answer
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        make_fetcher(timeout_s=TIMEOUT_S).fetch(f"http://photos.test:{origin.port}/")


def test_silent_handshake_ends_at_the_deadline(listen: Listen) -> None:
    """Count the TLS handshake in the deadline (S11)."""
    origin = listen(lambda sock: origin.stopped.wait(5))
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        make_fetcher(timeout_s=TIMEOUT_S).fetch(f"https://photos.test:{origin.port}/")


def test_deadline_spans_redirects(listen: Listen) -> None:
    """Count all hops in one deadline (S11)."""
    redirect = http_answer(status="302 Found", Location="/")
    origin = listen(lambda sock: (origin.stopped.wait(TIMEOUT_S / 2.5), sock.sendall(redirect)))
    with ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        make_fetcher(timeout_s=TIMEOUT_S).fetch(f"http://photos.test:{origin.port}/")


def test_caller_can_shorten_the_deadline(listen: Listen) -> None:
    """Take the shorter one of the caller's and the rules' limits."""
    origin = listen(lambda sock: origin.stopped.wait(5))
    for timeout_s, rules_s in ((0.2, 5.0), (5.0, 0.2)):
        with ends_at(0.2), pytest.raises(FetchTimeout):
            make_fetcher(timeout_s=rules_s).fetch(f"http://photos.test:{origin.port}/", timeout_s)


def test_no_time_left_reaches_nobody(listen: Listen) -> None:
    """Connect to nobody when the request's time is over already."""
    origin = listen(http_answer(PHOTO))
    with pytest.raises(FetchTimeout):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/", 0)
    assert origin.connections == 0


@contextmanager
def deaf(host: str, port: int = 0) -> Iterator[int]:
    """Hold a port on which new connections get no answer at all, since the backlog is full."""
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
    fetcher = make_fetcher(Names(deaf=[["127.0.0.1"] * 2]), timeout_s=TIMEOUT_S)
    with deaf("127.0.0.1") as port, ends_at(TIMEOUT_S), pytest.raises(FetchTimeout):
        fetcher.fetch(f"http://deaf.test:{port}/")


def test_unanswered_connect_leaves_time_for_the_next(listen: Listen) -> None:
    """Give each address an even part of the time, so that the next one has its chance."""
    origin = listen(http_answer(PHOTO))
    names = Names(two=[["127.0.0.3", "127.0.0.1"]])
    with deaf("127.0.0.3", origin.port), takes(TIMEOUT_S / 2, TIMEOUT_S):
        fetcher = make_fetcher(names, allow="127.0.0.0/8", timeout_s=TIMEOUT_S)
        assert fetcher.fetch(f"http://two.test:{origin.port}/") == PHOTO


def test_stuck_resolver_ends_at_the_deadline() -> None:
    """Give up on a look-up that hangs, and hold no more threads for such than the limit (S11)."""
    release = threading.Event()

    def stuck(host: str, port: int) -> list[str]:
        release.wait()
        return ["127.0.0.1"]

    fetcher = make_fetcher(stuck, timeout_s=TIMEOUT_S)
    before = threading.active_count()
    callers = [
        threading.Thread(target=pytest.raises, args=(FetchTimeout, fetcher.fetch, "http://a.test/"))
        for _ in range(MAX_LOOK_UPS + 4)
    ]
    try:
        with takes(TIMEOUT_S, 2 * TIMEOUT_S):
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert threading.active_count() - before == MAX_LOOK_UPS
    finally:
        release.set()


def test_resolver_recovers(listen: Listen) -> None:
    """Serve again after look-ups that hung have ended."""
    origin = listen(http_answer(PHOTO))
    release = threading.Event()

    def stuck_once(host: str, port: int) -> list[str]:
        release.wait()
        return ["127.0.0.1"]

    fetcher = make_fetcher(stuck_once, timeout_s=5)
    for _ in range(MAX_LOOK_UPS + 1):
        with pytest.raises(FetchTimeout):
            fetcher.fetch(f"http://a.test:{origin.port}/", timeout_s=0.01)
    release.set()
    assert fetcher.fetch(f"http://a.test:{origin.port}/") == PHOTO


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b"a" * 32768 + b"\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 4096),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 60000 + b"\r\na\r\n1;"),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"a" * 65536),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 4096),
    ],
    ids=["plain", "chunked", "tiny chunks", "long chunk extensions", "chunk of size -1", "trailers"],
)
def test_endless_body_is_cut(listen: Listen, answer: Callable[[socket.socket], None]) -> None:
    """Stop reading at the size limit, whatever the bytes are spent on (S11)."""
    origin = listen(answer)
    with takes(0, 2), pytest.raises(TooLarge, match="at most 100000 bytes"):
        make_fetcher(timeout_s=5, max_bytes=100_000).fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize(("size", "is_served"), [(1000, True), (1001, False)])
def test_size_limit_is_exact(listen: Listen, size: int, is_served: bool) -> None:
    """Take a body of exactly the limit, and none above, where no length was announced."""
    origin = listen(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * size)
    fetcher = make_fetcher(max_bytes=1000)
    if is_served:
        assert len(fetcher.fetch(f"http://photos.test:{origin.port}/")) == size
    else:
        with pytest.raises(TooLarge):
            fetcher.fetch(f"http://photos.test:{origin.port}/")


def test_announced_size_is_refused_before_reading(listen: Listen) -> None:
    """Refuse a Content-Length above the limit without waiting for the body (S11)."""
    origin = listen(lambda sock: (sock.sendall(http_answer(Content_Length="1001")), origin.stopped.wait(5)))
    with takes(0, 1), pytest.raises(TooLarge):
        make_fetcher(max_bytes=1000).fetch(f"http://photos.test:{origin.port}/")


def test_longer_body_than_announced_is_cut(listen: Listen) -> None:
    """Take no more than the announced length (S11)."""
    origin = listen(http_answer(PHOTO + b"more", Content_Length=str(len(PHOTO))))
    assert make_fetcher().fetch(f"http://photos.test:{origin.port}/") == PHOTO


def reset(sock: socket.socket) -> None:
    sock.sendall(http_answer(PHOTO, Content_Length="100"))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(PHOTO, Content_Length="100"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7",
        http_answer(b""),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        reset,
    ],
)
def test_broken_answer_fails(listen: Listen, answer: bytes) -> None:
    """Fail on an answer that ends early, contradicts itself or is no HTTP (S11, F7)."""
    origin = listen(answer)
    with takes(0, 1), pytest.raises(FetchFailed, match="Expected "):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "x-unknown"])
def test_encoded_body_is_refused(listen: Listen, encoding: str) -> None:
    """Unpack nothing, so that nothing can explode (S11)."""
    origin = listen(http_answer(gzip.compress(b"a" * 1_000_000), Content_Encoding=encoding))
    with pytest.raises(FetchFailed, match="without Content-Encoding"):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"HTTP/1.1 200 OK\r\nA: ", b"a" * 65536),
        endless(b"HTTP/1.1 200 OK\r\n", b"Abcdefgh: " + b"a" * 1000 + b"\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        endless(b"", b"H" * 65536),
    ],
    ids=["one line", "many lines", "many answers", "status line"],
)
def test_huge_headers_are_cut(listen: Listen, answer: Callable[[socket.socket], None]) -> None:
    """Stop at 32 KiB of headers, however many the origin has (S11)."""
    origin = listen(answer)
    with takes(0, 1), pytest.raises(FetchFailed, match="Expected at most 32768 bytes of headers"):
        make_fetcher(timeout_s=5).fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize(("size", "is_served"), [(32 * 1024, True), (32 * 1024 + 1, False)])
def test_header_limit_is_exact(listen: Listen, size: int, is_served: bool) -> None:
    """Take a header block of exactly 32 KiB, and none above."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nA: \r\n\r\n"
    origin = listen(head.replace(b"A: ", b"A: " + b"a" * (size - len(head))) + PHOTO)
    if is_served:
        assert make_fetcher().fetch(f"http://photos.test:{origin.port}/") == PHOTO
    else:
        with pytest.raises(FetchFailed, match="bytes of headers"):
            make_fetcher().fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize(
    "status", [103, 201, 204, 206, 300, 304, 305, 400, 401, 403, 404, 407, 429, 500, 502, 503, 999]
)
def test_only_200_is_served(listen: Listen, status: int) -> None:
    """Fail on any other status, and name it (S12, F7)."""
    origin = listen(http_answer(PHOTO, status=f"{status} Whatever", Location="/"))
    with pytest.raises(FetchFailed, match=f"^Expected status 200 of the image's host. Received: {status}\\.$"):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")


def test_redirect_without_location_fails(listen: Listen) -> None:
    """Fail on a redirect that leads nowhere (S12)."""
    origin = listen(http_answer(status="302 Found"))
    with pytest.raises(FetchFailed, match="Received: 302"):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")


def test_refused_connection_fails() -> None:
    """Fail where nobody listens, at once (F7)."""
    with Origin() as origin:
        pass
    with takes(0, 0.5), pytest.raises(FetchFailed):
        make_fetcher().fetch(f"http://photos.test:{origin.port}/")


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"secret", status="500 secret", X_Secret="secret"),
        http_answer(status="302 Found", Location="http://secret.test/secret"),
        http_answer(status="302 Found", Location="http://127.0.0.2/secret"),
        http_answer(b"secret", Content_Encoding="secret"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: secret\r\n\r\n",
        b"secret 127.0.0.1\r\n",
    ],
)
def test_messages_hold_nothing_of_the_origin(listen: Listen, answer: bytes) -> None:
    """Never repeat the upstream's body, headers or addresses to the client."""
    origin = listen(answer)
    with pytest.raises(GatewayError) as failed:
        make_fetcher(Names(secret=[["10.0.0.1"]])).fetch(f"http://photos.test:{origin.port}/")
    assert not any(word in str(failed.value) for word in ("secret", "127.0.0", "10.0.0.1"))


def test_slow_origins_do_not_slow_others(listen: Listen) -> None:
    """Serve other fetches at their usual pace while slow origins are waited for (F6)."""
    slow, quick = listen(), listen(http_answer(PHOTO))
    slow.answer = slow.drip(HEAD, 0.05)
    fetcher = make_fetcher(timeout_s=0.6)
    waiting = [
        threading.Thread(target=pytest.raises, args=(FetchTimeout, fetcher.fetch, f"http://photos.test:{slow.port}/"))
        for _ in range(20)
    ]
    for thread in waiting:
        thread.start()
    with takes(0, 0.4):
        for _ in range(20):
            assert fetcher.fetch(f"http://photos.test:{quick.port}/") == PHOTO
    assert all(thread.is_alive() for thread in waiting)
    for thread in waiting:
        thread.join()


def test_garbled_answers_have_a_name(listen: Listen) -> None:
    """Raise one of the named errors, or none, for answers with random bytes changed (F17)."""
    generator = random.Random(7)
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nLocation: /a\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + PHOTO
    origin = listen()
    fetcher = make_fetcher(timeout_s=1)
    for _ in range(100):
        garbled = bytearray(whole + b"\r\n0\r\n\r\n")
        for _ in range(generator.randrange(1, 8)):
            garbled[generator.randrange(len(garbled))] = generator.randrange(256)
        origin.answer = bytes(garbled[: generator.choice((len(garbled), generator.randrange(len(garbled))))])
        try:
            fetcher.fetch(f"http://photos.test:{origin.port}/")
        except GatewayError as error:
            assert str(error).startswith("Expected ")
