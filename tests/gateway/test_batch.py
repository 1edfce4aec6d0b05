"""gateway/batch.py against a gateway over HTTP: what it asks, writes, resumes and returns."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug import Request, Response
from werkzeug.serving import make_server

from contract.document import Novelty
from gateway.app import create_app
from gateway.batch import main
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.conftest import Origin
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve a WSGI application; yield its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


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


def test_a_folder_becomes_a_csv_and_a_failure_shows_in_the_status(
    address: str, model_server: FakeModelServer, golden: list[bytes], folder: Path, tmp_path: Path
) -> None:
    """A row for each prediction, with what is unknown, and a row with its error for each failure."""
    model_server.versions[1] = FakeVersion.of(golden, score=lambda pixels: np.ones(len(pixels)), novelty=Novelty(0.5))
    out = tmp_path / "out.csv"
    assert main([str(folder), "--gateway", address, "--out", str(out), "--top-k", "2"]) == 1
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert sorted((Path(row["source"]).name, row["rank"]) for row in rows) == [
        ("a.jpg", "1"),
        ("a.jpg", "2"),
        ("b.png", "1"),
        ("b.png", "2"),
        ("broken.jpg", ""),
    ]
    assert next(row["error"] for row in rows if row["source"].endswith("broken.jpg")) == "bad_image"
    assert sorted(row["unknown"] for row in rows) == ["", "true", "true", "true", "true"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("name", ['a\u2028b\x85c, "d".jpg', os.fsdecode(b"\xff.jpg")])
def test_a_name_of_any_characters_is_found_again(
    address: str, tmp_path: Path, model_server: FakeModelServer, suffix: str, name: str
) -> None:
    """What some call the end of a line does not end one here, and Linux takes any bytes."""
    image, out = tmp_path / name, tmp_path / f"out.{suffix}"
    image.write_bytes(encode(photo()))
    assert main([str(image), "--gateway", address, "--out", str(out)]) == 0
    calls = len(model_server.calls)
    assert main([str(image), "--gateway", address, "--out", str(out)]) == 0
    assert len(model_server.calls) == calls


def test_a_second_run_asks_only_what_was_not_answered(
    address: str, folder: Path, tmp_path: Path, model_server: FakeModelServer
) -> None:
    """Failures are tried again, answers are not."""
    out = tmp_path / "out.jsonl"
    assert main([str(folder), "--gateway", address, "--out", str(out)]) == 1
    (folder / "broken.jpg").write_bytes(encode(photo()))
    calls = len(model_server.calls)
    assert main([str(folder), "--gateway", address, "--out", str(out)]) == 0
    assert len(model_server.calls) == calls + 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 4
    assert lines[-1]["source"] == str(folder / "broken.jpg")
    assert lines[-1]["predictions"][0]["class"] in ("red", "green", "blue")


def test_urls_lists_and_images_go_to_standard_output_as_json_lines(
    address: str, folder: Path, origin: Origin, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A URL, a list of URLs, and one image; what is named twice is asked once."""
    url = origin.add("photo.jpg", encode(photo()))
    listed = tmp_path / "urls.txt"
    listed.write_text(f"{url}\n\n{url}?again\n")
    origin.add("photo.jpg?again", encode(photo()))
    assert main([url, str(listed), str(folder / "a.jpg"), "--gateway", address]) == 0
    sources = {json.loads(line)["source"] for line in capfd.readouterr().out.splitlines()}
    assert sources == {url, f"{url}?again", str(folder / "a.jpg")}


def test_a_line_cut_by_a_kill_is_asked_again(address: str, folder: Path, tmp_path: Path) -> None:
    """Half a line is dropped, and its image answered anew."""
    out = tmp_path / "out.jsonl"
    image = str(folder / "a.jpg")
    assert main([image, "--gateway", address, "--out", str(out)]) == 0
    out.write_text(out.read_text() * 2 + out.read_text()[:30])
    assert main([image, str(folder / "b.png"), "--gateway", address, "--out", str(out)]) == 0
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == [
        image,
        image,
        str(folder / "b.png"),
    ]


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """A CSV that no run wrote is not appended to, and a missing folder is an error."""
    out = tmp_path / "mine.csv"
    out.write_text("a,b\n1,2\n")
    assert main(["http://example.com/a.jpg", "--out", str(out)]) == 2
    assert out.read_text() == "a,b\n1,2\n"
    assert main(["http://example.com/a.jpg", "--out", str(tmp_path / "none" / "out.csv")]) == 2


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


def test_a_busy_gateway_is_asked_again_with_the_key(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 is no answer to write down; each request carries the key in GATEWAY_KEY."""
    monkeypatch.setenv("GATEWAY_KEY", "secret")
    answer = {"model": {"name": "m", "version": 3}, "predictions": [], "image": {}, "timing_ms": {}}
    scripted = Scripted(Response("busy", 503), Response(json.dumps(answer)))
    with serving(scripted) as gateway:
        assert asked(capfd, folder / "a.jpg", gateway)["model"]["version"] == 3
    assert scripted.keys == ["Bearer secret"] * 2


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵", "clé à", b"\xff\xa0"])
def test_a_key_of_any_letters_is_sent_as_the_bytes_that_it_is(
    model_server: FakeModelServer,
    connect: Callable[[str], Versions],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    key: str | bytes,
) -> None:
    """As curl sends it, so that its digest is that of `printf %s KEY | sha256sum`."""
    monkeypatch.setenv("GATEWAY_KEY", os.fsdecode(key))
    settings = Settings(model_name="tiny", api_keys=hashlib.sha256(os.fsencode(key)).hexdigest())
    with serving(create_app(settings, connect(model_server.address), Metrics())) as address:
        assert asked(capfd, folder / "a.jpg", address)["model"]["version"] == 1


def test_a_key_of_two_lines_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one message, which does not show it, before anything is asked."""
    monkeypatch.setenv("GATEWAY_KEY", "first\r\nsecond")
    assert main([str(folder), "--gateway", "http://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert "GATEWAY_KEY" in said and "second" not in said and len(said.splitlines()) == 1


def test_what_is_no_gateway_is_named_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Something else on that port, and a file that went away or cannot be read."""
    with serving(Scripted(Response("<html>", 404))) as gateway:
        assert asked(capfd, folder / "a.jpg", gateway)["error"] == "not_a_gateway"
        (folder / "a.jpg").unlink()
        (folder / "a.jpg").symlink_to(folder / "a.jpg.gone")
        (folder / "list.txt").write_text(str(folder / "a.jpg"))
        assert asked(capfd, folder / "list.txt", gateway)["error"] == "unreadable"


def test_nothing_to_begin_with_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there and a folder without images are mistakes of the caller."""
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path)]) == 2
    assert "Expected" in capsys.readouterr().err


def test_a_gateway_that_is_not_there_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one for each image; with its address and what to do; nothing is written."""
    out = tmp_path / "out.csv"
    assert main([str(folder), "--gateway", "http://127.0.0.1:1", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("No gateway answers at http://127.0.0.1:1: ") and "refused" in said
    assert "`make run`" in said and not out.exists()
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), "--gateway", "localhost:9696"])
    assert "Expected http://HOST:PORT" in capsys.readouterr().err
