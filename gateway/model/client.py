"""gRPC calls to the model server's replicas behind one address: spread over all, and retried on another."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract import tensor
from contract.document import (
    CONTRACT,
    DESCRIBE_SIGNATURE,
    EXPORT_SIGNATURES,
    IDENTITY,
    IMAGES,
    NOVELTY,
    PROBABILITIES,
    QUERY,
    Contract,
    identity_bits,
)
from contract.outputs import SECONDS, Outputs
from gateway.errors import GatewayError, ModelFailed, ModelTimeout, ModelUnavailable, Overloaded, VersionGone
from gateway.trace import current_trace

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # a contract with 20,000 classes fits
STATUS_TIMEOUT_S = 2.0
# Replicas behind one address take turns in answering, so a call may reach one that lacks what others have.
SEARCH_S = 2.0  # how long a request, or the gate, tries to reach a replica that has an export
SEARCH_PAUSE_S = 0.005
# Source: tensorflow/serving 2.20, servables/tensorflow/predict_util.cc; it looks before it reads any input.
NO_SIGNATURE = "Serving signature key"
# Source: batching_util/basic_batch_scheduler.h there; it says UNAVAILABLE too, and nobody went away.
FULL_QUEUE = "batch scheduling queue"
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # http_proxy, which Docker hands to containers, is for hosts out there
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # gRPC asks the DNS again whenever a connection ends, and each replica ends them every few seconds. But it asks no
    # sooner than this after the last time; its default of 30 s would keep a new replica idle for as long.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # A replica that dies fails all its work at one moment. Retries stop when half of the tokens are gone: of 20 calls
    # on a replica that was killed, 16 were lost with 10 tokens, and none with 100. A success gives one back.
    # The embedded server answers CANCELLED to a request that came while it was ending, and that it has not begun.
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

# What a status means, if not that the model server failed. Source: TensorFlow Serving 2.20 and gRPC's own.
_FROM_GRPC: dict[grpc.StatusCode, type[GatewayError]] = {
    grpc.StatusCode.CANCELLED: ModelUnavailable,
    grpc.StatusCode.ABORTED: ModelUnavailable,
    grpc.StatusCode.UNAVAILABLE: ModelUnavailable,
    grpc.StatusCode.NOT_FOUND: VersionGone,
    grpc.StatusCode.DEADLINE_EXCEEDED: ModelTimeout,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}
# For the client. The model server's own words go to the log, since they may name hosts and paths.
_DETAILS: dict[type[GatewayError], str] = {
    ModelFailed: "The model server answered with an error; see the gateway's log.",
    ModelUnavailable: "The model server does not answer. Try again shortly.",
    VersionGone: "No version of the model is loaded at the moment. Try again shortly.",
    Overloaded: "The model server is busy. Try again shortly.",
    ModelTimeout: "The prediction did not arrive in time.",
}

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class ModelClient:
    """One process's channel. Safe for threads; make it after a fork, which gRPC does not survive."""

    def __init__(self, address: str, model: str, timeout_s: float) -> None:
        """Open a channel.

        Args:
            address: The model server's, in gRPC's form; with `dns:///name:port`, each address of it is a replica.
            model: The model's name at the model server.
            timeout_s: Limit for one call.
        """
        self._address, self._model, self._timeout_s = address, model, timeout_s
        self.breaks = 0  # calls that found no server: after one, another server may answer
        self._swapping = threading.Lock()
        self._spare: grpc.Channel | None = None
        self._use(self._open())

    def _open(self) -> grpc.Channel:
        return grpc.insecure_channel(self._address, options=_CHANNEL_OPTIONS)

    def _use(self, channel: grpc.Channel) -> None:
        self._channel = channel
        prediction, status = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
        self._predict = self._method(prediction + "Predict", messages.PredictResponse)
        self._get_metadata = self._method(prediction + "GetModelMetadata", messages.GetModelMetadataResponse)
        self._get_status = self._method(status + "GetModelStatus", messages.GetModelStatusResponse)

    def renew(self) -> None:
        """Open another channel, which looks up the address at once, and use it as soon as it finds a server.

        A channel that finds no address waits before it looks again, longer each time, up to two minutes. A gateway
        that started long before the model server would notice it late. Until then the old one is used: it still knows
        the addresses of servers that restart, while the DNS may deny them for 30 s.
        """
        channel = self._open()
        with self._swapping:
            replaced, self._spare = self._spare, channel
        if replaced:
            replaced.close()
        grpc.channel_ready_future(channel).add_done_callback(lambda _: self._swap(channel))

    def _swap(self, channel: grpc.Channel) -> None:
        with self._swapping:
            if self._spare is channel:
                self._spare = self._channel  # left open until the next time, since calls may be under way
                self._use(channel)

    def close(self) -> None:
        """Close what is open."""
        for channel in (self._channel, self._spare):
            if channel:
                channel.close()

    def statuses(self) -> Sequence[messages.ModelVersionStatus]:
        """Return the state of each version, from the replica that is next.

        Raises:
            VersionGone: It has none.
            GatewayError: The call failed otherwise.
        """
        request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name=self._model))
        response, _ = self._call(self._get_status, request, min(STATUS_TIMEOUT_S, self._timeout_s))
        return response.model_version_status  # type: ignore[no-any-return]

    def signatures(self, number: int) -> set[str]:
        """Return the names of a version's signatures, one of which names the export.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: The call failed otherwise.
        """
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model
        request.model_spec.version.value = number
        response, _ = self._call(self._get_metadata, request, min(STATUS_TIMEOUT_S, self._timeout_s))
        with _reading():  # not Any.Unpack: it compares packages, and ours is another
            return set(messages.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def)

    def describe(self, number: int) -> bytes:
        """Return the contract of a version, as it is in its files.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: The call failed otherwise.
        """
        query = np.array([b""], dtype=object)
        outputs, _ = self._run(number, DESCRIBE_SIGNATURE, {QUERY: query}, [CONTRACT], self._timeout_s)
        with _reading():
            return bytes(tensor.to_array(outputs[CONTRACT])[0])

    def predict(
        self, number: int, contract: Contract, pixels: NDArray[np.uint8], timeout_s: float = math.inf
    ) -> Outputs:
        """Return what the export that a contract describes gives for pixels (n, h, w, 3); n >= 1.

        The signature that is asked contains the identity, so another export under the same number lacks it. The answer
        repeats the identity. Exports from before there were identities can only be asked by their number.

        Raises:
            VersionGone: The export is not loaded where the call arrived.
            GatewayError: The call failed otherwise.
        """
        # A tensor of the wrong rank ends TensorFlow Serving's process, and a fully convolutional model answers one of
        # another size, wrongly.
        expected = (contract.image.height, contract.image.width, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected or len(pixels) == 0:
            raise ValueError(f"Expected uint8 (n, {expected}). Received: {pixels.dtype} {pixels.shape}")
        wanted = [*contract.outputs, IDENTITY] if contract.identity else contract.outputs
        timeout_s = min(timeout_s, self._timeout_s)
        answer, seconds = self._run(number, contract.signature, {IMAGES: pixels}, wanted, timeout_s)
        if contract.identity and not _names(answer[IDENTITY], contract.identity, len(pixels)):
            raise from_grpc(grpc.StatusCode.NOT_FOUND)
        shapes = {PROBABILITIES: (len(pixels), len(contract.classes)), NOVELTY: (len(pixels),)}
        with _reading():
            received = {name: tensor.to_array(answer[name]) for name in contract.outputs}
            for name, array in received.items():
                if array.shape != shapes[name] or not np.isfinite(array).all():
                    _log.error("version %d answered %s of shape %s, or not finite", number, name, array.shape)
                    raise ModelFailed("The model did not answer with a probability for each class.")
        return Outputs.of({name: array.astype(np.float32) for name, array in received.items()})._replace(
            seconds=seconds
        )

    def _run(
        self, number: int, signature: str, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str], timeout_s: float
    ) -> tuple[Mapping[str, messages.TensorProto], float | None]:
        """Return at least the wanted outputs of a signature of a version, and how long it ran, if that is known."""
        request = messages.PredictRequest(output_filter=wanted)
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(tensor.to_proto(array))
        request.model_spec.name = self._model
        request.model_spec.version.value = number
        request.model_spec.signature_name = signature
        response, call = self._call(self._predict, request, timeout_s)
        if response.model_spec.version.value != number or any(each not in response.outputs for each in wanted):
            raise ModelFailed("Another version answered than the one that was asked.")
        with _reading():
            seconds = next((float(value) for key, value in call.trailing_metadata() if key == SECONDS), None)
        return response.outputs, seconds

    def _call(self, method: Any, request: Any, timeout_s: float) -> tuple[Any, grpc.Call]:
        """Make one call; the only place that translates gRPC's exceptions."""
        try:
            trace = current_trace.get()
            metadata = (("traceparent", trace.traceparent), ("x-request-id", trace.request_id)) if trace else None
            return method.with_call(request, timeout=timeout_s, metadata=metadata)  # type: ignore[no-any-return]
        except grpc.RpcError as exc:
            code, details = exc.code(), exc.details() or ""
            if code == grpc.StatusCode.FAILED_PRECONDITION and EXPORT_SIGNATURES in details and NO_SIGNATURE in details:
                raise from_grpc(grpc.StatusCode.NOT_FOUND) from exc  # the number is there, but another export
            if code == grpc.StatusCode.UNAVAILABLE and FULL_QUEUE in details:
                raise from_grpc(grpc.StatusCode.RESOURCE_EXHAUSTED) from exc
            if code == grpc.StatusCode.UNAVAILABLE:
                self.breaks += 1
            elif code != grpc.StatusCode.NOT_FOUND:
                _log.warning("model server answered %s: %s", code.name, details)
            raise from_grpc(code) from exc

    def _method(self, path: str, answer: Any) -> Any:
        return self._channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )


def search(call: Callable[[], Answer], give_up: float) -> Answer:
    """Repeat a call until it reaches a replica that has the version.

    Raises:
        VersionGone: None was reached until `give_up`, of the monotonic clock.
    """
    while True:
        try:
            return call()
        except VersionGone:
            if time.monotonic() > give_up:
                raise
            time.sleep(SEARCH_PAUSE_S)


@contextmanager
def _reading() -> Iterator[None]:
    """Read an answer; the only place that translates what nonsense in one raises."""
    try:
        yield
    except (ValueError, TypeError, IndexError, DecodeError) as exc:
        _log.warning("model server's answer cannot be read: %s", exc)
        raise ModelFailed("The model server's answer cannot be read; see the gateway's log.") from exc


def _names(identities: messages.TensorProto, identity: str, count: int) -> bool:
    """Tell whether each row of an answer names an export; a NumPy array would take ten times as long, 20 us."""
    bits = identity_bits(identity)
    whole = bits.to_bytes(8, "little", signed=True) * count
    return list(identities.int64_val) == [bits] * count or identities.tensor_content == whole


def from_grpc(code: grpc.StatusCode) -> GatewayError:
    """Return the failure that a status of the model server means."""
    kind = _FROM_GRPC.get(code, ModelFailed)
    return kind(_DETAILS[kind])
