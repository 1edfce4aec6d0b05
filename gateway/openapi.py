"""The API in OpenAPI 3.1, as `/openapi.json` shows it; tests hold it to the routes and to real answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from contract.document import IDENTITY_DIGITS
from gateway import errors
from gateway.fetch.urls import MAX_URL_CHARACTERS
from gateway.settings import Settings

Schema = dict[str, Any]
Kinds = tuple[type[errors.GatewayError], ...]

PROBLEM = "application/problem+json"


def document(settings: Settings) -> Schema:
    """Return the description of a gateway with these settings."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image classifier",
            "version": "0.1.0",
            "description": "Image references in, class predictions out. Errors are problem details (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"header": []}] if settings.api_keys else [],
        "paths": {
            "/predict": {"post": _predict(settings)},
            "/model": {
                "get": _show("showModel", "The contract in use, without its golden examples.", "Model", _CLOSED)
            },
            "/livez": {"get": _show("isAlive", "Whether the process lives.", "Alive")},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _show("showApi", "This description.", "Api")},
        },
        "components": {"schemas": _schemas(settings), "securitySchemes": _security_schemes()},
    }


def _predict(settings: Settings) -> Schema:
    image = {"schema": {"type": "string", "contentMediaType": "image/*"}}
    formats = ("jpeg", "png", "webp", "gif", "bmp", "avif")
    return {
        "operationId": "predict",
        "summary": "Classify an image, or a list of them, given in any form.",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "How many predictions an image gets; in JSON and in forms it may be a member instead.",
                "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": settings.top_k},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("Query")},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
                            "top_k": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
                        },
                    }
                },
                **{f"image/{name}": image for name in formats},
                "application/octet-stream": image,
            },
        },
        "responses": {
            "200": _json("The predictions; of a list, each item's own result or error.", _ref("Answer")),
            **_failures(kind for kind in _kinds() if kind.status not in (404, 405)),
        },
    }


def _show(operation: str, summary: str, schema: str, failures: Kinds = ()) -> Schema:
    return {
        "operationId": operation,
        "summary": summary,
        **({} if failures else {"security": []}),
        "responses": {"200": _json("As the summary says.", _ref(schema)), **_failures((*failures, *_ANYWHERE))},
    }


def _ready() -> Schema:
    operation = _show("isReady", "Whether a usable version is loaded, which were refused, and why.", "Health")
    operation["responses"]["503"] = _json("There is no usable version.", _ref("Health"))
    return operation


def _metrics() -> Schema:
    operation = _show("showMetrics", "Metrics in Prometheus' text format.", "Alive")
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


# What is taken for sure. Host names of other scripts are taken too, and line breaks in base64.
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
URL = f"^[Hh][Tt][Tt][Pp][Ss]?://{_LABEL}(\\.{_LABEL}){{0,3}}(:[0-9]{{1,4}})?([/?#][!-\\[\\]-~]*)?$"
BASE64 = "^(data:[^,]*;base64,)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

# What the front answers on any path, before a route is asked.
_ANYWHERE: Kinds = (errors.RequestTimeout, errors.TooLarge, errors.Overloaded, errors.InternalError)
_CLOSED: Kinds = (errors.Unauthorized, errors.ModelUnavailable)


def _kinds() -> list[type[errors.GatewayError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.GatewayError) and hasattr(kind, "status")]


def _failures(kinds: Iterable[type[errors.GatewayError]]) -> Schema:
    """Return responses by status, each with the codes that it may carry."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        known = codes.setdefault(kind.status, [])
        known.extend([kind.code] if kind.code not in known else [])
    return {
        str(status): {
            "description": " or ".join(names),
            "content": {PROBLEM: {"schema": _ref("Problem")}},
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status == 503 else {}),
        }
        for status, names in sorted(codes.items())
    }


def _schemas(settings: Settings) -> Schema:
    text: Schema = {"type": "string"}
    top_k = {"type": "integer", "minimum": 1}
    url = {"type": "string", "pattern": URL, "maxLength": MAX_URL_CHARACTERS}
    image = {"type": "string", "pattern": BASE64}
    lists: Schema = {"type": "array", "minItems": 1, "maxItems": settings.max_images}
    forms: dict[str, Schema] = {
        "url": url,
        "urls": lists | {"items": url},
        "image": image,
        "images": lists | {"items": image},
    }
    result = _object(
        predictions={
            "type": "array",
            "items": _object(**{"class": text, "index": _number("integer", 0), "probability": _number("number", 0, 1)}),
        },
        image=_object(
            format=text, width=_number("integer", 1), height=_number("integer", 1), bytes=_number("integer", 1)
        ),
    )
    identity: Schema = {"type": ["string", "null"], "pattern": f"^[0-9a-f]{{{IDENTITY_DIGITS}}}$"}
    export = {"name": text, "version": _number("integer", 0), "identity": identity}
    common = {"model": _object(**export), "timing_ms": _map(_number("number", 0))}
    health = _object(
        name=text,
        versions={"type": "array", "items": _number("integer", 0)},
        identities=_map(text),
        refused=_map(text),
        error={"type": ["string", "null"]},
    )
    return {
        "Query": {"oneOf": [_object({"top_k": top_k}, **{form: kind}) for form, kind in forms.items()]},
        "Answer": {
            "oneOf": [
                _object(**result["properties"], **common),
                _object(
                    **common, results={"type": "array", "items": {"oneOf": [result, _object(error=_ref("Problem"))]}}
                ),
            ]
        },
        "Problem": _object(
            title=text,
            status=_number("integer", 400, 599),
            code={"enum": sorted({kind.code for kind in _kinds()})},
            detail=text,
        ),
        "Model": _object(**export, contract={"type": "object"}),
        "Alive": _object(status={"const": "alive"}),
        "Health": _object(status={"enum": ["ready", "draining", "unavailable"]}, model=health),
        "Api": {"type": "object", "required": ["openapi", "paths"]},
    }


def _object(optional: Schema | None = None, /, **required: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _number(kind: str, least: int, most: int | None = None) -> Schema:
    return {"type": kind, "minimum": least, **({} if most is None else {"maximum": most})}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _security_schemes() -> Schema:
    return {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
