"""gateway/batch/asking.py and its command: what a gateway is asked, and what is said if it does not answer."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient
from werkzeug import Request, Response

from contract.image import decode
from gateway.app import create_app
from gateway.batch.__main__ import main
from gateway.batch.asking import Asked, Client, Pace
from gateway.errors import FetchTimeout, GatewayError, ModelFailed, Overloaded
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.conftest import Origin
from tests.gateway.batch.conftest import Scripted, answered, asked
from tests.programs.model_server import FakeModelServer
from tests.programs.photos import encode, photo
from tests.programs.stack import wait_until
from tests.programs.web import serving


def test_urls_lists_and_images_go_to_standard_output_as_json_lines(
    address: str, folder: Path, origin: Origin, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A URL, a list of URLs, and one image; what is named twice is asked once."""
    url = origin.add("photo.jpg", encode(photo()))
    listed = tmp_path / "urls.txt"
    listed.write_text(f"{url}\n\n{url}?again\n", encoding="utf-8-sig")  # as Windows saves it
    origin.add("photo.jpg?again", encode(photo()))
    assert main([url, str(listed), str(folder / "a.jpg"), "--gateway", address]) == 0
    sources = {json.loads(line)["source"] for line in capfd.readouterr().out.splitlines()}
    assert sources == {url, f"{url}?again", str(folder / "a.jpg")}


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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("answer", ['{"prediction": 3}', '{"model": {"version": 3}}', '{"predictions": []}', "[]"])
def test_json_of_another_service_is_no_answer(photos: Path, tmp_path: Path, suffix: str, answer: str) -> None:
    """A photo that it marked as answered would never be asked about again."""
    out = tmp_path / f"out{suffix}"
    with serving(Scripted(Response(answer))) as gateway:
        assert main([str(photos / "1.png"), "--gateway", gateway, "--out", str(out)]) == 1
    assert "not_a_gateway" in out.read_text()


@pytest.mark.parametrize("location", ["https://shop.test/livez", "/prefix/livez"])
def test_an_address_that_redirects_is_refused_with_the_right_one(
    folder: Path, location: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key in GATEWAY_KEY would not go to another host, and would be called wrong there."""
    monkeypatch.setenv("GATEWAY_KEY", "secret")
    with serving(Response("", 301, {"Location": location})) as gateway:
        assert main([str(folder), "--gateway", gateway]) == 2
        target = urljoin(gateway, location.removesuffix("/livez"))
    said = capsys.readouterr().err
    assert said == f"{gateway} redirects to {target}. If the gateway is there, name that with --gateway.\n"


def test_a_redirect_of_predictions_is_not_followed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As a proxy may do with them alone."""
    scripted = Scripted(Response("", 308, {"Location": "/elsewhere"}))
    with serving(scripted) as gateway:
        assert asked(capfd, folder / "a.jpg", gateway)["detail"].endswith("/predict?top_k=1, with status 308")
    assert len(scripted.keys) == 1


def test_a_gateway_that_hangs_is_asked_twice(folder: Path) -> None:
    """Each time takes the whole limit of --timeout."""
    may_end, asked = threading.Event(), list[str]()

    @Request.application
    def hang(request: Request) -> Response:
        if request.method == "POST":
            asked.append(request.path)
            may_end.wait(10)
        return Response("{}")

    with serving(hang) as gateway:
        image = str(folder / "a.jpg")
        answer = Client(gateway, top_k=1, concurrency=1, timeout_s=0.3).ask([image]).answers[image]
        wait_until(lambda: len(asked) == 2)
        may_end.set()
    assert (answer["error"], len(asked)) == ("unreachable", 2)


def test_what_is_no_gateway_is_named_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Something else on that port, and a broken link, from a list and from a folder, and what can be no path."""
    with serving(Scripted(Response("<html>", 404))) as gateway:
        assert asked(capfd, folder / "a.jpg", gateway)["error"] == "not_a_gateway"
        (folder / "a.jpg").unlink()
        (folder / "links").mkdir()
        (folder / "links" / "a.jpg").symlink_to(folder / "a.jpg")
        (folder / "list.txt").write_text(str(folder / "links" / "a.jpg"))
        (folder / "nul.txt").write_text("a\0b.jpg")
        for source in ("list.txt", "nul.txt", "links"):
            assert asked(capfd, folder / source, gateway)["error"] == "unreadable"


def test_nothing_to_begin_with_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there or empty, a folder without images, and a photo of another format are refused."""
    heic = tmp_path / "a.heic"
    heic.write_bytes(b"\xff\xd8")
    for source, received in (
        (tmp_path / "none", ""),
        (heic, ""),
        ("", "an empty path"),
        (tmp_path, ": a folder without any. Left out 1 file"),
    ):
        assert main([str(source)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("Expected ") and f"Received: {received.removeprefix(': ') or source}" in said


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
    assert capsys.readouterr().err.startswith("python -m gateway.batch: argument --gateway: Expected http://HOST:PORT")


@pytest.fixture
def every_request_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is."""
    monkeypatch.setattr("gateway.batch.asking.QUICK_S", 60.0)
    monkeypatch.setattr("gateway.batch.asking.SLOW_S", 60.0)


@pytest.mark.usefixtures("every_request_is_quick")
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


@pytest.mark.usefixtures("every_request_is_quick")
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


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("429 Any", 1),
        ("503 Any", 1),
        ("200 OK\r\nContent-Length: 7", 1),
        (socket.EAI_AGAIN, 1),
        ("403 Any", 3),
        ("410 Gone", 3),
        (socket.EAI_SYSTEM, 1),
        (socket.EAI_NONAME, 3),
    ],
)
def test_a_host_that_fails_for_a_moment_is_worth_another_run(
    address: str, origin: Origin, tmp_path: Path, answer: str | int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 3 is for what would fail again; a merge of the answers says the same."""
    look_up = socket.getaddrinfo

    def fail(host: object, *arguments: Any, **options: Any) -> Any:
        if host == b"a.test":
            raise socket.gaierror(answer, "of the resolver")
        return look_up(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    origin.answer = f"HTTP/1.1 {answer}\r\n\r\n".encode()
    url = f"http://{origin.authority}/a.jpg" if isinstance(answer, str) else "http://a.test/a.jpg"
    part, whole = tmp_path / "part.csv", tmp_path / "whole.csv"
    assert main([url, "--gateway", address, "--out", str(part)]) == status
    assert main(["--merge", str(part), "--out", str(whole)]) == status


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EIO, 1), (errno.ESTALE, 1), (errno.EMFILE, 1), (errno.EACCES, 3), (errno.ELOOP, 3)],
)
def test_a_disk_that_fails_for_a_moment_is_worth_another_run(
    address: str, folder: Path, tmp_path: Path, number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is mounted does; what belongs to the file fails again."""
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "a.jpg":
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    part, whole = tmp_path / "part.csv", tmp_path / "whole.csv"
    images = [str(folder / name) for name in ("a.jpg", "b.png")]
    assert main([*images, "--gateway", address, "--out", str(part)]) == status
    assert main(["--merge", str(part), "--out", str(whole)]) == status
    assert ("unreadable" if status == 3 else "read_failed") in whole.read_text()


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


@pytest.mark.parametrize("error", [Overloaded("Busy."), FetchTimeout("no time was left to fetch the image.")])
def test_what_the_gateway_did_not_get_to_is_asked_again(folder: Path, error: GatewayError) -> None:
    """An item of a list may say so, in an answer of status 200; slow hosts of others may have taken the time."""
    item = {"predictions": [{"class": "red", "index": 0, "probability": 1.0}], "image": {}}
    model = {"name": "m", "version": 3}
    both = json.dumps({"model": model, "results": [item, {"error": error.problem()}], "timing_ms": {}})
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


@pytest.mark.parametrize(("code", "status"), [("unauthorized", 401), ("not_found", 404)])
def test_a_run_without_a_gateway_stops(
    code: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run may do better, with the right key or path; a million lines that say so help nobody."""
    (tmp_path / "urls.txt").write_text("\n".join(f"http://example.com/{i}.jpg" for i in range(500)))
    refusal = Response(json.dumps({"code": code, "detail": "Expected something else."}), status)
    with serving(Scripted(refusal)) as gateway:
        ask = [str(tmp_path / "urls.txt"), "--gateway", gateway, "--out", str(tmp_path / "out.jsonl")]
        assert main(ask) == 1
    assert "Stopped; run the same command to go on. Expected something else." in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) < 100
