"""gateway/server/worker.py and process.py: signals, a clean end, and how connections are shared."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from gunicorn.config import Config

from gateway.server.worker import Worker
from tests.gateway.server.conftest import SETTINGS, metrics, post, send, start
from tests.programs.model_server import FakeModelServer
from tests.programs.origins import Origin
from tests.programs.stack import Gateway, free_port, running, wait_until

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_accepted_requests_finish_and_exits_with_0(
    server: FakeModelServer, number: signal.Signals
) -> None:
    """What was accepted is answered (F11), also if the workers get the signal too, as from a terminal and systemd."""
    with start(server) as (gateway, process):
        server.gate.clear()
        calls = [send(gateway.port) for _ in range(3)]
        for pid in (process.pid, *gateway.worker_pids()):
            os.kill(pid, number)
        time.sleep(0.5)
        server.gate.set()
        assert [call.getresponse().status for call in calls] == [200] * 3
        assert process.wait(20) == 0


def test_workers_may_open_as_many_connections_as_the_system_allows(server: FakeModelServer) -> None:
    """Beyond the soft limit, which is 1,024 on most systems, they would reset connections, those of probes too."""
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(900, most), most))
    try:
        with start(server) as (gateway, _):
            limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in gateway.worker_pids()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    assert limits and set(limits) == {(most, most)}


def test_a_second_ctrl_c_ends_at_once(server: FakeModelServer) -> None:
    """Without waiting for requests."""
    with start(server) as (gateway, process):
        server.gate.clear()
        before = len(server.calls)
        calls = [send(gateway.port) for _ in range(2)]
        wait_until(lambda: len(server.calls) == before + 2)
        process.send_signal(signal.SIGINT)
        gateway.wait(lambda: gateway.get("/readyz")[0] != 200)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        server.gate.set()
        for call in calls:
            with pytest.raises(http.client.RemoteDisconnected):
                call.getresponse()


def test_signals_for_other_kinds_of_gunicorn_change_nothing(server: FakeModelServer) -> None:
    """More or fewer workers than listeners would lose connections; under nohup, so would the end of a terminal."""
    program = "import signal; signal.signal(1, signal.SIG_IGN); from gateway.__main__ import main; main()"
    with start(server, "-c", program) as (gateway, process):
        before = gateway.worker_pids()
        for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
            time.sleep(0.3)
        assert gateway.worker_pids() == before
        assert gateway.get("/livez")[0] == 200


@pytest.mark.parametrize("is_asked", [False, True])
def test_sigterm_ends_workers_that_still_start(is_asked: bool) -> None:
    """While they wait for the model server: at once, or once they have answered whoever has connected meanwhile."""
    with Origin(lambda _: time.sleep(9)) as silent:  # takes connections and says nothing
        environ = {**SETTINGS, "GATEWAY_MODEL_ADDRESS": silent.authority, "GATEWAY_PORT": str(free_port())}
        with running("-m", "gateway", **environ) as process:
            wait_until(lambda: silent.connections, 20)
            calls = [send(int(environ["GATEWAY_PORT"]))] if is_asked else []
            process.send_signal(signal.SIGTERM)
            assert [call.getresponse().status for call in calls] == [503] * len(calls)
            assert process.wait(20 if is_asked else 4) == 0


def test_sigterm_turns_readiness_off_before_anything_closes(server: FakeModelServer) -> None:
    """During the delay requests and new connections are answered as before, each with `Connection: close`."""
    with start(server, GATEWAY_SHUTDOWN_DELAY_S="3") as (gateway, process):
        process.send_signal(signal.SIGTERM)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 503)
        assert gateway.get("/readyz")[1]["status"] == "draining"
        status, _, headers = post(gateway.port)
        assert (status, headers["connection"]) == (200, "close")
        assert gateway.get("/livez")[0] == 200
        assert process.wait(20) == 0


def test_connections_without_a_request_delay_no_shutdown(server: FakeModelServer) -> None:
    """Silent, in the middle of a request's head, or kept open after an answer."""
    with start(server, GATEWAY_BODY_TIMEOUT_S="60") as (gateway, process):
        silent = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(3)]
        silent[1].sendall(b"POST /predict HTTP/1.1\r\nHost: a")
        silent[2].sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert silent[2].recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0  # not after the grace period of 25 s
        for connection in silent:
            connection.close()


def test_a_killed_worker_is_replaced(server: FakeModelServer) -> None:
    """Within two seconds another answers; its gauges do not count twice (F12)."""
    with start(server, GATEWAY_WORKERS="2") as (gateway, _):
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        gateway.wait(lambda: len(gateway.worker_pids()) == 2, timeout_s=3)
        gateway.wait(lambda: gateway.get("/readyz")[0] == 200, timeout_s=3)  # 0 while the killed one's port goes
        gateway.wait(lambda: b"gateway_ready 1.0" in metrics(gateway), timeout_s=3)  # the new one has found the model
        assert post(gateway.port)[0] == 200


def test_a_worker_that_was_paused_goes_on(server: FakeModelServer) -> None:
    """Though gunicorn's master woke first, took it for hung and sent SIGABRT, each time; SIGKILL would be next."""
    with start(server) as (gateway, _):
        (worker,) = gateway.worker_pids()
        for _ in range(2):
            os.kill(worker, signal.SIGABRT)
            assert post(gateway.port)[0] == 200
        assert gateway.worker_pids() == [worker]


def test_a_heartbeat_ends_what_the_master_knows_of_a_hung_worker() -> None:
    """Or the next pause of the machine would end a worker that is well, without a warning."""
    worker = Worker(1, os.getpid(), [], None, 30, Config(), None)
    worker.notify()
    worker.aborted = True
    assert worker.aborted
    worker.notify()
    assert not worker.aborted
    worker.tmp.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_connections_wait_for_a_worker_that_is_replaced(client: Gateway, number: signal.Signals) -> None:
    """Also where there is only one, as in the cluster: none is refused."""
    os.kill(client.worker_pids()[0], number)
    time.sleep(0.05)
    for _ in range(5):
        assert post(client.port)[0] == 200
        time.sleep(0.1)


def test_connections_are_spread_over_the_workers(server: FakeModelServer) -> None:
    """A load balancer keeps a few connections open: one worker must not have them all."""
    with start(server, GATEWAY_WORKERS="2") as (gateway, _):
        connections = []
        for _ in range(32):
            connections.append(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5))
            connections[-1].request("GET", "/livez")
            assert connections[-1].getresponse().read()
        pids = gateway.worker_pids()
        opened = [sockets(pid) for pid in pids]
        for connection in connections:
            connection.close()
        gateway.wait(lambda: sum(opened) - sum(map(sockets, pids)) == 32)
        spread = [before - sockets(pid) for pid, before in zip(pids, opened, strict=True)]
    assert min(spread) >= 2  # fewer once in 65 million runs, were it a coin that decides


def sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            count += str(each.readlink()).startswith("socket:")
    return count


def test_a_taken_port_ends_the_start(server: FakeModelServer) -> None:
    """Also one that another gateway listens on, which could be shared."""
    with start(server) as (gateway, _):
        environ = {**os.environ, "GATEWAY_PORT": str(gateway.port)}
        second = subprocess.run(
            [sys.executable, "-m", "gateway"], env=environ, capture_output=True, text=True, timeout=20
        )
    assert second.returncode == 1
    assert "in use" in second.stderr
