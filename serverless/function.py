"""Answers events of API Gateway (REST and HTTP) and of function URLs, as the gateway would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from apig_wsgi import make_lambda_handler

from gateway.app import create_app
from gateway.model.protocol import Model
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

Event = dict[str, Any]
Handler = Callable[[Event, Any], dict[str, Any]]
IMAGE_MEMBERS = {"url", "urls", "image", "images"}  # of the JSON of POST /predict


def create_handler(settings: Settings, model: Model) -> Handler:
    """Return the function that answers events; all paths, forms, answers and errors are the gateway's."""
    metrics = Metrics()
    metrics.show(model.health)
    app = create_app(settings, model, metrics)

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # Lambda's own identifier, which is in its log lines, unless the caller sent one.
        environ.setdefault("HTTP_X_REQUEST_ID", environ["apig_wsgi.context"].aws_request_id)
        return app(environ, start_response)

    answer = make_lambda_handler(call)

    def handle(event: Event, context: Any) -> dict[str, Any]:
        if "requestContext" in event:
            return answer(_without_stage(event), context)
        if not event.keys() & IMAGE_MEMBERS:
            raise ValueError(
                "Expected an event of API Gateway or of a function URL, or the JSON of POST /predict. Received one with"
                f" the members {', '.join(sorted(event)) or '(none)'}"
            )
        body: dict[str, Any] = json.loads(answer(_as_request(event), context)["body"])
        return body

    return handle


def _without_stage(event: Event) -> Event:
    """Return an event without the stage in its path, where HTTP APIs put it: `/prod/predict`.

    REST APIs leave it out, and have no member `version`; behind a domain of your own there is none.
    """
    context, member = event["requestContext"], "rawPath" if "rawPath" in event else "path"
    path = event.get(member, "")
    rest = path.removeprefix(f"/{context.get('stage')}")
    has_stage = rest != path and rest[:1] in ("", "/")
    if "version" not in event or not has_stage or ".execute-api." not in context.get("domainName", ".execute-api."):
        return event
    return event | {member: rest or "/"}


def _as_request(event: Event) -> Event:
    """Return the event of a function URL that posts a plain event, such as `{"url": …}` of `aws lambda invoke`."""
    http = {"method": "POST", "path": "/predict", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    return {
        "version": "2.0",
        "rawPath": "/predict",
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": http, "stage": "$default"},
        "body": json.dumps(event),
        "isBase64Encoded": False,
    }
