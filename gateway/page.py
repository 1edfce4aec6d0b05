"""The page at `/`, where a person tries the classifier, the API in a browser at `/docs`, and their headers."""

from __future__ import annotations

from importlib.resources import files

from flask import Blueprint, Response, redirect, request, send_from_directory

# Everything comes from the gateway; nothing is inline. Images are only blob: URLs, which are the files a visitor chose.
# An image given by URL has no thumbnail, but a link. To show one, the browser would ask a stranger's server, which
# learns who looks, and may send another image than it sent the gateway.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# Flask sends static files with an ETag and no-cache: a browser asks each time and gets 304. So the three files of a
# new release always come together.
page = Blueprint("page", __name__, static_folder="static", static_url_path="/page")


@page.get("/")
def show_page() -> Response:
    """Return the page; its addresses are relative, so it works behind a path prefix too."""
    return page.send_static_file("index.html")


@page.get("/docs")
def show_docs() -> Response:
    """Return the page that shows openapi.json, by Swagger UI."""
    return page.send_static_file("docs.html")


page.add_url_rule("/docs/", "show_docs_with_slash", lambda: redirect("../docs", 308))


@page.get("/docs/<path:name>")
def show_swagger_ui(name: str) -> Response:
    """Return a file of Swagger UI. Its package comes with a page too, which needs inline scripts."""
    return send_from_directory(str(files("flask_swagger_ui") / "dist"), name)


@page.after_request
def add_headers(response: Response) -> Response:
    """Allow the browser only what the page needs."""
    response.headers.update(_HEADERS)
    if request.endpoint == "page.show_docs":  # Swagger UI's style sheet contains its icons
        response.headers["Content-Security-Policy"] = _HEADERS["Content-Security-Policy"].replace("blob:", "data:")
    return response
