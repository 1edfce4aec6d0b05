"""gateway/batch/ against a gateway over HTTP: what it asks, writes, resumes and returns."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
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
from contract.image import decode
from gateway.app import create_app
from gateway.batch.__main__ import main
from gateway.batch.asking import Asked, Client, Pace
from gateway.batch.table import Table
from gateway.errors import ModelFailed
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
    assert main([str(folder), "--gateway", address, "--out", str(out), "--top-k", "2"]) == 3
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
    assert main([str(folder), "--gateway", address, "--out", str(out)]) == 3
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


def test_a_request_carries_several_images(
    address: str, photos: Path, tmp_path: Path, model_server: FakeModelServer
) -> None:
    """Files, as a form, and URLs, as a list; each gets the answer that it gets alone."""
    together, alone = tmp_path / "together.jsonl", tmp_path / "alone.jsonl"
    model_server.calls.clear()
    assert main([str(photos), "--gateway", address, "--out", str(together), "--concurrency", "1"]) == 0
    assert len([call for call in model_server.calls if call.startswith("serving")]) < 20
    for each in sorted(photos.iterdir()):
        assert main([str(each), "--gateway", address, "--out", str(alone)]) == 0
    assert sorted(together.read_text().splitlines()) == sorted(alone.read_text().splitlines())


def test_urls_go_together(address: str, origin: Origin, tmp_path: Path, model_server: FakeModelServer) -> None:
    """One URL that cannot be fetched fails alone."""
    urls = [origin.add(f"{i}.png", encode(photo(40 + i), "PNG")) for i in range(20)]
    listed, out = tmp_path / "urls.txt", tmp_path / "out.jsonl"
    listed.write_text("\n".join([*urls, f"{urls[0]}.none"]))
    model_server.calls.clear()
    assert main([str(listed), "--gateway", address, "--out", str(out), "--concurrency", "1"]) == 3
    assert len([call for call in model_server.calls if call.startswith("serving")]) < 12
    errors = [line for line in map(json.loads, out.read_text().splitlines()) if "error" in line]
    assert [(line["source"], line["error"]) for line in errors] == [(f"{urls[0]}.none", "fetch_failed")]


def test_an_image_on_which_the_model_fails_costs_the_others_nothing(
    gateway: FlaskClient, monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path
) -> None:
    """They are asked again, each alone, and one alone has failed."""
    out, view = tmp_path / "out.jsonl", gateway.application.view_functions["predict"]
    bad = (photos / "7.png").read_bytes()
    model = view.__self__._model  # type: ignore[attr-defined]
    predict = model.predict

    def failing(version: Any, pixels: Any, deadline: float) -> Any:
        wanted = decode(bad, version.contract.image).pixels
        if any((each == wanted).all() for each in pixels):
            raise ModelFailed("The model server answered with an error")
        return predict(version, pixels, deadline)

    monkeypatch.setattr(model, "predict", failing)
    with serving(gateway.application) as address:
        assert main([str(photos), "--gateway", address, "--out", str(out)]) == 3
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 40
    assert [line["error"] for line in lines if Path(line["source"]).name == "7.png"] == ["model_failed"]
    assert sum("error" in line for line in lines) == 1


def test_a_gateway_that_takes_few_images_at_once_gets_few(
    model_server: FakeModelServer, connect: Callable[[str], Versions], photos: Path, tmp_path: Path
) -> None:
    """GATEWAY_MAX_IMAGES is learnt, and no image is lost meanwhile."""
    out = tmp_path / "out.jsonl"
    app = create_app(Settings(model_name="tiny", max_images=3), connect(model_server.address), Metrics())
    with serving(app) as address:
        assert main([str(photos), "--gateway", address, "--out", str(out)]) == 0
    assert len(answered(out)) == 40


def test_what_the_gateway_was_too_busy_for_is_asked_again(folder: Path, tmp_path: Path) -> None:
    """An item of a list may say so, in an answer of status 200."""
    item = {"predictions": [{"class": "red", "index": 0, "probability": 1.0}], "image": {}}
    model = {"name": "m", "version": 3}
    busy = {"error": {"code": "overloaded", "detail": "The gateway is busy"}}
    both = json.dumps({"model": model, "results": [item, busy], "timing_ms": {}})
    scripted = Scripted(Response(both), Response(json.dumps({"model": model, **item, "timing_ms": {}})))
    with serving(scripted) as gateway:
        asked = Client(gateway, top_k=1, concurrency=1, timeout_s=5.0).ask(
            [str(folder / n) for n in ("a.jpg", "b.png")]
        )
    assert [each["model"]["version"] for each in asked.answers.values()] == [3, 3]
    assert len(scripted.keys) == 2


def test_the_pace_follows_the_gateway() -> None:
    """Twice as many images after a quick answer, half as many after a slow one, and never more than were too large."""
    pace, sizes = Pace(), []
    for seconds, is_too_large in ((0.1, False), (0.1, False), (0.9, False), (2.0, False), (0.1, False), (0.1, True)):
        pace.note(Asked({str(i): {} for i in range(pace.size)}, seconds, is_too_large))
        sizes.append(pace.size)
    assert sizes == [2, 4, 4, 2, 4, 2]
    pace.note(Asked({str(i): {} for i in range(16)}, 9.0, False))  # a late one, of another size
    assert pace.size == 2
    for _ in range(9):
        pace.note(Asked({str(i): {} for i in range(pace.size)}, 0.1, False))
    assert pace.size == 2


def test_shards_are_merged_and_nothing_is_lost_or_repeated(
    address: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merge of all parts asks nobody; of those with a gap, about the gap alone."""
    parts, whole = [tmp_path / f"part-{i}.csv" for i in range(3)], tmp_path / "all.csv"
    for i, part in enumerate(parts):
        assert main([str(photos), "--gateway", address, "--out", str(part), "--shard", f"{i}/3", "--top-k", "2"]) == 0
    sizes = [len(part.read_text().splitlines()) for part in parts]
    assert sum(sizes) == 2 * 40 + 3 and min(sizes) > 1
    one_by_one = [option for part in (*parts, parts[0]) for option in ("--merge", str(part))]
    for sources in ([], [str(photos)]):
        assert main([*sources, "--out", str(whole), *one_by_one, "--gateway", "http://127.0.0.1:1"]) == 0
        assert "40 taken over" in capsys.readouterr().err
        rows = [(row["source"], row["rank"]) for row in read_csv(whole)]
        assert len(rows) == len(set(rows)) == 80
        whole.unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    assert main([str(photos), "--out", str(whole), "--top-k", "2", *one_by_one, "--gateway", address]) == 0
    said = capsys.readouterr().err
    assert "39 taken over" in said and "1 answered" in said
    assert sorted((row["source"], row["rank"]) for row in read_csv(whole)) == sorted(rows)
    assert main([str(photos / "1.png"), "--out", str(whole), *one_by_one]) == 0
    assert "0 taken over; the files answer 38 other images" in capsys.readouterr().err


def test_a_csv_that_was_cut_anywhere_becomes_whole(address: str, tmp_path: Path) -> None:
    """Each image has all of its predictions, once, whichever byte was the last; here with a line break in a name."""
    images, out = [tmp_path / "a\nb.jpg", tmp_path / "c.jpg", tmp_path / "d.jpg"], tmp_path / "out.csv"
    for image in images:
        image.write_bytes(encode(photo()))
    ask = [*map(str, images), "--gateway", address, "--out", str(out), "--top-k", "2"]
    assert main(ask) == 0
    whole = out.read_bytes()
    first_of_one = whole.find(b"\r\n", whole.find(b"\r\n") + 1) + 2  # with nothing to compare it with
    ends = {*range(0, len(whole), 13), *(each.end() for each in re.finditer(b"\r\n", whole))} - {first_of_one}
    for size in sorted(ends):
        out.write_bytes(whole[:size])
        assert main(ask) == 0
        rows = [(row["source"], row["rank"]) for row in read_csv(out)]
        assert sorted(rows) == [(str(image), rank) for image in images for rank in ("1", "2")]


def test_a_file_that_another_run_writes_is_left_alone(
    address: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Pod that was replaced may not have ended yet."""
    out = tmp_path / "out.csv"
    table = Table(out)
    table.open()
    assert main([str(folder), "--gateway", address, "--out", str(out)]) == 2
    assert f"Another run writes to {out}. Wait for its end" in capsys.readouterr().err
    late = Table(out)
    table.write("a.jpg", {"error": "bad_image", "detail": "It is broken"})
    table.close()
    with pytest.raises(ValueError, match="Another run"):
        late.open()
    assert len(read_csv(out)) == 1


def test_a_run_without_a_gateway_stops(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another run may do better; a million lines that say so help nobody."""
    (tmp_path / "urls.txt").write_text("\n".join(f"http://example.com/{i}.jpg" for i in range(500)))
    refusal = Response(json.dumps({"code": "unauthorized", "detail": "Expected an API key."}), 401)
    with serving(Scripted(refusal)) as gateway:
        ask = [str(tmp_path / "urls.txt"), "--gateway", gateway, "--out", str(tmp_path / "out.jsonl")]
        assert main(ask) == 1
    assert "Stopped; run the same command to go on. Expected an API key." in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) < 100


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, in which a name may have line breaks."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "source,x\r\na,1\r\n"),
        ("a.csv", "first,second\r\n1,2\r\n"),
        ("a.jsonl", "no JSON\n"),
        ("a.jsonl", "5\n"),
        ("a.jsonl", '{"path": 1}\n'),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their name, as a part and as the file to append to; and nothing is written."""
    file = tmp_path / name
    file.write_bytes(content.encode())
    for options in (["--out", str(file)], ["--out", str(tmp_path / f"b{file.suffix}"), "--merge", str(file)]):
        assert main(["http://example.com/a.jpg", *options]) == 2
        assert f"Expected a file of an earlier run in {file}" in capsys.readouterr().err
    assert file.read_bytes() == content.encode()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "0/0", "a/b", "1/3/4"])
def test_a_shard_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts count from 0, as the indexes of a Kubernetes Job do."""
    with pytest.raises(SystemExit, match="2"):
        main(["photos", f"--shard={text}"])
    assert "Expected I/N with I from 0 to N - 1, such as 0/4" in capsys.readouterr().err


def test_parts_of_another_kind_are_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    (tmp_path / "part.jsonl").touch()
    out = tmp_path / "out.csv"
    assert main([str(folder), "--out", str(out), "--merge", str(tmp_path / "part.jsonl")]) == 2
    assert "Expected files to merge that end in .csv" in capsys.readouterr().err and not out.exists()
    assert main(["--merge", str(tmp_path / "part.jsonl")]) == 2
    assert "Expected --out with --merge" in capsys.readouterr().err
    assert main([]) == 2
    assert "files to --merge. Received none" in capsys.readouterr().err
