"""serving/warmup.py: recorded requests run before the first client."""

import struct
from typing import ClassVar

import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract.tensor import to_proto
from serving.errors import DataLossError, InvalidArgumentError, UnimplementedError
from serving.warmup import WARMUP_FILE, warm_up
from tests.serving.conftest import echo


class Recorder:
    """An engine that remembers its inputs."""

    signatures: ClassVar = {"serving_default": echo(x=(messages.DT_UINT8, -1, 2))}

    def __init__(self):
        self.ran = []

    def run(self, signature, inputs, timeout_s=None):
        self.ran.append(inputs["x"].tolist())
        return inputs


def frame(data):
    return struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0)


def record(value, dtype=np.uint8):
    request = messages.PredictRequest(inputs={"x": to_proto(np.full((1, 2), value, dtype))})
    return messages.PredictionLog(predict_log=messages.PredictLog(request=request)).SerializeToString()


@pytest.fixture
def version(tmp_path):
    """A version's directory, without a warm-up file yet."""
    (tmp_path / WARMUP_FILE).parent.mkdir()
    return tmp_path


def test_every_record_is_run(version):
    """The requests are run in the order of the file."""
    (version / WARMUP_FILE).write_bytes(frame(record(1)) + frame(record(2)))
    engine = Recorder()
    assert warm_up(engine, version) == 2
    assert engine.ran == [[[1, 1]], [[2, 2]]]


def test_no_file_is_fine(tmp_path):
    """A version without recorded requests is not warmed up."""
    assert warm_up(Recorder(), tmp_path) == 0


@pytest.mark.parametrize("cut", [1, 5, 13, 20])
def test_a_truncated_file_fails_the_load(version, cut):
    """A file that ends inside a record says at which byte."""
    whole = frame(record(1))
    (version / WARMUP_FILE).write_bytes(whole + whole[:cut])
    with pytest.raises(DataLossError, match=f"at byte {len(whole)} of"):
        warm_up(Recorder(), version)


def test_another_kind_of_record_fails_the_load(version):
    """Only predict_log is supported; a classify_log (field 1) is UNIMPLEMENTED."""
    (version / WARMUP_FILE).write_bytes(frame(record(1)) + frame(b"\x0a\x00"))
    with pytest.raises(UnimplementedError, match=r"Warm-up record 2 of .* Expected a predict_log"):
        warm_up(Recorder(), version)


def test_a_request_that_does_not_fit_fails_the_load(version):
    """The message names the record and what is wrong with it."""
    (version / WARMUP_FILE).write_bytes(frame(record(1, np.float32)))
    with pytest.raises(InvalidArgumentError, match=r"record 1 of .*Expects arg\[0\] to be uint8 but float is provided"):
        warm_up(Recorder(), version)


def test_more_than_a_thousand_records_fail_the_load(version):
    """TensorFlow Serving has the same limit."""
    (version / WARMUP_FILE).write_bytes(frame(record(1)) * 1001)
    with pytest.raises(InvalidArgumentError, match="at most 1000"):
        warm_up(Recorder(), version)
