"""The TFLite file of a version: a SavedModel converted, and its description put in afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from tensorflow.lite.python.convert_phase import ConverterError

from contract import outputs
from contract.document import DESCRIBE_SIGNATURE, IMAGES, PREDICT_SIGNATURE, PROBABILITIES, Contract
from serving.engines import TFLITE_FILES, open_engine
from training.cores import INTERPRETERS, THREADS
from training.errors import ExportError
from training.judge.predictors import Predict
from training.models.frozen import why_no_tflite
from training.models.quiet import quiet

_FILE_IDENTIFIER = b"TFL3"  # Source: file_identifier of TensorFlow Lite's schema


def convert(saved_model: Path, signatures: Sequence[str]) -> bytes:
    """Return some signatures of a SavedModel as a TFLite file.

    Raises:
        ExportError: The model has operations that TFLite lacks.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=list(signatures))
    try:
        with quiet(ConverterError):
            return converter.convert()
    except ConverterError as exc:
        raise ExportError(f"Expected a model that converts to TFLite. Received {why_no_tflite(exc)}") from exc


def runner(content: bytes) -> Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]:
    """Load a file as a server does, and return what gives its outputs by name, for pixels (n, h, w, 3).

    Raises:
        ServingError: It does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / TFLITE_FILES["tflite"]).write_bytes(content)
        with quiet():
            engine = open_engine(Path(scratch), "tflite", threads=THREADS, runs=INTERPRETERS)
            outputs.describe(engine.run)  # XNNPACK announces itself at the first run
    signature = next(name for name in engine.signatures if name != DESCRIBE_SIGNATURE)
    return lambda pixels: engine.run(signature, {IMAGES: pixels})


def predictor(content: bytes) -> Predict:
    """Load a file as a server does, and return its prediction.

    Raises:
        ServingError: It does not load.
    """
    run = runner(content)
    return lambda pixels: run(pixels)[PROBABILITIES]


def describe(content: bytes, contract: Contract) -> bytes:
    """Return a converted file that carries `contract`, with `serving_default` beside the signature of the export.

    Both signatures name the same graph: converted as two, each operation would be in the file twice. And a file says
    only after it ran which probabilities are its golden ones, so they are put in here and not by converting again.
    """
    model = unpack(content)
    signatures = {each.signatureKey.decode(): each for each in model.signatureDefs}
    _replace_text(model, signatures[DESCRIBE_SIGNATURE].subgraphIndex, contract.to_json())
    default = copy(signatures[contract.signature])
    default.signatureKey = PREDICT_SIGNATURE.encode()
    default.outputs = [each for each in default.outputs if each.name == PROBABILITIES.encode()]
    model.signatureDefs.append(default)
    return pack(model)


def unpack(content: bytes) -> Any:
    """Return a TFLite file as objects that can be changed."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """Return such objects as a TFLite file."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def _replace_text(model: Any, subgraph: int, text: bytes) -> None:
    """Put another text in place of the only constant one of a subgraph."""
    tensors = model.subgraphs[subgraph].tensors
    buffers = [model.buffers[each.buffer] for each in tensors if each.type == schema.TensorType.STRING]
    (constant,) = (each for each in buffers if each.data is not None and len(each.data))
    # Source: TensorFlow Lite's string_util.h: the count, where each begins and the last ends, and the bytes.
    header = np.array([1, 12, 12 + len(text)], "<i4").tobytes()
    constant.data = np.frombuffer(header + text, np.uint8)
