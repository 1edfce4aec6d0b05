"""A model server in this process, behind the gRPC seam: versions by script, predictions by arithmetic."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract import tensor
from contract.document import EXPORT_SIGNATURES, Contract, GoldenExample, ImageSpec, find_identity, identity_bits
from contract.image import decode
from contract.outputs import SECONDS

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def mean_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the share of red, green and blue in pixels (n, h, w, 3) as probabilities (n, 3)."""
    sums = pixels.astype(np.float64).sum(axis=(1, 2)) + 1.0
    return (sums / sums.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FakeVersion:
    """One version: what it says of itself, and of pixels.

    Attributes:
        description: Its contract in JSON.
        predict: What it answers to pixels.
        score: What scores it gives them, if any.
        identity: The identity that its signatures name.
        describes: Whether it has the signature `describe`.
        fails: How its predictions fail, if they do.
        why: What the server says of that.
        engine: What runs it, and why, as the embedded server says it.
    """

    description: bytes
    predict: Predict = mean_colour
    identity: str = ""
    score: Predict | None = None
    describes: bool = True
    fails: grpc.StatusCode | None = None
    why: str = "as the test wants it"
    engine: str | None = None

    @property
    def signatures(self) -> list[str]:
        own = [EXPORT_SIGNATURES + self.identity] if self.identity else []
        return ["serving_default", *own, *(["describe"] if self.describes else [])]

    @classmethod
    def of(
        cls,
        images: list[bytes],
        classes: tuple[str, ...] = ("red", "green", "blue"),
        spec: ImageSpec | None = None,
        predict: Predict = mean_colour,
        score: Predict | None = None,
        **contract: Any,
    ) -> FakeVersion:
        """Return a version with golden examples that `predict` gives, made of these images."""
        spec = spec or ImageSpec(8, 8)
        golden = []
        for i, data in enumerate(images):
            pixels = decode(data, spec).pixels[np.newaxis]
            probabilities = tuple(map(float, predict(pixels)[0]))
            golden.append(GoldenExample(str(i), data, probabilities, float(score(pixels)[0]) if score else None))
        contract.setdefault("identity", secrets.token_hex(8))
        described = Contract("tiny", classes, spec, golden=tuple(golden), **contract)
        return cls(described.to_json(), predict, described.identity, score)


class FakeModelServer:
    """PredictionService.Predict and ModelService.GetModelStatus on a free port of the loopback address."""

    def __init__(
        self,
        versions: dict[int, FakeVersion],
        address: str = "127.0.0.1:0",
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.versions = versions
        self.unloaded: list[messages.ModelVersionStatus] = []
        self.failure: grpc.StatusCode | None = None
        self.answers_as = ""
        self.metadata_failure: grpc.StatusCode | None = None
        self.status_failure: grpc.StatusCode | None = None
        self.calls: list[str] = []
        self.seconds: dict[int, float] = {}  # how long each version says that it ran; none is said of the others
        self.metadata: dict[str, Any] = {}
        self.spoil: Callable[[int, Any], object] = lambda number, output: None  # changes a version's output
        self.gate = threading.Event()
        self.gate.set()
        self.may_tell_status = threading.Event()
        self.may_tell_status.set()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0), *options])
        self._add("PredictionService", "Predict", self._predict, messages.PredictRequest)
        self._add("PredictionService", "GetModelMetadata", self._metadata, messages.GetModelMetadataRequest)
        self._add("ModelService", "GetModelStatus", self._status, messages.GetModelStatusRequest)
        self.port = self._server.add_insecure_port(address)
        self._server.start()

    def _add(self, service: str, method: str, answer: Callable[[Any, grpc.ServicerContext], Any], request: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            answer, request.FromString, lambda response: response.SerializeToString()
        )
        service = f"tensorflow.serving.{service}"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        number, signature = request.model_spec.version.value, request.model_spec.signature_name
        self.calls.append(f"{signature} {number}")
        self.metadata = dict(context.invocation_metadata())
        self.gate.wait(10)
        version = self._version(number, context)
        if signature not in version.signatures:  # TensorFlow Serving looks before it reads any input
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        if signature == "describe":
            count = request.inputs["query"].tensor_shape.dim[0].size
            outputs = {"contract": np.array([version.description] * count, dtype=object)}
        else:
            if version.fails is not None:
                context.abort(version.fails, version.why)
            pixels = tensor.to_array(request.inputs["images"])
            outputs = {"probabilities": version.predict(pixels)}
            if "novelty" in request.output_filter and version.score:
                outputs["novelty"] = version.score(pixels)
            if number in self.seconds:
                context.set_trailing_metadata(((SECONDS, str(self.seconds[number])),))
            if identity := find_identity([signature]):
                outputs["identity"] = np.full(len(pixels), identity_bits(self.answers_as or identity))
        response = messages.PredictResponse()
        response.model_spec.version.value = number
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(tensor.to_proto(array, typed=True))
            self.spoil(number, response.outputs[alias])
        return response

    def _version(self, number: int, context: grpc.ServicerContext) -> FakeVersion:
        if self.failure is not None:
            context.abort(self.failure, "as the test wants it")
        try:
            return self.versions[number]  # which a test may take away at any time
        except KeyError:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific(tiny, {number})")
            raise

    def _metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        version = self._version(request.model_spec.version.value, context)
        if self.metadata_failure is not None:
            context.abort(self.metadata_failure, "as the test wants it")
        signatures = messages.SignatureDefMap(
            signature_def={key: messages.SignatureDef() for key in version.signatures}
        )
        response = messages.GetModelMetadataResponse()
        response.metadata["signature_def"].value = signatures.SerializeToString()
        return response

    def _status(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.may_tell_status.wait(10)
        if self.status_failure is not None:
            context.abort(self.status_failure, "as the test wants it")
        versions = dict(self.versions)
        if not versions and not self.unloaded:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model tiny")
        return messages.GetModelStatusResponse(
            model_version_status=[
                messages.ModelVersionStatus(
                    version=number, state=messages.ModelVersionStatus.AVAILABLE, engine=versions[number].engine
                )
                for number in sorted(versions, reverse=True)
            ]
            + self.unloaded
        )
