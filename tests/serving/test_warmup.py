"""serving/warmup.py: recorded requests run before the first client."""

from typing import ClassVar

import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract.tensor import to_proto
from serving.engines import TensorFlowEngine, open_engine
from serving.errors import DataLossError, InvalidArgumentError, UnimplementedError
from serving.warmup import WARMUP_FILE, warm_up
from tests.serving.conftest import echo

pytestmark = pytest.mark.tensorflow


class Recorder(TensorFlowEngine):
    """An engine that remembers its inputs."""

    signatures: ClassVar = {"serving_default": echo(x=(messages.DT_UINT8, -1, 2))}

    def __init__(self):
        self.ran = []

    def run(self, signature, inputs, timeout_s=None):
        self.ran.append(inputs["x"].tolist())
        return inputs


def write(version, *records):
    """Write a warm-up file with these records."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(version / WARMUP_FILE)) as writer:
        for each in records:
            writer.write(each)


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
    write(version, record(1), record(2))
    engine = Recorder()
    assert warm_up(engine, version) == 2
    assert engine.ran == [[[1, 1]], [[2, 2]]]


def test_no_file_is_fine(tmp_path):
    """A version without recorded requests is not warmed up."""
    assert warm_up(Recorder(), tmp_path) == 0


def test_tflite_is_not_warmed_up(tiny_store):
    """It would only load later; TensorFlow runs the same file's requests."""
    directory = tiny_store / "tiny" / "1"
    assert warm_up(open_engine(directory, "tflite", threads=1), directory) == 0
    assert warm_up(open_engine(directory, "tensorflow", threads=1), directory) == 2


@pytest.mark.parametrize("cut", [12, 13, 20])
def test_a_truncated_file_fails_the_load(version, cut):
    """A file that ends inside a record says in which."""
    write(version, record(1), record(2))
    content = (version / WARMUP_FILE).read_bytes()
    (version / WARMUP_FILE).write_bytes(content[: len(content) // 2 + cut])
    with pytest.raises(DataLossError, match="Cannot read warm-up record 2 of"):
        warm_up(Recorder(), version)


def test_another_kind_of_record_fails_the_load(version):
    """Only predict_log is supported; a classify_log (field 1) is UNIMPLEMENTED."""
    write(version, record(1), b"\x0a\x00")
    with pytest.raises(UnimplementedError, match=r"Warm-up record 2 of .* Expected a predict_log"):
        warm_up(Recorder(), version)


def test_a_request_that_does_not_fit_fails_the_load(version):
    """The message names the record and what is wrong with it."""
    write(version, record(1, np.float32))
    with pytest.raises(InvalidArgumentError, match=r"record 1 of .*Expects arg\[0\] to be uint8 but float is provided"):
        warm_up(Recorder(), version)


def test_more_than_a_thousand_records_fail_the_load(version):
    """TensorFlow Serving has the same limit."""
    write(version, *[record(1)] * 1001)
    with pytest.raises(InvalidArgumentError, match="at most 1000"):
        warm_up(Recorder(), version)
