"""Speaks gRPC: TensorFlow Serving's method paths, with the contract's messages in place of the official stubs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import BoundedSemaphore
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from contract import messages_pb2 as messages
from contract.messages_pb2 import Code
from contract.outputs import SECONDS
from serving.errors import BusyError, InvalidArgumentError, ServingError, UnavailableError
from serving.lifecycle import Lifecycle
from serving.prediction import predict
from serving.settings import Settings

# Source: tensorflow/serving 2.20, model_servers/grpc_status_util.cc
MAX_MESSAGE_CHARS = 1024
TRUNCATED = "...TRUNCATED"
# For what is no prediction. Where predictions took all threads, gateways saw no status for up to 26 looks, and followed
# a rollback after 18 s, and probes failed.
OTHER_THREADS = 8
KEEPALIVE_MS = 60_000  # by default two hours, in which a dead client with an unfinished upload keeps a thread

_PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
_MODEL_SERVICE = "tensorflow.serving.ModelService"
# The names a health check may ask for; the short ones are the original's.
_HEALTH_NAMES = ("", "PredictionService", "ModelService", _PREDICTION_SERVICE, _MODEL_SERVICE)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

log = logging.getLogger(__name__)


class Service:
    """The three methods: each turns a request and its context into a response, or raises a ServingError."""

    def __init__(self, lifecycle: Lifecycle, most_predictions: int) -> None:
        self._lifecycle = lifecycle
        self._most, self._places = most_predictions, BoundedSemaphore(most_predictions)

    def predict(self, request: messages.PredictRequest, context: grpc.ServicerContext) -> messages.PredictResponse:
        name, version = _asked_by_number(request)
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self._most} predictions are under way, as many as --grpc_max_threads allows. Try again.")
        try:
            with self._lifecycle.use(name, version) as (number, engine):
                started = engine.clock()
                response = predict(engine, request, context.time_remaining())
                context.set_trailing_metadata(((SECONDS, f"{engine.clock() - started:.6f}"),))
        finally:
            self._places.release()
        response.model_spec.version.value = number
        return response

    def get_model_metadata(
        self, request: messages.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> messages.GetModelMetadataResponse:
        if not request.metadata_field:
            raise InvalidArgumentError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise InvalidArgumentError(f"Metadata field {field} is not supported")
        name, version = _asked_by_number(request)
        with self._lifecycle.use(name, version) as (number, engine):
            signatures = messages.SignatureDefMap(signature_def=engine.signatures)
        return messages.GetModelMetadataResponse(
            model_spec=messages.ModelSpec(name=name, version=Int64Value(value=number)),
            metadata={
                "signature_def": AnyMessage(
                    type_url="type.googleapis.com/tensorflow.serving.SignatureDefMap",
                    value=signatures.SerializeToString(),
                )
            },
        )

    def get_model_status(
        self, request: messages.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> messages.GetModelStatusResponse:
        # As in the original, an empty name is only not found here, and a label is ignored.
        return messages.GetModelStatusResponse(model_version_status=self._lifecycle.status(*_asked(request)))


class Server:
    """A listening gRPC server."""

    def __init__(self, lifecycle: Lifecycle, addresses: list[str], settings: Settings) -> None:
        """Listen on addresses, such as `0.0.0.0:8500` and `unix:/run/serving.sock`.

        Raises:
            UnavailableError: An address cannot be listened on.
        """
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(most := settings.grpc_max_threads + OTHER_THREADS, thread_name_prefix="request"),
            maximum_concurrent_rpcs=most,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # on, two servers would share a taken port without a word
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                *settings.grpc_channel_arguments,
            ],
        )
        self._server.add_generic_rpc_handlers(_handlers(Service(lifecycle, settings.grpc_max_threads)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.ports = [self._listen(address) for address in addresses]
        self._server.start()
        for name in _HEALTH_NAMES:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def drain(self, grace_s: float) -> None:
        """Say NOT_SERVING, accept no more requests, and give those under way some seconds to finish.

        gRPC closes a connection as soon as its last answer is written. One in 30 answers of 1.2 MB was then lost on the
        way, and none of 120 answers of 100 kB. The gateway asks again for what is lost.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()

    def _listen(self, address: str) -> int:
        if address.startswith("unix:"):  # gRPC would take it from another server, and remove it when either ends
            with socket.socket(socket.AF_UNIX) as client, suppress(OSError):  # as a rule, nobody listens there
                client.connect(address.removeprefix("unix:"))
                raise UnavailableError(f"Cannot listen on {address}: another server does")
        try:
            return int(self._server.add_insecure_port(address))
        except RuntimeError as exc:
            raise UnavailableError(f"Cannot listen on {address}: {exc}") from exc


def _handlers(service: Service) -> list[Any]:
    return [
        grpc.method_handlers_generic_handler(
            _PREDICTION_SERVICE,
            {
                "Predict": _handler(service.predict, messages.PredictRequest),
                "GetModelMetadata": _handler(service.get_model_metadata, messages.GetModelMetadataRequest),
            },
        ),
        grpc.method_handlers_generic_handler(
            _MODEL_SERVICE, {"GetModelStatus": _handler(service.get_model_status, messages.GetModelStatusRequest)}
        ),
    ]


def _handler(method: Callable[[Request, Any], Response], request_type: type[Request]) -> Any:
    """Wrap a method for gRPC; the one place where an error becomes a status."""

    def answer(request: Request, context: grpc.ServicerContext) -> Response:
        try:
            return method(request, context)
        except ServingError as exc:
            code, message = exc.code, str(exc)
        except Exception as exc:
            log.exception("Unexpected error in %s", method.__name__)
            code, message = Code.INTERNAL, f"{type(exc).__name__}: {exc}"
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[:MAX_MESSAGE_CHARS] + TRUNCATED
        context.abort(grpc.StatusCode[Code.Name(code)], message)
        raise AssertionError("abort raises")  # for type checkers

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_type.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _asked(request: Any) -> tuple[str, int | None]:
    """Return the model that a request asks for, and the version, if it asks for one."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    spec = request.model_spec
    return spec.name, spec.version.value if spec.HasField("version") else None


def _asked_by_number(request: Any) -> tuple[str, int | None]:
    """Return the same, and refuse a request without a name or with a version label."""
    name, version = _asked(request)
    if not name:
        raise InvalidArgumentError("ModelSpec has no name specified.")
    if request.model_spec.WhichOneof("version_choice") == "version_label":
        raise InvalidArgumentError(f"Unrecognized servable version label: {request.model_spec.version_label}")
    return name, version
