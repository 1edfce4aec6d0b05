"""The page at `/`, on which a person tries the classifier: three static files and an icon, and how they are sent."""

from __future__ import annotations

from flask import Blueprint, Response

# Everything is the gateway's own; nothing is inline. Images are only blob: URLs, which are the files a visitor chose.
# An image that is named by URL has no thumbnail: to load it, the visitor's browser would ask a stranger's server, which
# learns who looks and may show them another image than it showed the gateway. The page offers a link in its place.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# Flask sends static files with an ETag and no-cache: a browser asks each time and gets 304, so that the three files of
# a new release always come together.
page = Blueprint("page", __name__, static_folder="static", static_url_path="/page")


@page.get("/")
def show_page() -> Response:
    """Return the page; its addresses are relative, so that it works behind a path prefix too."""
    return page.send_static_file("index.html")


@page.after_request
def add_headers(response: Response) -> Response:
    """Hold the browser to what the page needs."""
    response.headers.update(_HEADERS)
    return response
