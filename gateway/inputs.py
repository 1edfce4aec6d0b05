"""Reads a request, in any form of input, into one list of image references."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from io import BytesIO
from threading import Lock
from typing import Any

from werkzeug import Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser
from werkzeug.sansio.multipart import File

from gateway.errors import BadRequest, GatewayError, TooLarge, UnsupportedMedia
from gateway.fetch.fetcher import CODINGS
from gateway.settings import Settings

EXPECTED = (
    'Expected {"url": "https://…"}, {"urls": […]}, {"image": "<base64 or data: URL>"} or {"images": […]} as JSON,'
    " with an optional top_k; or files as multipart/form-data; or the image itself as the body, with its Content-Type."
)

FORMS = ("url", "urls", "image", "images")

# A form is read in such pieces, and a field or a part's headers are one or two. Without limits, one part with 8 million
# lines of headers took a gigabyte, and many parts with fewer lines 1.1 s of the interpreter for each megabyte.
FORM_READ_BYTES = 16_384
MAX_FIELDS = 16  # beside the files
# In an answer: those of 64 images and 20,000 classes were 82 MB, and took 620. All of ImageNet's 64,000 are allowed.
MAX_PREDICTIONS = 100_000

# A part takes up to 64 bytes once it is read: 24 MB of empty lists took a gigabyte. Base64 has no parts, a URL may.
MAX_JSON_PARTS = 200_000
# And one emoji makes each character of a body take 4 bytes, twice. Python reads no two at the same moment anyway.
_READING_JSON = Lock()


@dataclass(frozen=True)
class Query:
    """What a request asks for.

    Attributes:
        images: URLs to fetch, encoded images that came with the request, and why one of them is none.
        is_list: Whether the answer is a list. The form decides it, not the number of images.
        top_k: The most predictions in each answer.
    """

    images: list[str | bytes | GatewayError]
    is_list: bool
    top_k: int


def read_query(request: Request, settings: Settings) -> Query:
    """Read a request of any form.

    Raises:
        BadRequest: The request is none of the forms.
        TooLarge: More images than allowed.
        UnsupportedMedia: The body is compressed.
    """
    coding = request.headers.get("Content-Encoding", "")
    if not CODINGS.isdisjoint(map(str.strip, coding.lower().split(","))):
        raise UnsupportedMedia(f"Expected a body that is not compressed. Received one with Content-Encoding: {coding}")
    kind = request.mimetype
    top_k = _top_k(request.args.get("top_k", settings.top_k))
    if kind.startswith("image/") or kind == "application/octet-stream":
        query = Query([request.get_data(cache=False)], False, top_k)
    elif kind == "multipart/form-data":
        query = _read_files(request, top_k, settings)
    else:  # curl -d without a header says application/x-www-form-urlencoded, and means JSON
        data = request.get_data(cache=False)
        with _READING_JSON:
            query = _read_json(data, top_k, settings)
    return replace(query, images=[_within(settings.max_image_bytes, image) for image in query.images])


class _FormParser(MultiPartParser):
    """Keeps the names and bytes of a form's files, in the order of the body; `request.files` groups them by field.

    They stay in memory, where the body is already: that needs no disk, and cannot fill one.
    """

    def __init__(self, parts: int) -> None:
        super().__init__(max_form_memory_size=2 * FORM_READ_BYTES, max_form_parts=parts, buffer_size=FORM_READ_BYTES)
        self.files: list[tuple[str, BytesIO]] = []

    def start_file_streaming(self, event: File, total_content_length: int | None) -> BytesIO:
        event.headers.clear()  # many small ones take 30 times their bytes
        self.files.append((event.filename, BytesIO()))
        return self.files[-1][1]


def _within(most: int, image: str | bytes | GatewayError) -> str | bytes | GatewayError:
    if isinstance(image, bytes) and len(image) > most:
        return TooLarge(f"Expected images of at most {most:,} bytes. Received: {len(image):,}")
    return image


def _read_files(request: Request, top_k: int, settings: Settings) -> Query:
    parts = settings.max_images + MAX_FIELDS
    parser = _FormParser(parts)
    try:
        if not (boundary := request.mimetype_params.get("boundary", "").encode("ascii")):
            raise ValueError("No boundary")
        form, _ = parser.parse(request.stream, boundary, request.content_length)
    except RequestEntityTooLarge as exc:
        most = f"{parts} parts, each with at most {FORM_READ_BYTES:,} bytes of text or headers"
        raise TooLarge(f"Expected a form of at most {most}. Received: a larger one, or another boundary") from exc
    except ValueError as exc:
        received = "a form that is malformed, cut off or without a boundary in its Content-Type"
        raise BadRequest(f"{EXPECTED} Received {received}.") from exc
    # Without a name and bytes, it is an input of a page in which no file was chosen.
    files = [data for name, stream in parser.files if (data := stream.getvalue()) or name]
    if not files:
        raise BadRequest(f"{EXPECTED} Received a form without a file.")
    if others := [name for name in FORMS if form.get(name)]:
        raise BadRequest(f"Expected either files or {others[0]}, as JSON. Received a form with both.")
    _check_number(files, settings)
    return Query(list(files), len(files) > 1, _top_k(form.get("top_k", top_k)))


def _read_json(data: bytes, top_k: int, settings: Settings) -> Query:
    if len(data) > MAX_JSON_PARTS and sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_PARTS:
        raise TooLarge(f"Expected at most {settings.max_images} images in a request. Received: JSON of far more parts.")
    try:
        body = json.loads(data)
    except UnicodeDecodeError as exc:
        raise BadRequest(f"{EXPECTED} Received bytes that are no text, perhaps an image without its type.") from exc
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"{EXPECTED} Received a body that is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadRequest(f"{EXPECTED} Received JSON of another type: {type(body).__name__}")
    forms = [name for name in FORMS if name in body]
    if unknown := sorted(set(body) - {*forms, "top_k"}):
        raise BadRequest(f"{EXPECTED} Received a member that is none of these: {', '.join(map(repr, unknown))[:200]}")
    if len(forms) != 1:
        raise BadRequest(f"{EXPECTED} Received {' and '.join(forms) or 'none of them'}.")
    (form,) = forms
    is_list = form.endswith("s")
    values = body[form] if is_list else [body[form]]
    if not isinstance(values, list) or not values:
        raise BadRequest(f"Expected {form} to be a list that is not empty. Received: {_short(values)}")
    _check_number(values, settings)
    if wrong := [value for value in values if not isinstance(value, str)]:
        raise BadRequest(f"Expected {'each of ' * is_list}{form} to be text. Received: {_short(wrong[0])}")
    read = _from_url if form.startswith("url") else _from_base64
    images: list[str | bytes | GatewayError] = [read(value) for value in values]
    return Query(images, is_list, _top_k(body.get("top_k", top_k)))


def _check_number(images: list[Any], settings: Settings) -> None:
    if len(images) > settings.max_images:
        raise TooLarge(f"Expected at most {settings.max_images} images in a request. Received: {len(images)}")


def _from_url(text: str) -> str | BadRequest:
    if text[:5].lower() == "data:":
        return BadRequest("Expected an http or https URL. Received a data: URL, which belongs in image or images.")
    return text


def _from_base64(text: str) -> bytes | BadRequest:
    """Return the bytes of base64, plain or in a data: URL, with line breaks or without; or why there are none.

    The error is not raised: the frames of its traceback would keep the body.
    """
    if text[:8].lower().startswith(("http://", "https://")):
        return BadRequest("Expected an image in base64. Received a URL, which belongs in url or urls.")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            return BadRequest(f"Expected a data: URL of the form data:image/…;base64,…. Received: {_short(header)}")
    try:
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n\f\v"), validate=True)
    except UnicodeEncodeError as exc:
        received = f"{text[exc.start]!r} at {exc.start}"
        return BadRequest(f"Expected an image in base64, which is ASCII. Received a text with {received}")
    except ValueError as exc:
        return BadRequest(f"Expected an image in base64. Received text that is not: {exc}")


def _top_k(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # JSON does not tell 5.0 from 5
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"Expected top_k to be an integer from 1. Received: {_short(value)}")
    return value


def _short(value: Any) -> str:
    try:
        return json.dumps(value)[:100]
    except RecursionError:  # it was read just within the limit
        return "lists in lists"
