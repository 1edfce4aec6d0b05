"""`make faults`: injects each fault into the running programs, and prints what is expected and what was seen.

The load is two clients that ask again as soon as they have an answer, unless a row says otherwise. *Lost* is a
connection error or a hang.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.load import draw
from tests.programs.origins import Origin, http_answer
from tests.programs.photos import encode
from tests.programs.stack import Gateway, Load, free_port, gateway, post, replica, running, wait_until_open

STORE, MODEL = Path("model-store").resolve(), "imagenet"
PHOTO = draw(640, 480)
SETTINGS = {
    "GATEWAY_REQUEST_TIMEOUT_S": "4",
    "GATEWAY_MODEL_TIMEOUT_S": "2",
    "GATEWAY_BODY_TIMEOUT_S": "3",
    "GATEWAY_FETCH_ALLOW": "127.0.0.1/32",
}

Row = tuple[str, str, str]
FAULTS: dict[str, Callable[[], Row]] = {}


def fault(name: str) -> Callable[[Callable[[], Row]], Callable[[], Row]]:
    """Register a fault under the name that the command line takes."""

    def register(inject: Callable[[], Row]) -> Callable[[], Row]:
        FAULTS[name] = inject
        return inject

    return register


@contextlib.contextmanager
def stack(**settings: str) -> Iterator[tuple[Gateway, subprocess.Popen[str], str]]:
    """Run an image host, the model server and the gateway; yield the gateway, the model server, and a photo's URL."""
    address = f"127.0.0.1:{free_port()}"
    environ = SETTINGS | settings
    with image_host() as url, model_server(address) as server, gateway(address, MODEL, **environ) as client:
        yield client, server, url


@contextlib.contextmanager
def image_host() -> Iterator[str]:
    """Run an image host; yield the URL of its photo. Beside that it has one image for each way to fail."""
    with Origin(http_answer(PHOTO)) as origin:
        drip = origin.drip(PHOTO, 1)

        def answer_slowly(sock: socket.socket) -> None:
            sock.sendall(http_answer(Content_Length=str(len(PHOTO))))
            drip(sock)

        origin.answers = {
            "/slow": answer_slowly,
            "/500": http_answer(status="500 No"),
            "/loop": http_answer(status="302 Found", Location="/loop"),
            "/reset": b"",
            "/short": http_answer(PHOTO[:100], Content_Length=str(len(PHOTO))),
        }
        yield f"http://{origin.authority}/photo.jpg"


def model_server(address: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run the embedded model server."""
    return replica(STORE, address, name=MODEL)


@fault("F1")
def model_server_killed() -> Row:
    address = f"127.0.0.1:{free_port()}"
    with (
        image_host() as url,
        model_server(address) as server,
        gateway(address, MODEL, **SETTINGS) as client,
        TimedLoad(client, [url], 2) as load,
    ):
        time.sleep(2)
        server.kill()
        killed = time.monotonic()
        client.wait(lambda: client.get("/readyz")[0] == 503, 5)
        unready_s = time.monotonic() - killed
        alive = client.get("/livez")[0]
        time.sleep(max(0.0, 5 - (time.monotonic() - killed)))
        with model_server(address):
            wait_until_open(address)
            back_s = load.wait_s(time.monotonic())
    away = [each.ended - each.started for each in load.timed if each.status == 503]
    return (
        "F1 model server killed under load, started again after 5 s",
        "only 503, each <= 250 ms; /livez 200, /readyz 503 <= 2 s; success <= 2 s after its port opens; 0 lost",
        f"{load.statuses()}, 503 at most {max(away) * 1000:.0f} ms; /livez {alive}, /readyz 503 after"
        f" {unready_s:.1f} s; success after {back_s:.1f} s; {len(load.lost)} lost",
    )


@fault("F2")
def model_server_frozen() -> Row:
    with stack() as (client, server, url), TimedLoad(client, [url], 2) as load:
        time.sleep(2)
        server.send_signal(signal.SIGSTOP)
        alive_p99_ms = livez_p99_ms(client, 10)
        server.send_signal(signal.SIGCONT)
        back_s = load.wait_s(time.monotonic())
    late = [each.ended - each.started for each in load.timed if each.status == 504]
    return (
        "F2 model server frozen for 10 s",
        "504 at the deadline (2 s) +- 10 %; /livez p99 < 50 ms; normal <= 5 s after; 0 lost",
        f"{load.statuses()}, 504 after {min(late, default=0):.2f} to {max(late, default=0):.2f} s; /livez p99"
        f" {alive_p99_ms:.0f} ms; normal after {back_s:.1f} s; {len(load.lost)} lost",
    )


@fault("F6")
def slow_origin() -> Row:
    with stack(GATEWAY_FETCH_TIMEOUT_S="2") as (client, _, url):
        with TimedLoad(client, [url], 2) as before:
            time.sleep(4)
        with TimedLoad(client, [url], 2) as beside, TimedLoad(client, [url.replace("photo.jpg", "slow")], 4) as slow:
            time.sleep(7)
    took = [each.ended - each.started for each in slow.timed]
    ratio = beside.p99_ms() / before.p99_ms()
    return (
        "F6 four clients ask for an image that comes at a byte a second",
        "fetch_timeout at 2 s +- 10 %; p99 of others <= 1.5 times",
        f"{slow.codes()}, after {min(took):.2f} to {max(took):.2f} s; p99 of others {ratio:.2f} times",
    )


@fault("F7")
def failing_origin() -> Row:
    with stack() as (client, _, url):
        paths = ["500", "loop", "reset", "short"]
        seen = Counter(client.predict(url.replace("photo.jpg", path))[1]["code"] for path in paths)
    return "F7 origin answers 500, redirects in a loop, resets, sends half", "fetch_failed each", str(seen)


@fault("F11")
def gateway_terminated() -> Row:
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    environ = {"GATEWAY_PORT": str(port), "GATEWAY_MODEL_NAME": MODEL, "GATEWAY_MODEL_ADDRESS": address}
    with image_host() as url, model_server(address), running("-m", "gateway", **environ, **SETTINGS) as process:
        client = Gateway(port, process.pid)
        client.wait(lambda: client.get("/readyz")[0] == 200)
        with TimedLoad(client, [url], 8) as load:
            time.sleep(2)
            process.terminate()
            terminated = time.monotonic()
            status = process.wait(30)
            ended_s = time.monotonic() - terminated
    # A connection refused after the end is the next server's business; an accepted request without an answer is ours.
    lost = [each for each in load.lost if not isinstance(each, ConnectionRefusedError)]
    return (
        "F11 gateway gets SIGTERM under 8 clients",
        "accepted requests finish: 0 lost; exit status 0",
        f"{load.statuses()}; {len(lost)} lost; exit status {status} after {ended_s:.1f} s",
    )


@fault("F12")
def worker_killed() -> Row:
    with stack() as (client, _, url), TimedLoad(client, [url], 4) as load:
        time.sleep(2)
        victim = client.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        client.wait(lambda: len(set(client.worker_pids()) - {victim}) == 2, 10)
        back_s = time.monotonic() - killed
        time.sleep(2)
    return (
        "F12 one of two workers killed under 4 clients",
        "only its own requests lost (at most 4); another in its place <= 2 s",
        f"{load.statuses()}; {len(load.lost)} lost; another after {back_s:.1f} s",
    )


@fault("F13")
def huge_images() -> Row:
    # The first, of a few kilobytes, unfolds to 144 megapixels.
    sizes = (("1", 12_000), ("L", 9000), ("RGB", 7000))
    bodies = [encode(Image.new(mode, (size, size)), "PNG") for mode, size in sizes]
    with stack() as (client, _, url):
        for _ in range(20):
            client.predict(url)
        send(client, bodies[2])
        before = resident_mb(client)
        statuses = Counter(send(client, body) for _ in range(10) for body in bodies)
        growth = resident_mb(client) - before
    return (
        "F13 bombs, 81 and 49 megapixels, ten times each",
        "413 for the first two, 200 for the last; growth < 50 MB",
        f"{dict(statuses)}; growth {growth:.0f} MB",
    )


@fault("F14")
def overload() -> Row:
    with stack() as (client, _, url):
        with TimedLoad(client, [url], 8) as capacity:
            time.sleep(8)
        with TimedLoad(client, [url], 80) as load:
            time.sleep(10)
        ended = time.monotonic()
        client.wait(lambda: client.predict(url)[0] == 200, 10)
        back_s = time.monotonic() - ended
    refused = [each.ended - each.started for each in load.timed if each.status == 503]
    share = load.rate() / capacity.rate()
    return (
        "F14 80 clients where 8 saturate; who is refused comes back as Retry-After says",
        "goodput >= 90 % of capacity; the rest 503 < 100 ms; recovery <= 5 s",
        f"{load.statuses()}; goodput {share:.0%}; 503 p99 {p99_ms(refused):.0f} ms; recovery"
        f" {back_s:.1f} s; {len(load.lost)} lost",
    )


@fault("F15")
def slow_clients() -> Row:
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    with stack() as (client, _, url):
        with TimedLoad(client, [url], 2) as before:
            time.sleep(4)
        stop = threading.Event()
        answers: Counter[str] = Counter()

        def dribble() -> None:
            with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
                connection.sendall(head)
                try:
                    while not stop.is_set() and not select.select([connection], [], [], 0)[0]:  # not answered yet
                        connection.sendall(b"x")
                        time.sleep(1)
                    answers[connection.recv(100)[9:12].decode() or "closed"] += 1
                except OSError:  # it sent on into a connection that was answered and closed in that moment
                    answers["closed"] += 1

        threads = [threading.Thread(target=dribble) for _ in range(100)]
        for thread in threads:
            thread.start()
        with TimedLoad(client, [url], 2) as beside:
            alive_p99_ms = livez_p99_ms(client, 6)
        stop.set()
        for thread in threads:
            thread.join()
        nested = [send(client, b"[" * 100_000, "application/json"), send(client, b"{", "application/json")]
        huge = send(client, b" " * 40_000_000, "application/json")
    ratio = beside.p99_ms() / before.p99_ms()
    return (
        "F15 100 clients send a byte a second; nested and huge bodies",
        "408 each; p99 of others <= 2 times; 400 and 413",
        f"{dict(answers)}; p99 of others {ratio:.2f} times, of /livez {alive_p99_ms:.0f} ms; {nested} and {huge}",
    )


@fault("F17")
def garbled_requests() -> Row:
    """Send mutated requests and mutated images."""
    chance = random.Random(0)
    statuses: Counter[int] = Counter()
    traceback = 0
    images = [
        PHOTO,
        *(encode(Image.new("RGB", (60, 40), "red"), name) for name in ("PNG", "GIF", "WEBP", "BMP", "AVIF")),
    ]
    with stack() as (client, _, _):
        for _ in range(1500):
            data = bytearray(chance.choice(images))
            for _ in range(chance.randint(1, 30)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            kind = chance.choice(
                ["image/jpeg", "application/json", "multipart/form-data; boundary=x", "text/plain", ""]
            )
            cut = chance.randrange(len(data)) if chance.random() < 0.3 else len(data)
            status, body = ask(client, bytes(data[:cut]), kind)
            statuses[status] += 1
            traceback += b"Traceback" in body
    return (
        "F17 1,500 mutated bodies under five content types",
        "200 or 4xx; no 500, no traceback",
        f"{dict(sorted(statuses.items()))}; {traceback} tracebacks",
    )


class Timed:
    """One answer and its times."""

    def __init__(self, started: float, status: int, body: Any) -> None:
        self.started, self.ended, self.status, self.body = started, time.monotonic(), status, body


class TimedLoad(Load):
    """A load that keeps the time of each answer."""

    def __init__(self, client: Gateway, urls: list[str], threads: int) -> None:
        super().__init__(client, urls, threads)
        self.timed: list[Timed] = []

    def _run(self, index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.timed.append(Timed(started, *post(connection, self.urls[0])))
                if self.timed[-1].body.get("code") == "overloaded":
                    self._stop.wait(1)  # what Retry-After says
            except (OSError, http.client.HTTPException) as exc:
                self.lost.append(exc)
                connection.close()
                time.sleep(0.05)
        connection.close()

    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(each.status for each in self.timed).items()))

    def codes(self) -> dict[str, int]:
        return dict(Counter(each.body.get("code", "ok") for each in self.timed))

    def p99_ms(self) -> float:
        return p99_ms([each.ended - each.started for each in self.timed])

    def good(self, after: float = 0.0) -> list[float]:
        """Return when good answers came to requests that were sent after a moment."""
        return [each.ended for each in self.timed if each.status == 200 and each.started > after]

    def wait_s(self, moment: float) -> float:
        """Wait for the first good answer to a request after a moment, and return how long that took."""
        self.gateway.wait(lambda: self.good(moment), 10)
        return min(self.good(moment)) - moment

    def rate(self) -> float:
        """Return good answers per second, the first second left out."""
        first = min(self.good())
        late = [ended for ended in self.good() if ended > first + 1]
        return len(late) / (max(late) - min(late))


def p99_ms(took_s: list[float]) -> float:
    return 1000 * (statistics.quantiles(took_s, n=100)[98] if len(took_s) > 1 else (took_s or [0.0])[0])


def livez_p99_ms(client: Gateway, window_s: float) -> float:
    """Ask /livez again and again for some seconds."""
    took: list[float] = []
    until = time.monotonic() + window_s
    while time.monotonic() < until:
        asked = time.perf_counter()
        client.get("/livez")
        took.append(time.perf_counter() - asked)
        time.sleep(0.02)
    return p99_ms(took)


def ask(client: Gateway, body: bytes, kind: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    except (BrokenPipeError, ConnectionResetError):  # refused by its length, before it was read
        return 413, b""
    finally:
        connection.close()


def send(client: Gateway, body: bytes, kind: str = "image/png") -> int:
    return ask(client, body, kind)[0]


def resident_mb(client: Gateway) -> float:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in client.worker_pids()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print nothing: `running` prints the whole output of each program that ends."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main(names: list[str]) -> None:
    """Inject all faults, or those named."""
    for name in names or FAULTS:
        with quiet():
            what, expected, seen = FAULTS[name]()
        print(f"{what}\n  expected  {expected}\n  seen      {seen}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
