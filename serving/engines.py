"""Runs one version of a model: TFLite where the version has a file of it, TensorFlow otherwise. Free of gRPC."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.messages_pb2 import Code
from contract.tensor import data_type
from serving.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    GraphError,
    InvalidArgumentError,
    NotFoundError,
)

ENGINES = ("auto", "int8", "tflite", "tensorflow")
# In the order in which `open_engine` looks for them; the server asks `choice` first, which measures.
TFLITE_FILES = {"int8": "model.int8.tflite", "tflite": "model.tflite"}
SAVED_MODEL_FILE = "saved_model.pb"

# Inputs with so many dimensions have the shape that the signature declares. TensorFlow Serving leaves all shapes to the
# graph. Where oneDNN is on, a convolution of a lower rank than it expects then aborts the process, and a fully
# convolutional model answers another height and width wrongly without a word. With fewer, the graph decides here too.
IMAGE_RANK = 3

# What running a graph from Python adds around the message that TensorFlow Serving would give.
_EAGER_WRAPPING = re.compile(r"^\{\{function_node [^}]*\}\} |\{\{function_node [^}]*\}\}(?=\{\{node )| \[Op:[^]]*\]$")


class Engine(Protocol):
    """A loaded version. Safe to call from many threads at once.

    Attributes:
        choice: Which engine it is, and why, for people; empty if nobody chose.
        clock: Seconds, whose growth in a thread that runs it is the run's, without waiting for a turn. Those of one
            kind of engine can be compared.
    """

    choice: str
    clock: Callable[[], float]

    @property
    def signatures(self) -> Mapping[str, messages.SignatureDef]:
        """What the version can be asked, by key: names, types and shapes of the inputs and outputs."""

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return every output of a signature; strings are bytes in object arrays.

        `serving.prediction` has checked that the inputs have the names and types of the signature.

        Raises:
            InvalidArgumentError: The shape of an input does not fit.
            DeadlineExceededError: The run could not begin within `timeout_s` seconds.
            ServingError: The model failed.
        """


def open_engine(directory: Path, engine: str, threads: int, runs: int = 1) -> Engine:
    """Load the version in a directory.

    Args:
        directory: Contains a TFLite file, or saved_model.pb with what belongs to it.
        engine: `int8`, `tflite` (fp32), `tensorflow`, or `auto`: the first of these for which there is a file. TFLite
            is two to three times as fast as a SavedModel on a CPU (EfficientNet-Lite0 on 2 cores: 184 and 70 images/s).
        threads: Threads that one run may use.
        runs: Runs at a time, of TFLite; TensorFlow has no such limit.

    Raises:
        NotFoundError: The directory does not contain the file that the engine needs.
        FailedPreconditionError: The engine's package is not installed.
        ServingError: The model cannot be loaded.
    """
    if engine in TFLITE_FILES and not (directory / TFLITE_FILES[engine]).is_file():
        raise NotFoundError(f"Expected a file {TFLITE_FILES[engine]} for --engine={engine}. None in: {directory}")
    for name, file in TFLITE_FILES.items():
        if engine in (name, "auto") and (directory / file).is_file():
            return TFLiteEngine(directory / file, threads, runs)
    if not (directory / SAVED_MODEL_FILE).is_file():
        raise NotFoundError(
            f"Specified file path does not appear to contain a SavedModel bundle "
            f"(should have a file called `{SAVED_MODEL_FILE}`)\nSpecified file path: {directory}\n"
            "To make a version of a .keras or .h5 file: python -m training export --weights FILE"
        )
    return TensorFlowEngine(directory, threads)


class TFLiteEngine:
    """A few TFLite interpreters of one model; each request gets one of them, and each row of its batch runs alone."""

    # Why several interpreters of one thread, and one more than there are cores. EfficientNet-Lite0, 2 cores without
    # AVX-512; an interpreter takes 27 MB.
    #
    #   interpreters x threads    engine alone              whole stack     a request alone
    #   1 x 2                      97 images/s, 18 ms CPU   62 requests/s   24 ms
    #   2 x 1                     131 images/s, 15 ms CPU   78 requests/s
    #   3 x 1                                               82 requests/s   26 ms
    #
    # Rows, because a batch is slower (155 and 184 images/s with AVX-512, 1 x 2) and keeps more memory.

    choice = ""
    clock = staticmethod(time.thread_time)

    def __init__(self, model: Path, threads: int, runs: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as exc:
            raise FailedPreconditionError(
                f"The package ai-edge-litert is not installed, which {model} needs ({exc})"
            ) from exc
        # The one that was used last has its memory in the caches.
        self._idle: queue.LifoQueue[dict[str, Any]] = queue.LifoQueue()
        try:
            content = model.read_bytes()  # not its path: a mapped file that is overwritten in place is a SIGBUS
            for _ in range(runs):
                interpreter = Interpreter(model_content=content, num_threads=threads)
                runners = {key: interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()}
                self._idle.put(runners)
            self.signatures: Mapping[str, messages.SignatureDef] = {
                key: messages.SignatureDef(
                    inputs=_tensor_infos(runner.get_input_details()),
                    outputs=_tensor_infos(runner.get_output_details()),
                    method_name="tensorflow/serving/predict",
                )
                for key, runner in runners.items()
            }
        except (OSError, ValueError, RuntimeError) as exc:
            raise DataLossError(f"Expected a TFLite model in {model}. {exc}") from exc
        if not self.signatures:
            raise FailedPreconditionError(f"Expected a TFLite model with signatures. None in: {model}")

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        _check_shapes(inputs, self.signatures[signature].inputs)
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


def _check_shapes(inputs: Mapping[str, NDArray[Any]], infos: Mapping[str, messages.TensorInfo]) -> None:
    """Refuse a wrong rank, a wrong size and an empty batch."""
    for alias, array in inputs.items():
        declared = infos[alias].tensor_shape
        expected = [dim.size for dim in declared.dim]  # -1 for any size
        fits = len(array.shape) == len(expected) and all(
            a in (-1, b) for a, b in zip(expected, array.shape, strict=True)
        )
        batched = expected[:1] == [-1]
        if declared.unknown_rank or (fits and not (batched and array.shape[0] == 0)):
            continue
        sizes = ["any" if size == -1 else str(size) for size in expected]
        if batched:
            sizes[0] = "n"
        shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        rows = " with n >= 1" if batched else ""
        raise InvalidArgumentError(f"Expected {alias} of shape {shape}{rows}. Received: {array.shape}")


def _rows(inputs: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    if not inputs:
        return [{}]
    sizes = {alias: len(array) for alias, array in inputs.items()}
    count = max(sizes.values())
    if count == 0 or any(size != count for size in sizes.values()):
        raise InvalidArgumentError(f"Expected inputs of one common number of rows, at least 1. Received: {sizes}")
    return [{alias: array[i : i + 1] for alias, array in inputs.items()} for i in range(count)]


def _tensor_infos(details: Mapping[str, Mapping[str, Any]]) -> dict[str, messages.TensorInfo]:
    infos = {}
    for alias, detail in details.items():
        # A model converted for one row says 1 where another says -1; rows run one by one here, so both take any number.
        sizes = [-1, *map(int, detail["shape_signature"][1:])]
        shape = messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=size) for size in sizes])
        dtype = data_type(np.dtype(detail["dtype"]))
        infos[alias] = messages.TensorInfo(name=detail["name"], dtype=dtype, tensor_shape=shape)
    return infos


class TensorFlowEngine:
    """A SavedModel, through TensorFlow, which is imported here and nowhere else in serving."""

    choice = ""
    clock = staticmethod(time.perf_counter)  # its own threads run it, side by side with others

    def __init__(self, directory: Path, threads: int) -> None:
        try:
            import tensorflow as tf
            from tensorflow.core.protobuf import saved_model_pb2
        except ImportError as exc:
            raise FailedPreconditionError(
                f"The package tensorflow is not installed, which {directory / SAVED_MODEL_FILE} needs where there is"
                f" no {TFLITE_FILES['tflite']} beside it ({exc})"
            ) from exc
        self._tf = tf
        with suppress(RuntimeError):  # TensorFlow is already in use, as in training: its threads stay as they are
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        try:
            bundle = saved_model_pb2.SavedModel.FromString((directory / SAVED_MODEL_FILE).read_bytes())
            self._model = tf.saved_model.load(str(directory), tags="serve")
        except Exception as exc:  # protobuf and the loader raise nearly anything on bad content
            raise DataLossError(f"Expected a SavedModel with the tag `serve` in {directory}. {exc}") from exc
        graph = next(graph for graph in bundle.meta_graphs if list(graph.meta_info_def.tags) == ["serve"])
        # The bundle also lists pseudo-signatures such as __saved_model_init_op; the loaded model knows the callable.
        self.signatures: Mapping[str, messages.SignatureDef] = {
            key: messages.SignatureDef.FromString(definition.SerializeToString())
            for key, definition in graph.signature_def.items()
            if key in self._model.signatures
        }

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
    ) -> dict[str, NDArray[Any]]:
        infos = self.signatures[signature].inputs
        images = [alias for alias in inputs if len(infos[alias].tensor_shape.dim) >= IMAGE_RANK]
        _check_shapes({alias: inputs[alias] for alias in images}, infos)
        # TensorFlow runs concurrent calls side by side, so nothing waits here that a deadline could end.
        try:
            tensors = {alias: self._tf.constant(array) for alias, array in inputs.items()}
            outputs = self._model.signatures[signature](**tensors)
        except self._tf.errors.OpError as exc:
            raise GraphError(exc.error_code, _EAGER_WRAPPING.sub("", exc.message)) from exc
        except (TypeError, ValueError) as exc:
            raise InvalidArgumentError(str(exc)) from exc
        return {alias: _to_numpy(tensor.numpy()) for alias, tensor in outputs.items()}


def _to_numpy(value: Any) -> NDArray[Any]:
    # A scalar string comes as bytes, and NumPy would cut its trailing zero bytes.
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)
