"""Answers events of API Gateway (REST and HTTP) and of function URLs, as the gateway would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from apig_wsgi import make_lambda_handler

from gateway.app import create_app
from gateway.model.protocol import Model
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

Event = dict[str, Any]
Handler = Callable[[Event, Any], dict[str, Any]]


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
        if "requestContext" not in event:
            raise ValueError(
                "Expected an event of API Gateway or of a function URL. Received one with the members"
                f" {', '.join(sorted(event)) or '(none)'}"
            )
        return answer(event, context)

    return handle
