"""One Predict request against one loaded version: check it, run it, answer it. Free of gRPC.

The checks have TensorFlow Serving's order and words, except for those of shapes, which it leaves to the graph.

Source: tensorflow/serving 2.20, servables/tensorflow/predict_util.cc, for order and messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.document import PREDICT_SIGNATURE
from contract.tensor import TensorError, data_type, to_array, to_proto
from serving.engines import Engine
from serving.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError


def predict(
    engine: Engine, request: messages.PredictRequest, timeout_s: float | None = None
) -> messages.PredictResponse:
    """Answer a request; the answer's `model_spec` has the name and the signature, the caller adds the version.

    Raises:
        FailedPreconditionError: The model has no such signature.
        InvalidArgumentError: An input or the output filter does not fit the signature.
        ServingError: The engine's, see `Engine.run`.
    """
    key = request.model_spec.signature_name or PREDICT_SIGNATURE
    if key not in engine.signatures:
        raise FailedPreconditionError(f'Serving signature key "{key}" not found.')
    signature = engine.signatures[key]
    _check_names(request.inputs, signature)
    inputs = {alias: _parse(alias, request.inputs[alias]) for alias in sorted(signature.inputs)}
    wanted = _wanted_outputs(request.output_filter, signature)
    outputs = run(engine, key, inputs, timeout_s)
    for alias in wanted:
        check_output(alias, outputs[alias])
    return messages.PredictResponse(
        outputs={alias: to_proto(outputs[alias], typed=True) for alias in wanted},
        model_spec=messages.ModelSpec(name=request.model_spec.name, signature_name=key),
    )


def run(
    engine: Engine, key: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None
) -> dict[str, NDArray[Any]]:
    """Return every output of a signature for inputs that have its names.

    Raises:
        InvalidArgumentError: The type of an input does not fit the signature.
        ServingError: The engine's, see `Engine.run`.
    """
    for i, (alias, array) in enumerate(inputs.items()):
        _check_type(i, array, engine.signatures[key].inputs[alias])
    return engine.run(key, inputs, timeout_s)


def _check_names(sent: Iterable[str], signature: messages.SignatureDef) -> None:
    sent, expected = set(sent), set(signature.inputs)
    if len(sent) != len(expected):
        raise InvalidArgumentError(
            f"input size does not match signature: {len(sent)}!={len(expected)} "
            f"len({_braced(sent)}) != len({_braced(expected)}). "
            f"Sent extra: {_braced(sent - expected)}. Missing but required: {_braced(expected - sent)}."
        )
    if missing := sorted(expected - sent):
        alias = missing[0]
        raise InvalidArgumentError(
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {_braced(sent)}, "
            f"or default input alias set: "
        )


def _parse(alias: str, proto: messages.TensorProto) -> NDArray[Any]:
    try:
        return to_array(proto)
    except TensorError as exc:
        raise InvalidArgumentError(f"tensor parsing error: {alias}") from exc


def _wanted_outputs(output_filter: Sequence[str], signature: messages.SignatureDef) -> Sequence[str]:
    for i, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise InvalidArgumentError(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(signature.outputs)}."
            )
        if alias in output_filter[:i]:
            raise InvalidArgumentError(f"duplicate output tensor alias: {alias}")
    return output_filter or list(signature.outputs)


def _check_type(position: int, array: NDArray[Any], info: messages.TensorInfo) -> None:
    received = data_type(array.dtype)
    if received != info.dtype:
        raise InvalidArgumentError(
            f"Expects arg[{position}] to be {_type_name(info.dtype)} but {_type_name(received)} is provided"
        )


def check_output(alias: str, array: NDArray[Any]) -> None:
    """Refuse an output of a type that cannot be sent.

    Raises:
        UnimplementedError: It is such an output.
    """
    try:
        data_type(array.dtype)
    except TensorError as exc:
        raise UnimplementedError(f"The output {alias} has a type that cannot be sent. {exc}") from exc


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _type_name(dtype: messages.DataType) -> str:
    known = dtype in messages.DataType.values()
    return messages.DataType.Name(dtype).removeprefix("DT_").lower() if known else f"type {dtype}"
