"""`make profile`: where the CPU time of a request goes on the live stack, and the share that is not the model.

The stack runs as `make run` starts it, but for a clock that is put around each stage here, not in the product: the CPU
time of the thread that is in the stage, less that of stages inside it. Waiting, as for the model's queue, takes none.
What runs in other threads is told by thread: the gateway's event loops, and the engine's workers. The rest is gRPC's
own threads, and Python's around all of it. The clocks take 0.01 ms of a request.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import runpy
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STAGES = {
    "gateway": {
        "fetch": "gateway.fetch.fetcher:Fetcher.fetch",
        "decode, resize": "gateway.stages:decode",
        "call the model server: serialise, send, parse": "gateway.model.client:ModelClient.predict",
        "answer: Flask, JSON, log, metrics": "gateway.server.front:Front._run",
    },
    "serving": {
        "check, encode": "serving.service:Service.predict",
        "model": "serving.engines:TFLiteEngine.run",
    },
}
FOLDER = "PROFILE_FOLDER"  # where each process writes its seconds
WORKERS = "workers"
WINDOW_S = 10.0


def run_program(program: str) -> None:
    """Run one of the programs with a clock around its stages."""
    inside, adding = threading.local(), threading.Lock()
    seconds: dict[int, Any] = {}

    def add(stage: int, spent_s: float) -> None:
        with adding:
            pid = os.getpid()  # gunicorn's workers are forks
            if pid not in seconds:
                file = Path(os.environ[FOLDER]) / f"{program}-{pid}"
                seconds[pid] = np.memmap(file, np.float64, "w+", shape=len(STAGES[program]))
            seconds[pid][stage] += spent_s

    def timed(stage: int, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            outer_s, inside.s = getattr(inside, "s", 0.0), 0.0
            started = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent_s = time.thread_time() - started
                add(stage, spent_s - inside.s)
                inside.s = outer_s + spent_s

        return run

    for stage, place in enumerate(STAGES[program].values()):
        module, _, name = place.partition(":")
        *owner, name = name.split(".")
        target = functools.reduce(getattr, owner, importlib.import_module(module))
        setattr(target, name, timed(stage, getattr(target, name)))
    if program == "serving":
        threading.Thread(target=note_workers, daemon=True).start()
    runpy.run_module(program, run_name="__main__", alter_sys=True)


def note_workers() -> None:
    """Write down, time and again, the threads of the engine: neither Python's own, nor gRPC's, which have names."""
    name = Path("/proc/self/comm").read_text()
    while True:
        own = {str(thread.native_id) for thread in threading.enumerate()}
        tasks = [task for task in Path("/proc/self/task").iterdir() if task.name not in own]
        workers = [task.name for task in tasks if (task / "comm").read_text() == name]
        (Path(os.environ[FOLDER]) / WORKERS).write_text(" ".join(workers))
        time.sleep(1)


def main() -> None:
    """Measure with each photo, and print a table."""
    from benchmarks.compare import CLIENTS, load, photo_origin
    from benchmarks.load import path
    from benchmarks.systems import SYSTEMS, install, prepare_models, started

    prepare_models()
    system = next(system for system in SYSTEMS if system.name == "tflite")
    for environment in system.environments:
        install(environment)
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, photo_origin() as (origin, _):
        programs = [
            dataclasses.replace(
                each,
                command=each.command.replace("python -m ", "python -m benchmarks.profile "),
                variables={**each.variables, FOLDER: folder},
            )
            for each in system.programs
        ]
        system = dataclasses.replace(system, programs=tuple(programs))
        with started(system, origin, path("224 px")) as running:
            for photo, clients in CLIENTS.items():
                before = stages(running, Path(folder))
                answer, _ = load(running, "saturate", f"http://{origin}{path(photo)}", clients, WINDOW_S)
                after = stages(running, Path(folder))
                columns[photo] = {key: (after[key] - before[key]) / answer["answers"] * 1000 for key in after}
    report(system.label, columns)


def stages(running: Any, folder: Path) -> dict[str, float]:
    """Return CPU seconds of each stage until now."""
    serving, gateway = (dataclasses.replace(running, processes=[process]) for process in running.processes)
    spent = {program: np.sum([np.fromfile(file) for file in folder.glob(f"{program}-*")], 0) for program in STAGES}
    named = {program: dict(zip(places, map(float, spent[program]), strict=True)) for program, places in STAGES.items()}
    loops_s = sum(thread_s(pid, pid) for pid in gateway.pids())
    (server,) = serving.pids()
    named["serving"]["model"] += sum(thread_s(server, int(each)) for each in (folder / WORKERS).read_text().split())
    return {
        "accept, parse, send: the event loops": loops_s,
        **named["gateway"],
        "gRPC's threads and Python's own, gateway": gateway.cpu_s() - loops_s - sum(named["gateway"].values()),
        **named["serving"],
        "gRPC's threads and Python's own, model server": serving.cpu_s() - sum(named["serving"].values()),
    }


def thread_s(pid: int, thread: int) -> float:
    """Return the processor time of one thread."""
    fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(label: str, columns: dict[str, dict[str, float]]) -> None:
    """Print milliseconds an answer by stage and photo, and the share that is not the model."""
    print(f"\n{f'{label}: CPU ms an answer':52}" + "".join(f"{photo:>16}" for photo in columns))
    for stage in next(iter(columns.values())):
        print(f"{stage:52}" + "".join(f"{column[stage]:16.2f}" for column in columns.values()))
    totals = [sum(column.values()) for column in columns.values()]
    print(f"{'all':52}" + "".join(f"{total:16.2f}" for total in totals))
    shares = [100 * (1 - column["model"] / total) for column, total in zip(columns.values(), totals, strict=True)]
    print(f"{'not the model':52}" + "".join(f"{share:14.0f} %" for share in shares))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in STAGES:
        program = sys.argv.pop(1)
        run_program(program)
    else:
        main()
