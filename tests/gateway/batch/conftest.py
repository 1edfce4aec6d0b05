"""A gateway over HTTP, real or scripted, and photos to ask it about."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug import Request, Response

from gateway.batch.__main__ import main
from tests.programs.photos import encode, photo
from tests.programs.web import serving


@pytest.fixture
def address(gateway: FlaskClient) -> Iterator[str]:
    """The gateway's address."""
    with serving(gateway.application) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them broken, and what is no photo: a text, and what macOS puts into archives."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.png"):
        (photos / name).write_bytes(encode(photo(), "JPEG" if name.endswith("jpg") else "PNG"))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (photos / "__MACOSX").mkdir()
    for name in ("notes.txt", "._a.jpg", "__MACOSX/a.jpg"):
        (photos / name).write_text("no photo")
    return photos


class Scripted:
    """A gateway that gives these answers in turn, the last one for ever; `keys` are what it was sent."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.keys: list[str | None] = []

    @Request.application
    def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return Response("{}")
        request.get_data()
        self.keys.append(request.headers.get("Authorization"))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def asked(capfd: pytest.CaptureFixture[str], image: Path, gateway: str) -> dict[str, Any]:
    """Ask about one image; return the line that was written."""
    main([str(image), "--gateway", gateway])
    line: dict[str, Any] = json.loads(capfd.readouterr().out)
    return line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of forty photos, no two alike."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.png").write_bytes(encode(photo(40 + i), "PNG"))
    return folder


def answered(out: Path) -> list[str]:
    """Return the names of the photos that a JSON lines file answers."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all("predictions" in line for line in lines)
    return sorted(Path(line["source"]).name for line in lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, in which a name may have line breaks."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
