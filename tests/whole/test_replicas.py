"""Several model servers behind one name of the DNS, as in a cluster: shares, arrivals, deaths, and mixed versions."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway.model.versions import Versions
from gateway.settings import Settings
from tests.gateway.model.conftest import ask
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.name_server import NameServer
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import (
    Load,
    free_port,
    gateway,
    replica,
    wait_until,
    wait_until_open,
)

pytestmark = pytest.mark.processes

CONNECTION_AGE_MS = 10_000
AGE = f"--grpc_channel_arguments=grpc.max_connection_age_ms={CONNECTION_AGE_MS}"
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")


def predictions(server: FakeModelServer) -> int:
    """Return how many predictions a server has made."""
    return sum(call.startswith("export_") for call in server.calls)


def shares(servers: list[FakeModelServer], load: Load, count: int) -> list[float]:
    """Return which part of the next `count` predictions each server makes."""
    before = [predictions(server) for server in servers]
    load.wait_for(len(load.answers) + count)
    made = [predictions(server) - each for server, each in zip(servers, before, strict=True)]
    return [each / sum(made) for each in made]


def test_each_replica_gets_its_share_and_a_new_one_within_30_s(
    golden: list[bytes], origin: Origin, name_server: NameServer
) -> None:
    """Shares are within 10 % of even for three, and for the fourth that appears in the DNS meanwhile."""
    port, url = free_port(), origin.add("a.jpg", encode(photo()))
    with ExitStack() as stack:
        servers, version = [], FakeVersion.of(golden)
        for host in HOSTS:
            options = [("grpc.max_connection_age_ms", CONNECTION_AGE_MS)]
            servers.append(FakeModelServer({1: version}, f"{host}:{port}", options))
            stack.callback(servers[-1].stop)
        name_server.addresses = list(HOSTS[:3])
        client = stack.enter_context(gateway(name_server.target(port), GATEWAY_FETCH_ALLOW=origin.authority))
        load = stack.enter_context(Load(client, [url]))
        load.wait_for(100)
        assert shares(servers, load, 1200) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], rel=0.1)
        name_server.addresses = list(HOSTS)
        appeared = time.monotonic()
        # The first worker notices it before the second.
        wait_until(lambda: min(shares(servers, load, 100)) > 0.2, timeout_s=30)
        print(f"The fourth had its share {time.monotonic() - appeared:.1f} s after it appeared")
        assert shares(servers, load, 1200) == pytest.approx([1 / 4] * 4, rel=0.1)
    assert load.failures == []


@contextmanager
def replicas(*stores: Path, port: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run a model server for each store, all on the same port of different hosts; yield them when all listen."""
    addresses = [f"{host}:{port}" for host in HOSTS[: len(stores)]]
    with ExitStack() as stack:
        running = (replica(store, address, AGE) for store, address in zip(stores, addresses, strict=True))
        processes = [stack.enter_context(each) for each in running]
        for address in addresses:
            wait_until_open(address)
        yield processes


@pytest.mark.tensorflow
def test_what_a_replica_was_working_on_when_it_died_is_done_by_another(
    tiny_store: Path, name_server: NameServer
) -> None:
    """Twenty calls wait for a replica that hangs; when it is killed, all of them are tried again elsewhere."""
    port = free_port()
    name_server.addresses = list(HOSTS[:2])
    settings = Settings(model_address=name_server.target(port), model_name="tiny", model_timeout_s=20.0)
    with replicas(tiny_store, tiny_store, port=port) as processes, ThreadPoolExecutor(40) as pool, ExitStack() as stack:
        client = Versions(settings)
        stack.callback(client.close)
        version = client.newest()
        pixels = np.zeros((1, version.contract.image.height, version.contract.image.width, 3), np.uint8)
        for _ in range(20):  # until both are connected
            client.predict(version, pixels, time.monotonic() + 20)
        processes[0].send_signal(signal.SIGSTOP)
        calls = [pool.submit(client.predict, version, pixels, time.monotonic() + 20) for _ in range(40)]
        wait_until(lambda: sum(call.done() for call in calls) >= 15)
        assert sum(call.done() for call in calls) < 40
        processes[0].kill()
        assert {call.result().probabilities.shape for call in calls} == {(1, 3)}


def test_a_name_that_has_no_address_yet_is_asked_for_again_and_again(
    golden: list[bytes], connect: Callable[[str], Versions], name_server: NameServer
) -> None:
    """A gateway that started first notices the model server soon; gRPC by itself waits up to two minutes."""
    port = free_port()
    client = connect(name_server.target(port))
    client.start()
    wait_until(lambda: name_server.asked >= 10, timeout_s=20)  # gRPC by itself asks 5 times in 16 s
    server = FakeModelServer({1: FakeVersion.of(golden)}, f"{HOSTS[0]}:{port}")
    try:
        name_server.addresses = [HOSTS[0]]
        wait_until(lambda: client.health.ready)
        assert ask(client)[0] == 1
    finally:
        server.stop()


def test_a_server_that_restarts_is_found_while_the_dns_denies_its_name(
    golden: list[bytes], connect: Callable[[str], Versions], name_server: NameServer
) -> None:
    """A cache may deny for 30 s a name that had no address for a moment; the gateway still knows the address."""
    port, version = free_port(), FakeVersion.of(golden)
    address = f"{HOSTS[0]}:{port}"
    name_server.addresses = [HOSTS[0]]
    server, client = FakeModelServer({1: version}, address), connect(name_server.target(port))
    try:
        client.start()
        wait_until(lambda: client.health.ready)
        name_server.addresses = []
        server.stop()
        asked = name_server.asked
        wait_until(lambda: name_server.asked >= asked + 3, timeout_s=20)  # its address was looked up again
        server = FakeModelServer({1: version}, address)
        wait_until(lambda: client.health.ready, timeout_s=2)
        assert ask(client)[0] == 1
    finally:
        server.stop()
