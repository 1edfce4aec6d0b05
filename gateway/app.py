"""The gateway's HTTP interface. `predict` tells a request's life: read, fetch, decode, predict, answer."""

from __future__ import annotations

import logging
import time
from io import BytesIO
from typing import Any

import numpy as np
from flask import Flask, Request, Response, g, jsonify, request
from numpy.typing import NDArray
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from contract.answers import most_probable
from contract.image import DecodedImage
from gateway import errors, openapi
from gateway.errors import GatewayError, InternalError, VersionGone, from_http
from gateway.inputs import read_query
from gateway.keys import Keys
from gateway.memory import Held, Room
from gateway.model.protocol import Model, Version
from gateway.page import page
from gateway.settings import Settings
from gateway.stages import Clock, Stages
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics

HEALTH_PATHS = ("/livez", "/readyz", "/metrics")
# In the WSGI environment, by the server around the application: when the request was complete, for its time runs from
# there, and whether the end has begun.
RECEIVED, DRAINING = "gateway.received", "gateway.draining"

_log = logging.getLogger(__name__)


def create_app(settings: Settings, model: Model, metrics: Metrics, room: Room | None = None) -> Flask:
    """Return the application; a client of a model server has been started, or the caller lets it look by hand.

    `room` is shared with whoever else holds bytes in this process; by default nobody does.
    """
    app = Flask(__name__, static_folder=None)
    app.request_class = InMemoryRequest
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's default provider
    app.register_blueprint(page)
    stages, keys = Stages(settings), Keys(settings.api_keys)
    room = room or Room(settings.max_held_bytes)

    @app.post("/predict")
    def predict() -> Response:
        query = read_query(request, settings)
        clock, deadline = Clock(), request.environ.get(RECEIVED, time.monotonic()) + settings.request_timeout_s
        model.newest()  # without a usable version nothing is fetched
        with clock.time("fetch"):
            images = stages.fetch(query.images, deadline, g.held)
        spec = None
        for version in model.candidates(deadline):
            if spec != version.contract.image:
                spec = version.contract.image
                with clock.time("decode"):
                    decoded = stages.decode(images, spec, deadline)
            try:
                with clock.time("predict"):
                    probabilities = model.predict(version, stack_pixels(decoded, version), deadline)
                break
            except VersionGone:  # a replica without that version; the next one may mean other pixels
                continue
        rows = iter(probabilities)
        results = [
            answer(version, each, next(rows), query.top_k) if isinstance(each, DecodedImage) else each
            for each in decoded
        ]
        metrics.observe(version.export, clock.seconds, results)
        g.export = version.export
        body: dict[str, Any] = {"model": named(model, version)}
        if query.is_list:
            body["results"] = [
                {"error": each.problem()} if isinstance(each, GatewayError) else each for each in results
            ]
        elif isinstance(results[0], GatewayError):
            raise results[0]
        else:
            body |= results[0]
        return jsonify(body | {"timing_ms": clock.milliseconds()})

    @app.get("/model")
    def show_model() -> Response:
        version = model.newest()
        contract = version.contract.to_dict()
        del contract["golden"]  # its images may be somebody's photos
        return jsonify({**named(model, version), "contract": contract})

    @app.get("/livez")
    def is_alive() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    def is_ready() -> tuple[Response, int]:
        health, draining = model.health, request.environ.get(DRAINING, False)
        ready = health.ready and not draining
        body = {
            "status": "draining" if draining else "ready" if ready else "unavailable",
            "model": {
                "name": model.model,
                "versions": health.versions,
                "identities": {str(each.number): each.identity for each in reversed(health.accepted) if each.identity},
                "refused": {str(each.number): health.reason(each.number) for each in health.refused},
                "error": health.error,
            },
        }
        return jsonify(body), 200 if ready else 503

    @app.get("/openapi.json")
    def show_api() -> Response:
        return jsonify(openapi.document(settings))

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.before_request
    def begin() -> None:
        g.started, g.held = time.perf_counter(), Held(room)
        logs.current.set(logs.Trace.of(request.headers.get("X-Request-ID"), request.headers.get("traceparent")))
        if request.endpoint in ("predict", "show_model"):
            keys.check(request.headers.get("Authorization"), request.headers.get("X-API-Key"))

    @app.after_request
    def end(response: Response) -> Response:
        trace = logs.current.get()
        response.headers["X-Request-ID"] = trace.request_id if trace else ""
        path, code = request.endpoint or "none", g.get("code", "")
        metrics.answers.labels(path, response.status_code, code).inc()
        if request.path not in HEALTH_PATHS:  # asked for every few seconds
            milliseconds = round((time.perf_counter() - g.started) * 1000, 1)
            fields = {"method": request.method, "path": request.path, "status": response.status_code, "code": code}
            by = {"version": g.export.number, "identity": g.export.identity} if "export" in g else {}
            _log.info("answered", extra={"fields": {**fields, "ms": milliseconds, **by}})
        return response

    @app.teardown_request
    def release(_: BaseException | None) -> None:
        g.held.release()

    @app.errorhandler(Exception)
    def answer_problem(error: Exception) -> Response:
        problem = as_gateway_error(error)
        g.code = problem.code
        response = jsonify(problem.problem())
        response.status_code = problem.status
        response.content_type = "application/problem+json"
        if problem.retry_after_s is not None:
            response.headers["Retry-After"] = str(problem.retry_after_s)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(error.valid_methods or ())
        return response

    return app


class InMemoryRequest(Request):
    """A request whose uploads stay in memory, where its body is already: no disk is needed, nor left full."""

    max_form_memory_size = None  # the body's own limit holds

    def _get_file_stream(self, *_: Any, **__: Any) -> BytesIO:
        return BytesIO()


def stack_pixels(decoded: list[DecodedImage | GatewayError], version: Version) -> NDArray[np.uint8]:
    """Return the pixels (n, h, w, 3) of the images that were decoded; n may be 0."""
    spec = version.contract.image
    pixels = [each.pixels for each in decoded if isinstance(each, DecodedImage)]
    return np.stack(pixels) if pixels else np.empty((0, spec.height, spec.width, 3), np.uint8)


def named(model: Model, version: Version) -> dict[str, Any]:
    """Return which model, version and export answers; an export from before there were identities has none."""
    return {"name": model.model, "version": version.number, "identity": version.contract.identity or None}


def answer(version: Version, image: DecodedImage, probabilities: NDArray[np.float32], top_k: int) -> dict[str, Any]:
    """Return what is said of one image, by its probabilities (k,)."""
    return {
        "predictions": most_probable(version.contract.classes, probabilities, top_k),
        "image": {"format": image.format, "width": image.width, "height": image.height, "bytes": image.size_bytes},
    }


def as_gateway_error(error: Exception) -> GatewayError:
    """Return the failure that an exception means; the only place where the web framework's own become ours."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, MethodNotAllowed):
        methods = sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"})
        return errors.MethodNotAllowed(f"Expected {' or '.join(methods)}. Received: {request.method}")
    if isinstance(error, NotFound):
        return errors.NotFound(f"Expected a path of /openapi.json. Received: {request.path[:100]!r}")
    if isinstance(error, HTTPException):
        return from_http(error.code or 500, error.description or error.name)
    _log.error("request failed", exc_info=error)
    return InternalError("Expected to answer. Received: a defect of the gateway, which its log holds.")
