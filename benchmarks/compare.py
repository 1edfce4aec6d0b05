"""`make benchmark`: compares this stack with other ways to serve the same network, from the URL to the answer.

All systems answer URLs of the same photos, under the same load, which shares the cores with them. Each round starts a
system, measures it with every photo, stops it, and goes on to the next. So a system has the machine to itself, its
start is measured too, and a machine with a drifting speed treats all alike. Ratios are taken within a round.

At saturation, the clients ask as fast as answers come. Latency is measured with requests at even intervals, counted
from when each was due. Their rate is half of the system's saturation in that round. Then it is half of what this stack
reached with TFLite fp32, if the system can keep up with that. A lone request is one of a single client, which asks
again as soon as it has an answer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.load import PHOTOS, draw, path
from benchmarks.systems import (
    CACHE,
    MODEL,
    ROOT,
    STORE,
    SYSTEMS,
    Running,
    System,
    install,
    installed_bytes,
    installed_packages,
    prepare_models,
    started,
)
from tests.programs.stack import free_port

ROUNDS, WINDOW_S = 4, 4.0
LIMIT_S = 29 * 60  # a round that would end later does not start
CLIENTS = {"224 px": 8, "1 megapixel": 8, "12 megapixels": 4}
OWN = ("tflite", "int8")  # measured on fewer cores too, and compared with the engine alone
REFERENCE = "tflite"  # half of its load is the second load of all systems
CORES = (1, 2, 4)


def main() -> None:
    """Measure, store, and print."""
    arguments = _arguments()
    rounds, window_s = (1, 2.0) if arguments.smoke else (ROUNDS, WINDOW_S)
    begin = time.monotonic()
    systems = [system for system in SYSTEMS if not arguments.systems or system.name in arguments.systems]
    prepare_models()
    for name in {environment for system in systems for environment in system.environments}:
        install(name)
    results = describe(systems, window_s)
    with photo_origin() as (origin, pid):
        for number in range(rounds):
            round_begin = time.monotonic()
            print(f"==> Round {number + 1} of {rounds}, {round_begin - begin:.0f} s so far", flush=True)
            for kind, rates in engines_alone().items():
                for engine, rate in rates.items():
                    results["engines"][kind].setdefault(engine, []).append(rate)
            for system in systems:
                measure(system, origin, window_s, results)
            for cores in CORES:
                if cores < len(os.sched_getaffinity(0)):
                    with limited_to(cores, pid):
                        measure_on_cores(systems, cores, origin, window_s, results)
            results["rounds"] = number + 1
            if 2 * time.monotonic() - round_begin - begin > LIMIT_S:
                break
    results["took_s"] = round(time.monotonic() - begin)
    folder = report.RESULTS if not (arguments.smoke or arguments.systems) else CACHE
    folder.mkdir(exist_ok=True)
    name = report.name(results)
    report.write(results, folder / f"{name}.json")
    report.draw_chart(results, folder / f"{name}.png")
    print(report.tables(results))


def _arguments() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n\n")[0])
    names = ", ".join(system.name for system in SYSTEMS)
    parser.add_argument(
        "systems", nargs="*", help=f"measure only these of {names}; store nothing in benchmarks/results"
    )
    parser.add_argument("--smoke", action="store_true", help="measure one short round, to see that all of them run")
    return parser.parse_args()


def describe(systems: list[System], window_s: float) -> dict[str, Any]:
    """Return results without figures yet: the date, the machine, and what is measured."""
    environments = sorted({environment for system in systems for environment in system.environments})
    info = Path("/proc/cpuinfo").read_text()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.strip(),
        "machine": {
            "cpu": next(line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")),
            "instructions": [each for each in ("avx2", "avx512f", "avx_vnni", "avx512_vnni") if f" {each} " in info],
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "system": platform.platform(),
        },
        "python": platform.python_version(),
        "packages": {name: installed_packages(name) for name in environments},
        "model": "EfficientNet-Lite0, ImageNet, 224 px",
        "rounds": 0,
        "window_s": window_s,
        "photos": {
            photo: {"width": size[0], "height": size[1], "bytes": len(draw(*size)), "clients": CLIENTS[photo]}
            for photo, size in PHOTOS.items()
        },
        "engines": {"one_at_a_time": {}, "together": {}},
        "systems": {
            system.name: {
                "label": system.label,
                "install_mb": round(installed_bytes(system.environments) / 1e6),
                "wire_bytes": system.wire_bytes,
                "start_s": [],
                "memory_mb": [],
                "photos": {
                    photo: {"lone_ms": [], "per_second": [], "cpu_ms": [], "half_load": [], "reference_load": []}
                    for photo in PHOTOS
                },
            }
            for system in systems
        },
        "fewer_cores_per_second": {},
    }


@contextmanager
def photo_origin() -> Iterator[tuple[str, int]]:
    """Run the image host; yield its address and its process id."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.load", "origin", str(port)], cwd=ROOT) as process:
        try:
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


@contextmanager
def limited_to(cores: int, origin_pid: int) -> Iterator[None]:
    """Limit the systems, the load and the image host to a number of cores."""
    everything = os.sched_getaffinity(0)
    try:
        for pid in (0, origin_pid):
            os.sched_setaffinity(pid, sorted(everything)[:cores])
        yield
    finally:
        for pid in (0, origin_pid):
            os.sched_setaffinity(pid, everything)


def engines_alone() -> dict[str, dict[str, float]]:
    """Return images per second of each engine that the version has a file for, see `engines.print_rates`."""
    command = [sys.executable, "-m", "benchmarks.engines", str(STORE / MODEL / "1")]
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if alone.returncode:
        raise RuntimeError(f"The engines could not be measured:\n{alone.stderr[-2000:]}")
    return dict(json.loads(alone.stdout))


def measure(system: System, origin: str, window_s: float, results: dict[str, Any]) -> None:
    """Add one round of a system to the results."""
    figures = results["systems"][system.name]
    with started(system, origin, path("224 px")) as running:
        small = f"http://{origin}{path('224 px')}"
        load(running, "saturate", small, CLIENTS["224 px"], 1.0)  # so that there are graphs for all batch sizes
        memory_mb = []
        for photo, values in figures["photos"].items():
            url = f"http://{origin}{path(photo)}"
            cpu_s = running.cpu_s()
            answer, photo_mb = load(running, "saturate", url, CLIENTS[photo], window_s)
            memory_mb.append(photo_mb)
            values["cpu_ms"].append(round((running.cpu_s() - cpu_s) / answer["answers"] * 1000, 2))
            values["per_second"].append(round(answer["per_second"], 2))
            lone, _ = load(running, "saturate", url, 1, window_s / 2)
            values["lone_ms"].append(round(lone["p50_ms"], 2))
            values["half_load"].append(latency(running, url, answer["per_second"] / 2, window_s))
            reference = results["systems"].get(REFERENCE, figures)["photos"][photo]["per_second"][-1] / 2
            if system.name == REFERENCE:
                values["reference_load"].append(values["half_load"][-1])
            elif answer["per_second"] > reference:
                values["reference_load"].append(latency(running, url, reference, window_s))
            else:  # it would fall behind further and further, however long it is measured
                values["reference_load"].append(None)
    figures["top_1"] = running.top_1
    figures["start_s"].append(round(running.start_s, 2))
    figures["memory_mb"].append(round(max(memory_mb)))
    rates = ", ".join(f"{values['per_second'][-1]:.1f}" for values in figures["photos"].values())
    print(f"    {system.label}: {rates} requests/s", flush=True)


def measure_on_cores(systems: list[System], cores: int, origin: str, window_s: float, results: dict[str, Any]) -> None:
    """Add one round of this stack on fewer cores, 224 px photos."""
    rates = results["fewer_cores_per_second"].setdefault(str(cores), {})
    for system in systems:
        if system.name in OWN:
            with started(system, origin, path("224 px")) as running:
                url = f"http://{origin}{path('224 px')}"
                answer, _ = load(running, "saturate", url, CLIENTS["224 px"], window_s)
            rates.setdefault(system.name, []).append(round(answer["per_second"], 2))


def latency(running: Running, url: str, per_second: float, window_s: float) -> dict[str, Any]:
    """Return p50 and p99 at a rate, and of how many requests."""
    answer, _ = load(running, "pace", url, per_second, window_s)
    milliseconds = sorted(answer["milliseconds"])
    p99 = milliseconds[min(len(milliseconds) - 1, int(len(milliseconds) * 0.99))]
    return {
        "per_second": round(per_second, 2),
        "requests": len(milliseconds),
        "p50_ms": statistics.median(milliseconds),
        "p99_ms": p99,
    }


def load(running: Running, work: str, url: str, amount: float, window_s: float) -> tuple[dict[str, Any], float]:
    """Put a load on a system; return what the clients saw, and the most memory that the system had."""
    command = [sys.executable, "-m", "benchmarks.load", work, str(running.port), url, str(amount), str(window_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as clients:
        memory_mb = 0.0
        while True:
            try:
                output, _ = clients.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                memory_mb = max(memory_mb, running.memory_mb())
    if clients.returncode:
        raise RuntimeError(f"A request was not answered 200: the clients ended with exit status {clients.returncode}")
    return json.loads(output), memory_mb


if __name__ == "__main__":
    main()
