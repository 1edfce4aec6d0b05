"""Running gateways, each address of them: which release they follow."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, NamedTuple

import urllib3

from contract.client import key_header
from gateway.release.ledger import Refused

# A gateway's workers look at the document by themselves, every half second (GATEWAY_MODEL_POLL_S), and any of them may
# get a connection. So all of them follow when one address has answered so for longer: 8 times, 0.1 s apart.
ANSWERS_IN_A_ROW = 8
PAUSE_S = 0.1
TIMEOUT_S = 3.0
SAY_AFTER_S = 2.0


class Answer(NamedTuple):
    """A status and a body."""

    status: int
    data: bytes


@dataclass
class Address:
    """One address of a gateway: a name may stand for several gateways.

    Attributes:
        url: The gateway's, without `/` at its end.
        ip: The address.
        answers: How often in a row it showed the release.
        lag: Why it did not follow when it last did not; empty if it always did.
        is_closed: Whether nothing listens there, as at ::1 for a gateway that listens on IPv4 only.
    """

    url: str
    ip: str
    answers: int = field(default=0, compare=False)
    lag: str = field(default="", compare=False)
    is_closed: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        """Return the URL, and the address where the name does not say it."""
        return self.url if self.ip in self.url else f"{self.url} ({self.ip})"

    @property
    def place(self) -> tuple[object, ...]:
        """What tells gateways apart; an ingress serves several at one address, by their names."""
        url = urllib3.util.parse_url(self.url)
        return url.scheme, self.ip, _port(url), url.path, _name(self.url)

    def get(self, path: str) -> Answer:
        """Ask on a connection of its own, so that any worker may answer, and note whether anything listens there.

        The whole body has `TIMEOUT_S`, however steadily it comes.

        Raises:
            urllib3.exceptions.HTTPError: Nobody answers.
        """
        url = urllib3.util.parse_url(self.url)
        headers = {"Host": url.netloc or "", "Connection": "close", **key_header()}
        options: dict[str, Any] = {"timeout": TIMEOUT_S, "retries": False, "headers": headers}
        body = bytearray()
        pool: urllib3.HTTPConnectionPool
        if url.scheme == "https":
            name = (url.host or "").strip("[]")
            pool = urllib3.HTTPSConnectionPool(self.ip, url.port, server_hostname=name, assert_hostname=name, **options)
        else:
            pool = urllib3.HTTPConnectionPool(self.ip, url.port, **options)
        self.is_closed = False
        try:
            with pool, pool.request("GET", f"{url.path or ''}{path}", preload_content=False) as response:
                end = time.monotonic() + TIMEOUT_S
                while part := response.read1(65_536):
                    body += part
                    if time.monotonic() > end:
                        raise urllib3.exceptions.ReadTimeoutError(pool, path, "The answer does not end")
                return Answer(response.status, bytes(body))
        except urllib3.exceptions.NewConnectionError as exc:
            self.is_closed = isinstance(exc.__cause__, ConnectionRefusedError)
            raise


def find_addresses(urls: Sequence[str]) -> list[Address]:
    """Return every address of gateways, once though one URL has its name, and another the address itself.

    Raises:
        Refused: A name has none.
    """
    found = dict[tuple[object, ...], Address]()
    for each in sorted(urls, key=lambda url: not _name(url)):  # those with a name first
        url = urllib3.util.parse_url(each)
        try:
            infos = socket.getaddrinfo((url.host or "").strip("[]"), _port(url), type=socket.SOCK_STREAM)
        except OSError as exc:
            raise Refused(f"The gateway's name cannot be looked up: {exc}.") from exc
        addresses = [Address(each, str(info[4][0])) for info in infos]
        named = {place[:-1] for place in found if place[-1]}
        if not _name(each) and any(address.place[:-1] in named for address in addresses):
            continue
        first_name = next((found[address.place].url for address in addresses if address.place in found), each)
        for address in addresses:
            found.setdefault(address.place, replace(address, url=first_name))
    return list(found.values())


def _name(url: str) -> str:
    """Return the name of a URL's host; empty for an address, or for localhost, which stands for one."""
    host = (urllib3.util.parse_url(url).host or "").strip("[]")
    try:
        ip_address(host)
    except ValueError:
        return "" if host == "localhost" else host
    return ""


def _port(url: urllib3.util.Url) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def without_closed(addresses: Sequence[Address]) -> list[Address]:
    """Leave out the closed addresses of gateways that have an open one too."""
    open_at = {each.url for each in addresses if not each.is_closed}
    return [each for each in addresses if not (each.is_closed and each.url in open_at)]


def wait_until_followed(
    addresses: Sequence[Address], model: str, serial: int, wait_s: float, say: Callable[[str], None]
) -> list[Address]:
    """Wait until gateways follow a release of a model; return those that do not in time. A longer wait is said once.

    Each is asked in a thread of its own, so that one that hangs does not make others late.
    """
    begun, is_said, ended = time.monotonic(), False, threading.Event()

    def ask(address: Address) -> None:
        _look(address, model, serial)
        while not ended.wait(PAUSE_S) and address.answers < ANSWERS_IN_A_ROW:
            _look(address, model, serial)

    def late() -> list[Address]:
        return [each for each in without_closed(addresses) if each.answers < ANSWERS_IN_A_ROW]

    with ThreadPoolExecutor(len(addresses) or 1) as pool:
        for each in addresses:
            pool.submit(ask, each)
        try:
            while late() and (passed_s := time.monotonic() - begun) < wait_s:
                lags = [f"{each} {each.lag}" for each in late() if each.lag]
                if lags and not is_said and passed_s > SAY_AFTER_S:
                    say(f"Waiting up to {wait_s:g} s, as {lags[0]}.")
                    is_said = True
                time.sleep(PAUSE_S)
        finally:
            ended.set()
    return [each for each in late() if each.lag]


def _look(address: Address, model: str, serial: int) -> None:
    """Ask an address which release it follows."""
    try:
        lag = _find_lag(address.get("/readyz"), model, serial)
    except urllib3.exceptions.NewConnectionError:
        lag = "does not take connections"
    except (urllib3.exceptions.HTTPError, ValueError) as exc:  # of a key with a control character
        lag = f"does not answer: {exc}"
    address.lag = lag or address.lag
    address.answers = 0 if lag else address.answers + 1


def _find_lag(response: Answer, model: str, serial: int) -> str:
    """Return why a gateway does not follow, by its answer; empty if it does."""
    try:
        health = json.loads(response.data)
        name, failure = health["model"]["name"], health["model"]["error"]
        release, error = health["release"], health["release_error"]
        followed = int(release["serial"]) if release else -1
    except (ValueError, KeyError, TypeError):
        return f"shows no release at /readyz, with status {response.status}; GATEWAY_KEY may be missing"
    if name != model:
        return f"serves another model, {name!r}"
    if failure:
        return f"answers no requests: {failure.rstrip('.')}"
    if followed >= serial:
        return f"follows release {followed}, but {error}" if error else ""
    return (f"follows release {followed}" if release else "follows no release") + (f": {error}" if error else "")
