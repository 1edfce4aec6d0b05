"""The real programs as processes, a load to put on them, and what their answers must be."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from contract.document import CONTRACT, DESCRIBE_SIGNATURE, IMAGES, PREDICT_SIGNATURE, PROBABILITIES, QUERY, Contract
from contract.image import decode
from serving.engines import open_engine

ROOT = Path(__file__).parents[2]
UNCONNECTED = "nobody took the connection"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def running(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of this repository; end it as an operator would."""
    with tempfile.TemporaryFile("w+") as output:  # not a pipe: nobody would empty it, and a full one stops the program
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            output.seek(0)
            print(output.read())


@contextmanager
def model_server(store: Path, *flags: str, name: str = "tiny") -> Iterator[str]:
    """Run the embedded model server on `store/<name>`; yield its address."""
    port = free_port()
    options = (f"--model_name={name}", f"--model_base_path={store / name}", f"--port={port}", "--grpc_max_threads=64")
    quick = ("--file_system_poll_wait_seconds=0.1", "--max_num_load_retries=0")
    with running("-m", "serving", *options, *quick, *flags):
        yield f"127.0.0.1:{port}"


@contextmanager
def gateway(address: str, name: str = "tiny", **settings: str) -> Iterator[Gateway]:
    """Run the gateway in front of a model server; yield it when it is ready."""
    port = free_port()
    environ = {"GATEWAY_PORT": str(port), "GATEWAY_MODEL_NAME": name, "GATEWAY_MODEL_ADDRESS": address}
    with running("-m", "gateway", **environ, **settings) as process:
        client = Gateway(port, process.pid)
        client.wait(lambda: client.get("/readyz")[0] == 200)
        yield client


@dataclass
class Gateway:
    """A running gateway as a client sees it."""

    port: int
    pid: int
    host: str = "127.0.0.1"

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)
        except OSError:
            return 0, None

    def predict(self, url: str) -> tuple[int, Any]:
        """Return status and JSON of one request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            return post(connection, url)
        finally:
            connection.close()

    def wait(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come to hold"
            time.sleep(0.02)

    def refusal(self, version: int) -> str:
        """Wait until a worker refuses a version while it stays ready, and return the reason."""
        reasons: list[str] = []

        def refused() -> bool:
            status, ready = self.get("/readyz")
            assert status == 200
            reasons.extend(filter(None, [ready["model"]["refused"].get(str(version))]))
            return bool(reasons)

        self.wait(refused)
        return reasons[0]

    def worker_pids(self) -> list[int]:
        """Return the processes that answer requests."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


def post(connection: http.client.HTTPConnection, url: str) -> tuple[int, Any]:
    """Ask for a prediction on an open connection."""
    connection.request("POST", "/predict", json.dumps({"url": url}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@dataclass
class Load:
    """A closed loop: each thread asks for the URLs in turn, as fast as answers come, until it is stopped."""

    gateway: Gateway
    urls: list[str]
    threads: int = 8
    answers: list[tuple[str, int, Any]] = field(default_factory=list)
    lost: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(self.threads)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int, timeout_s: float = 300.0) -> None:
        """Wait until so many requests were answered since the start."""
        self.gateway.wait(lambda: len(self.answers) + len(self.lost) >= count, timeout_s)

    def _run(self, index: int) -> None:
        connection = http.client.HTTPConnection(self.gateway.host, self.gateway.port, timeout=30)
        while not self._stop.is_set():
            url = self.urls[index % len(self.urls)]
            index += 1
            try:
                if connection.sock is None:
                    self._connect(connection)
                self.answers.append((url, *post(connection, url)))
            except (OSError, http.client.HTTPException) as exc:
                self.lost.append(exc)
                connection.close()
        connection.close()

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except OSError as exc:
            exc.add_note(UNCONNECTED)
            raise


@dataclass(frozen=True)
class Reference:
    """What each export answers to each image, by running its file here."""

    probabilities: dict[tuple[str | None, str], list[dict[str, Any]]]

    @classmethod
    def of(cls, versions: Iterable[Path], images: dict[str, bytes]) -> Reference:
        """Run every version on every image (by URL)."""
        table = {}
        for path in versions:
            engine = open_engine(path, "auto", 1)
            text = engine.run(DESCRIBE_SIGNATURE, {QUERY: np.array([b""], dtype=object)})[CONTRACT][0]
            contract = Contract.from_json(text)
            for url, image in images.items():
                pixels = decode(image, contract.image).pixels[np.newaxis]
                output = engine.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES][0]
                table[contract.identity or None, url] = [
                    {"class": contract.classes[i], "index": int(i), "probability": float(output[i])}
                    for i in np.argsort(-output, kind="stable")
                ]
        return cls(table)

    def matches(self, url: str, answer: Any) -> bool:
        """Tell whether an answer is exactly what the export it names says of that image."""
        expected = self.probabilities[answer["model"]["identity"], url]
        received = answer["predictions"]
        return len(received) == len(expected) and all(
            (a["class"], a["index"]) == (b["class"], b["index"]) and abs(a["probability"] - b["probability"]) < 1e-5
            for a, b in zip(received, expected, strict=True)
        )
