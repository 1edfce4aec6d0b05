"""A store with four versions of a model, and the command."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Request, Response

from gateway.release.__main__ import main
from tests.programs.web import serving

Serve = Callable[..., int]


@dataclass
class Store:
    """A store, and what the command answers there."""

    path: Path
    run: Callable[..., tuple[int, str, str]]

    @property
    def home(self) -> Path:
        return self.path / "clothing"

    @property
    def document(self) -> dict[str, Any]:
        return json.loads((self.home / "release.json").read_text())

    def remove_document(self) -> None:
        """Remove the document, a while ago."""
        (self.home / "release.json").unlink()
        os.utime(self.home, (0, 0))

    def remove_document_for_a_moment(self, instead: str = "") -> None:
        """Remove the document, perhaps with another text in its place, and put it back in another thread."""
        file = self.home / "release.json"
        away = file.rename(self.path / "away")
        if instead:
            file.write_text(instead)
        threading.Timer(0.3, away.rename, [file]).start()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / "history.jsonl").read_text().splitlines()]

    def do(self, *arguments: str) -> str:
        """Run a command that must succeed; return what it prints."""
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def refuse(self, *arguments: str) -> str:
        """Run a command that must be refused, and change nothing; return why."""
        before = files(self.home)
        status, out, err = self.run(*arguments)
        assert (status, out, files(self.home)) == (1, "", before)
        return err


def files(home: Path) -> dict[str, bytes]:
    """Return the contents of the files that the command writes, but for its lock."""
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file() and path.name != ".release-lock"}


def add_version(home: Path, number: int) -> None:
    """Put a version into a model's folder."""
    (home / str(number) / "assets").mkdir(parents=True)
    (home / str(number) / "saved_model.pb").write_bytes(b"graph %d" % number)
    (home / str(number) / "assets" / "a file.txt").write_bytes(b"%d" % number)


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with versions 1 to 4 of `clothing`, and no document."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # each takes 20 ms here, and only a power cut shows what it is for

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["clothing", "--store", str(store.path), *arguments])
        return status, *capsys.readouterr()

    store = Store(tmp_path / "model-store", run)
    for number in range(1, 5):
        add_version(store.home, number)
    return store


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that answers every path at an address; it returns the port."""
    with ExitStack() as servers:

        def serve(answer: Callable[[str], object], *place: Any, tls: Any = None) -> int:
            @Request.application
            def app(request: Request) -> Response:
                found = answer(request.path)
                return Response(found if isinstance(found, bytes) else json.dumps(found))

            return int(servers.enter_context(serving(app, *place, tls=tls)).rpartition(":")[2])

        yield serve
