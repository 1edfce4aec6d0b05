"""AWS Lambda as a function sees it: the events of its four front doors, and a stand-in of its runtime API."""

from __future__ import annotations

import base64
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

Event = dict[str, Any]
REQUEST_ID = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"


def rest_event(method: str, path: str, body: bytes, headers: dict[str, str], query: str = "") -> Event:
    """Return what a REST API of API Gateway sends, payload format 1.0.

    Source: the example event of *Lambda proxy integrations in API Gateway*; the stage is not part of `path`.
    """
    arguments = parse_qs(query)
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[-1] for name, values in arguments.items()} or None,
        "multiValueQueryStringParameters": arguments or None,
        "pathParameters": {"proxy": path.removeprefix("/")},
        "stageVariables": None,
        "requestContext": {"path": f"/prod{path}", "stage": "prod", "httpMethod": method, "protocol": "HTTP/1.1"},
        **_body(body),
    }


def http_event(method: str, path: str, body: bytes, headers: dict[str, str], query: str = "") -> Event:
    """Return what an HTTP API of API Gateway sends, payload format 2.0, from its `$default` stage."""
    http = {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "curl"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {name.lower(): value for name, value in headers.items()},
        **({"queryStringParameters": dict(parse_qs(query))} if query else {}),
        "requestContext": {"http": http, "apiId": "api-id", "stage": "$default", "routeKey": "$default"},
        **_body(body),
    }


def url_event(method: str, path: str, body: bytes, headers: dict[str, str], query: str = "") -> Event:
    """Return what a function URL sends: format 2.0, with another host and context."""
    event = http_event(method, path, body, {"Host": "id.lambda-url.eu-west-1.on.aws", **headers}, query)
    event["requestContext"] |= {"apiId": "id", "domainName": "id.lambda-url.eu-west-1.on.aws", "authorizer": {}}
    return event


def balancer_event(method: str, path: str, body: bytes, headers: dict[str, str], query: str = "") -> Event:
    """Return what an Application Load Balancer sends: no version and no stage, and the query as it is in the URL.

    Source: the example event of *Use Lambda functions as targets of an Application Load Balancer*.
    """
    sent = _body(body)
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:eu-west-1:0:targetgroup/images/0"}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": dict(each.split("=", 1) for each in query.split("&") if each),
        "headers": {name.lower(): value for name, value in headers.items()},
        **sent,
        "body": sent["body"] or "",
    }


def _body(body: bytes) -> Event:
    """Return the members of a body: text as it is, anything else in base64."""
    try:
        return {"body": body.decode() or None, "isBase64Encoded": False}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


EVENTS = {"REST API": rest_event, "HTTP API": http_event, "function URL": url_event, "load balancer": balancer_event}


class RuntimeApi:
    """Hands events to a runtime client, one at a time, and takes its answers.

    Source of the paths and headers: *Using the Lambda runtime API for custom runtimes*, version 2018-06-01.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.asked = threading.Event()  # for a first event: the cold start is over
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/2018-06-01/runtime/invocation/next"
                api.asked.set()
                event = json.dumps(api._events.get()).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", REQUEST_ID)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 30) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:0:function:test")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(event)))
                self.end_headers()
                self.wfile.write(event)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()
                api._answers.put((self.path.removeprefix("/2018-06-01/runtime/"), body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        """What Lambda puts into AWS_LAMBDA_RUNTIME_API."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def invoke(self, event: Event, timeout_s: float = 60.0) -> tuple[str, Any]:
        """Return the path, as `invocation/…/response`, and the body that the function answers an event with."""
        self._events.put(event)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> tuple[str, Any]:
        """Return what the function says next, unasked: `init/error`."""
        return self._answers.get(timeout=timeout_s)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
