"""python -m serving as a process: start errors, signals, and life without TensorFlow."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract.tensor import to_array, to_proto
from tests.programs.stack import free_port, wait_until
from tests.serving.conftest import predict

# Runs the server in a Python that cannot import TensorFlow.
WITHOUT_TENSORFLOW = "import sys, runpy; sys.modules['tensorflow'] = None; sys.argv[0] = 'serving'; \
runpy.run_module('serving', run_name='__main__', alter_sys=True)"


class Process:
    """A server process, and the lines of its log so far."""

    def __init__(self, *flags):
        self.port = free_port()
        self.lines = []
        self._popen = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TENSORFLOW, f"--port={self.port}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self._popen.stdout), daemon=True)
        self._reader.start()
        self.pid, self.send_signal = self._popen.pid, self._popen.send_signal

    def wait_for(self, text, timeout_s=20):
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            assert self._popen.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def wait(self, timeout_s=20):
        status = self._popen.wait(timeout_s)
        self._reader.join()
        self._popen.stdout.close()
        return status, "".join(self.lines)

    def kill(self):
        self._popen.kill()
        self.wait()


@pytest.fixture
def serve():
    """A function that starts a server process; killed at the end if it still runs."""
    started = []

    def start(*flags):
        started.append(Process(*flags))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def images(count):
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="tiny"))
    request.inputs["images"].CopyFrom(to_proto(np.zeros((count, 16, 16, 3), np.uint8)))
    return request


def test_a_start_error_exits_with_255():
    """What is wrong is all that stderr has, and the exit status is TensorFlow Serving's."""
    command = [sys.executable, "-m", "serving", "--model_base_path=/m", "--port=x"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (255, "")
    assert ended.stderr.startswith(
        "Failed to start server. Error: INVALID_ARGUMENT: --port: Expected an integer from 0"
    )


def test_a_model_that_cannot_be_loaded_ends_the_start(serve, tmp_path):
    """After its retries the process ends with the reason."""
    (tmp_path / "1").mkdir()
    status, output = serve(
        f"--model_base_path={tmp_path}", "--max_num_load_retries=1", "--load_retry_interval_micros=1000"
    ).wait()
    assert status == 255
    assert (
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{{name: default version: 1} due to error: NOT_FOUND: Specified file path does not appear to contain a "
        "SavedModel bundle (should have a file called `saved_model.pb`)\n"
        f"Specified file path: {tmp_path}/1\nTo make a version of a .keras or .h5 file: python -m training export"
    ) in output


def test_a_saved_model_without_tensorflow_says_what_to_install(serve, tmp_path):
    """The error names the package that is missing."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    status, output = serve(f"--model_base_path={tmp_path}", "--max_num_load_retries=0").wait()
    assert status == 255
    assert "FAILED_PRECONDITION: The package tensorflow is not installed, which " in output


def test_an_empty_base_path_is_waited_for_until_a_signal(serve, tmp_path):
    """Without versions the port stays closed, each look warns, and SIGTERM ends the process cleanly."""
    process = serve(f"--model_base_path={tmp_path}", "--model_name=m")
    process.wait_for(f"No versions of servable m found under base path {tmp_path}. Did you forget to name your leaf")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", process.port), timeout=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait()[0] == 0


@pytest.mark.tensorflow
def test_it_serves_without_tensorflow(serve, tiny_store):
    """A version with a model.tflite is served by a process that cannot import TensorFlow."""
    process = serve("--model_name=tiny", f"--model_base_path={tiny_store}/tiny", "--enable_batching")
    process.wait_for(f"Running gRPC ModelServer at 0.0.0.0:{process.port} ...")
    with grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        response = predict(channel)(images(2), timeout=5)
    assert to_array(response.outputs["probabilities"]).shape == (2, 3)
    process.send_signal(signal.SIGINT)
    status, output = process.wait()
    assert status == 0
    assert "Ignored, as it has no effect here: --enable_batching" in output


@pytest.mark.tensorflow
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_it_listens_on_ipv6(serve, tiny_store, host):
    """Both ports take a bare address, or one in brackets."""
    rest = free_port()
    process = serve(
        f"--host={host}", "--model_name=tiny", f"--model_base_path={tiny_store}/tiny", f"--rest_api_port={rest}"
    )
    process.wait_for("Exporting HTTP/REST API")
    process.wait_for(f"Running gRPC ModelServer at [::1]:{process.port} ...")
    with grpc.insecure_channel(f"[::1]:{process.port}") as channel:
        assert to_array(predict(channel)(images(1), timeout=5).outputs["probabilities"]).shape == (1, 3)
    with urllib.request.urlopen(f"http://[::1]:{rest}/v1/models/tiny") as response:
        assert response.status == 200


@pytest.mark.tensorflow
def test_the_status_says_what_runs_a_version_and_a_restart_knows_it(serve, tiny_store, tmp_path, monkeypatch):
    """Of two TFLite files the first start measures which is faster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / "1")
    shutil.copy(tmp_path / "tiny" / "1" / "model.tflite", tmp_path / "tiny" / "1" / "model.int8.tflite")
    for when in ("measured at load", "measured at an earlier load"):
        rest = free_port()
        process = serve("--model_name=tiny", f"--model_base_path={tmp_path}/tiny", f"--rest_api_port={rest}")
        process.wait_for("Exporting HTTP/REST API")
        with urllib.request.urlopen(f"http://127.0.0.1:{rest}/v1/models/tiny") as response:
            (version,) = json.load(response)["model_version_status"]
        assert f" times the images/s of fp32, {when}" in version["engine"]
        process.kill()


@pytest.mark.tensorflow
def test_a_connection_ends_at_its_age_and_the_next_one_answers(serve, tiny_store):
    """A client looks up the address again when its connection ends; so it finds replicas that came later."""
    process = serve(
        "--model_name=tiny",
        f"--model_base_path={tiny_store}/tiny",
        "--host=127.0.0.2",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=300",
    )
    process.wait_for(f"Running gRPC ModelServer at 127.0.0.2:{process.port} ...")
    with grpc.insecure_channel(f"127.0.0.2:{process.port}") as channel:
        predict(channel)(images(1), timeout=5)
        ended = threading.Event()
        channel.subscribe(lambda state: ended.set() if state is grpc.ChannelConnectivity.IDLE else None)
        assert ended.wait(10)
        predict(channel)(images(1), timeout=5)


@pytest.mark.tensorflow
def test_all_of_its_threads_run_as_batch(serve, tiny_store):
    """The engine's and gRPC's threads too: some are there before the policy is set, others come later."""
    server = serve("--model_name=tiny", f"--model_base_path={tiny_store}/tiny")
    server.wait_for("Running gRPC ModelServer")
    threads = [int(task.name) for task in Path(f"/proc/{server.pid}/task").iterdir()]
    assert len(threads) > 1
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


@pytest.fixture
def slow_model(tmp_path):
    """The path of a model that works for seconds on an image."""
    import tensorflow as tf

    class Slow(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.uint8, name="images")])
        def predict(self, images):
            square = tf.cast(images[0, 0, 0, 0], tf.float32) + tf.zeros((256, 256))
            for _ in tf.range(6000):
                square = tf.sin(tf.matmul(square, square))
            return {"probabilities": square[:1, :3]}

    slow = Slow()
    tf.saved_model.save(slow, str(tmp_path / "saved"), signatures={"serving_default": slow.predict})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"), signature_keys=["serving_default"])
    version = tmp_path / "tiny" / "1"
    version.mkdir(parents=True)
    (version / "model.tflite").write_bytes(converter.convert())
    return version.parent


def cpu_s(pid):
    """Return how many seconds of a processor each thread of a process has used."""
    used = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            used[stat.parent.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def refuses_connections(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.tensorflow
def test_sigterm_drains(serve, slow_model):
    """A request under way is answered after SIGTERM, even if the signal comes twice, and the process exits with 0.

    Who comes meanwhile is refused at once, also by REST, and who is there but asks nothing is not awaited.
    """
    rest = free_port()
    flags = "--model_name=tiny", f"--model_base_path={slow_model}", f"--rest_api_port={rest}", "--drain_seconds=1e10"
    process = serve(*flags)
    process.wait_for(f"Exporting HTTP/REST API at:localhost:{rest} ...")
    query = urllib.request.Request(
        f"http://127.0.0.1:{rest}/v1/models/tiny:predict", json.dumps({"instances": [[[[0] * 3] * 16] * 16]}).encode()
    )
    idle = socket.create_connection(("127.0.0.1", rest))
    with idle, grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel, ThreadPoolExecutor() as pool:
        before = cpu_s(process.pid)
        running = predict(channel).future(images(1), timeout=60)
        by_rest = pool.submit(urllib.request.urlopen, query, timeout=60)
        wait_until(lambda: sum(s - before.get(thread, 0) > 0.2 for thread, s in cpu_s(process.pid).items()) >= 2, 30)
        process.send_signal(signal.SIGTERM)
        process.wait_for("Draining")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(rest))
        assert not running.done()
        assert to_array(running.result().outputs["probabilities"]).shape == (1, 3)
        with by_rest.result() as response:
            assert len(json.load(response)["predictions"][0]) == 3
        assert process.wait()[0] == 0
