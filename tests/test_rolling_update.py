"""A rolling update of both tiers under load, with processes as Pods, and the times that kube/ states."""

from __future__ import annotations

import http.client
import itertools
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Origin
from tests.kubelet import Deployment, Pod, Spec
from tests.name_server import NameServer
from tests.photos import encode, photo
from tests.stack import free_port, post
from tests.test_client import eventually
from tests.test_kube import container, gateway_environ, pod, read_base

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

REQUESTS = 10_000
REPLICAS = 2
# Until every node has heard that an address left a Service; seconds at most in a cluster that is well.
HEARD_AFTER_S = 5.0
# Until a look-up shows it: 2 s until the cluster's DNS has heard, and 5 s that an answer may be kept.
LOOKED_UP_AFTER_S = 7.0


class Traffic:
    """Clients of the gateway's Service, which lets each connection go to another of the addresses that it knows."""

    def __init__(self, addresses: list[str], port: int, url: str) -> None:
        self._addresses, self._port, self._url = addresses, port, url
        self._turn = itertools.count()
        self._stop = threading.Event()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.lost: list[BaseException] = []

    def __enter__(self) -> Traffic:
        self._pool = ThreadPoolExecutor(8)
        # Half of the clients keep their connections, as proxies do, for as long as the gateway lets them.
        self._runs = [self._pool.submit(self._run, keeps) for keeps in (True, False) * 4]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for run in self._runs:
            run.result()

    @property
    def count(self) -> int:
        return sum(self.answers.values()) + len(self.lost)

    def _run(self, keeps: bool) -> None:
        connection = self._connection()
        while not self._stop.is_set():
            try:
                status, _ = post(connection, self._url)
                self.answers[connection.host, status] += 1
            except (OSError, http.client.HTTPException) as exc:
                self.lost.append(exc)
                connection.close()
            if connection.sock is None or not keeps:  # closed by either side
                connection.close()
                connection = self._connection()
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        addresses = list(self._addresses)
        return http.client.HTTPConnection(addresses[next(self._turn) % len(addresses)], self._port, timeout=30)


def test_a_rolling_update_of_both_tiers_loses_nothing(tiny_store: Path, origin: Origin) -> None:
    """Ten thousand requests while every Pod of the model server and of the gateway is replaced: all are answered."""
    hosts = (f"127.0.0.{number}" for number in itertools.count(2))
    port, url = free_port(), origin.add("a.jpg", encode(photo()))
    model_spec, gateway_spec = (Spec.of(pod(read_base(), tier)) for tier in ("model", "gateway"))
    arguments = container(read_base(), "model")["args"]

    with ExitStack() as stack:
        name_server = stack.enter_context(NameServer())

        def create_model() -> Pod:
            host = next(hosts)
            options = [f"--host={host}", f"--port={port}", "--grpc_max_threads=256", "--model_name=tiny"]
            command = [sys.executable, "-m", "serving", *options, f"--model_base_path={tiny_store}/tiny", *arguments]
            return Pod(host, command, {**os.environ}, model_spec, lambda probe: is_serving(host, port, probe))

        def create_gateway() -> Pod:
            host = next(hosts)
            here = {
                "GATEWAY_HOST": host,
                "GATEWAY_PORT": str(port),
                "GATEWAY_MODEL_NAME": "tiny",
                "GATEWAY_MODEL_ADDRESS": name_server.target(port),
                "GATEWAY_FETCH_ALLOW": origin.authority,
            }
            environ = {**os.environ, **gateway_environ(), **here}
            command = [sys.executable, "-m", "gateway"]
            return Pod(host, command, environ, gateway_spec, lambda probe: answers_200(host, port, probe))

        models = Deployment(create_model, REPLICAS, LOOKED_UP_AFTER_S)
        stack.callback(models.close)
        name_server.addresses = models.addresses
        gateways = Deployment(create_gateway, REPLICAS, HEARD_AFTER_S)
        stack.callback(gateways.close)
        eventually(lambda: len(gateways.addresses) == REPLICAS, timeout_s=120)

        started = time.monotonic()
        traffic = stack.enter_context(Traffic(gateways.addresses, port, url))
        eventually(lambda: traffic.count > 200, timeout_s=60)
        with ThreadPoolExecutor(2) as pool:
            model_roll_out = pool.submit(models.roll_out, heeds_sigterm=False)  # as TensorFlow Serving
            gateway_roll_out = pool.submit(gateways.roll_out, heeds_sigterm=True)
        took_s = time.monotonic() - started
        eventually(lambda: traffic.count >= REQUESTS, timeout_s=400)
        last = [each.address for each in gateways.pods[-REPLICAS:]]

    print(f"{traffic.count} requests, {len(traffic.lost)} lost; both roll-outs took {took_s:.0f} s")
    assert model_roll_out.result() == [-9] * REPLICAS
    assert gateway_roll_out.result() == [0] * REPLICAS
    assert traffic.lost == []
    assert {status for _, status in traffic.answers} == {200}
    assert {host for host, _ in traffic.answers} >= set(last)


def answers_200(host: str, port: int, probe: dict[str, Any]) -> bool:
    """Probe as a kubelet does with httpGet."""
    with suppress(urllib.error.HTTPError, OSError):
        address = f"http://{host}:{port}{probe['httpGet']['path']}"
        with urllib.request.urlopen(address, timeout=probe.get("timeoutSeconds", 1)) as response:
            return bool(response.status == 200)
    return False


def is_serving(host: str, port: int, probe: dict[str, Any]) -> bool:
    """Probe as a kubelet does with grpc."""
    with grpc.insecure_channel(f"{host}:{port}") as channel, suppress(grpc.RpcError):
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=probe.get("timeoutSeconds", 1))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False
