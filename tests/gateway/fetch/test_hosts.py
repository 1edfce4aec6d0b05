"""gateway/fetch/fetcher.py: which hosts are reached, by which of their addresses."""

from __future__ import annotations

import pytest

from gateway.errors import FetchFailed, UrlNotAllowed
from gateway.fetch.fetcher import PlainSocket, look_up
from tests.gateway.fetch.conftest import PHOTO, Listen, Names, fetch, make_fetcher
from tests.programs.origins import http_answer


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "inside.test", "[::1]", "[::ffff:127.0.0.2]", "[::ffff:7f00:2]", "[::127.0.0.2]", "[::]", "0.0.0.0"],
)
def test_private_hosts_see_no_connection(listen: Listen, host: str) -> None:
    """Refuse hosts that are not public before any connection, and say how to open them."""
    insiders = [listen(host="127.0.0.2")]
    insiders += [listen(host=address, port=insiders[0].port) for address in ("::1", "127.0.0.1")]
    with pytest.raises(UrlNotAllowed, match=r"whose host is not public: .* to GATEWAY_FETCH_ALLOW\."):
        fetch(insiders[0], url=f"http://{host}:PORT/a.jpg", allow="")
    assert [insider.connections for insider in insiders] == [0, 0, 0]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://localhost:8000/a.jpg",
            "Expected a public address. Received a URL whose host is not public: 'localhost'. "
            "To allow it, add 'localhost:8000' to GATEWAY_FETCH_ALLOW.",
        ),
        (
            "http://public.test:22/",
            "Expected port 80 or 443. Received: 22. To allow it, add 'public.test:22' to GATEWAY_FETCH_ALLOW.",
        ),
    ],
)
def test_refusal_names_the_setting(url: str, message: str) -> None:
    """Say how to open a private host, and a public one on another port than 80 and 443 (S10)."""
    names = Names(public=[["8.8.8.8"]])
    with pytest.raises(UrlNotAllowed) as refused:
        make_fetcher(look_up if "localhost" in url else names, allow="").fetch(url)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.0", "169.254.255.255", "fe80::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23"),
        *("fd20:ce::254", "fd00:c1::a9fe:a9fe", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
    ],
)
@pytest.mark.parametrize("is_name", [True, False])
def test_nobody_is_asked_to_open_metadata(address: str, is_name: bool) -> None:
    """A stranger who forwards our words to the operator must not get a cloud's credentials."""
    host = "meta.test" if is_name else f"[{address}]" if ":" in address else address
    with pytest.raises(UrlNotAllowed) as refused:
        make_fetcher(Names(meta=[["10.0.0.1", address]])).fetch(f"http://{host}:8080/")
    assert str(refused.value).startswith("Expected a public address.") and "ALLOW" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "[0:0::1]"])
def test_allowed_host_is_opened(listen: Listen, host: str) -> None:
    """Open the host and port of an entry, however it is written."""
    origin = listen(http_answer(PHOTO), host="::1" if ":" in host else "127.0.0.1")
    names = Names(localhost=[]) if ":" in host else look_up
    allow = f"localhost:{origin.port}, 127.0.0.1:{origin.port}, [::1]:{origin.port}"
    assert fetch(origin, names, url=f"http://{host}:PORT/", allow=allow) == PHOTO


def test_allowed_host_does_not_open_its_address(listen: Listen) -> None:
    """Keep the address of an allowed host, and its other ports, closed under other names."""
    origin = listen(http_answer(PHOTO))
    for url in ("http://other.test:PORT/", "http://127.0.0.1:PORT/", "http://photos.test:2/"):
        with pytest.raises(UrlNotAllowed):
            fetch(origin, Names(other=[["127.0.0.1"]]), url=url, allow=f"photos.test:{origin.port}, photos.test:1")
    assert origin.connections == 0


@pytest.mark.parametrize(
    ("deny", "address"),
    [
        ("photos.test:PORT", "127.0.0.1"),
        ("127.0.0.1:PORT", "127.0.0.1"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.1/32, 10.0.0.0/8", "127.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.0.0.1"),  # which carries a denied address
    ],
)
def test_deny_wins_over_allow(listen: Listen, deny: str, address: str) -> None:
    """Close what both lists name."""
    origin = listen(http_answer(PHOTO))
    lists = {
        "allow": f"photos.test:{origin.port}, 127.0.0.1/32",
        "fetch_deny": deny.replace("PORT", str(origin.port)),
    }
    with pytest.raises(UrlNotAllowed, match="GATEWAY_FETCH_DENY"):
        fetch(origin, Names(photos=[[address]]), **lists)
    assert origin.connections == 0


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
        fetch(origin, Names(mixed=[answers]), url="http://mixed.test:PORT/")
    assert [server.connections for server in (origin, *insiders)] == [0, 0, 0]


def test_next_address_is_tried(listen: Listen) -> None:
    """Go on to the next checked address if one does not answer."""
    origin = listen(http_answer(PHOTO))
    names = Names(two=[["::1", "127.0.0.1"]])
    assert fetch(origin, names, url="http://two.test:PORT/", allow="127.0.0.1/32, ::1/128") == PHOTO


def test_the_first_address_says_why_none_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last may be one to which this machine has no way, whatever the host does."""

    def connect(sock: PlainSocket, address: tuple[str, int]) -> None:
        raise ConnectionRefusedError if address[0] == "127.0.0.1" else OSError("Network is unreachable")

    monkeypatch.setattr(PlainSocket, "connect", connect)
    with pytest.raises(FetchFailed, match="refused the connection"):
        make_fetcher(Names(two=[["127.0.0.1", "::1"]]), allow="127.0.0.1/32, ::1/128").fetch("http://two.test:80/")


@pytest.mark.parametrize("host", ["nowhere.test", "empty.test"])
def test_a_name_without_an_address_fails(host: str) -> None:
    """Say that a host's name does not resolve, also if the resolver's answer is empty."""
    with pytest.raises(FetchFailed, match="host name does not resolve"):
        make_fetcher(Names(empty=[[]] * 2)).fetch(f"http://{host}/")


def test_rebinding_finds_one_look_up(listen: Listen) -> None:
    """Connect to the address that was checked although the name has moved since (S6)."""
    origin = listen(http_answer(PHOTO))
    insider = listen(host="127.0.0.2", port=origin.port)
    names = Names(flip=[["127.0.0.1"], ["127.0.0.2"]])
    assert fetch(origin, names, url="http://flip.test:PORT/") == PHOTO
    assert (names.look_ups, origin.connections, insider.connections) == (["flip.test"], 1, 0)


def test_peer_must_be_the_checked_address(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send nothing to a peer with another address than the one that was checked (S6)."""
    origin = listen(http_answer(PHOTO))
    monkeypatch.setattr(PlainSocket, "getpeername", lambda sock: ("127.0.0.2", origin.port))
    with pytest.raises(FetchFailed):
        fetch(origin)
    assert origin.requests in ([], [""])
