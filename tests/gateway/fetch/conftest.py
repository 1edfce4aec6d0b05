"""What the tests of the safe fetch share: origins on loopback, a resolver, and an authority for certificates."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import pytest
import trustme

from gateway.fetch.fetcher import Fetcher, Resolve
from gateway.settings import Settings
from tests.programs.origins import Origin

PHOTO = b"\xff\xd8photo"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INFORMING = b"".join(
    b"HTTP/1.1 %s\r\nLink: </a>\r\n\r\n" % each for each in (b"103 Early Hints", b"102 Any", b"100 Continue", b"199 ")
)
Listen = Callable[..., Origin]


class Names:
    """A resolver from a table, which remembers what it was asked; several lists for a name are answered in turn."""

    def __init__(self, **tables: list[list[str]]) -> None:
        self.look_ups: list[str] = []
        self._tables = {
            "photos.test": [["127.0.0.1"]],
            "xn--bcher-kva.test": [["127.0.0.1"]],
            "xn--53h.test": [["127.0.0.1"]],
            "xn--mgba3gch31f060k.test": [["127.0.0.1"]],
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
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="session", autouse=True)
def _trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust only this authority, by OpenSSL's own variable; the system's take 40 ms to load for each fetcher."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(path))
        yield


def server_tls(authority: trustme.CA, name: str, not_after: datetime | None = None) -> ssl.SSLContext:
    """Return what an origin needs to prove a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=not_after).configure_cert(context)
    return context


def make_fetcher(names: Resolve | None = None, allow: str = "127.0.0.1/32", **settings: Any) -> Fetcher:
    """Make a fetcher for which 127.0.0.1 is open, and every other loopback address as closed as ever."""
    return Fetcher(Settings(fetch_allow=allow, **settings), names or Names())


def fetch(
    origin: Origin, names: Resolve | None = None, *, url: str = "http://photos.test:PORT/", **settings: Any
) -> bytes:
    """Fetch a URL with an origin's port, by a new fetcher."""
    return make_fetcher(names, **settings).fetch(url.replace("PORT", str(origin.port)))


@contextmanager
def takes(low_s: float, high_s: float) -> Iterator[None]:
    """Check that the block takes so many seconds."""
    start = time.monotonic()
    yield
    assert low_s <= time.monotonic() - start <= high_s
