"""The systems that are compared: how each is installed, started and stopped, and which memory and CPU it takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import draw
from contract import tensor
from tests.programs.stack import free_port

ROOT = Path(__file__).parent.parent
MODEL, ARCHITECTURE = "imagenet", "efficientnet-lite0"
PEERS, CACHE = ROOT / "benchmarks" / "peers", ROOT / ".cache" / "peers"
MODELS = CACHE / "models"  # the same network in three forms: this project's store, Keras' export, and a Keras file
STORE, PLAIN_STORE, KERAS_FILE = MODELS / "store", MODELS / "plain", MODELS / "model.keras"
START_TIMEOUT_S, ANSWERS_IN_A_ROW = 120.0, 16
STOP_TIMEOUT_S = 5.0  # LitServe does not end by itself


@dataclass(frozen=True)
class Program:
    """A process of a system.

    Attributes:
        environment: Where it is installed: the name of its file of requirements in `peers/`.
        command: What is run from that environment; `{port}` and the like are filled in.
        variables: Its environment variables, filled in the same way.
    """

    environment: str
    command: str
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """One way to answer image URLs; `wire` is the type in which pixels go to a model server, if there is one."""

    name: str
    label: str
    programs: tuple[Program, ...]
    wire: str | None = None

    @property
    def environments(self) -> list[str]:
        """The environments that must be installed."""
        return list(dict.fromkeys(program.environment for program in self.programs))

    @property
    def wire_bytes(self) -> int | None:
        """Bytes of one image's message to the model server."""
        return tensor.to_proto(np.zeros((1, 224, 224, 3), self.wire)).ByteSize() if self.wire else None


def _stack(engine: str, label: str, environment: str = "image_classifier") -> System:
    """Return this stack, started as `make run` does."""
    serving = (
        f"python -m serving --model_name={MODEL} --model_base_path={STORE / MODEL} --engine={engine}"
        " --port=0 --grpc_socket_path={folder}/model.sock --grpc_max_threads=64"
    )
    gateway = {
        "GATEWAY_PORT": "{port}",
        "GATEWAY_MODEL_NAME": MODEL,
        "GATEWAY_MODEL_ADDRESS": "unix:{folder}/model.sock",
        "GATEWAY_FETCH_ALLOW": "{origin}",
    }
    programs = (Program(environment, serving), Program(environment, "python -m gateway", gateway))
    return System(engine, f"this stack, {label}", programs, "uint8")


def _book(name: str, label: str, options: str = "") -> System:
    """Return the gateway of Machine Learning Bookcamp, on this project's server in place of TensorFlow Serving."""
    serving = (
        f"python -m serving --model_name={MODEL} --model_base_path={PLAIN_STORE} --engine=tensorflow"
        " --port={model_port} --grpc_max_threads=64"
    )
    gateway = f"gunicorn --no-control-socket --chdir {PEERS} --bind 127.0.0.1:{{port}} {options} flask_book:app"
    programs = (
        Program("image_classifier_tensorflow", serving),
        Program("flask_book", gateway, {"TF_SERVING_HOST": "127.0.0.1:{model_port}"}),
    )
    return System(name, label, programs, "float32")


SYSTEMS = (
    _stack("tflite", "TFLite fp32"),
    _stack("int8", "TFLite int8"),
    _stack("tensorflow", "TensorFlow", "image_classifier_tensorflow"),
    System(
        "fastapi",
        "FastAPI, Keras in the process",
        (Program("fastapi_keras", f"uvicorn --app-dir {PEERS} --port {{port}} --no-access-log fastapi_keras:app"),),
    ),
    _book("book", "Machine Learning Bookcamp, as written*"),
    _book("book-2x8", "Machine Learning Bookcamp, 2 workers × 8 threads*", "--workers 2 --threads 8"),
    System(
        "litserve",
        "LitServe, batches of up to 8",
        (Program("litserve_keras", f"python {PEERS / 'litserve_keras.py'}", {"PORT": "{port}"}),),
    ),
    System(
        "bentoml",
        "BentoML, a worker for each core",
        (
            Program(
                "bentoml_keras",
                f"bentoml serve --working-dir {PEERS} --port {{port}} bentoml_keras:Classifier",
                {"BENTOML_HOME": "{folder}", "BENTOML_DO_NOT_TRACK": "true"},
            ),
        ),
    ),
)


def prepare_models() -> None:
    """Write what the systems load, once."""
    if not KERAS_FILE.is_file():
        writing = multiprocessing.get_context("spawn").Process(target=_write_models)  # TensorFlow ends with it
        writing.start()
        writing.join()
        if writing.exitcode:
            raise RuntimeError(f"The models could not be written: exit status {writing.exitcode}")


def _write_models() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    from contract.document import Contract
    from training.data.folder import Photo
    from training.data.pixels import Photos
    from training.models.catalogue import find_architecture, imagenet_classes
    from training.release.criteria import Criteria
    from training.release.sources import Source, release

    shutil.rmtree(MODELS, ignore_errors=True)
    photo = MODELS / "noise.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(draw(224, 224))
    # int8 is calibrated on noise and released in any case: this shows how fast it is, and nothing about its accuracy.
    noise = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    photos = Photos(MODELS, MODELS)
    anything = Criteria(photos, noise, [Photo(photo, 0)], "noise", int8_drop=1.0, margin=None)
    architecture = find_architecture(ARCHITECTURE)
    model = architecture.classifier("imagenet")
    contract = Contract(MODEL, imagenet_classes(), architecture.imagenet_spec)
    release(Source(model, contract), STORE, anything)
    model.export(PLAIN_STORE / "1", verbose=False)
    model.save(KERAS_FILE)  # last: without it, all is written again


def install(environment: str) -> Path:
    """Return an environment, made by uv when its requirements are new."""
    home, requirements = CACHE / environment, PEERS / f"{environment}.txt"
    stamp = home / "installed.txt"
    if not (stamp.is_file() and stamp.read_text() == requirements.read_text()):
        print(f"==> Installing {environment}", flush=True)
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
        python: list[str | Path] = ["--python", home / "bin" / "python"]
        subprocess.run([uv, "pip", "install", "--quiet", *python, "--requirements", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return home


def installed_packages(environment: str) -> str:
    """Return the packages of an environment, `name==version` with a space between."""
    uv, python = Path(sys.executable).with_name("uv"), CACHE / environment / "bin" / "python"
    command: list[str | Path] = [uv, "pip", "freeze", "--python", python]
    return " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def installed_bytes(environments: list[str]) -> int:
    """Return the size of environments on disk, without the byte code that Python writes as it runs."""
    files = (path for name in environments for path in (CACHE / name).rglob("*") if "__pycache__" not in path.parts)
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


@dataclass
class Running:
    """A system that answers; `top_1` is its first prediction for the photo."""

    port: int
    processes: list[subprocess.Popen[bytes]]
    start_s: float = 0.0
    top_1: dict[str, Any] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """Return its processes, with those that they started."""
        children = defaultdict(list)
        for pid, fields in _processes():
            children[int(fields[1])].append(pid)
        found = [process.pid for process in self.processes]
        for pid in found:  # grows as it goes
            found += children[pid]
        return found

    def cpu_s(self) -> float:
        """Return the processor time that it and its children have used."""
        members = set(self.pids())
        ticks = sum(sum(map(int, fields[11:15])) for pid, fields in _processes() if pid in members)
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Return the memory that it has now, pages that processes share counted once (PSS)."""
        return sum(_pss_bytes(pid) for pid in self.pids()) / 1e6


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield each process id, and the fields of its `stat` after the name. Source: proc_pid_stat(5)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@contextmanager
def started(system: System, origin: str, path: str) -> Iterator[Running]:
    """Run a system; yield it once it has answered, and stop all of its processes at the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-"))
        log = stack.enter_context((CACHE / f"{system.name}.log").open("w"))
        places: dict[str, Any] = {"port": free_port(), "model_port": free_port(), "folder": folder, "origin": origin}
        running, begin = Running(int(places["port"]), []), time.perf_counter()
        stack.callback(_stop, running)
        for program in system.programs:
            command = shlex.split(program.command.format(**places))
            command[0] = str(CACHE / program.environment / "bin" / command[0])
            variables = {name: value.format(**places) for name, value in program.variables.items()}
            quiet = {"MODEL": str(KERAS_FILE), "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
            environ = {**os.environ, **quiet, **variables}
            running.processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log))
        running.start_s = _first_answer(system, running, f"http://{origin}{path}", begin + START_TIMEOUT_S) - begin
        yield running


def _first_answer(system: System, running: Running, url: str, deadline: float) -> float:
    """Return when the system gave its first answer; wait for more, because others of its workers may start later."""
    body = json.dumps({"url": url}).encode()
    query = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/predict", body, {"Content-Type": "application/json"}
    )
    answers: list[float] = []  # when each came
    while len(answers) < ANSWERS_IN_A_ROW:
        try:
            with urllib.request.urlopen(query, timeout=30) as response:
                running.top_1, *others = json.load(response)["predictions"]
                if len(others) == 4:
                    answers.append(time.perf_counter())
                    continue
        except OSError:
            time.sleep(0.1)
            answers.clear()
        ended = [process.returncode for process in running.processes if process.poll() is not None]
        if ended or time.perf_counter() > deadline:
            log = (CACHE / f"{system.name}.log").read_text()[-2000:]
            raise RuntimeError(
                f"{system.label} did not answer within {START_TIMEOUT_S:g} s (exit status: {ended or 'none'})\n{log}"
            )
    return answers[0]


def _stop(running: Running) -> None:
    members = running.pids()
    for process in reversed(running.processes):
        process.terminate()
    for process in running.processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in members:  # those that outlived their parent
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
