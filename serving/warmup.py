"""Runs a version's recorded requests once before the first client, as part of loading it.

A new TensorFlow model is slow, and without this, the golden gates of all the gateway's workers wait for it at once.
Medians of 4 to 7 runs with 3 swaps each: EfficientNet-Lite0 in two replicas, a gateway, and 4 clients, on 2 busy cores.

    engine       warm-up   new version answers after   p99 of the clients meanwhile
    TensorFlow   on        11 s                        1.2 s
    TensorFlow   off       25 s                        1.9 s
    TFLite       on        2.0 s                       0.4 s
    TFLite       off       1.6 s                       0.3 s
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from contract import messages_pb2 as messages
from serving.engines import Engine
from serving.errors import DataLossError, InvalidArgumentError, ServingError, UnimplementedError
from serving.prediction import predict

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000  # Source: WarmupConsts::kMaxNumRecords of tensorflow/serving 2.20

_HEADER = struct.Struct("<QI")  # length of the data, its checksum
_FOOTER = struct.Struct("<I")  # checksum of the data


def warm_up(engine: Engine, directory: Path) -> int:
    """Run the requests in a version's warm-up file, and return how many there were; none without the file.

    Raises:
        UnimplementedError: A record that is not a Predict request.
        InvalidArgumentError: More than 1000 records.
        DataLossError: The file is truncated or contains something else.
        ServingError: A request failed; the message says which.
    """
    path = directory / WARMUP_FILE
    if not path.is_file():
        return 0
    count = 0
    for count, record in enumerate(read_records(path), start=1):
        if count > MAX_RECORDS:
            raise InvalidArgumentError(f"Expected at most {MAX_RECORDS} warm-up records in {path}. Received more")
        try:
            predict(engine, _request(record))
        except ServingError as exc:
            exc.args = (f"Warm-up record {count} of {path} failed: {exc}",)
            raise
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    Checksums are not compared, because the standard library has no CRC-32C. Every record is parsed and run right away,
    so that a damaged one fails anyway.

    Raises:
        DataLossError: The file ends inside a record.
    """
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        start = offset + _HEADER.size
        length = _HEADER.unpack_from(data, offset)[0] if start <= len(data) else 0
        end = start + length
        if end + _FOOTER.size > len(data):
            raise DataLossError(
                f"Expected a whole TFRecord at byte {offset} of {path}. The file ends after {len(data)} bytes"
            )
        yield data[start:end]
        offset = end + _FOOTER.size


def _request(record: bytes) -> messages.PredictRequest:
    try:
        log = messages.PredictionLog.FromString(record)
    except DecodeError as exc:
        raise DataLossError(f"Expected a PredictionLog. {exc}") from exc
    if not log.HasField("predict_log"):
        raise UnimplementedError("Expected a predict_log. Other kinds of PredictionLog are not supported")
    return log.predict_log.request
