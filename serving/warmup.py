"""Runs a version's recorded requests once on TensorFlow before the first client, as part of loading it.

A new TensorFlow model is slow, and without this, the golden gates of all the gateway's workers wait for it at once. On
TFLite it makes no difference, so it is left out there. Medians of 4 to 7 runs with 3 swaps each: EfficientNet-Lite0 in
two replicas, a gateway, and 4 clients, on 2 busy cores.

    engine       warm-up   new version answers after   p99 of the clients meanwhile
    TensorFlow   on        11 s                        1.2 s
    TensorFlow   off       25 s                        1.9 s
    TFLite       on        2.0 s                       0.4 s
    TFLite       off       1.6 s                       0.3 s
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from contract import messages_pb2 as messages
from serving.engines import Engine, TensorFlowEngine
from serving.errors import DataLossError, InvalidArgumentError, ServingError, UnimplementedError
from serving.prediction import predict

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000  # Source: WarmupConsts::kMaxNumRecords of tensorflow/serving 2.20


def warm_up(engine: Engine, directory: Path) -> int:
    """Run the requests in a version's warm-up file, and return how many there were; none without it, or on TFLite.

    Raises:
        UnimplementedError: A record that is not a Predict request.
        InvalidArgumentError: More than 1000 records.
        DataLossError: The file is truncated or contains something else.
        ServingError: A request failed; the message says which.
    """
    path = directory / WARMUP_FILE
    if not (isinstance(engine, TensorFlowEngine) and path.is_file()):
        return 0

    import tensorflow as tf

    count = 0
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), start=1):
            if count > MAX_RECORDS:
                raise InvalidArgumentError(f"Expected at most {MAX_RECORDS} records. Received more")
            predict(engine, _request(record))
    except tf.errors.OpError as exc:
        raise DataLossError(f"Cannot read warm-up record {count + 1} of {path}: {exc.message}") from exc
    except ServingError as exc:
        exc.args = (f"Warm-up record {count} of {path} failed: {exc}",)
        raise
    return count


def _request(record: bytes) -> messages.PredictRequest:
    try:
        log = messages.PredictionLog.FromString(record)
    except DecodeError as exc:
        raise DataLossError(f"Expected a PredictionLog. {exc}") from exc
    if not log.HasField("predict_log"):
        raise UnimplementedError("Expected a predict_log. Other kinds of PredictionLog are not supported")
    return log.predict_log.request
