"""The model server's replicas behind one address: gRPC calls, spread over all of them, and tried again on another."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract import tensor
from contract.document import (
    CONTRACT,
    DESCRIBE_SIGNATURE,
    EXPORT_SIGNATURES,
    IDENTITY,
    IMAGES,
    PROBABILITIES,
    QUERY,
    Contract,
    identity_bits,
)
from gateway.errors import (
    GatewayError,
    InternalError,
    ModelFailed,
    ModelTimeout,
    ModelUnavailable,
    Overloaded,
    VersionGone,
)
from gateway.telemetry import logs

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # a contract with 20,000 classes fits
STATUS_TIMEOUT_S = 2.0
# Source: tensorflow/serving 2.20, servables/tensorflow/predict_util.cc; it looks before it reads any input.
NO_SIGNATURE = "Serving signature key"
# Source: batching_util/basic_batch_scheduler.h there; it says UNAVAILABLE too, and nobody went away.
FULL_QUEUE = "batch scheduling queue"
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # http_proxy, which Docker hands to containers, is for hosts out there
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # gRPC asks the DNS again whenever a connection ends, which each replica sees to every few seconds, but no sooner
    # than this after the last time; its default of 30 s would keep a new replica idle for as long.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # A replica that dies fails what it is working on, all at one moment. Retries stop when half of the tokens are gone:
    # with 10, of 20 calls on a replica that was killed 16 were lost, with 100 none. A success gives one back.
    # CANCELLED is what the embedded server says to a request that came as it began to end, and which it has not begun.
    (
        "grpc.service_config",
        """{"loadBalancingConfig": [{"round_robin": {}}],
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
            "methodConfig": [{"name": [{"service": "tensorflow.serving.PredictionService"},
                                       {"service": "tensorflow.serving.ModelService"}],
                              "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.1s",
                                              "backoffMultiplier": 2,
                                              "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}}]}""",
    ),
)

# Total over grpc.StatusCode. Source of the codes' meaning: TensorFlow Serving 2.20 and gRPC's own.
_FROM_GRPC: dict[grpc.StatusCode, type[GatewayError]] = {
    grpc.StatusCode.OK: InternalError,  # no error: nobody should ask
    grpc.StatusCode.CANCELLED: ModelUnavailable,
    grpc.StatusCode.UNKNOWN: ModelFailed,
    grpc.StatusCode.INVALID_ARGUMENT: ModelFailed,
    grpc.StatusCode.DEADLINE_EXCEEDED: ModelTimeout,
    grpc.StatusCode.NOT_FOUND: VersionGone,
    grpc.StatusCode.ALREADY_EXISTS: ModelFailed,
    grpc.StatusCode.PERMISSION_DENIED: ModelFailed,
    grpc.StatusCode.UNAUTHENTICATED: ModelFailed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: ModelFailed,
    grpc.StatusCode.ABORTED: ModelUnavailable,
    grpc.StatusCode.OUT_OF_RANGE: ModelFailed,
    grpc.StatusCode.UNIMPLEMENTED: ModelFailed,
    grpc.StatusCode.INTERNAL: ModelFailed,
    grpc.StatusCode.UNAVAILABLE: ModelUnavailable,
    grpc.StatusCode.DATA_LOSS: ModelFailed,
}
# What the client is told; the model server's own words go to the log, since they may name hosts and paths.
_MODEL_DETAILS: dict[type[GatewayError], str] = {
    ModelFailed: "Expected the model server to answer. Received: an error, which the gateway's log holds.",
    ModelUnavailable: "Expected a model server that answers. Received: no connection. Try again shortly.",
    VersionGone: "Expected a loaded version of the model. Received: none at the moment. Try again shortly.",
    Overloaded: "Expected a model server with room for one more request. Received: none. Try again shortly.",
    ModelTimeout: "Expected the prediction in time. Received: no answer before the deadline.",
    InternalError: "Expected an error from the model server. Received: success.",
}

_log = logging.getLogger(__name__)


class ModelClient:
    """One process's channel. Safe for threads; to be made after a fork, which gRPC does not survive."""

    def __init__(self, address: str, model: str, timeout_s: float) -> None:
        """Open a channel.

        Args:
            address: As gRPC names it; with `dns:///name:port`, each address of that name is a replica.
            model: The name that the model server knows the model by.
            timeout_s: Limit for one call.
        """
        self._address, self._model, self._timeout_s = address, model, timeout_s
        self._channels: list[grpc.Channel] = []
        self.breaks = 0  # calls that found nobody: after one, whoever answers may be another
        self._open()

    def _open(self) -> None:
        self._channels.append(grpc.insecure_channel(self._address, options=_CHANNEL_OPTIONS))
        prediction, status = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
        self._predict = self._method(prediction + "Predict", messages.PredictResponse)
        self._get_metadata = self._method(prediction + "GetModelMetadata", messages.GetModelMetadataResponse)
        self._get_status = self._method(status + "GetModelStatus", messages.GetModelStatusResponse)

    def renew(self) -> None:
        """Open another channel, which looks up the address at once.

        A channel that finds no address waits before it looks again, longer each time, up to two minutes: a gateway
        that started long before the model server would notice it late.
        """
        self._open()
        while len(self._channels) > 2:  # the second last may have calls under way
            self._channels.pop(0).close()

    def close(self) -> None:
        """Close what is open."""
        for channel in self._channels:
            channel.close()

    def statuses(self) -> Sequence[messages.ModelVersionStatus]:
        """Return what the replica whose turn it is says of each version.

        Raises:
            VersionGone: It has none.
            GatewayError: What else a call can end in.
        """
        request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name=self._model))
        response = self._call(self._get_status, request, min(STATUS_TIMEOUT_S, self._timeout_s))
        return response.model_version_status  # type: ignore[no-any-return]

    def signatures(self, number: int) -> set[str]:
        """Return the names of a version's signatures, one of which tells which export it is.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: What else a call can end in.
        """
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model
        request.model_spec.version.value = number
        response = self._call(self._get_metadata, request, min(STATUS_TIMEOUT_S, self._timeout_s))
        # Not Any.Unpack: our messages have a package of their own, which it compares.
        return set(messages.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def)

    def describe(self, number: int) -> bytes:
        """Return the contract of a version, as it is in its files.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: What else a call can end in.
        """
        query = np.array([b""], dtype=object)
        outputs = self._run(number, DESCRIBE_SIGNATURE, {QUERY: query}, [CONTRACT], self._timeout_s)
        return bytes(tensor.to_array(outputs[CONTRACT])[0])

    def predict(
        self, number: int, contract: Contract, pixels: NDArray[np.uint8], timeout_s: float = math.inf
    ) -> NDArray[np.float32]:
        """Return probabilities (n, k) of pixels (n, h, w, 3) by the very export that a contract describes; n >= 1.

        It is asked by a signature that bears its identity, which another export under its number lacks, and the answer
        repeats the identity. Exports from before there were identities can only be asked by their number.

        Raises:
            VersionGone: The export is not loaded where the call arrived.
            GatewayError: What else a call can end in.
        """
        # Checked here because a tensor of the wrong rank ends TensorFlow Serving's process, and one of another size
        # gets a wrong answer from a fully convolutional model.
        expected = (contract.image.height, contract.image.width, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected or len(pixels) == 0:
            raise ValueError(f"Expected uint8 (n, {expected}). Received: {pixels.dtype} {pixels.shape}")
        wanted = [PROBABILITIES, IDENTITY] if contract.identity else [PROBABILITIES]
        timeout_s = min(timeout_s, self._timeout_s)
        outputs = self._run(number, contract.signature, {IMAGES: pixels}, wanted, timeout_s)
        if contract.identity and not _names(outputs[IDENTITY], contract.identity, len(pixels)):
            raise VersionGone(_MODEL_DETAILS[VersionGone])
        probabilities = tensor.to_array(outputs[PROBABILITIES])
        if probabilities.shape != (len(pixels), len(contract.classes)) or not np.isfinite(probabilities).all():
            _log.error("version %d answered probabilities of shape %s, or not finite", number, probabilities.shape)
            raise ModelFailed("Expected a probability for each class. Received: other numbers.")
        return probabilities.astype(np.float32)

    def _run(
        self, number: int, signature: str, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str], timeout_s: float
    ) -> Mapping[str, messages.TensorProto]:
        """Return the wanted outputs of one of a version's signatures, and perhaps others."""
        request = messages.PredictRequest(output_filter=wanted)
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(tensor.to_proto(array))
        request.model_spec.name = self._model
        request.model_spec.version.value = number
        request.model_spec.signature_name = signature
        response = self._call(self._predict, request, timeout_s)
        if response.model_spec.version.value != number or any(each not in response.outputs for each in wanted):
            raise ModelFailed("Expected an answer of the version that was asked. Received: another one.")
        return response.outputs  # type: ignore[no-any-return]

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        """Make one call; the only place where gRPC's exceptions become ours."""
        try:
            trace = logs.current.get()
            metadata = (("traceparent", trace.traceparent), ("x-request-id", trace.request_id)) if trace else None
            return method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as exc:
            code, details = exc.code(), exc.details() or ""
            if code == grpc.StatusCode.FAILED_PRECONDITION and EXPORT_SIGNATURES in details and NO_SIGNATURE in details:
                raise from_grpc(grpc.StatusCode.NOT_FOUND) from exc  # the number is there, and the export is not
            if code == grpc.StatusCode.UNAVAILABLE:
                self.breaks += FULL_QUEUE not in details
            elif code != grpc.StatusCode.NOT_FOUND:
                _log.warning("model server answered %s: %s", code.name, details)
            raise from_grpc(code) from exc

    def _method(self, path: str, answer: Any) -> Any:
        return self._channels[-1].unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )


def _names(identities: messages.TensorProto, identity: str, count: int) -> bool:
    """Tell whether each of an answer's rows names an export; as an array of NumPy it takes ten times as long, 20 us."""
    bits = identity_bits(identity)
    whole = bits.to_bytes(8, "little", signed=True) * count
    return list(identities.int64_val) == [bits] * count or identities.tensor_content == whole


def from_grpc(code: grpc.StatusCode) -> GatewayError:
    """Return the failure that a status of the model server means."""
    kind = _FROM_GRPC[code]
    return kind(_MODEL_DETAILS[kind])
