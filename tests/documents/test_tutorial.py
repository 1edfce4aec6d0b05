"""docs/tutorial.md: its commands run one after the other, on a few drawn photos and with a small network."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest

from contract.release import FILE_NAME
from gateway.batch import __main__ as batch
from gateway.release.__main__ import main as release
from tests.documents.pages import PAGES, commands
from tests.programs import pictures
from tests.programs.stack import ROOT, Gateway, embedded_server, free_port, gateway, running, wait_until_open

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

TUTORIAL = PAGES["docs/tutorial.md"]
COMMANDS = commands("docs/tutorial.md")
NOT_HERE = ("make setup", ". .venv/bin/activate", "git clone ")  # makes the environment, or downloads
CLASSES = {"red": "hat", "green": "pants", "blue": "shoes"}
STORE = Path("model-store")
FEW_REQUESTS = "5"  # that a watch waits for, in place of the tutorial's number


class Follower:
    """Somebody who follows the tutorial in the current folder; `servers` ends what they start."""

    def __init__(self, servers: ExitStack) -> None:
        self._start, self._at_end = servers.enter_context, servers.callback
        self._origin = str(free_port())
        self._gateway = Gateway(9696, 0)

    def follow(self, command: str) -> str:
        """Run a command as it stands, but for ports and the time in the name of the run; return what it prints."""
        for run in Path("runs/clothing").glob("*"):
            command = re.sub(r"\d{8}-\d{6}(-first)?", run.name, command)
        command = command.replace("localhost:9696", f"127.0.0.1:{self._gateway.port}").replace("8000", self._origin)
        match parts := shlex.split(command):
            case ["python", "-m", "training", *arguments]:
                return self._train(arguments)
            case ["python", "-m", "http.server", *options, folder]:
                self._start(running("-m", "http.server", *options, str(Path(folder).resolve())))
                wait_until_open(f"127.0.0.1:{self._origin}")
            case ["python", "-m", "gateway.batch", *arguments]:
                assert batch.main([*arguments, "--gateway", f"http://127.0.0.1:{self._gateway.port}"]) == 0
            case [setting, "make", "run", model]:
                self._run_stack(model.removeprefix("MODEL="), **dict([setting.split("=")]))
            case ["python", "-m", "gateway.release", *arguments]:
                return self._release(arguments)
            case ["while", *_]:
                self._ask_in_a_loop(command)
        if parts[0] in ("python", "make", "while") or "make" in parts:
            return ""
        return subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout

    def _train(self, arguments: list[str]) -> str:
        """Run `python -m training` in this process, so that TensorFlow is imported once; an epoch for any minutes."""
        from training.__main__ import main

        if "--minutes" in arguments:
            place = arguments.index("--minutes")
            arguments[place : place + 2] = ["--epochs", "1"]
        with redirect_stdout(StringIO()) as output:
            assert main(arguments) == 0, output.getvalue()
        return output.getvalue()

    def _release(self, arguments: list[str]) -> str:
        """Run `python -m gateway.release`, with a watch of few requests and at most ten minutes."""
        arguments = [FEW_REQUESTS if each.isdecimal() and int(each) > 10 else each for each in arguments]
        arguments += ["--within", "600s"] if "watch" in arguments else []
        with redirect_stdout(StringIO()) as output, redirect_stderr(output):
            assert release(arguments) == 0, output.getvalue()
        return output.getvalue()

    def _ask_in_a_loop(self, command: str) -> None:
        """Run a loop of a shell until the end, when it gets the terminal's Ctrl-C; a photo is broken."""
        Path("photos", "broken.jpg").write_bytes(b"\xff\xd8\xff")
        batch_here = f"{sys.executable} -m gateway.batch --gateway http://127.0.0.1:{self._gateway.port}"
        command = command.replace("python -m gateway.batch", batch_here)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        loop = subprocess.Popen(["bash", "-c", command], env=environ, start_new_session=True, stderr=subprocess.DEVNULL)
        self._at_end(_interrupt, loop)

    def _run_stack(self, model: str, **settings: str) -> None:
        address = self._start(embedded_server(STORE.resolve(), name=model))
        settings["GATEWAY_RELEASE_FILE"] = str((STORE / model / FILE_NAME).resolve())
        self._gateway = self._start(gateway(address, model, GATEWAY_WORKERS="1", **settings))


def _interrupt(loop: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C until a loop ends: Python may lose one while it starts or ends a command."""
    assert loop.poll() is None, "the loop has ended by itself"
    for _ in range(20):
        with suppress(subprocess.TimeoutExpired):
            os.killpg(loop.pid, signal.SIGINT)
            loop.wait(1)
            return
    raise TimeoutError("the loop goes on")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, str]]]:
    """Each command and what it prints, run in the current folder with photos of three of the tutorial's classes."""
    from tests.programs.small_training import Small, draw
    from training.models.catalogue import ARCHITECTURES

    with pytest.MonkeyPatch.context() as patch, ExitStack() as servers:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        for name, size_px in {"efficientnet-lite0": 224, "efficientnet-lite2": 260}.items():
            patch.setitem(ARCHITECTURES, name, Small(name, size_px, "±1"))
        patch.setattr("training.fit.commands._better", lambda run, *_: run)  # few photos cannot decide that
        for split in ("train", "validation"):
            draw(Path("photos", split))
            for drawn, name in CLASSES.items():
                Path("photos", split, drawn).rename(Path("photos", split, name))
        Path("photos/validation/hat/00.jpg").rename(pictures.PHOTO)
        follower = Follower(servers)
        yield [(command, follower.follow(command)) for command in COMMANDS if not command.startswith(NOT_HERE)]


def test_its_url_is_answered_by_each_version(outputs: list[tuple[str, str]]) -> None:
    """By the first, by the second once it is promoted, and by the first again once that is rolled back."""
    answers = [json.loads(output) for command, output in outputs if command.startswith("curl ")]
    assert [answer["model"]["version"] for answer in answers] == [1, 2, 1]
    assert {each["class"] for answer in answers for each in answer["predictions"]} == set(CLASSES.values())


def test_its_batch_has_a_row_for_each_photo(outputs: list[tuple[str, str]]) -> None:
    """And one for the names of the columns."""
    photos = list(Path("photos", "validation").rglob("*.jpg"))
    assert len(Path("predictions.csv").read_text().splitlines()) == 1 + len(photos)


@pytest.mark.skipif(not pictures.CHROMIUM, reason="needs Debian's chromium")
def test_each_of_its_pictures_can_be_taken_anew(outputs: list[tuple[str, str]]) -> None:
    """Of the reports that it leaves, and of the page with an answer."""
    pictures.take(Path(), Path("pictures"))
    shown = set(re.findall(r"\]\((pictures/[\w-]+\.webp)\)", TUTORIAL))
    assert {str(path) for path in Path("pictures").iterdir()} == shown
