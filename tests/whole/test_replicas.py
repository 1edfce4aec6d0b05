"""Several model servers behind one name of the DNS, as in a cluster: shares, arrivals, deaths, and mixed versions."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest

from gateway.model.versions import Versions
from tests.conftest import Origin, run_export
from tests.gateway.test_versions import ask, eventually
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.name_server import NameServer
from tests.programs.photos import encode, photo
from tests.programs.stack import Load, Reference, free_port, gateway, running
from tests.whole.test_stack import release

pytestmark = pytest.mark.processes

CONNECTION_AGE_MS = 10_000
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A DNS server that knows no address yet."""
    with NameServer() as server:
        yield server


def predictions(server: FakeModelServer) -> int:
    """Return how many a server has made."""
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
        eventually(lambda: min(shares(servers, load, 100)) > 0.2, timeout_s=30)
        print(f"The fourth had its share {time.monotonic() - appeared:.1f} s after it appeared")
        assert shares(servers, load, 1200) == pytest.approx([1 / 4] * 4, rel=0.1)
    assert load.lost == []
    assert {status for _, status, _ in load.answers} == {200}


def replica(store: Path, host: str, port: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run a real model server as a replica: the same port as the others, on an address of its own."""
    model = ("--model_name=tiny", f"--model_base_path={store / 'tiny'}")
    listen = (f"--host={host}", f"--port={port}", "--grpc_max_threads=64")
    age = f"--grpc_channel_arguments=grpc.max_connection_age_ms={CONNECTION_AGE_MS}"
    return running("-m", "serving", *model, *listen, age)


def wait_until_open(host: str, port: int) -> None:
    """Wait until somebody listens there."""

    def is_open() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((host, port)) == 0

    eventually(is_open, timeout_s=60)


@pytest.mark.tensorflow
def test_killing_replicas_loses_nothing(tiny_store: Path, origin: Origin, name_server: NameServer) -> None:
    """Of three, one is killed under load, and then another."""
    port, url = free_port(), origin.add("a.jpg", encode(photo()))
    with ExitStack() as stack:
        processes = [stack.enter_context(replica(tiny_store, host, port)) for host in HOSTS[:3]]
        for host in HOSTS[:3]:
            wait_until_open(host, port)
        name_server.addresses = list(HOSTS[:3])
        client = stack.enter_context(gateway(name_server.target(port), GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, [url], threads=16) as load:
            for count, process in enumerate(processes[:2], start=1):
                load.wait_for(500 * count)
                process.kill()
            load.wait_for(1500)
    assert load.lost == []
    assert Counter(status for _, status, _ in load.answers) == {200: len(load.answers)}


@pytest.mark.tensorflow
def test_what_a_replica_was_working_on_when_it_died_is_done_by_another(
    tiny_store: Path, connect: Callable[[str], Versions], name_server: NameServer
) -> None:
    """Twenty calls wait for a replica that hangs; when it is killed, all of them are tried again elsewhere."""
    port, hosts = free_port(), HOSTS[:2]
    with ExitStack() as stack:
        processes = [stack.enter_context(replica(tiny_store, host, port)) for host in hosts]
        for host in hosts:
            wait_until_open(host, port)
        name_server.addresses = list(hosts)
        client = connect(name_server.target(port))
        version = client.newest()
        pixels = np.zeros((1, version.contract.image.height, version.contract.image.width, 3), np.uint8)
        for _ in range(20):  # until both are connected
            client.predict(version, pixels, time.monotonic() + 5)
        pool = stack.enter_context(ThreadPoolExecutor(40))
        processes[0].send_signal(signal.SIGSTOP)
        calls = [pool.submit(client.predict, version, pixels, time.monotonic() + 5) for _ in range(40)]
        eventually(lambda: sum(call.done() for call in calls) >= 15)
        assert sum(call.done() for call in calls) < 40
        processes[0].kill()
        assert {call.result().shape for call in calls} == {(1, 3)}


@pytest.mark.tensorflow
def test_replicas_that_never_agree_on_a_version_lose_and_mix_nothing(
    tiny_store: Path, tmp_path: Path, origin: Origin, name_server: NameServer
) -> None:
    """Two hold only version 1 and two only version 2; each answer is one version's, to 1e-5."""
    run_export(tmp_path / "releases", "tiny", seed=1)
    versions = {1: tiny_store / "tiny" / "1", 2: tmp_path / "releases" / "tiny" / "1"}
    for number, version in versions.items():
        (tmp_path / f"{number}" / "tiny").mkdir(parents=True)
        release(tmp_path / f"{number}", number, version)
    images = {origin.add(f"{seed}.jpg", image): image for seed in range(3) for image in [encode(photo(seed=seed))]}
    port = free_port()
    with ExitStack() as stack:
        for host, number in zip(HOSTS, (1, 2, 1, 2), strict=True):
            stack.enter_context(replica(tmp_path / f"{number}", host, port))
        for host in HOSTS:
            wait_until_open(host, port)
        name_server.addresses = list(HOSTS)
        client = stack.enter_context(gateway(name_server.target(port), GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, list(images)) as load:
            load.wait_for(1000)
    assert load.lost == []
    assert Counter(status for _, status, _ in load.answers) == {200: len(load.answers)}
    reference = Reference.of(versions.values(), images)
    assert all(reference.matches(url, answer) for url, _, answer in load.answers)
    assert {answer["model"]["version"] for _, _, answer in load.answers} == {1, 2}


def test_a_name_that_has_no_address_yet_is_asked_for_again_and_again(
    golden: list[bytes], connect: Callable[[str], Versions], name_server: NameServer
) -> None:
    """A gateway that started first notices the model server soon; gRPC by itself waits up to two minutes."""
    port = free_port()
    client = connect(name_server.target(port))
    client.start()
    eventually(lambda: name_server.asked >= 10, timeout_s=20)  # gRPC by itself asks 5 times in 16 s
    server = FakeModelServer({1: FakeVersion.of(golden)}, f"{HOSTS[0]}:{port}")
    try:
        name_server.addresses = [HOSTS[0]]
        eventually(lambda: client.health.ready)
        assert ask(client)[0] == 1
    finally:
        server.stop()
