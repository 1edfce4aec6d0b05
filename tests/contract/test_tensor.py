"""contract/tensor.py and messages.proto: arrays to messages, without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract import tensor

DTYPES = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_as_they_went(dtype: str, typed: bool) -> None:
    """Type, shape and values survive in either encoding."""
    array = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    proto = tensor.to_proto(array, typed)
    received = tensor.to_array(proto)
    assert received.dtype == array.dtype and bool(proto.tensor_content) != typed
    np.testing.assert_array_equal(received, array)


def test_strings_are_bytes() -> None:
    """Any bytes go through, also those that are not UTF-8."""
    array = np.array([[b"\xff\x00", b""]], dtype=object)
    assert tensor.to_array(tensor.to_proto(array)).tolist() == [[b"\xff\x00", b""]]


def test_one_typed_value_fills_the_shape_and_none_are_zeros() -> None:
    """As TensorFlow reads them."""
    proto = tensor.to_proto(np.zeros((2, 2), np.float32), typed=True)
    del proto.float_val[1:]
    proto.float_val[0] = 7
    assert tensor.to_array(proto).tolist() == [[7, 7], [7, 7]]
    del proto.float_val[:]
    assert tensor.to_array(proto).tolist() == [[0, 0], [0, 0]]


def test_one_string_fills_the_shape_without_a_copy_for_each() -> None:
    """Its trailing zero bytes stay, and a long one is in memory once."""
    proto = messages.TensorProto(dtype=messages.DT_STRING, string_val=[b"ab\0\0"])
    proto.tensor_shape.dim.add(size=3)
    received = tensor.to_array(proto)
    assert received.tolist() == [b"ab\0\0"] * 3 and received[1] is received[2]
    del proto.string_val[:]
    assert tensor.to_array(proto).tolist() == [b""] * 3


@pytest.mark.parametrize(("dtype", "content"), [("DT_STRING", b""), ("DT_STRING", b"1"), ("DT_DOUBLE", b"")])
def test_few_bytes_do_not_become_gigabytes(dtype: str, content: bytes) -> None:
    """Thirty bytes may name a shape of 2**27 values, and send none; strings have no place in the content."""
    proto = messages.TensorProto(dtype=messages.DataType.Value(dtype), tensor_content=content)
    proto.tensor_shape.dim.add(size=2**27)
    with pytest.raises(tensor.TensorError, match=r"at least 133,169,152 values for shape \(134217728,\)"):
        tensor.to_array(proto)


def test_integers_wider_than_their_type_wrap_around() -> None:
    """The value field is wider than the type, and no value of it raises."""
    proto = tensor.to_proto(np.zeros(2, np.uint8), typed=True)
    proto.int_val[:] = [300, -1]
    assert tensor.to_array(proto).tolist() == [44, 255]


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": messages.DT_INVALID},
        {"tensor_content": b"123"},
        {"tensor_shape": messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=-1)])},
        {"tensor_shape": messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=2**40)])},
        {"tensor_shape": messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=n) for n in (0, 2**62, 8)])},
        {"tensor_shape": messages.TensorShapeProto(dim=[messages.TensorShapeProto.Dim(size=1)] * 65)},
    ],
)
def test_a_message_that_does_not_fit_together_is_refused(change: dict[str, Any]) -> None:
    """Unknown type, values that do not fill the shape, or a shape without bounds."""
    proto = tensor.to_proto(np.zeros((2, 2), np.float32))
    for name in change:
        proto.ClearField(name)
    proto.MergeFrom(messages.TensorProto(**change))
    with pytest.raises(tensor.TensorError, match="Expected"):
        tensor.to_array(proto)
