"""The gateway's HTTP interface. `predict` tells a request's life: read, fetch, decode, predict, answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flask import Flask, Response, jsonify, request
from numpy.typing import NDArray
from werkzeug.exceptions import HTTPException

from contract.image import DecodedImage, ImageError, decode
from gateway.client import ModelClient, Version
from gateway.errors import BadRequest, GatewayError, InternalError, VersionGone, from_http, from_image_error
from gateway.fetch import Fetcher
from gateway.settings import Settings

_log = logging.getLogger(__name__)


def create_app(settings: Settings, model: ModelClient) -> Flask:
    """Return the application; `model` has been started, or the caller lets it look by hand."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's default provider
    fetcher = Fetcher(settings.fetch_rules)

    @app.post("/predict")
    def predict() -> Response:
        clock = Clock()
        url, top_k = read_request(settings.top_k)
        deadline = time.monotonic() + settings.request_timeout_s
        with clock.time("fetch"):
            image = fetcher.fetch(url, settings.request_timeout_s)
        for version in model.candidates(deadline):
            with clock.time("decode"):
                decoded = decode(image, version.contract.image, settings.max_pixels)
            try:
                with clock.time("predict"):
                    probabilities = model.predict(version, decoded.pixels[np.newaxis], deadline)[0]
                break
            except VersionGone:  # a replica without that version; the next one may mean other pixels
                continue
        return jsonify(
            {
                "model": {"name": model.model, "version": version.number},
                "predictions": best(probabilities, version, top_k),
                "image": describe(image, decoded),
                "timing_ms": clock.milliseconds(),
            }
        )

    @app.get("/model")
    def show_model() -> Response:
        version = model.newest()
        contract = version.contract.to_dict()
        del contract["golden"]  # its images may be somebody's photos
        return jsonify({"name": model.model, "version": version.number, "contract": contract})

    @app.get("/livez")
    def is_alive() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    def is_ready() -> tuple[Response, int]:
        health = model.health
        body = {
            "status": "ready" if health.ready else "unavailable",
            "model": {
                "name": model.model,
                "versions": health.versions,
                "refused": {str(number): reason for number, reason in health.refused.items()},
                "error": health.error,
            },
        }
        return jsonify(body), 200 if health.ready else 503

    @app.errorhandler(Exception)
    def answer_problem(error: Exception) -> Response:
        problem = as_gateway_error(error)
        response = jsonify(problem.problem())
        response.status_code = problem.status
        response.content_type = "application/problem+json"
        if problem.retry_after_s is not None:
            response.headers["Retry-After"] = str(problem.retry_after_s)
        return response

    return app


class Clock:
    """Milliseconds by stage; a stage that is repeated adds up."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages_s: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages_s[stage] = self._stages_s.get(stage, 0.0) + time.perf_counter() - started

    def milliseconds(self) -> dict[str, float]:
        total_s = time.perf_counter() - self._started
        return {stage: round(s * 1000, 1) for stage, s in {**self._stages_s, "total": total_s}.items()}


def read_request(default_top_k: int) -> tuple[str, int]:
    """Return the URL and the number of predictions that the request's body asks for.

    Raises:
        BadRequest: The body is not what the API describes.
    """
    expected = 'Expected a JSON object such as {"url": "https://example.com/photo.jpg", "top_k": 5}.'
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"{expected} Received a body that is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadRequest(f"{expected} Received JSON of another type: {type(body).__name__}")
    if unknown := sorted(set(body) - {"url", "top_k"}):
        raise BadRequest(f"{expected} Received also: {', '.join(map(repr, unknown))}")
    url, top_k = body.get("url"), body.get("top_k", default_top_k)
    if not isinstance(url, str):
        raise BadRequest(f"{expected} Received as url: {json.dumps(url)[:100]}")
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise BadRequest(f"{expected} Received as top_k, an integer from 1: {json.dumps(top_k)[:100]}")
    return url, top_k


def best(probabilities: NDArray[np.float32], version: Version, top_k: int) -> list[dict[str, Any]]:
    """Return the most probable classes of (k,) first, at most `top_k`; of equal ones the lower index."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [
        {"class": version.contract.classes[i], "index": int(i), "probability": round(float(probabilities[i]), 6)}
        for i in order
    ]


def describe(image: bytes, decoded: DecodedImage) -> dict[str, Any]:
    """Return what the image was, as a viewer shows it."""
    return {"format": decoded.format, "width": decoded.width, "height": decoded.height, "bytes": len(image)}


def as_gateway_error(error: Exception) -> GatewayError:
    """Return the failure that an exception means; the only place where foreign ones become ours."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, ImageError):
        return from_image_error(error)
    if isinstance(error, HTTPException):
        return from_http(error.code or 500, error.description or error.name)
    _log.error("request failed", exc_info=error)
    return InternalError("Expected to answer. Received: a defect of the gateway, which its log holds.")
