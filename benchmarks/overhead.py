"""`make benchmark-overhead`: CPU that the gateway spends on a request, besides fetching, decoding and the model.

A fake model server in this process answers with constant probabilities; only the gateway's workers are measured.
Another process measures the part of decoding: it decodes the same image now and then while the load runs. With cold
caches, as in the gateway, that takes 0.8 ms; in a loop of nothing else, 0.3 ms.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.faults import quiet
from contract.document import ImageSpec
from contract.image import decode
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode
from tests.programs.stack import Gateway, gateway

SPEC = ImageSpec(224, 224)
REQUESTS, CLIENTS = 3000, 4
DECODES = 500


def main() -> None:
    """Measure, and print the parts."""
    image = encode(Image.new("RGB", (224, 224), "teal"), "JPEG")
    classes = tuple(f"class-{i}" for i in range(1000))
    server = FakeModelServer({1: FakeVersion.of([image], classes, SPEC, constant)})
    with quiet(), gateway(server.address, "tiny") as client:
        send(client, image, 200)
        with multiprocessing.get_context("spawn").Pool(1) as beside:
            before = cpu_s(client)
            decoding = beside.apply_async(decode_now_and_then, [image])
            send(client, image, REQUESTS)
            spent_ms = (cpu_s(client) - before) / REQUESTS * 1000
            decode_ms = decoding.get()
    server.stop()
    print(f"CPU of the gateway a request, image sent as its body: {spent_ms:.2f} ms, of it decoding {decode_ms:.2f} ms")
    print(f"the gateway's own: {spent_ms - decode_ms:.2f} ms ({REQUESTS} requests, {CLIENTS} clients)")


def constant(pixels: Any) -> Any:
    """Return the same probabilities (n, 1000) for any pixels."""
    return np.full((len(pixels), 1000), 0.001, np.float32)


def decode_now_and_then(image: bytes) -> float:
    """Return the milliseconds of CPU that decoding takes with cold caches."""
    spent_s = 0.0
    for _ in range(DECODES):
        time.sleep(0.01)
        started = time.thread_time()
        decode(image, SPEC)
        spent_s += time.thread_time() - started
    return spent_s / DECODES * 1000


def send(client: Gateway, image: bytes, count: int) -> None:
    """Send an image `count` times, on one connection for each client."""

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        for _ in range(count // CLIENTS):
            connection.request("POST", "/predict", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"Expected 200. Received: {response.status} {response.read()!r}")
            response.read()
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for each in [pool.submit(work) for _ in range(CLIENTS)]:
            each.result()


def cpu_s(client: Gateway) -> float:
    """Return the processor time that the workers have used."""
    ticks = 0
    for pid in client.worker_pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
