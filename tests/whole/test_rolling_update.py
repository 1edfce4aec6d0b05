"""A rolling update of both tiers under load, with processes as Pods, and the times that kube/ states."""

from __future__ import annotations

import itertools
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import container, pod, read_base, variables
from tests.programs.kubelet import Deployment, Pod, Spec
from tests.programs.name_server import NameServer
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import Gateway, Load, free_port, wait_until

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

REQUESTS = 10_000
REPLICAS = 2
# Until every node has heard that an address left a Service; seconds at most in a cluster that is well.
HEARD_AFTER_S = 5.0
# Until a look-up shows it: 2 s until the cluster's DNS has heard, and 5 s that an answer may be kept.
LOOKED_UP_AFTER_S = 7.0


class Traffic(Load):
    """Clients of the gateway's Service, which lets each connection go to another of the addresses that it knows."""

    def __init__(self, addresses: list[str], port: int, url: str) -> None:
        # Half of the clients keep their connections, as proxies do, for as long as the gateway lets them.
        super().__init__(Gateway(port, 0), [url], threads=8, reconnecting=4)
        self._addresses = addresses
        self._turn = itertools.count()
        self.hosts: set[str] = set()

    def choose_host(self) -> str:
        """Return the addresses in turn, and note which were asked."""
        addresses = list(self._addresses)
        host = addresses[next(self._turn) % len(addresses)]
        self.hosts.add(host)
        return host


def test_a_rolling_update_of_both_tiers_loses_nothing(
    tiny_store: Path, origin: Origin, name_server: NameServer
) -> None:
    """Ten thousand requests, while every Pod of both tiers is replaced again and again: all are answered."""
    numbers = itertools.count(2)
    port, url = free_port(), origin.add("a.jpg", encode(photo()))
    model_spec, gateway_spec = (Spec.of(pod(read_base(), tier)) for tier in ("model", "gateway"))
    # A DNS may keep an answer for 30 s, and the manifest waits for that. This one keeps it for 5 s.
    model_spec = replace(model_spec, pre_stop_s=model_spec.pre_stop_s - 25)
    arguments = container(read_base(), "model")["args"]

    with ExitStack() as stack:

        def create_model() -> Pod:
            host = f"127.0.0.{next(numbers)}"
            options = [f"--host={host}", f"--port={port}", "--grpc_max_threads=256", "--model_name=tiny"]
            command = [sys.executable, "-m", "serving", *options, f"--model_base_path={tiny_store}/tiny", *arguments]
            return Pod(host, command, {**os.environ}, model_spec, lambda probe: is_serving(host, port, probe))

        def create_gateway() -> Pod:
            host = f"127.0.0.{next(numbers)}"
            here = {
                "GATEWAY_HOST": host,
                "GATEWAY_PORT": str(port),
                "GATEWAY_MODEL_NAME": "tiny",
                "GATEWAY_MODEL_ADDRESS": name_server.target(port),
                "GATEWAY_FETCH_ALLOW": origin.authority,
            }
            environ = {**os.environ, **variables()["gateway"], **here}
            command = [sys.executable, "-m", "gateway"]
            return Pod(host, command, environ, gateway_spec, lambda probe: answers_200(host, port, probe))

        models = Deployment(create_model, REPLICAS, LOOKED_UP_AFTER_S)
        stack.callback(models.close)
        name_server.addresses = models.addresses
        gateways = Deployment(create_gateway, REPLICAS, HEARD_AFTER_S)
        stack.callback(gateways.close)
        wait_until(lambda: len(gateways.addresses) == REPLICAS, timeout_s=120)

        traffic = stack.enter_context(Traffic(gateways.addresses, port, url))
        traffic.wait_for(200)

        def roll_out_again_and_again(deployment: Deployment, heeds_sigterm: bool) -> list[int]:
            statuses = []
            while traffic.count < REQUESTS:
                statuses += deployment.roll_out(heeds_sigterm)
            return statuses

        with ThreadPoolExecutor(2) as pool:
            model_ends = pool.submit(roll_out_again_and_again, models, heeds_sigterm=False)  # as TensorFlow Serving
            gateway_ends = pool.submit(roll_out_again_and_again, gateways, heeds_sigterm=True)

    assert traffic.failures == []
    assert set(model_ends.result()) == {-9}
    assert set(gateway_ends.result()) == {0}
    print(f"{traffic.count} requests to {len(traffic.hosts)} gateways, none lost")
    assert len(traffic.hosts) >= 2 * REPLICAS


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
