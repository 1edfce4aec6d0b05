"""NumPy arrays to TensorFlow Serving's tensors and back, without TensorFlow."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages

# Type on the wire, NumPy type, and the field of its values where tensor_content is empty.
# Source: the value fields of TensorFlow's TensorProto; 8- and 16-bit integers share int_val.
_TYPES: tuple[tuple[messages.DataType, Any, str], ...] = (
    (messages.DT_FLOAT, np.float32, "float_val"),
    (messages.DT_DOUBLE, np.float64, "double_val"),
    (messages.DT_INT32, np.int32, "int_val"),
    (messages.DT_UINT8, np.uint8, "int_val"),
    (messages.DT_INT16, np.int16, "int_val"),
    (messages.DT_INT8, np.int8, "int_val"),
    (messages.DT_UINT16, np.uint16, "int_val"),
    (messages.DT_INT64, np.int64, "int64_val"),
    (messages.DT_BOOL, np.bool_, "bool_val"),
    (messages.DT_HALF, np.float16, "half_val"),
    (messages.DT_UINT32, np.uint32, "uint32_val"),
    (messages.DT_UINT64, np.uint64, "uint64_val"),
)
MAX_VALUES = 2**27  # a message of a few bytes may name any shape; this one would take 512 MiB of float32
MAX_REPEATED = 2**20  # and may leave most of its values to be repeated
MAX_RANK = 64  # NumPy's
_TO_NUMPY: dict[messages.DataType, np.dtype[Any]] = {wire: np.dtype(kind) for wire, kind, _ in _TYPES}
_VALUES = {messages.DT_STRING: "string_val", **{wire: values for wire, _, values in _TYPES}}
_FROM_NUMPY = {kind: wire for wire, kind in _TO_NUMPY.items()}


class TensorError(ValueError):
    """A tensor message with a type, shape and values that do not fit together."""


def data_type(dtype: np.dtype[Any]) -> messages.DataType:
    """Return the type on the wire; strings are object or bytes arrays.

    Raises:
        TensorError: The type has no place in the contract.
    """
    if dtype.kind in "OS":
        return messages.DT_STRING
    if dtype not in _FROM_NUMPY:
        raise TensorError(f"Expected a numeric, bool or bytes array. Received dtype {dtype}")
    return _FROM_NUMPY[dtype]


def numpy_type(dtype: messages.DataType) -> np.dtype[Any]:
    """Return the NumPy type of a numeric type on the wire.

    Raises:
        TensorError: The type has no place in the contract.
    """
    if dtype not in _TO_NUMPY:
        raise TensorError(f"Expected a numeric or bool type. Received: {dtype}")
    return _TO_NUMPY[dtype]


def to_proto(array: NDArray[Any], typed: bool = False) -> messages.TensorProto:
    """Return an array as a message.

    Args:
        array: Any shape; numeric, bool, or bytes in an object array.
        typed: Put numbers into the field of their type, as TensorFlow Serving answers and its clients read, in place
            of raw bytes.
    """
    proto = messages.TensorProto(dtype=data_type(array.dtype))
    proto.tensor_shape.dim.extend(messages.TensorShapeProto.Dim(size=size) for size in array.shape)
    if proto.dtype == messages.DT_STRING:
        proto.string_val.extend(array.reshape(-1).tolist())
    elif not typed:
        proto.tensor_content = array.tobytes()
    else:
        flat = array.reshape(-1)
        flat = flat.view(np.uint16) if array.dtype == np.float16 else flat
        getattr(proto, _VALUES[proto.dtype]).extend(flat.tolist())
    return proto


def to_array(proto: messages.TensorProto) -> NDArray[Any]:
    """Return a message as an array; strings become bytes in an object array.

    As in TensorFlow, too few typed values repeat the last one, and none at all are zeros.

    Raises:
        TensorError: Unknown type, a negative or unknown dimension, or values that do not fill the shape.
    """
    if proto.dtype not in _VALUES:
        raise TensorError(f"Expected a known tensor type. Received: {proto.dtype}")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = prod(shape)
    if any(size < 0 for size in shape) or prod(filter(None, shape)) > MAX_VALUES or len(shape) > MAX_RANK:
        raise TensorError(
            f"Expected a known shape of at most {MAX_RANK} dimensions and {MAX_VALUES:,} values."
            f" Received: {shape[: MAX_RANK + 1]}"
        )
    if proto.tensor_content and proto.dtype != messages.DT_STRING:
        dtype = numpy_type(proto.dtype)
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise TensorError(
                f"Expected {count * dtype.itemsize} bytes for shape {shape}. Received: {len(proto.tensor_content)}"
            )
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = getattr(proto, _VALUES[proto.dtype])
    if len(values) > count:
        raise TensorError(f"Expected at most {count} values for shape {shape}. Received: {len(values)}")
    if len(values) < count - MAX_REPEATED:
        raise TensorError(f"Expected at least {count - MAX_REPEATED:,} values for shape {shape}. Received: fewer")
    if proto.dtype == messages.DT_STRING:
        strings = np.empty(count, dtype=object)
        # One by one: NumPy would copy each repeated string, and cut its trailing zero bytes.
        strings[:] = [*values, *[values[-1] if values else b""] * (count - len(values))]
        return strings.reshape(shape)
    dtype = _TO_NUMPY[proto.dtype]
    raw = np.dtype(np.uint16) if dtype == np.float16 else dtype
    # Integers that do not fit wrap around, as a C++ cast does: the field is wider than the type.
    wide = {"f": np.float64, "i": np.int64, "u": np.uint64 if dtype == np.uint64 else np.int64, "b": np.bool_}
    filled: NDArray[Any] = np.empty(count, raw)
    filled[: len(values)] = np.array(values, dtype=wide[raw.kind]).astype(raw)
    filled[len(values) :] = filled[len(values) - 1] if values else 0
    return filled.view(dtype).reshape(shape)
