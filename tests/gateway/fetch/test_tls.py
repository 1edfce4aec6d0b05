"""gateway/fetch/fetcher.py: TLS proves the host's name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from gateway.errors import FetchFailed
from tests.gateway.fetch.conftest import PHOTO, Listen, fetch, server_tls
from tests.programs.origins import http_answer


def test_tls_asks_for_the_host_name(listen: Listen, authority: trustme.CA) -> None:
    """Name the host, not its address, in SNI and in the Host header (S8)."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, "photos.test"))
    assert fetch(origin, url="https://photos.test:PORT/") == PHOTO
    assert origin.names == ["photos.test"]
    assert f"\r\nHost: photos.test:{origin.port}\r\n" in origin.requests[0]


def test_tls_to_an_address(listen: Listen, authority: trustme.CA) -> None:
    """Accept a certificate for the address, if the host is one (S8)."""
    origin = listen(http_answer(PHOTO), tls=server_tls(authority, "127.0.0.1"))
    assert fetch(origin, url="https://127.0.0.1:PORT/") == PHOTO


@pytest.mark.parametrize("case", ["another name", "another address", "another authority", "expired"])
def test_wrong_certificate_is_refused(listen: Listen, authority: trustme.CA, case: str) -> None:
    """Send no request to a host that cannot prove its name or address (S8, F7)."""
    contexts = {
        "another name": lambda: server_tls(authority, "inside.test"),
        "another address": lambda: server_tls(authority, "127.0.0.2"),
        "another authority": lambda: server_tls(trustme.CA(), "photos.test"),
        "expired": lambda: server_tls(authority, "photos.test", datetime.now(UTC) - timedelta(days=1)),
    }
    origin = listen(http_answer(PHOTO), tls=contexts[case]())
    host = "127.0.0.1" if case == "another address" else "photos.test"
    with pytest.raises(FetchFailed, match="no TLS certificate that is valid for its name"):
        fetch(origin, url=f"https://{host}:PORT/")
    assert not any("GET" in request for request in origin.requests)


def test_a_host_without_tls_is_not_told_of_its_certificate(listen: Listen) -> None:
    """It has shown none; send no request to it either (S8)."""
    origin = listen(http_answer(PHOTO))
    with pytest.raises(FetchFailed, match=r"no complete HTTP answer: SSLError\.$"):
        fetch(origin, url="https://photos.test:PORT/")
    assert not any("GET" in request for request in origin.requests)
