"""Speaks REST, with TensorFlow Serving's paths and JSON: status, metadata, and `:predict` by rows and by columns.

For people and health checks; the gateway speaks gRPC. Left out: labels, classify, regress.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any
from urllib.parse import unquote

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.document import PREDICT_SIGNATURE
from contract.messages_pb2 import Code
from contract.tensor import numpy_type
from serving.errors import InvalidArgumentError, ServingError, UnavailableError
from serving.lifecycle import Lifecycle
from serving.prediction import check_output, run

log = logging.getLogger(__name__)

RUN_TIMEOUT_S = 30.0  # Source: the default of --rest_api_timeout_in_ms
MAX_BODY_BYTES = 64 * 1024 * 1024
POLL_S = 0.05  # how long `shutdown` may take, and how often the end looks whether requests are under way

_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]{1,99}))?(/metadata|:predict)?", re.IGNORECASE)
# Every other code is a 500. Source: tensorflow/serving 2.20, model_servers/http_server.cc.
_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_FITTING: dict[str, set[type]] = {"f": {int, float}, "b": {bool}}  # JSON's types for NumPy's; for others, integers


class RestServer(ThreadingHTTPServer):
    """A listening REST server; each request has a thread."""

    request_queue_size = 128  # of socketserver's 5, 20 of 64 clients who came at once waited a second; now 0.02 s

    def __init__(self, lifecycle: Lifecycle, host: str, port: int) -> None:
        """Listen on a TCP port of an IPv4 or IPv6 address.

        Raises:
            UnavailableError: The port cannot be listened on.
        """
        self.lifecycle = lifecycle
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as exc:
            raise UnavailableError(f"Cannot listen on port {port}: {exc}") from exc
        self.answering = set[_Handler]()
        threading.Thread(target=self.serve_forever, args=(POLL_S,), name="rest", daemon=True).start()

    def wait_until_idle(self, limit_s: float) -> None:
        """Wait for the requests under way, but not longer than a limit; a client that asks nothing has none."""
        end = time.monotonic() + limit_s
        while self.answering and time.monotonic() < end:
            time.sleep(POLL_S)


class _Handler(BaseHTTPRequestHandler):
    server: RestServer
    protocol_version = "HTTP/1.1"  # of which http.server knows that curl waits a second for `100 Continue`
    timeout = RUN_TIMEOUT_S  # for a client that stays silent
    is_body_refused = False  # before it was read

    def log_message(self, *_: Any) -> None:
        return None

    def handle(self) -> None:
        with suppress(OSError):  # a client that left, or stays silent, is no defect
            try:
                super().handle()
            finally:
                self.server.answering.discard(self)
            if self.is_body_refused:  # to close while it comes would lose the answer
                self.connection.shutdown(socket.SHUT_WR)
                end = time.monotonic() + RUN_TIMEOUT_S
                while (left_s := end - time.monotonic()) > 0:
                    self.connection.settimeout(left_s)
                    if not self.connection.recv(2**16):
                        break

    def do_GET(self) -> None:
        self.server.answering.add(self)
        status, text = self._result()
        self.send_response(status)
        self.send_header("Connection", "close")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815  # as http.server calls it

    def _result(self) -> tuple[int, str]:
        try:
            return 200, json.dumps(self._route())
        except ServingError as exc:
            return _STATUS.get(exc.code, 500), json.dumps({"error": str(exc)})
        except Exception as exc:  # as gRPC's handlers do: a defect is answered too
            log.exception("Unexpected error in %s %s", self.command, self.path)
            return 500, json.dumps({"error": f"{type(exc).__name__}: {exc}"})

    def _route(self) -> dict[str, Any]:
        try:
            body = self._read_body()
        except OSError as exc:
            raise InvalidArgumentError(f"The body did not arrive whole: {exc}") from exc
        except zlib.error as exc:
            raise InvalidArgumentError(f"Expected gzip, as Content-Encoding says. Received: {exc}") from exc
        matched = _PATH.fullmatch(self.path.partition("?")[0])
        verb = (matched[3] or "").lower() if matched else ""
        if not matched or self.command != ("POST" if verb == ":predict" else "GET"):
            raise InvalidArgumentError(f"Malformed request: {self.command} {self.path}")
        name, version = unquote(matched[1]), int(matched[2]) if matched[2] else None
        if version and version >= 2**63:
            raise InvalidArgumentError(f"Failed to convert version: {matched[2]} to numeric.")
        if verb == ":predict":
            return _predict(self.server.lifecycle, name, version, body)
        return (_metadata if verb else _status)(self.server.lifecycle, name, version)

    def _read_body(self) -> bytes:
        """Read a body by its length, or in chunks, and unpack it. Source: RFC 9112, 7.1."""
        body = bytearray()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            body += self._read(self.headers.get("Content-Length", "0"), 10)
        else:
            while chunk := self._read(self.rfile.readline(100).decode("latin-1"), 16, len(body)):
                body += chunk
                self.rfile.readline(2)
            self.rfile.readline(2)
        coding = self.headers.get("Content-Encoding", "").strip().lower()
        if coding in ("deflate", "br", "zstd", "compress"):
            raise InvalidArgumentError(f"Expected a body that is plain or gzip. Received: Content-Encoding: {coding}")
        if coding not in ("gzip", "x-gzip"):
            return bytes(body)
        unpacked = zlib.decompressobj(31).decompress(body, MAX_BODY_BYTES + 1)
        if len(unpacked) > MAX_BODY_BYTES:
            raise InvalidArgumentError(f"Expected a body of at most {MAX_BODY_BYTES} bytes unpacked. Received: more")
        return unpacked

    def _read(self, length: str, base: int, before: int = 0) -> bytes:
        received = f"a length of {length.strip()!r}" if length else "one that is cut off"
        with suppress(ValueError):  # no number
            count = int(length.partition(";")[0], base)
            if 0 <= count <= MAX_BODY_BYTES - before:
                return self.rfile.read(count)
            received = str(before + count if count > 0 else count)
        self.is_body_refused = True
        raise InvalidArgumentError(f"Expected a body of at most {MAX_BODY_BYTES} bytes. Received: {received}")


def _status(lifecycle: Lifecycle, name: str, version: int | None) -> dict[str, Any]:
    return {"model_version_status": [_to_dict(each) for each in lifecycle.status(name, version)]}


def _metadata(lifecycle: Lifecycle, name: str, version: int | None) -> dict[str, Any]:
    with lifecycle.use(name, version) as (number, engine):
        signatures = messages.SignatureDefMap(signature_def=engine.signatures)
    found = {"name": name, "signature_name": "", "version": str(number)}
    return {"model_spec": found, "metadata": {"signature_def": _to_dict(signatures)}}


def _to_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _predict(lifecycle: Lifecycle, name: str, version: int | None, body: bytes) -> dict[str, Any]:
    try:
        query = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgumentError(f"JSON Parse error: {exc}") from exc
    if not isinstance(query, dict) or ("instances" in query) == ("inputs" in query):
        raise InvalidArgumentError("Expected a JSON object with either a list of `instances` or `inputs`")
    key = str(query.get("signature_name") or PREDICT_SIGNATURE)
    with lifecycle.use(name, version) as (_, engine):
        if key not in engine.signatures:
            raise InvalidArgumentError(f'Serving signature name: "{key}" not found in signature def')
        specs = engine.signatures[key].inputs
        if not specs:
            raise InvalidArgumentError(f"Failed to get input map for signature: {key}")
        columns = _by_rows(query["instances"], specs) if "instances" in query else _by_columns(query["inputs"], specs)
        inputs = {alias: _typed(column, alias, specs[alias].dtype) for alias, column in columns.items()}
        outputs = run(engine, key, inputs, RUN_TIMEOUT_S)
    if "instances" in query:
        return {"predictions": _to_rows(outputs)}
    values = {alias: _plain(array, alias) for alias, array in outputs.items()}
    return {"outputs": values if len(values) > 1 else next(iter(values.values()))}


def _by_rows(rows: Any, specs: Mapping[str, messages.TensorInfo]) -> dict[str, Any]:
    """Return each input's value in every row: the row itself, if there is no other input, or its member."""
    if not isinstance(rows, list) or not rows:
        raise InvalidArgumentError("Expected `instances` to be a list of at least one")
    if all(isinstance(row, dict) and row.keys() == specs.keys() for row in rows):
        return {alias: [row[alias] for row in rows] for alias in sorted(specs)}
    if len(specs) > 1 or any(isinstance(row, dict) and row.keys() != {"b64"} for row in rows):
        raise InvalidArgumentError(f"Expected every instance to be an object of {' and '.join(sorted(specs))} alone")
    return dict.fromkeys(specs, rows)


def _by_columns(values: Any, specs: Mapping[str, messages.TensorInfo]) -> dict[str, Any]:
    """Return each input's whole value: what was sent, if there is no other input, or its member."""
    if len(specs) == 1 and (not isinstance(values, dict) or values.keys() == {"b64"}):
        return dict.fromkeys(specs, values)
    for alias in sorted(specs):
        if not isinstance(values, dict) or alias not in values:
            raise InvalidArgumentError(f"Missing named input: {alias} in 'inputs' object.")
    return {alias: values[alias] for alias in sorted(specs)}


def _to_rows(outputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Return an object for each row, or its bare value if there is one output."""
    for alias, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgumentError(f"Tensor name: {alias} has no shape information ")
    sizes = {alias: len(array) for alias, array in outputs.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise InvalidArgumentError(f"Expected outputs of one common number of rows, at least 1. Received: {sizes}")
    values = {alias: _plain(array, alias) for alias, array in outputs.items()}
    if len(values) == 1:
        return list(*values.values())
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _typed(values: Any, alias: str, wire: messages.DataType) -> NDArray[Any]:
    """Return values as an array of a type; as in the original, no value changes its kind: 1.0 is no integer."""
    try:
        leaves, kinds, shape = _flat(values)
        if wire == messages.DT_STRING:
            return np.array([_bytes(leaf) for leaf in leaves], dtype=object).reshape(shape)
        dtype = numpy_type(wire)
        if kinds <= _FITTING.get(dtype.kind, {int}):
            with suppress(OverflowError):
                return np.array(leaves, dtype).reshape(shape)
    except ValueError as exc:  # rows of different shapes, or a value that is no text
        raise InvalidArgumentError(f"Expected {alias} to have one shape and type in all instances. {exc}") from exc
    raise InvalidArgumentError(f"JSON Value is not of expected type: {dtype}, in the input {alias}")


def _flat(values: Any) -> tuple[list[Any], set[type], list[int]]:
    """Return what nested lists contain, its types, and their shape; NumPy takes true for 1, and much room for texts."""
    leaves, shape = [values], list[int]()
    while list in (kinds := set(map(type, leaves))):
        if len(kinds) > 1 or len(sizes := set(map(len, leaves))) > 1:
            raise ValueError("Received lists of different lengths")
        shape += sizes
        leaves = list(chain.from_iterable(leaves))
    return leaves, kinds, shape


def _bytes(text: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, dict) and isinstance(text.get("b64"), str):
        return base64.b64decode(text["b64"].encode("ascii").translate(None, b" \t\r\n\f\v"), validate=True)
    raise ValueError(f"Expected a string. Received: {text!r:.100}")


def _plain(array: NDArray[Any], alias: str) -> Any:
    check_output(alias, array)
    if array.dtype.kind not in "OS":
        return array.tolist()
    binary = alias.endswith("_bytes")
    # The original puts bytes that are no text into its JSON as they are; this shows them as U+FFFD.
    texts = [{"b64": base64.b64encode(x).decode()} if binary else x.decode(errors="replace") for x in array.flat]
    return np.array(texts, dtype=object).reshape(array.shape).tolist()
