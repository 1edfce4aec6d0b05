"""`make benchmark-engines`: images per second of each engine on the ImageNet model, and the ratio to a plain export.

The plain export is what `model.export()` writes. Each round measures all engines, so that a machine with a drifting
speed treats them alike; the ratio is the median over rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from contract.document import IMAGES, PREDICT_SIGNATURE
from contract.store import versions_of
from serving.engines import TFLITE_FILES, open_engine
from serving.settings import Settings, cores
from training.models.catalogue import find_architecture
from training.release import quantization

STORE, MODEL, ARCHITECTURE = Path("model-store"), "imagenet", "efficientnet-lite0"
ROUNDS, ROUND_S = 9, 1.0


def main() -> None:
    """Measure at batch 1 and 8, and print a table for each."""
    version = versions_of(STORE, MODEL)[max(versions_of(STORE, MODEL))]
    threads = cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engines = {
            "TensorFlow, plain Keras export": plain_export(folder / "plain"),
            "TensorFlow, frozen (saved_model.pb)": exported(version, "tensorflow", threads),
            "TFLite fp32 (model.tflite)": exported(version, "tflite", threads),
        }
        # Calibrated on noise: photos matter for the accuracy of int8, not for its speed.
        content = (version / TFLITE_FILES["tflite"]).read_bytes()
        noise = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
        calibration = quantization.calibrate(content, noise)
        for part in (quantization.FLOAT_PARTS[0], quantization.FLOAT_PARTS[-1]):
            (folder / TFLITE_FILES["int8"]).write_bytes(quantization.quantize(content, calibration, part))
            engines[f"TFLite int8, {part:.0%} in fp32"] = exported(folder, "int8", threads)
        print(
            f"{ARCHITECTURE}, 224 px, {threads} threads, TensorFlow {tf.__version__}, {ROUNDS} rounds of {ROUND_S:g} s"
        )
        for batch in (1, 8):
            report(batch, measure(engines, batch))


def print_rates(version: Path) -> None:
    """Print images per second of each TFLite file of a version, run as the model server runs it, as JSON.

    `one_at_a_time` is with one image at a time, `together` with as many as the model server runs at a time.
    """
    settings = Settings.from_argv([f"--model_base_path={version.absolute().parent}"])
    engines = {
        engine: exported(version, engine, settings.engine_threads, settings.engine_runs) for engine in TFLITE_FILES
    }
    rates = {
        kind: {name: round(statistics.median(values), 2) for name, values in measured.items()}
        for kind, clients in (("one_at_a_time", 1), ("together", settings.engine_runs))
        for measured in [measure(engines, batch=1, rounds=3, clients=clients)]
    }
    print(json.dumps(rates))


def plain_export(folder: Path) -> Callable[[Any], Any]:
    """Return a function that runs the model as Keras exports it, on float32 pixels."""
    find_architecture(ARCHITECTURE).classifier("imagenet").export(folder, verbose=False)
    loaded = tf.saved_model.load(str(folder))
    return lambda pixels: loaded.signatures["serving_default"](tf.constant(pixels, tf.float32))


def exported(version: Path, engine: str, threads: int, runs: int = 1) -> Callable[[Any], Any]:
    """Return a function that runs one of a version's files."""
    opened = open_engine(version, engine, threads, runs)
    return lambda pixels: opened.run(PREDICT_SIGNATURE, {IMAGES: pixels})


def measure(
    engines: dict[str, Callable[[Any], Any]], batch: int, rounds: int = ROUNDS, clients: int = 1
) -> dict[str, list[float]]:
    """Return images per second of each engine in each round, asked by some clients at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    rates: dict[str, list[float]] = {name: [] for name in engines}

    def ask(run: Callable[[Any], Any], end: float) -> int:
        count = 0
        while not count or time.perf_counter() < end:
            run(pixels)
            count += batch
        return count

    with ThreadPoolExecutor(clients) as pool:
        for run in engines.values():
            list(pool.map(ask, [run] * clients, [0.0] * clients))  # first runs
        for _ in range(rounds):
            for name, run in engines.items():
                started = time.perf_counter()
                count = sum(pool.map(ask, [run] * clients, [started + ROUND_S] * clients))
                rates[name].append(count / (time.perf_counter() - started))
    return rates


def report(batch: int, rates: dict[str, list[float]]) -> None:
    """Print images per second and the ratio to the first engine, with its spread over rounds."""
    base = next(iter(rates.values()))
    print(f"\n{f'batch of {batch}':38} images/s   ratio (least to most)")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:38} {statistics.median(values):8.1f}   {spread}")


if __name__ == "__main__":
    print_rates(Path(sys.argv[1])) if sys.argv[1:] else main()
