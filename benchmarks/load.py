"""The two ends of a measurement, each a separate process: the image host, and the clients.

Both share the cores with what they measure, so each is one event loop that does little. For an answer about a small
photo, the clients take 0.35 ms of CPU and the image host 0.4 ms.

    python -m benchmarks.load origin PORT
    python -m benchmarks.load saturate PORT URL CLIENTS WINDOW_S
    python -m benchmarks.load pace PORT URL PER_SECOND WINDOW_S
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from io import BytesIO
from typing import Any

import numpy as np
import uvloop
from PIL import Image

PHOTOS = {"224 px": (224, 224), "1 megapixel": (1152, 864), "12 megapixels": (4000, 3000)}
WARM_UP_S = 1.0
TIMEOUT_S = 60.0


def path(photo: str) -> str:
    """Return the path of a photo at the image host."""
    return f"/{photo.replace(' ', '-')}.jpg"


class Origin(asyncio.Protocol):
    """One connection to the image host, kept alive unless the client closes it."""

    photos: dict[str, bytes]

    def connection_made(self, transport: Any) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            photo = self.photos[head.split(b" ", 2)[1].decode()]
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(photo)
            )
            self.transport.write(photo)
            if b"connection: close" in head.lower():
                self.transport.close()


async def serve_photos(port: int) -> None:
    """Run the image host until the process ends."""
    Origin.photos = {path(photo): draw(*size) for photo, size in PHOTOS.items()}
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port)
    await server.serve_forever()


def draw(width: int, height: int) -> bytes:
    """Return a JPEG with detail at several scales, quality 85, about as large in bytes as a photo of its size."""
    random = np.random.default_rng(0)
    img = Image.new("RGB", (width, height))
    for scale, part in ((64, 0.5), (8, 0.4), (2, 0.2)):
        noise = random.integers(0, 256, (-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
        img = Image.blend(img, Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), part)
    buffer = BytesIO()
    img.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Client:
    """A connection, kept alive if the server keeps it."""

    def __init__(self, port: int, url: str) -> None:
        body = json.dumps({"url": url})
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Ask once; any other answer than 200 is an error."""
        if self._streams and self._streams[0].at_eof():
            self._close()
        kept = self._streams is not None
        async with asyncio.timeout(TIMEOUT_S):
            try:
                head, body = await self._exchange()
            except (ConnectionError, asyncio.IncompleteReadError):
                if not kept:
                    raise
                self._close()  # the server closed it while it was idle
                head, body = await self._exchange()
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"Expected 200. Received: {head!r} {body!r}")
        if b"connection: close" in head.lower():
            self._close()

    async def _exchange(self) -> tuple[bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not length:
            raise RuntimeError(f"Expected an answer with a length. Received: {head!r}")
        return head, await reader.readexactly(int(length[1]))

    def _close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def saturate(port: int, url: str, clients: int, window_s: float) -> dict[str, Any]:
    """Ask as fast as answers come; return answers per second after the first second, how many came, and their p50.

    The rate is taken from one answer to another, because some servers answer in bursts, which a fixed window would cut.
    """
    started = time.perf_counter()
    end = started + WARM_UP_S + window_s
    answered: list[float] = []
    milliseconds: list[float] = []

    async def work() -> None:
        client = Client(port, url)
        while (asked := time.perf_counter()) < end:
            await client.ask()
            answered.append(time.perf_counter())
            milliseconds.append((answered[-1] - asked) * 1000)

    await asyncio.gather(*(work() for _ in range(clients)))
    first = max([started, *(moment for moment in answered if moment < started + WARM_UP_S)])
    last = max((moment for moment in answered if first < moment < end), default=answered[-1])
    count = sum(first < moment <= last for moment in answered)
    return {"per_second": count / (last - first), "answers": len(answered), "p50_ms": statistics.median(milliseconds)}


async def pace(port: int, url: str, per_second: float, window_s: float) -> dict[str, Any]:
    """Ask at even intervals, also while answers are late; return the milliseconds since each request was due."""
    started = time.perf_counter()
    idle: list[Client] = []
    milliseconds: list[float] = []

    async def ask(due: float) -> None:
        client = idle.pop() if idle else Client(port, url)
        await client.ask()
        milliseconds.append(round((time.perf_counter() - due) * 1000, 1))
        idle.append(client)

    async with asyncio.TaskGroup() as group:
        for i in range(max(1, int(per_second * window_s))):
            due = started + i / per_second
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(ask(due))
    return {"milliseconds": milliseconds}


def main(work: str, port: str, *arguments: str) -> None:
    """Run one of the commands, and print its result as JSON."""
    if work == "origin":
        uvloop.run(serve_photos(int(port)))
        return
    url, amount, window_s = arguments
    if work == "saturate":
        result = uvloop.run(saturate(int(port), url, int(amount), float(window_s)))
    else:
        result = uvloop.run(pace(int(port), url, float(amount), float(window_s)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
