"""`make benchmark-gateway`: requests per second through URL, fetch, decode, gRPC and model, against a plain export.

Model server, gateway, photo origin and load share this machine. Each round runs both engines of the model server and,
alone in its process, the plain Keras export that the ratio is to.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.stack import Gateway, Load, free_port, gateway, model_server, running

STORE, MODEL = Path("model-store").resolve(), "imagenet"
PHOTOS = {"/224-px.jpg": (224, 224), "/1-megapixel.jpg": (1152, 864), "/12-megapixels.jpg": (4000, 3000)}
ENGINES = ("tflite", "tensorflow")
CLIENTS, ROUNDS, ROUND_S, WARM_UP_S = 8, 5, 5.0, 1.0


def main() -> None:
    """Measure each photo with each engine, and print one table."""
    origin = f"127.0.0.1:{free_port()}"
    plain: list[float] = []
    rates: dict[tuple[str, str], list[float]] = {(path, engine): [] for path in PHOTOS for engine in ENGINES}
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
        stack.enter_context(contextlib.redirect_stdout(nowhere))  # the programs' own lines, printed as they end
        stack.enter_context(running("-m", "benchmarks.gateway", origin))
        gateways = {}
        for engine in ENGINES:
            address = stack.enter_context(model_server(STORE, f"--engine={engine}", name=MODEL))
            gateways[engine] = stack.enter_context(gateway(address, MODEL, GATEWAY_FETCH_ALLOW=origin))
        for _ in range(ROUNDS):
            plain.append(plain_rate())
            for (path, engine), values in rates.items():
                values.append(rate(gateways[engine], f"http://{origin}{path}"))
    report(plain, rates)


def plain_rate() -> float:
    """Return images per second of the plain Keras export, one at a time, alone in its process."""
    command = [sys.executable, "-m", "benchmarks.engines", "plain"]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def rate(client: Gateway, url: str) -> float:
    """Return answers per second of a closed loop; any other answer than 200 is an error."""
    with Load(client, [url], CLIENTS) as load:
        time.sleep(WARM_UP_S)
        before, started = len(load.answers), time.perf_counter()
        time.sleep(ROUND_S)
        count, passed = len(load.answers) - before, time.perf_counter() - started
    failed = [answer for _, status, answer in load.answers if status != 200]
    if failed or load.lost:
        raise RuntimeError(f"Expected answers only. Received: {failed[:3]} {load.lost[:3]}")
    return count / passed


def report(plain: list[float], rates: dict[tuple[str, str], list[float]]) -> None:
    """Print requests per second, and the ratio to the plain export's images per second in the same round."""
    print(f"{CLIENTS} clients, {os.cpu_count()} cores for everything, {ROUNDS} rounds of {ROUND_S:g} s")
    print(f"plain Keras export, no gateway, batch of 1: {statistics.median(plain):.1f} images/s\n")
    print(f"{'photo':20} {'engine':12} requests/s   ratio to it (least to most)")
    for (path, engine), values in rates.items():
        ratios = [value / base for value, base in zip(values, plain, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{path[1:]:20} {engine:12} {statistics.median(values):10.1f}   {spread}")


def serve_photos(origin: str) -> None:
    """Be the image host: smooth noise as JPEG, quality 85."""
    host, _, port = origin.partition(":")
    bodies = {path: draw(*size) for path, size in PHOTOS.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(bodies[self.path])))
            self.end_headers()
            self.wfile.write(bodies[self.path])

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


def draw(width: int, height: int) -> bytes:
    """Return a JPEG with detail at several scales, about as large in bytes as a photo of its size."""
    random = np.random.default_rng(0)
    img = Image.new("RGB", (width, height))
    for scale, part in ((64, 0.5), (8, 0.4), (2, 0.2)):
        noise = random.integers(0, 256, (-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
        img = Image.blend(img, Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), part)
    buffer = BytesIO()
    img.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    serve_photos(sys.argv[1]) if sys.argv[1:] else main()
