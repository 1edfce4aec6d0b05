"""Runs one version of a model: TFLite where the version has a file of it, TensorFlow otherwise. Free of gRPC."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.tensor import data_type
from serving.errors import (
    Code,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    GraphError,
    InvalidArgumentError,
    NotFoundError,
)

ENGINES = ("auto", "int8", "tflite", "tensorflow")
TFLITE_FILES = {"int8": "model.int8.tflite", "tflite": "model.tflite"}  # the fastest first
SAVED_MODEL_FILE = "saved_model.pb"

# What running a graph from Python adds around the message that TensorFlow Serving would give.
_EAGER_WRAPPING = re.compile(r"^\{\{function_node [^}]*\}\} | \[Op:[^]]*\]$")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        dtype: Type on the wire.
        shape: None stands for any size; a shape of None for any rank.
        name: The tensor's name inside the graph.
    """

    dtype: messages.DataType
    shape: tuple[int | None, ...] | None
    name: str


@dataclass(frozen=True)
class Signature:
    """One function of a model: the tensors that it takes and returns, by alias."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class Engine(Protocol):
    """A loaded version. Safe to call from many threads at once."""

    @property
    def signatures(self) -> Mapping[str, Signature]: ...

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return every output of a signature; strings are bytes in object arrays.

        The inputs have the names, types and ranks of the signature: `serving.prediction` checks that before.

        Raises:
            DeadlineExceededError: `timeout_s` seconds went by before the run could begin.
            ServingError: The model failed.
        """


def open_engine(directory: Path, engine: str, threads: int, runs: int = 1) -> Engine:
    """Load the version in a directory.

    Args:
        directory: Holds a TFLite file, or saved_model.pb with what belongs to it.
        engine: `int8`, `tflite` (fp32), `tensorflow`, or `auto`, the first of these that there is: TFLite is two to
            three times as fast on a CPU (EfficientNet-Lite0 on 2 cores: 184 images/s, frozen SavedModel 70), and an
            int8 file is released only where its accuracy was measured and found good.
        threads: Threads that one run may use.
        runs: Runs at a time, of TFLite; TensorFlow has no such limit.

    Raises:
        NotFoundError: The directory does not hold the file that the engine needs.
        FailedPreconditionError: The engine's package is not installed.
        ServingError: The model cannot be loaded.
    """
    if engine in TFLITE_FILES and not (directory / TFLITE_FILES[engine]).is_file():
        raise NotFoundError(f"Expected a file {TFLITE_FILES[engine]} for --engine={engine}. None in: {directory}")
    for name, file in TFLITE_FILES.items():
        if engine in (name, "auto") and (directory / file).is_file():
            return TFLiteEngine(directory / file, threads, runs)
    if not (directory / SAVED_MODEL_FILE).is_file():
        also = "" if engine == "tensorflow" else f" or a TFLite model (`{TFLITE_FILES['tflite']}`)"
        raise NotFoundError(
            f"Specified file path does not appear to contain a SavedModel bundle "
            f"(should have a file called `{SAVED_MODEL_FILE}`){also}\nSpecified file path: {directory}"
        )
    return TensorFlowEngine(directory, threads)


class TFLiteEngine:
    """A few TFLite interpreters of one model; a request has one of them, and each row of its batch runs alone.

    On 2 cores without AVX-512, EfficientNet-Lite0: one interpreter with two threads 97 images/s and 18 ms of CPU each,
    for its threads wait for one another; two with one thread 131 and 15. In the whole stack, 62, 78, and with a third
    one, while the others hand over, 82 requests/s; a request that is alone takes 2 ms longer (24 and 26). Each takes
    27 MB. Batches are slower than rows (with AVX-512 and two threads, 155 and 184 images/s), and keep more memory.
    """

    def __init__(self, model: Path, threads: int, runs: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as exc:
            raise FailedPreconditionError(
                f"Expected the package ai-edge-litert, which {model} needs. It is not installed ({exc})"
            ) from exc
        # The one that was used last has its memory in the caches.
        self._idle: queue.LifoQueue[dict[str, Any]] = queue.LifoQueue()
        try:
            content = model.read_bytes()  # not its path: a mapped file that is overwritten in place is a SIGBUS
            for _ in range(runs):
                interpreter = Interpreter(model_content=content, num_threads=threads)
                runners = {key: interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()}
                self._idle.put(runners)
            self.signatures: Mapping[str, Signature] = {
                key: Signature(_tflite_specs(runner.get_input_details()), _tflite_specs(runner.get_output_details()))
                for key, runner in runners.items()
            }
        except (OSError, ValueError, RuntimeError) as exc:
            raise DataLossError(f"Expected a TFLite model in {model}. {exc}") from exc
        if not self.signatures:
            raise FailedPreconditionError(f"Expected a TFLite model with signatures. None in: {model}")

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        rows = _rows(inputs)
        timeout_s = threading.TIMEOUT_MAX if timeout_s is None else min(max(timeout_s, 0), threading.TIMEOUT_MAX)
        deadline = time.monotonic() + timeout_s
        try:
            runners = self._idle.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceededError("Deadline exceeded while waiting for the engine") from None
        try:
            results = [self._run_row(runners[signature], row, deadline) for row in rows]
        finally:
            self._idle.put(runners)
        return {alias: np.concatenate([result[alias] for result in results]) for alias in results[0]}

    def _run_row(self, runner: Any, row: dict[str, NDArray[Any]], deadline: float) -> dict[str, NDArray[Any]]:
        if time.monotonic() > deadline:
            raise DeadlineExceededError("Deadline exceeded between the rows of a batch")
        try:
            result: dict[str, NDArray[Any]] = runner(**row)
        except (ValueError, RuntimeError) as exc:
            raise GraphError(Code.INTERNAL, str(exc)) from exc
        return result


def _rows(inputs: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    if not inputs:
        return [{}]
    sizes = {alias: len(array) for alias, array in inputs.items()}
    count = max(sizes.values())
    if count == 0 or any(size != count for size in sizes.values()):
        raise InvalidArgumentError(f"Expected inputs of one common number of rows, at least 1. Received: {sizes}")
    return [{alias: array[i : i + 1] for alias, array in inputs.items()} for i in range(count)]


def _tflite_specs(details: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorSpec]:
    # A model converted for one row says 1 where another says -1; rows run one by one here, so both take any number.
    return {
        alias: TensorSpec(
            data_type(np.dtype(detail["dtype"])), (None, *_sizes(detail["shape_signature"][1:])), detail["name"]
        )
        for alias, detail in details.items()
    }


def _sizes(dims: Any) -> Iterator[int | None]:
    return (int(size) if size >= 0 else None for size in dims)


class TensorFlowEngine:
    """A SavedModel, through TensorFlow, which is imported here and nowhere else in serving."""

    def __init__(self, directory: Path, threads: int) -> None:
        try:
            import tensorflow as tf
            from tensorflow.core.protobuf import saved_model_pb2
        except ImportError as exc:
            raise FailedPreconditionError(
                f"Expected the package tensorflow, which {directory / SAVED_MODEL_FILE} needs, "
                f"or a {TFLITE_FILES['tflite']} beside it. It is not installed ({exc})"
            ) from exc
        self._tf = tf
        self._limit_threads(threads)
        try:
            bundle = saved_model_pb2.SavedModel.FromString((directory / SAVED_MODEL_FILE).read_bytes())
            self._model = tf.saved_model.load(str(directory), tags="serve")
        except Exception as exc:  # protobuf and the loader raise nearly anything on bad content
            raise DataLossError(f"Expected a SavedModel with the tag `serve` in {directory}. {exc}") from exc
        graph = next(graph for graph in bundle.meta_graphs if list(graph.meta_info_def.tags) == ["serve"])
        # The bundle also lists pseudo-signatures such as __saved_model_init_op; the loaded model knows the callable.
        self.signatures: Mapping[str, Signature] = {
            key: Signature(_tensorflow_specs(definition.inputs), _tensorflow_specs(definition.outputs))
            for key, definition in graph.signature_def.items()
            if key in self._model.signatures
        }

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        # TensorFlow runs concurrent calls side by side, so nothing waits here that a deadline could end.
        with self._graph_errors():
            tensors = {alias: self._tf.constant(array) for alias, array in inputs.items()}
            outputs = self._model.signatures[signature](**tensors)
        return {alias: _to_numpy(tensor.numpy()) for alias, tensor in outputs.items()}

    def _limit_threads(self, threads: int) -> None:
        try:
            self._tf.config.threading.set_intra_op_parallelism_threads(threads)
            self._tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError:  # TensorFlow is already in use, as in training: its threads stay as they are
            return

    @contextmanager
    def _graph_errors(self) -> Iterator[None]:
        try:
            yield
        except self._tf.errors.OpError as exc:
            raise GraphError(Code(exc.error_code), _EAGER_WRAPPING.sub("", exc.message)) from exc
        except (TypeError, ValueError) as exc:
            raise InvalidArgumentError(str(exc)) from exc


def _tensorflow_specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        alias: TensorSpec(
            info.dtype,
            None if info.tensor_shape.unknown_rank else tuple(_sizes(dim.size for dim in info.tensor_shape.dim)),
            info.name,
        )
        for alias, info in infos.items()
    }


def _to_numpy(value: Any) -> NDArray[Any]:
    # A scalar string comes as bytes, and NumPy would cut its trailing zero bytes.
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)
