"""`make soak`: memory of the whole stack over many requests; REQUESTS= says how many."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.compare import CLIENTS, load, photo_origin
from benchmarks.load import path
from benchmarks.systems import SYSTEMS, install, prepare_models, started

REQUESTS = int(os.environ["REQUESTS"])
SLICE_S = 20.0
SETTLED = 0.2  # part of the requests after which caches and pools have their size; the slope is taken from there


def main() -> None:
    """Ask until all requests are answered, print the memory as it goes, and its slope."""
    system = next(system for system in SYSTEMS if system.name == "tflite")
    prepare_models()
    for environment in system.environments:
        install(environment)
    answered, memory_mb = [0], []
    with photo_origin() as (origin, _), started(system, origin, path("224 px")) as running:
        memory_mb.append(running.memory_mb())
        while answered[-1] < REQUESTS:
            photo = "224 px" if len(answered) % 8 else "1 megapixel"
            answer, most_mb = load(running, "saturate", f"http://{origin}{path(photo)}", CLIENTS[photo], SLICE_S)
            answered.append(answered[-1] + answer["answers"])
            memory_mb.append(most_mb)
            print(f"{answered[-1]:>8} requests: {most_mb:.0f} MB", flush=True)
    settled = [i for i, count in enumerate(answered) if count >= SETTLED * answered[-1]]
    slope, _ = np.polyfit([answered[i] / 1000 for i in settled], [memory_mb[i] for i in settled], 1)
    print(f"{system.label}: at most {max(memory_mb):.0f} MB, {slope:+.2f} MB per 1,000 requests, of {answered[-1]}")


if __name__ == "__main__":
    main()
