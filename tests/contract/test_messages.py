"""contract/messages.proto against the official stubs: the same bytes, both ways."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from contract import tensor

pytestmark = pytest.mark.tensorflow


SPEC = 'model_spec { name: "m" version {} signature_name: "s" }'
SHAPE = 'dtype: 4 tensor_shape { dim { size: 2 name: "n" } dim { size: -1 } unknown_rank: true }'
VALUES = r"""
float_val: [1.5, inf] double_val: 2.5 int_val: [-1, 300] string_val: "\xff" int64_val: -1099511627776
bool_val: [true, false] half_val: 1 uint32_val: 2147483648 uint64_val: 9223372036854775808
"""
INPUTS = rf"""
inputs {{ key: "bytes" value {{ {SHAPE} tensor_content: "\x00\xff" version_number: 3 }} }}
inputs {{ key: "typed" value {{ {SHAPE} {VALUES} }} }}
"""
SIGNATURE = """
inputs { key: "x" value { name: "x:0" dtype: 4 tensor_shape { dim { size: -1 } } } }
outputs { key: "y" value { name: "y:0" dtype: 1 } }
method_name: "tensorflow/serving/predict"
"""
STATES = "".join(
    f'model_version_status {{ version: 1099511627776 state: {state} status {{ error_code: 5 error_message: "why" }} }}'
    for state in (0, 10, 20, 30, 40, 50)
)
CONFIG = """
model_config_list {
  config {
    name: "a" base_path: "/a" model_platform: "tensorflow" model_version_policy { latest { num_versions: 2 } }
  }
  config {
    name: "b" model_type: TENSORFLOW model_version_policy { all {} }
    version_labels { key: "stable" value: 3 }
    logging_config {
      log_collector_config { type: "file" filename_prefix: "/logs" } custom_logging_config { type_url: "t/x" }
      sampling_config {
        sampling_rate: 0.5 attributes: 1
        per_task_sampling_configs { dc: "d" task_index: 0 sampling_rate: 1 }
      }
    }
  }
  config { name: "c" model_version_policy { specific { versions: [1, 7] } } }
}
"""
# Each message, its official module, and what it contains, in protobuf's text format.
CASES = [
    ("PredictRequest", "apis.predict_pb2", f'{SPEC} {INPUTS} output_filter: ["y", "z"]'),
    ("PredictRequest", "apis.predict_pb2", 'model_spec { name: "m" version_label: "stable" }'),
    ("PredictResponse", "apis.predict_pb2", f"{SPEC} {INPUTS.replace('inputs', 'outputs')}"),
    ("GetModelStatusRequest", "apis.get_model_status_pb2", SPEC),
    ("GetModelStatusResponse", "apis.get_model_status_pb2", STATES),
    ("GetModelMetadataRequest", "apis.get_model_metadata_pb2", f'{SPEC} metadata_field: "signature_def"'),
    (
        "GetModelMetadataResponse",
        "apis.get_model_metadata_pb2",
        rf'{SPEC} metadata {{ key: "signature_def" value {{ type_url: "t/x" value: "\x01" }} }}',
    ),
    (
        "SignatureDefMap",
        "apis.get_model_metadata_pb2",
        f'signature_def {{ key: "serving_default" value {{ {SIGNATURE} }} }}',
    ),
    ("PredictionLog", "apis.prediction_log_pb2", f"predict_log {{ request {{ {SPEC} {INPUTS} }} }}"),
    ("ModelServerConfig", "config.model_server_config_pb2", CONFIG),
]


@pytest.mark.parametrize(("name", "module", "text"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_bytes_equal_the_official_ones_both_ways(name: str, module: str, text: str) -> None:
    """A message built with either set of stubs has the same bytes, and reads back in the other as the same bytes."""
    ours = getattr(messages, name)
    theirs = getattr(importlib.import_module(f"tensorflow_serving.{module}"), name)
    our_bytes = text_format.Parse(text, ours()).SerializeToString(deterministic=True)
    their_bytes = text_format.Parse(text, theirs()).SerializeToString(deterministic=True)
    assert our_bytes == their_bytes
    assert ours.FromString(their_bytes).SerializeToString(deterministic=True) == our_bytes
    assert theirs.FromString(our_bytes).SerializeToString(deterministic=True) == their_bytes


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "O"])
def test_tensors_are_the_bytes_that_tensorflow_makes_and_reads(dtype: str) -> None:
    """`make_tensor_proto` and ours agree to the byte, and TensorFlow reads ours in both encodings."""
    import tensorflow as tf

    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    if dtype == "O":
        array = np.array([[b"a", b"", b"\xff"]] * 2, dtype=object)
    official_bytes = tf.make_tensor_proto(array).SerializeToString(deterministic=True)
    as_typed = dtype in ("u2", "?")  # of these two, TensorFlow's own helper never writes the raw bytes
    assert tensor.to_proto(array, typed=as_typed).SerializeToString(deterministic=True) == official_bytes
    for typed in (False, True):
        proto = tf.make_tensor_proto(0.0)
        proto.ParseFromString(tensor.to_proto(array, typed).SerializeToString())
        np.testing.assert_array_equal(tf.make_ndarray(proto), array)
