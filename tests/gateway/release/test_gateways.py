"""python -m gateway.release --gateway: which gateways follow."""

from __future__ import annotations

import hashlib
import itertools
import socket
import threading
from pathlib import Path

import pytest
import trustme

from gateway.release import __main__ as command
from gateway.release.gateways import ANSWERS_IN_A_ROW, find_addresses
from tests.gateway.fetch.conftest import server_tls
from tests.gateway.release.conftest import Serve, Store
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.stack import free_port, gateway


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gateways.test` is two addresses, and IPv6's own, where nobody listens."""
    look_up = socket.getaddrinfo

    def find(host: str, port: int, *args: object, **options: object) -> list[object]:
        names = ["::1", "127.0.0.1", "127.0.0.2"] if host == "gateways.test" else [host]
        return [info for each in names for info in look_up(each, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", find)


def follows(serial: int, error: str | None = None, model: str = "clothing") -> dict[str, object]:
    release = {"serial": serial} if serial else None
    return {"status": "ready", "model": {"name": model, "error": None}, "release": release, "release_error": error}


@pytest.mark.processes
def test_it_waits_for_every_worker_of_a_real_gateway(
    store: Store, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its key; a version that is not loaded, and a lack of the key, are named, with status 3."""
    server = FakeModelServer({1: FakeVersion.of(golden), 2: FakeVersion.of(golden)})
    settings = {
        "GATEWAY_WORKERS": "2",
        "GATEWAY_RELEASE_FILE": str(store.home / "release.json"),
        "GATEWAY_API_KEYS": hashlib.sha256("schlüssel".encode()).hexdigest(),
    }
    monkeypatch.setattr(command, "FOLLOW_S", 5.0)
    monkeypatch.setenv("GATEWAY_KEY", "schlüssel")
    with gateway(server.address, "clothing", **settings) as running:
        url = f"http://127.0.0.1:{running.port}"
        assert f"Release 1 is followed by {url}." in store.do("promote", "1", "--gateway", url)
        assert f"Release 2 is followed by {url}." in store.do("try", "2", "--share", "10%", "--gateway", f"{url}/")
        assert f"Release 2 is followed by {url}." in store.do("status", "--gateway", url)
        store.do("rollback", "--gateway", url)
        monkeypatch.setattr(command, "FOLLOW_S", 0.5)
        status, out, err = store.run("promote", "3", "--gateway", url)
        assert status == 3 and "version 3 answers" in out
        assert "it follows release 3: " in err and "version 3 as stable, which is not loaded" in err
        monkeypatch.delenv("GATEWAY_KEY")
        status, _, err = store.run("status", "--gateway", url)
        assert status == 3 and "GATEWAY_KEY may be missing" in err
    server.stop()


def test_every_address_of_a_name(store: Store, serve: Serve, name: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lags is named by its address; one where nobody listens does not count beside others."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.3)
    seen: list[str] = []
    port = serve(lambda path: (seen.append(path), follows(1))[1])
    serve(lambda path: follows(0, "it is no document"), "127.0.0.2", port)
    status, _, err = store.run("promote", "1", "--gateway", f"http://gateways.test:{port}/prefix")
    assert status == 3 and {*seen} == {"/prefix/readyz"}
    assert err == (
        f"http://gateways.test:{port}/prefix (127.0.0.2) does not follow release 1:"
        " it follows no release: it is no document.\n"
    )


@pytest.mark.parametrize("names", [*itertools.permutations(["127.0.0.1", "localhost", "gateways.test"], 2)])
def test_two_names_of_a_gateway(store: Store, serve: Serve, name: None, names: tuple[str, str]) -> None:
    """It is asked as one, and where nobody listens under one of them does not count."""
    seen: list[str] = []
    port = serve(lambda path: (seen.append(path), follows(1))[1])
    store.do("promote", "1", *(part for each in names for part in ("--gateway", f"http://{each}:{port}")))
    assert len(seen) == ANSWERS_IN_A_ROW


@pytest.mark.parametrize("ip", ["127.0.0.1", "192.0.2.1"])
def test_an_ingress_serves_gateways_by_their_names(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one address, on this machine and on others; the address itself, or localhost, is no gateway beside them."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", (ip, 80))])
    found = find_addresses([f"http://{ip}", "http://localhost", "http://a.test", "http://b.test", "http://b.test:80"])
    assert [each.url for each in found] == ["http://a.test", "http://b.test"]


def test_a_gateway_of_another_model(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows no release of this one, whatever number it follows."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    url = f"http://127.0.0.1:{serve(lambda path: follows(7, model='waste'))}"
    status, out, err = store.run("promote", "1", "--gateway", url)
    assert status == 3 and "is followed by" not in out
    assert err == f"{url} does not follow release 1: it serves another model, 'waste'.\n"


def test_one_worker_that_lags(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take turns, so one answer says little; while the tried version loads, none follows. A wait is said."""
    monkeypatch.setattr("gateway.release.gateways.SAY_AFTER_S", 0.0)
    said, warn = threading.Event(), command.warn
    monkeypatch.setattr(command, "warn", lambda *lines: (warn(*lines), said.set()))
    answers = iter([follows(1), follows(0), follows(1, "it tries a version that is not loaded"), *[follows(1)] * 8])
    seen = itertools.count()
    url = f"http://127.0.0.1:{serve(lambda path: (next(seen) == 2 and said.wait(10), next(answers))[1])}"
    status, out, err = store.run("promote", "1", "--gateway", url)
    assert status == 0 and "Release 1 is followed by" in out
    assert err == f"Waiting up to 30 s, as {url} follows no release.\n"
    assert next(answers, None) is None


def test_one_worker_that_never_follows(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever worker gave the last answer, the reason is that of the other."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.5)
    monkeypatch.setattr("gateway.release.gateways.PAUSE_S", 0.01)
    answers = itertools.cycle([follows(0, "version 1 was refused"), follows(1), follows(1)])
    url = f"http://127.0.0.1:{serve(lambda path: next(answers))}"
    status, out, err = store.run("promote", "1", "--gateway", url)
    assert status == 3 and "is followed by" not in out
    assert err.endswith(f"{url} does not follow release 1: it follows no release: version 1 was refused.\n")


def test_one_address_that_hangs(store: Store, serve: Serve, name: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes no other late that followed a moment after the change."""
    monkeypatch.setattr("gateway.release.gateways.TIMEOUT_S", 1.0)
    monkeypatch.setattr(command, "FOLLOW_S", 3.0)
    answers = itertools.chain([follows(0)], itertools.repeat(follows(1)))
    port = serve(lambda path: next(answers))
    with socket.create_server(("127.0.0.2", port)):  # takes connections, and never answers
        status, _, err = store.run("promote", "1", "--gateway", f"http://gateways.test:{port}")
    assert status == 3 and "(127.0.0.2) does not follow release 1: it does not answer" in err
    assert "(127.0.0.1) does not" not in err


def test_an_answer_that_never_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nobody waiting, and follows nothing."""
    monkeypatch.setattr("gateway.release.gateways.TIMEOUT_S", 1.0)
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    ended, left = threading.Event(), threading.Event()

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
            for _ in range(200):
                if ended.wait(0.02):
                    left.set()
                    break
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        status, _, err = store.run("promote", "1", "--gateway", url)
        ended.set()
        thread.join()
    assert left.is_set() and status == 3
    pool = f"HTTPConnectionPool(host='127.0.0.1', port={url.rpartition(':')[2]})"
    assert err == f"{url} does not follow release 1: it does not answer: {pool}: The answer does not end.\n"


def test_a_gateway_that_answers_nothing(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the release, but its model server is away, or has no usable version."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    health = follows(1) | {"model": {"name": "clothing", "error": "The model server does not answer."}}
    url = f"http://127.0.0.1:{serve(lambda path: health)}"
    store.do("promote", "1")
    status, out, err = store.run("status", "--gateway", url)
    assert status == 3 and "is followed by" not in out
    assert err == f"{url} does not follow release 1: it answers no requests: The model server does not answer.\n"


def test_tls_asks_for_the_name(
    store: Store, serve: Serve, name: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At each address, the certificate is for the name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(command, "FOLLOW_S", 1.5)
    port = serve(lambda path: follows(1), tls=server_tls(authority, "gateways.test"))
    assert "Release 1 is followed by" in store.do("promote", "1", "--gateway", f"https://gateways.test:{port}")
    serve(lambda path: follows(1), "127.0.0.2", port, tls=server_tls(authority, "others.test"))
    status, _, err = store.run("status", "--gateway", f"https://gateways.test:{port}")
    assert status == 3 and "(127.0.0.2)" in err and "hostname" in err.lower()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"http://127.0.0.1:{free_port()}", "it does not take connections"),
        ("http://no-such-name.invalid:9696", "cannot be looked up"),
    ],
)
def test_no_gateway(store: Store, url: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is made, and the status says that nobody is known to follow."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    status, out, err = store.run("promote", "1", "--gateway", url)
    assert status == 3 and "Release 1" in out and problem in err


@pytest.mark.parametrize(
    "url", ["localhost:9696", "http://", "http://host:99999", "http://a..b:9696", "ftp://host", "http://h/predict"]
)
def test_what_is_no_gateway(store: Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line changes nothing."""
    with pytest.raises(SystemExit):
        store.run("promote", "1", "--gateway", url)
    assert "Expected http://HOST:PORT" in capsys.readouterr().err and not (store.home / "release.json").exists()
