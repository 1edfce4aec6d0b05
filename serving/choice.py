"""Chooses what runs a version: by --engine, or of its two TFLite files the one that is faster on this processor.

How many times as fast int8 was as fp32, with EfficientNet-Lite0 on 2 cores:

    processor                engine alone   whole stack
    Xeon, with VNNI          1.86           1.56
    EPYC, AVX2 without VNNI  0.99           0.88

The files run their golden examples, and must keep the tolerance of these, as at a gateway's gate.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np

from contract.disk import written_whole
from contract.document import IMAGES, Contract, ImageSpec
from contract.image import DecodedImage, decode
from contract.outputs import Outputs, describe
from serving.engines import TFLITE_FILES, Engine, open_engine
from serving.errors import ServingError

LIMIT_S = 1.2  # for loading and running both files; a slow model still gets one image for each of its runs
TURN_S = 0.1  # for one file, before it is the other's turn
SLOW_S = 0.15  # for an image: then one turn is enough
# Lower than the priority of requests to loaded versions. Beside four clients these kept 0.7 to 0.9 of their rate, and
# their p99, while another was measured; at the same priority 0.5 to 0.6 of the rate. 10 gave no more, and took longer.
NICE = 5
# So many times as fast int8 must be. Less is within the error of the measurement, and fp32 is the more exact.
ENOUGH = 1.03

# What tells processors of other speed apart in /proc/cpuinfo, on x86 and on ARM.
_TELLING = ("model name", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")

log = logging.getLogger(__name__)


class _UnfitError(Exception):
    """Why a file may not serve."""


def open_chosen(directory: Path, engine: str, threads: int, runs: int) -> Engine:
    """Load the version in a directory, and say in the engine's `choice` which it is and why.

    Args are those of `open_engine`, but that `auto` takes the faster one of two TFLite files.

    Raises:
        ServingError: It cannot be loaded.
    """
    name, why = choose(directory, threads, runs) if engine == "auto" else (engine, "chosen by --engine")
    opened = open_engine(directory, name, threads, runs)
    opened.choice = f"{name}: {why}"
    log.info("%s runs %s", directory, opened.choice)
    return opened


def choose(directory: Path, threads: int, runs: int) -> tuple[str, str]:
    """Return the engine that answers most images a second, and why. What was measured is kept for the next load.

    Raises:
        ServingError: A file cannot be loaded.
    """
    files = [name for name, file in TFLITE_FILES.items() if (directory / file).is_file()]
    if len(files) < len(TFLITE_FILES):
        return (files[0], "there is no other TFLite file") if files else ("tensorflow", "there is no TFLite file")
    kept = _kept(directory, threads, runs)
    with suppress(OSError, ValueError):  # not there, or not ours
        return _faster(float(kept.read_text()), "measured at an earlier load")
    try:
        ratio = measure(directory, threads, runs)
    except _UnfitError as exc:
        return exc.args
    finally:
        with suppress(AttributeError, OSError):  # glibc alone keeps what was freed: 46 MB here
            ctypes.CDLL(None).malloc_trim(0)
    _write(kept, ratio)
    return _faster(ratio, "measured at load")


def _faster(ratio: float, when: str) -> tuple[str, str]:
    if ratio >= ENOUGH:
        return "int8", f"{ratio:.2f} times the images/s of fp32, {when}"
    return "tflite", f"int8 has {ratio:.2f} times the images/s of fp32, {when}; it serves from {ENOUGH:g} on"


def measure(directory: Path, threads: int, runs: int) -> float:
    """Return how many times as many images a second int8 answers as fp32, in as many runs at a time as will serve.

    The files take turns, because a machine's speed drifts, and the fastest turn of each counts. The clock is the
    processor time of a run's thread, where a run has one thread. On 2 cores beside 25 busy processes, where 1.75 was
    right, 16 measurements gave 1.5 to 2.1 by the fastest of two turns or more, 1.1 to 2.3 by their median, and 1.0 to
    2.2 with one turn. By the clock on the wall it was 0.5 to 4.2, beside 13.

    Raises:
        _UnfitError: One of the files may not serve.
        ServingError: A file cannot be loaded.
    """
    deadline = time.monotonic() + LIMIT_S
    clock = time.thread_time if threads == 1 else time.perf_counter
    load, decode_once = partial(open_engine, directory, threads=threads, runs=runs), cache(decode)
    trials = [_Trial(name, load(name), decode_once) for name in TFLITE_FILES]
    times_s: dict[str, list[float]] = {name: [] for name in TFLITE_FILES}
    with ThreadPoolExecutor(runs, "measure", _yield_to_requests) as pool:
        while time.monotonic() + 2 * TURN_S < deadline or not all(_is_enough(each, runs) for each in times_s.values()):
            for trial in trials:
                times_s[trial.name] += pool.map(partial(trial.run, clock), range(runs))
            trials.reverse()
    return min(times_s["tflite"]) / max(min(times_s["int8"]), 1e-9)


def _is_enough(times_s: list[float], runs: int) -> bool:
    """Tell whether there were two turns, as the first has the first runs; one is enough for a slow model."""
    return len(times_s) >= 2 * runs or any(image_s > SLOW_S for image_s in times_s)


def _yield_to_requests() -> None:
    """Give way to requests of loaded versions, by the priority of this thread alone. Source: setpriority(2)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class _Trial:
    """A loaded file with its golden examples."""

    def __init__(self, name: str, engine: Engine, decode: Callable[[bytes, ImageSpec], DecodedImage]) -> None:
        self.name, self._run = name, engine.run
        try:
            self._contract = Contract.from_json(describe(engine.run))
            self._pixels = [decode(each.image, self._contract.image).pixels for each in self._contract.golden]
        except (KeyError, ValueError, ServingError) as exc:
            raise self._unfit(f"has no golden examples that can be read ({exc})") from exc
        if not self._pixels:
            raise self._unfit("has no golden examples")

    def run(self, clock: Callable[[], float], first: int) -> float:
        """Answer examples one after another, from the `first` on, at least one; return the seconds of an image.

        Raises:
            _UnfitError: An answer differs from the golden one by more than the tolerance, or there is none.
        """
        count, started, end = 0, clock(), time.monotonic() + TURN_S
        received = {}
        try:
            while not count or time.monotonic() < end:
                index = (first + count) % len(self._pixels)
                outputs = self._run(self._contract.signature, {IMAGES: self._pixels[index][np.newaxis]})
                received[index] = Outputs.of(outputs)
                count += 1
            image_s = (clock() - started) / count
            golden = self._contract.golden
            difference = float(np.max([each.difference(golden[index]) for index, each in received.items()]))
        except (KeyError, ValueError, ServingError) as exc:
            raise self._unfit(f"cannot run its golden examples ({exc})") from exc
        if not difference <= self._contract.tolerance:  # also when it is NaN
            raise self._unfit(f"misses its golden examples by {difference:g}, and may by {self._contract.tolerance:g}")
        return image_s

    def _unfit(self, why: str) -> _UnfitError:
        return _UnfitError("tflite" if self.name == "int8" else "int8", f"{self.name} {why}")


def _kept(directory: Path, threads: int, runs: int) -> Path:
    """Return the file of a measurement, named by all that it depends on: files, processor, runtime and its use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = sorted({line for line in lines if line.split("\t")[0].rstrip(" :") in _TELLING})
    try:
        runtime = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        runtime = ""
    digest = hashlib.sha256(repr((threads, runs, runtime, processor)).encode())
    for file in TFLITE_FILES.values():
        digest.update(hashlib.sha256((directory / file).read_bytes()).digest())
    caches = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/"), ".cache")
    return Path(caches, "image-classifier", digest.hexdigest())


def _write(kept: Path, ratio: float) -> None:
    """Keep a measurement; others may be doing the same at this moment."""
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_whole(kept) as draft:
            draft.write_text(f"{ratio:.4f}\n")
    except OSError as exc:
        advice = "Set XDG_CACHE_HOME to a folder that can be written to"
        log.warning("The measurement cannot be kept, so each load measures again (%s). %s", exc, advice)
