"""The API in OpenAPI 3.1, as `/openapi.json` shows it: the file openapi.json, with limits and errors filled in.

Its patterns describe what is accepted for sure. Host names in other scripts are accepted too, and base64 with line
breaks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gateway import errors
from gateway.fetch.urls import MAX_URL_CHARACTERS
from gateway.inputs import MAX_PREDICTIONS
from gateway.settings import Settings

Kind = type[errors.GatewayError]

# What the server answers on any path, before a route is asked.
_ANYWHERE: list[Kind] = [
    errors.BadRequest,
    errors.RequestTimeout,
    errors.UriTooLong,
    errors.HeadersTooLarge,
    errors.InternalError,
    errors.UnsupportedCoding,
    errors.Overloaded,
    errors.UnsupportedVersion,
]
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    503: {"Retry-After": {"schema": {"type": "integer"}}},
}
_DETAIL = "What is wrong with the request, or what happened and what to do."


def document(settings: Settings) -> dict[str, Any]:
    """Return the description of a gateway with these settings."""
    api: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    kinds: list[Kind] = [each for each in vars(errors).values() if hasattr(each, "code")]
    failures: dict[str, list[Kind]] = {
        "/predict": [kind for kind in kinds if kind.status not in (404, 405)],
        "/model": [errors.Unauthorized, errors.ModelUnavailable, *_ANYWHERE],
        "/metrics": [errors.Unauthorized, *_ANYWHERE],
    }
    for path, operations in api["paths"].items():
        for operation in operations.values():
            own = operation["responses"]
            for status, failure in _responses(failures.get(path, _ANYWHERE)).items():
                described = own.get(status, {"content": {}})  # not ready is a 503 too
                own[status] = failure | described | {"content": described["content"] | failure["content"]}
    schemas = api["components"]["schemas"]
    schemas["Problem"]["properties"]["code"]["enum"] = sorted({kind.code for kind in kinds})
    schemas["Url"]["maxLength"] = MAX_URL_CHARACTERS
    _, urls, _, images = (form["properties"] for form in schemas["Query"]["oneOf"])
    urls["urls"]["maxItems"] = images["images"]["maxItems"] = settings.max_images
    top_k, _ = api["paths"]["/predict"]["post"]["parameters"]
    top_k["schema"]["default"] = settings.top_k
    top_k["description"] += f" An answer has at most {MAX_PREDICTIONS:,} predictions."
    if not settings.api_keys:
        api["security"] = []
    return api


def _responses(kinds: Iterable[Kind]) -> dict[str, Any]:
    """Return responses by status, each with the codes that it may carry, and an example with the first."""
    codes: dict[int, dict[str, Kind]] = {}
    for kind in kinds:
        codes.setdefault(kind.status, {}).setdefault(kind.code, kind)
    return {
        str(status): {
            "description": " or ".join(names),
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": next(iter(names.values()))(_DETAIL).problem(),
                }
            },
            "headers": _HEADERS.get(status, {}),
        }
        for status, names in sorted(codes.items())
    }
