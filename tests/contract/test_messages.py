"""contract/messages.proto against the official stubs: the same bytes, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract import tensor

pytestmark = pytest.mark.tensorflow


def spec() -> dict[str, Any]:
    return {"name": "m", "version": {"value": 0}, "signature_name": "s"}


def a_tensor(**values: Any) -> dict[str, Any]:
    return {
        "dtype": 4,
        "tensor_shape": {"dim": [{"size": 2, "name": "n"}, {"size": -1}], "unknown_rank": True},
        **values,
    }


TENSORS = {
    "bytes": a_tensor(tensor_content=b"\x00\xff", version_number=3),
    "typed": a_tensor(
        float_val=[1.5, float("inf")],
        double_val=[2.5],
        int_val=[-1, 300],
        string_val=[b"\xff"],
        int64_val=[-(2**40)],
        bool_val=[True, False],
        half_val=[1],
        uint32_val=[2**31],
        uint64_val=[2**63],
    ),
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("PredictRequest", "predict_pb2", {"model_spec": spec(), "inputs": TENSORS, "output_filter": ["y", "z"]}),
    ("PredictRequest", "predict_pb2", {"model_spec": {"name": "m", "version_label": "stable"}}),
    ("PredictResponse", "predict_pb2", {"model_spec": spec(), "outputs": TENSORS}),
    ("GetModelStatusRequest", "get_model_status_pb2", {"model_spec": spec()}),
    (
        "GetModelStatusResponse",
        "get_model_status_pb2",
        {
            "model_version_status": [
                {"version": 2**40, "state": state, "status": {"error_code": 5, "error_message": "why"}}
                for state in (0, 10, 20, 30, 40, 50)
            ]
        },
    ),
    (
        "GetModelMetadataRequest",
        "get_model_metadata_pb2",
        {"model_spec": spec(), "metadata_field": ["signature_def"]},
    ),
    (
        "GetModelMetadataResponse",
        "get_model_metadata_pb2",
        {"model_spec": spec(), "metadata": {"signature_def": {"type_url": "t/x", "value": b"\x01"}}},
    ),
    (
        "SignatureDefMap",
        "get_model_metadata_pb2",
        {
            "signature_def": {
                "serving_default": {
                    "inputs": {"x": {"name": "x:0", "dtype": 4, "tensor_shape": {"dim": [{"size": -1}]}}},
                    "outputs": {"y": {"name": "y:0", "dtype": 1}},
                    "method_name": "tensorflow/serving/predict",
                }
            }
        },
    ),
    ("PredictionLog", "prediction_log_pb2", {"predict_log": {"request": {"model_spec": spec(), "inputs": TENSORS}}}),
    (
        "ModelServerConfig",
        "model_server_config_pb2",
        {
            "model_config_list": {
                "config": [
                    {
                        "name": "a",
                        "base_path": "/a",
                        "model_platform": "tensorflow",
                        "model_version_policy": {"latest": {"num_versions": 2}},
                    },
                    {"name": "b", "model_version_policy": {"all": {}}},
                    {"name": "c", "model_version_policy": {"specific": {"versions": [1, 7]}}},
                ]
            }
        },
    ),
]


def official(module: str, name: str) -> Any:
    """Return a message class of tensorflow-serving-api."""
    import importlib

    package = "tensorflow_serving.config" if module == "model_server_config_pb2" else "tensorflow_serving.apis"
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def build(kind: Any, values: dict[str, Any]) -> Any:
    """Return a message from nested dicts, map fields included."""
    message = kind()
    for name, value in values.items():
        field = getattr(message, name)
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        if descriptor.message_type and descriptor.message_type.GetOptions().map_entry:
            for key, item in value.items():
                field[key].CopyFrom(build(type(field[key]), item))
        elif descriptor.message_type and isinstance(value, list):
            for item in value:
                entry = field.add()
                entry.CopyFrom(build(type(entry), item))
        elif descriptor.message_type:
            field.SetInParent()
            field.CopyFrom(build(type(field), value))
        elif isinstance(value, list):
            field.extend(value)
        else:
            setattr(message, name, value)
    return message


@pytest.mark.parametrize(("name", "module", "values"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_bytes_equal_the_official_ones_both_ways(name: str, module: str, values: dict[str, Any]) -> None:
    """A message built with either set of stubs has the same bytes, and reads back in the other as the same bytes."""
    ours, theirs = getattr(messages, name), official(module, name)
    our_bytes = build(ours, values).SerializeToString(deterministic=True)
    their_bytes = build(theirs, values).SerializeToString(deterministic=True)
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
