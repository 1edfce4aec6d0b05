"""Answers events of API Gateway (REST and HTTP), of load balancers and of function URLs, as the gateway would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from apig_wsgi import make_lambda_handler
from flask import Flask
from werkzeug.utils import append_slash_redirect

from gateway.app import create_app
from gateway.model.protocol import Model
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

Event = dict[str, Any]
Handler = Callable[[Event, Any], dict[str, Any]]
# All that the gateway answers, but PNG. A REST API decodes base64 only for its binary media types, often none.
TEXT = ("text/", "application/", "image/svg+xml")
IMAGE_MEMBERS = {"url", "urls", "image", "images"}  # of the JSON of POST /predict


def create_handler(settings: Settings, model: Model) -> Handler:
    """Return the function that answers events; all paths, forms, answers and errors are the gateway's."""
    metrics = Metrics()
    metrics.show(model.health)
    answer = _answers(create_app(settings, model, metrics))
    # AWS checks who may invoke the function itself: a plain event needs no key, and has no place for one.
    plain = create_app(replace(settings, api_keys="", path_prefix=""), model, metrics).test_client()

    def handle(event: Event, context: Any) -> dict[str, Any]:
        if not isinstance(event, dict):
            raise ValueError(
                f'Expected a JSON object, such as {{"url": "https://…"}}. Received: {json.dumps(event)[:100]}'
            )
        request = event.get("requestContext")
        if isinstance(request, dict) and ("httpMethod" in event or "http" in request):
            return answer(_without_stage(event), context)
        if not event.keys() & IMAGE_MEMBERS:
            raise ValueError(
                "Expected an event of API Gateway, of a load balancer or of a function URL, or the JSON of POST"
                f" /predict. Received one with the members {', '.join(sorted(event)) or '(none)'}"
            )
        headers = {"X-Request-ID": context.aws_request_id}
        body: dict[str, Any] = plain.post("/predict", json=event, headers=headers).get_json()
        return body

    return handle


def _answers(app: Flask) -> Handler:
    """Return what answers events of API Gateway by an application."""

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # Lambda's own identifier, which is in its log lines, unless the caller sent one.
        environ.setdefault("HTTP_X_REQUEST_ID", environ["apig_wsgi.context"].aws_request_id)
        environ["wsgi.input_terminated"] = True  # a body that came in chunks is whole here
        if not environ["PATH_INFO"]:  # relative links of the page would leave the stage
            stage = environ["apig_wsgi.request_context"]["stage"]
            return append_slash_redirect(environ | {"PATH_INFO": f"/{stage}"})(environ, start_response)
        return app(environ, start_response)

    handler: Handler = make_lambda_handler(call, binary_support=True, non_binary_content_type_prefixes=TEXT)
    return handler


def _without_stage(event: Event) -> Event:
    """Return an event without the stage in its path, where HTTP APIs put it: `/prod/predict`; `/prod` leaves none.

    REST APIs leave it out, and have no member `version`; behind a domain of your own there is none.
    """
    context, member = event["requestContext"], "rawPath" if "rawPath" in event else "path"
    path = event.get(member) or "/"  # so that only a stage leaves an empty one
    rest = path.removeprefix(f"/{context.get('stage')}")
    has_stage = rest != path and rest[:1] in ("", "/")
    if "version" not in event or not has_stage or ".execute-api." not in context.get("domainName", ".execute-api."):
        rest = path
    return event | {member: rest}
