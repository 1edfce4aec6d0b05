"""The gateway's HTTP interface. `Views.predict` is a request's life: read, fetch, decode, predict, answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from flask import Flask, Response, g, jsonify, redirect, request, url_for
from numpy.typing import NDArray
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from contract.document import ImageSpec
from contract.image import DecodedImage
from contract.outputs import Outputs, most_probable
from gateway import errors, openapi
from gateway.errors import GatewayError, InternalError, Overloaded, TooLarge, Unauthorized, VersionGone
from gateway.inputs import MAX_PREDICTIONS, read_query
from gateway.keys import Keys, Origins
from gateway.memory import Held, Room
from gateway.model.protocol import ActiveTrial, Model, Version
from gateway.page import page
from gateway.settings import Settings
from gateway.stages import Clock, Stages
from gateway.telemetry.metrics import Metrics
from gateway.trace import Trace, current_trace
from gateway.trial.comparison import Comparisons
from gateway.trial.trials import Trials

HEALTH_PATHS = ("/livez", "/readyz", "/metrics")
# What the server around the application puts into the WSGI environment: when the request was complete, which is when
# its time begins, and whether the gateway is shutting down.
RECEIVED, DRAINING = "gateway.received", "gateway.draining"

# Failures that say nothing of a version: its server is busy, or lacks it, or the request asks for too much.
NOT_OF_THE_VERSION = (Overloaded, VersionGone, TooLarge)

_log = logging.getLogger(__name__)


def create_app(settings: Settings, model: Model, metrics: Metrics, room: Room | None = None) -> Flask:
    """Return the application; a client of a model server has been started, or the caller lets it look by hand.

    `room` is shared with whatever else keeps bytes in this process; by default nothing does.
    """
    app = Flask(__name__, static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's default provider
    prefix = settings.path_prefix
    app.register_blueprint(page, url_prefix=prefix or None)
    if prefix:  # by a relative redirect: whether the client speaks http or https, only the proxy knows
        app.add_url_rule(prefix, "show_prefix", lambda: redirect(f"{prefix}/", 308))
    views = Views(settings, model, metrics, room or Room(settings.max_held_bytes))
    app.add_url_rule(f"{prefix}/predict", view_func=views.predict, methods=["POST"])
    app.add_url_rule(f"{prefix}/model", view_func=views.show_model)
    app.add_url_rule(f"{prefix}/openapi.json", view_func=views.show_api)
    for start in {prefix, ""}:  # probes and scrapes come to the gateway itself, beside the proxy
        app.add_url_rule(f"{start}/livez", view_func=views.is_alive)
        app.add_url_rule(f"{start}/readyz", view_func=views.is_ready)
        app.add_url_rule(f"{start}/metrics", view_func=views.show_metrics)
    app.before_request(views.begin)
    app.after_request(views.end)
    app.teardown_request(lambda _: g.held.release())
    app.register_error_handler(Exception, answer_problem)
    return app


class _Asked(NamedTuple):
    """The version that answered, its images or why they have no pixels, and its outputs.

    `is_late` says that it took longer than a trial may: half of the time that was left once images were decoded.
    """

    version: Version
    decoded: list[DecodedImage | GatewayError]
    outputs: Outputs
    is_late: bool


class Views:
    """What each path answers, and what happens before and after."""

    def __init__(self, settings: Settings, model: Model, metrics: Metrics, room: Room) -> None:
        self._settings, self._model, self._metrics, self._room = settings, model, metrics, room
        self._stages, self._keys = Stages(settings), Keys(settings.api_keys)
        self._trials = Trials(model, metrics)
        self._comparisons = Comparisons(
            model, self._trials, self._stages, metrics=metrics, room=room, settings=settings
        )
        self._origins = Origins(settings.allowed_origins)
        self._api = openapi.document(settings)

    def predict(self) -> Response:
        """Answer images, one or a list."""
        query = read_query(request, self._settings)
        clock, deadline = Clock(), request.environ.get(RECEIVED, time.monotonic()) + self._settings.request_timeout_s
        self._model.newest()  # without a usable version nothing is fetched
        with clock.time("fetch"):
            images = self._stages.fetch(query.images, deadline, g.held)
        active = self._trials.choose(self._release_key())
        tried = active if active and active.trial.mode == "share" else None
        version, decoded, outputs, _ = self._ask(images, query.top_k, tried, clock, deadline)
        if active and (tried is None or version is tried.version):
            self._comparisons.offer(active, images)
        answers = iter(self._answers(version, outputs, query.top_k))
        results = [
            next(answers) | {"image": described(each)} if isinstance(each, DecodedImage) else each for each in decoded
        ]
        self._metrics.observe(version.export, clock.seconds, results)
        g.export = version.export
        body: dict[str, Any] = {"model": self._named(version)}
        if query.is_list:
            body["results"] = [
                {"error": each.problem()} if isinstance(each, GatewayError) else each for each in results
            ]
        elif isinstance(results[0], GatewayError):
            raise results[0]
        else:
            body |= results[0]
        return jsonify(body | {"timing_ms": clock.milliseconds()})

    def _ask(
        self, images: list[bytes | GatewayError], top_k: int, tried: ActiveTrial | None, clock: Clock, deadline: float
    ) -> _Asked:
        """Ask the version that is tried, if any, in half of the time that is left.

        If it fails, the request goes on as if it was not tried.
        """

        @cache
        def decode(spec: ImageSpec) -> list[DecodedImage | GatewayError]:
            with clock.time("decode"):
                return self._stages.decode(images, spec, deadline)

        def ask(version: Version, *, is_tried: bool) -> _Asked:
            if (count := len(images) * min(top_k, len(version.contract.classes))) > MAX_PREDICTIONS:
                raise TooLarge(f"Expected at most {MAX_PREDICTIONS:,} predictions in an answer. Received: {count:,}")
            decoded, half = decode(version.contract.image), (time.monotonic() + deadline) / 2
            with clock.time("predict"):
                outputs = self._model.predict(version, stack_pixels(decoded, version), half if is_tried else deadline)
            return _Asked(version, decoded, outputs, is_late=time.monotonic() > half)

        if not tried:
            return self._ask_stable(ask, deadline, is_counted=True)
        try:
            asked = ask(tried.version, is_tried=True)
        except GatewayError as exc:
            asked = self._ask_stable(ask, deadline, is_counted=False)
            if not isinstance(exc, NOT_OF_THE_VERSION):
                _log.warning("version %s is tried, and failed: %s", tried.version.export, exc)
                self._trials.record_request(tried, failed=True)
        else:
            if len(asked.outputs.probabilities):  # without a photo, nothing was tried
                self._trials.record_request(tried, failed=False)
        return asked

    def _ask_stable(self, ask: Callable[..., _Asked], deadline: float, *, is_counted: bool) -> _Asked:
        """Ask the version that answers; counted, it shows how many failures of the tried version are the moment's."""
        for version in self._model.candidates(deadline):
            try:
                asked = ask(version, is_tried=False)
            except VersionGone:  # a replica without that version; the next one may mean other pixels
                continue
            except GatewayError as exc:
                if is_counted and not isinstance(exc, NOT_OF_THE_VERSION):
                    self._trials.record_stable(failed=True)
                raise
            if is_counted and len(asked.outputs.probabilities):
                self._trials.record_stable(failed=asked.is_late)
            return asked
        raise InternalError  # candidates without an end

    def _answers(self, version: Version, outputs: Outputs, top_k: int) -> list[dict[str, Any]]:
        """Return what is answered for each image, but for the image itself."""
        classes = version.contract.classes
        answers = [{"predictions": most_probable(classes, row, top_k)} for row in outputs.probabilities]
        unknown = outputs.unknown(version.contract) if self._settings.unknown == "on" else None
        if unknown is None:
            return answers
        return [each | {"unknown": bool(is_unknown)} for each, is_unknown in zip(answers, unknown, strict=True)]

    def show_model(self) -> Response:
        """Answer the contract in use and what runs it, and the same of the version that is tried."""
        version, active = self._model.newest(), self._model.trial()
        body = self._named(version) | self._described(version) | {"trial": None}
        if active:
            mode, share = active.trial.mode, active.trial.share
            body["trial"] = (
                self._named(active.version) | {"mode": mode, "share": share} | self._described(active.version)
            )
        return jsonify(body)

    def is_alive(self) -> Response:
        """Answer that the process lives."""
        return jsonify({"status": "alive"})

    def is_ready(self) -> tuple[Response, int]:
        """Answer whether a usable version is loaded, and, to who may ask, which versions were refused, and why."""
        health, draining = self._model.health, request.environ.get(DRAINING, False)
        ready = health.ready and not draining
        body: dict[str, Any] = {"status": "draining" if draining else "ready" if ready else "unavailable"}
        with suppress(Unauthorized):  # a probe has no key, and needs no more than the status
            self._check_key()
            body["model"] = {
                "name": self._model.model,
                "versions": health.versions,
                "identities": {str(each.number): each.identity for each in reversed(health.accepted) if each.identity},
                "refused": {str(each.number): health.reason(each.number) for each in health.refused},
                "error": health.error,
            }
            body["release"] = health.release.to_dict() if health.release else None
            body["release_error"] = health.release_error
        return jsonify(body), 200 if ready else 503

    def show_api(self) -> Response:
        """Answer the description of these paths."""
        return jsonify(self._api)

    def show_metrics(self) -> Response:
        """Answer a scrape."""
        return Response(self._metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def begin(self) -> None:
        """Prepare a request, and check its API key where the path asks for one."""
        g.started, g.held = time.perf_counter(), Held(self._room)
        g.trace = Trace.of(request.headers.get("X-Request-ID"), request.headers.get("traceparent"))
        current_trace.set(g.trace)
        # Before a page of another origin asks, its browser does, by OPTIONS and without the key.
        if request.endpoint in ("predict", "show_model", "show_metrics") and request.method != "OPTIONS":
            g.key = self._check_key()

    def end(self, response: Response) -> Response:
        """Count and log an answer."""
        if isinstance(request.routing_exception, RequestRedirect):  # of `/prefix//predict`; relative, as its own
            response.location = urlsplit(str(response.location))._replace(scheme="", netloc="").geturl()
        response.headers["X-Request-ID"] = g.trace.request_id
        origin, is_preflight = request.headers.get("Origin"), request.method == "OPTIONS"
        response.headers.update(self._origins.headers(origin, is_preflight=is_preflight))
        code = g.get("code", "")
        self._metrics.answers.labels(request.endpoint or "none", response.status_code, code).inc()
        if request.path.removeprefix(self._settings.path_prefix) not in HEALTH_PATHS:  # asked for every few seconds
            milliseconds = round((time.perf_counter() - g.started) * 1000, 1)
            fields = {"method": request.method, "path": request.path, "status": response.status_code, "code": code}
            by = {"version": g.export.number, "identity": g.export.identity} if "export" in g else {}
            _log.info("answered", extra={"fields": {**fields, "ms": milliseconds, **by}})
        return response

    def _check_key(self) -> str:
        return self._keys.check(request.headers.get("Authorization"), request.headers.get("X-API-Key"))

    def _release_key(self) -> str:
        """Return what decides whether a version is tried with a request: requests of one key are treated alike."""
        return str(request.headers.get("X-Release-Key") or g.key or g.trace.request_id)

    def _named(self, version: Version) -> dict[str, Any]:
        """Return which model, version and export answers; exports from before there were identities have none."""
        return {"name": self._model.model, "version": version.number, "identity": version.contract.identity or None}

    def _described(self, version: Version) -> dict[str, Any]:
        contract = version.contract.to_dict()
        del contract["golden"]  # its images may be somebody's photos
        return {"engine": self._model.health.engines.get(version.number), "contract": contract}


def answer_problem(error: Exception) -> Response:
    """Answer a failure."""
    problem = as_gateway_error(error)
    error.__traceback__ = None  # a frame in it may have the error, and would keep the image until a collection
    g.code = problem.code
    response = write_problem(problem)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.valid_methods or ())
    return response


def write_problem(problem: GatewayError) -> Response:
    """Return the answer that a failure is."""
    response = Response(json.dumps(problem.problem()), problem.status, content_type="application/problem+json")
    if problem.status == 401:  # RFC 9110, 11.6.1
        response.headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        response.headers["Retry-After"] = str(problem.retry_after_s)
    return response


def stack_pixels(decoded: list[DecodedImage | GatewayError], version: Version) -> NDArray[np.uint8]:
    """Return the pixels (n, h, w, 3) of the images that were decoded; n may be 0."""
    spec = version.contract.image
    pixels = [each.pixels for each in decoded if isinstance(each, DecodedImage)]
    return np.stack(pixels) if pixels else np.empty((0, spec.height, spec.width, 3), np.uint8)


def described(image: DecodedImage) -> dict[str, Any]:
    """Return what an answer says of an image."""
    return {"format": image.format, "width": image.width, "height": image.height, "bytes": image.size_bytes}


def as_gateway_error(error: Exception) -> GatewayError:
    """Return the failure that an exception means; the only place that translates the web framework's own."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, MethodNotAllowed):
        methods = sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"})
        return errors.MethodNotAllowed(f"Expected {' or '.join(methods)}. Received: {request.method}")
    if isinstance(error, NotFound):
        return errors.NotFound(f"Expected a path that {url_for('show_api')} lists. Received: {request.path[:100]!r}")
    if isinstance(error, HTTPException):
        status, detail = error.code or 500, error.description or error.name
        if status >= 500:
            return InternalError(detail)
        return (errors.TooLarge if status == 413 else errors.BadRequest)(detail)
    _log.error("request failed", exc_info=error)
    return InternalError()
