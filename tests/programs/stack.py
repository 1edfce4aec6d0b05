"""The real programs as processes, a load to put on them, and what their answers must be."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from contract.document import IMAGES, PREDICT_SIGNATURE, PROBABILITIES, Contract
from contract.image import decode
from contract.outputs import describe, most_probable
from serving.engines import open_engine

ROOT = Path(__file__).parents[2]
UNCONNECTED = "nobody took the connection"
LEAST_LOOKS = 50
_PORTS = itertools.count(20_000 + os.getpid() % 10_000)  # below those that Linux gives to connections
QUICK = "--file_system_poll_wait_seconds=0.1"  # between two looks for versions


def free_port() -> int:
    """Return a port that nobody listens on, another one each time: who has the last one may not listen yet."""
    return next(filter(_is_free, _PORTS))


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def wait_until(
    condition: Callable[[], object], timeout_s: float = 10.0, show: Callable[[], object] = lambda: ""
) -> None:
    """Return as soon as a condition is true.

    Raises:
        AssertionError: It was false for all of `timeout_s`, and at so many looks that the machine did not just stand
            still; the message contains what `show` returns then.
    """
    deadline, looks = time.monotonic() + timeout_s, 0
    while not condition():
        looks += 1
        is_over = time.monotonic() > deadline and looks > LEAST_LOOKS
        assert not is_over, f"The condition was still false after {timeout_s:g} s. {show()}"
        time.sleep(0.01)


def wait_until_open(address: str) -> None:
    """Wait until a program listens at an address, `host:port`."""
    host, _, port = address.rpartition(":")

    def is_open() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((host, int(port))) == 0

    wait_until(is_open, 60, lambda: f"Nobody listens at {address}.")


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


def replica(
    store: Path, address: str, *flags: str, name: str = "tiny"
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run the embedded model server on `store/<name>` at an address, `host:port`."""
    host, _, port = address.rpartition(":")
    model = (f"--model_name={name}", f"--model_base_path={store / name}")
    return running("-m", "serving", *model, f"--host={host}", f"--port={port}", "--grpc_max_threads=64", *flags)


@contextmanager
def embedded_server(store: Path, *flags: str, name: str = "tiny") -> Iterator[str]:
    """Run the embedded model server on `store/<name>`; yield its address. It looks for versions all the time."""
    address = f"127.0.0.1:{free_port()}"
    with replica(store, address, QUICK, "--max_num_load_retries=0", *flags, name=name):
        yield address


@contextmanager
def gateway(address: str, name: str = "tiny", **settings: str) -> Iterator[Gateway]:
    """Run the gateway in front of a model server; yield it when all its workers are ready."""
    port = free_port()
    environ = {"GATEWAY_PORT": str(port), "GATEWAY_MODEL_NAME": name, "GATEWAY_MODEL_ADDRESS": address}
    with running("-m", "gateway", **environ, **settings) as process:
        client = Gateway(port, process.pid)
        client.wait_until_ready()
        yield client


def release(store: Path, number: int, version: Path) -> None:
    """Put a version of the tiny model into a store as the rules say: copy, then rename."""
    draft = store / "tiny" / f"draft-{number}"
    shutil.copytree(version, draft)
    draft.rename(store / "tiny" / str(number))


@dataclass
class Gateway:
    """A running gateway as a client sees it."""

    port: int
    pid: int
    host: str = "127.0.0.1"

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON; status 0 while nobody listens."""
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=10)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except OSError:
                return 0, None

    def predict(self, url: str) -> tuple[int, Any]:
        """Return status and JSON of one request."""
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=30)) as connection:
            return post(connection, url)

    def wait(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait until a condition is true; show /readyz if it does not come true in time."""
        wait_until(condition, timeout_s, lambda: f"/readyz answers {self.get('/readyz')}")

    def wait_until_ready(self) -> None:
        """Wait until all workers are ready: each finds a model server for itself, and connections go to any of them."""
        self.wait(lambda: all(self.get("/readyz")[0] == 200 for _ in range(20)))

    def refusal(self, version: int) -> str:
        """Wait until a worker refuses a version while it stays ready, and return the reason."""
        refused: dict[str, str] = {}

        def is_refused() -> bool:
            status, ready = self.get("/readyz")
            assert status == 200
            refused.update(ready["model"]["refused"])
            return str(version) in refused

        self.wait(is_refused)
        return refused[str(version)]

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
    """A closed loop: each thread asks for the URLs in turn, as fast as answers come, until it is stopped.

    Attributes:
        reconnecting: How many of the threads open a connection for each request.
        answers: URL, status and JSON of each answer.
        lost: Why each of the other requests got none.
    """

    gateway: Gateway
    urls: list[str]
    threads: int = 8
    reconnecting: int = 0
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

    @property
    def count(self) -> int:
        """How many requests have ended."""
        return len(self.answers) + len(self.lost)

    @property
    def failures(self) -> list[object]:
        """Why requests were lost, and all answers but those of status 200."""
        return [*self.lost, *(answer for answer in self.answers if answer[1] != 200)]

    def wait_for(self, count: int, timeout_s: float = 300.0) -> None:
        """Wait until so many requests have ended since the start."""
        self.gateway.wait(lambda: self.count >= count, timeout_s)

    def choose_host(self) -> str:
        """Return the host that the next connection goes to."""
        return self.gateway.host

    def _run(self, index: int) -> None:
        turns = itertools.count(index)
        while not self._stop.is_set():
            try:
                with closing(self._connect()) as connection:
                    while connection.sock is not None and not self._stop.is_set():
                        url = self.urls[next(turns) % len(self.urls)]
                        self.answers.append((url, *post(connection, url)))
                        if index < self.reconnecting:
                            break
            except (OSError, http.client.HTTPException) as exc:
                self.lost.append(exc)

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.choose_host(), self.gateway.port, timeout=30)
        try:
            connection.connect()
        except OSError as exc:
            exc.add_note(UNCONNECTED)
            raise
        return connection


@dataclass(frozen=True)
class Reference:
    """What each export answers to each image, by running its file here."""

    predictions: dict[tuple[str | None, str], list[dict[str, Any]]]

    @classmethod
    def of(cls, versions: Iterable[Path], images: dict[str, bytes]) -> Reference:
        """Run every version on every image (by URL)."""
        predictions = {}
        for path in versions:
            run = open_engine(path, "auto", 1).run
            contract = Contract.from_json(describe(run))
            for url, image in images.items():
                pixels = decode(image, contract.image).pixels[np.newaxis]
                probabilities = run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES][0]
                ranked = most_probable(contract.classes, probabilities, len(contract.classes))
                predictions[contract.identity or None, url] = ranked
        return cls(predictions)

    def matches(self, url: str, answer: Any) -> bool:
        """Tell whether an answer is exactly what the export it names says of that image."""
        expected = self.predictions[answer["model"]["identity"], url]
        received = answer["predictions"]
        return len(received) == len(expected) and all(
            (a["class"], a["index"]) == (b["class"], b["index"]) and abs(a["probability"] - b["probability"]) < 1e-5
            for a, b in zip(received, expected, strict=True)
        )
