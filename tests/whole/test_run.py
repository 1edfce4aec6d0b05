"""run.py, the front door: starts, answers, says what is wrong, and stops cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

import run
from tests.conftest import ROOT
from tests.programs.origins import Origin, http_answer
from tests.programs.photos import encode, photo
from tests.programs.stack import Gateway, Load, free_port, wait_until


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for what the programs log."""
    monkeypatch.setenv("LOGS", str(tmp_path / "logs"))
    return tmp_path / "logs"


def start(*before: str, **environ: str) -> subprocess.Popen[str]:
    """Start it as make does, or by another program before it."""
    return subprocess.Popen(
        [*before, sys.executable, "run.py"],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # if the tests run under nohup
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what it printed, up to a line that contains a text."""
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f"ended before it printed {text!r}:\n{printed}")


@pytest.fixture
def stack(tiny_store: Path, origin: Origin) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The stack with the tiny model, and what it printed until it was ready."""
    environ = {"MODEL": "tiny", "MODEL_STORE": str(tiny_store), "PORT": str(free_port())}
    environ |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # nobody listens: all of it stays on this machine
    process = start(**environ, GATEWAY_FETCH_ALLOW=origin.authority)
    try:
        yield process, read_until(process, "Ctrl-C stops it")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def paste(printed: str) -> str:
    """Run the curl command that was printed, in another folder, and return its answer."""
    command = re.search(r"curl .*\n.*\n", printed)
    assert command
    done = subprocess.run(["bash", "-c", command[0]], cwd="/", capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(not shutil.which("curl"), reason="pastes a curl command")
def test_a_new_store_answers_rightly_and_quietly_without_a_network(tmp_path: Path, logs: Path) -> None:
    """Seven lines until it is ready, as make prints one about installing; a request is logged to a file."""
    logs /= str(port := free_port())
    process = start(MODEL="imagenet", MODEL_STORE=str(tmp_path / "store"), PORT=str(port))
    try:
        printed = read_until(process, "Ctrl-C stops it")
        assert len(printed.partition("Ready")[0].splitlines()) <= 7
        assert json.loads(paste(printed))["predictions"][0]["class"] == "jean"
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=40)
    assert all(line.startswith("==> Stop") for line in out.splitlines())
    assert '"/predict"' in (logs / "gateway.log").read_text()
    assert "Released" in (logs / "export.log").read_text()


def test_settings_in_a_file_are_read_as_compose_does(tmp_path: Path) -> None:
    """In quotes or not, with comments, `export`, spaces and what Windows adds; other names are make's."""
    lines = ["GATEWAY_WORKERS=3  # three", "export GATEWAY_TOP_K = 4", "GATEWAY_FETCH_USER_AGENT='a/1 (#1)' # 'us'"]
    lines += ['GATEWAY_FETCH_ALLOW="a:1,b:2"', "GATEWAY_FETCH_PROXY=http://u:p$#x@h:1", "PORT=80", "# GATEWAY_HOST=x"]
    lines += ["GATEWAY_TRIAL_FOLDER= # none", "GATEWAY_PATH_PREFIX=#a"]
    (tmp_path / ".env").write_text("\r\n".join([*lines, "GATEWAY_API_KEYS="]), encoding="utf-8-sig", newline="")
    assert run.read_settings(tmp_path / ".env") == {
        "GATEWAY_WORKERS": "3",
        "GATEWAY_TOP_K": "4",
        "GATEWAY_FETCH_USER_AGENT": "a/1 (#1)",
        "GATEWAY_FETCH_ALLOW": "a:1,b:2",
        "GATEWAY_FETCH_PROXY": "http://u:p$#x@h:1",
        "GATEWAY_TRIAL_FOLDER": "",
        "GATEWAY_PATH_PREFIX": "#a",
        "GATEWAY_API_KEYS": "",
    }
    assert run.read_settings(tmp_path / "none") == {}


def test_make_takes_what_is_its_own_from_the_file(tmp_path: Path) -> None:
    """Though Windows saved it; what is given for once counts more. The gateway's settings are left to run.py."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ("requirements/dev.txt", ".venv/bin/python", ".venv/installed"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch(0o755)
    (tmp_path / ".venv/bin/python").write_text(
        "#!/bin/sh\nenv | grep -E '^(MODEL|PORT|ENGINE|LOGS|DOCKER|KUBE_LOAD|GATEWAY_.*)='\n"
    )
    lines = ['export MODEL_NAME="clothing"  # mine', "PORT=80", 'LOGS="my o\'logs= #1"', "# PORT=81", "ENGINE= # auto"]
    lines += ['export GATEWAY_FETCH_USER_AGENT="bot $1 #1"', "GATEWAY_KEY", "PORT_OF_OURS=82"]
    lines += ["REGISTRY=$HOST", "KUBE_LOAD = kind  load"]
    (tmp_path / ".env").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")

    def given(verb: str, *options: str, **environ: str) -> dict[str, str]:
        command, environ = ["make", verb, *options], {"PATH": os.environ["PATH"]} | environ
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    assert given("run") == {"MODEL": "clothing", "PORT": "80", "ENGINE": "auto", "LOGS": "my o'logs= #1"}
    once = given("run", "LOGS=your logs", "ENGINE=int8", PORT="83", MODEL="hats")
    assert once == {"MODEL": "hats", "PORT": "83", "ENGINE": "int8", "LOGS": "your logs"}
    assert given("test-kube", DOCKER="sudo docker") == {"DOCKER": "sudo docker", "KUBE_LOAD": "kind  load"}


@pytest.mark.parametrize("value", ["${REGISTRY}/python:3.12", '"$REGISTRY/python" # a', "'python:$TAG'"])
def test_make_refuses_what_it_does_not_expand(tmp_path: Path, value: str) -> None:
    """Unless the value is given for once."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".env").write_text(f"REGISTRY=reg.example\nPYTHON_IMAGE={value}\n")
    done = subprocess.run(["make", "help"], cwd=tmp_path, capture_output=True, text=True)
    expected = "Expected PYTHON_IMAGE in .env without $, which make does not expand. Received: "
    assert done.returncode == 2 and expected + value.split(" #")[0].strip("\"'") in done.stderr
    subprocess.run(["make", "help", "PYTHON_IMAGE=python"], cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("GATEWAY_WROKERS=3", "GATEWAY_WROKERS: Expected one of the settings."),
        ("GATEWAY_PORT=9000", "GATEWAY_PORT: Expected this to be unset, as run.py sets it by MODEL and PORT."),
        ("GATEWAY_RELEASE_FILE=", "GATEWAY_RELEASE_FILE: Expected this to be unset"),
        ("GATEWAY_FETCH_USER_AGENT=caf\udce9", "Expected .env to be UTF-8. Received: b'\\xe9' in line 2"),
    ],
)
def test_a_setting_in_a_file_that_would_not_count_is_named(tmp_path: Path, line: str, named: str) -> None:
    """Before anything starts, if it is misspelt or follows from MODEL and PORT."""
    (tmp_path / ".env").write_text(f"GATEWAY_MODEL_NAME=imagenet\n{line}\n", errors="surrogateescape")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL": "imagenet", "PORT": "x"}
    command = [sys.executable, str(ROOT / "run.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(named)


@pytest.mark.parametrize("where", ["a file", "the terminal"])
def test_a_program_that_ends_shows_why(tiny_store: Path, logs: Path, where: str) -> None:
    """Its last lines, though its log is a file, or above where that is the terminal; logs of other ports stay."""
    (logs / "9696").mkdir(parents=True)
    (logs / "9696" / "model-server.log").write_text("another stack's")
    environ = {"MODEL": "tiny", "MODEL_STORE": str(tiny_store), "PORT": str(free_port()), "ENGINE": "steam"}
    process = start(**environ, LOGS=str(logs) if where == "a file" else "-")
    out, _ = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "The model server ended with exit status" in out and "Received: 'steam'" in out
    assert (logs / environ["PORT"] / "model-server.log").exists() == (where == "a file")
    assert (logs / "9696" / "model-server.log").read_text() == "another stack's"


@pytest.mark.tensorflow
@pytest.mark.skipif(not shutil.which("curl"), reason="pastes a curl command")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_printed_command_works_and_a_signal_ends_everything_but_loses_nothing(
    stack: tuple[subprocess.Popen[str], str], origin: Origin, number: signal.Signals
) -> None:
    """The curl command answers when it is pasted; after the signal no process is left, and the status is 0.

    Of 32 clients, half connect for each request: whoever is not refused is answered.
    """
    process, printed = stack
    url = origin.add("photo.jpg", encode(photo()))
    assert len(printed.partition("Ready")[0].splitlines()) == 2
    assert '"class":"' in paste(printed)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    gateway = Gateway(int(re.search(r"http://localhost:(\d+)/", printed)[1]), int(children[1]))
    with Load(gateway, [url], threads=32, reconnecting=16) as load:
        load.wait_for(100)
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)  # an impatient second Ctrl-C
        out, _ = process.communicate(timeout=40)
    assert [each for each in load.lost if not isinstance(each, ConnectionRefusedError)] == []
    assert {status for _, status, _ in load.answers} <= {200, 503}  # a slow machine may be too busy for so many
    assert process.returncode == 0, out
    assert out.splitlines() == [
        f"==> {step}" for step in ("Stopping the gateway", "Stopping the model server", "Stopped.")
    ]
    time.sleep(0.1)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.tensorflow
def test_a_kill_leaves_no_process_behind(stack: tuple[subprocess.Popen[str], str]) -> None:
    """Not even SIGKILL orphans the model server and the gateway."""
    process, _ = stack
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, children)), 15)


def alive(pid: str) -> bool:
    """Return whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.tensorflow
def test_under_nohup_it_outlives_the_terminal(tiny_store: Path) -> None:
    """The signal of a terminal that ends stays ignored."""
    process = start("nohup", MODEL="tiny", MODEL_STORE=str(tiny_store), PORT=str(free_port()))
    try:
        read_until(process, "Ctrl-C stops it")
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        process.terminate()
        process.communicate()


def test_a_signal_waits_for_the_end_of_a_look_at_the_programs() -> None:
    """Popen keeps a lock meanwhile, which an exception could leave taken."""
    looks: list[str] = []

    def poll() -> None:
        looks.append("begun")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # to this thread: pytest may have others
        looks.append("ended")

    before = {each: signal.getsignal(each) for each in run.ENDING}  # the first one makes it ignore all of them
    signal.signal(signal.SIGTERM, run._interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run._check_alive([("gateway", Mock(poll=poll))])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert looks == ["begun", "ended"]


@pytest.mark.parametrize(
    ("environ", "status", "said"),
    [
        *(
            ({"PORT": port}, 1, f"Expected PORT from 1 to 65535. Received: {port!r}\n")
            for port in ("http", "0", "70000")
        ),
        ({"MODEL": "tinny"}, 1, "it has tiny. To train one: python -m training train FOLDER --name tinny\n"),
        ({"LOGS": "/dev/null"}, 1, "make run LOGS="),
        ({"GATEWAY_THREADS": "many"}, 2, "GATEWAY_THREADS: Expected an integer of at least 1. Received: 'many'\n"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, environ: dict[str, str], status: int, said: str) -> None:
    """In one line, with the way out, after at most one that says what it begins."""
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    process = start(**{"MODEL": "tiny", "MODEL_STORE": str(tmp_path), "PORT": str(free_port())} | environ)
    out, _ = process.communicate(timeout=40)
    assert process.returncode == status and said in out and len(out.splitlines()) <= 2, out


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    """Someone who runs it twice reads how to choose another port."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        process = start(MODEL="tiny", PORT=str(taken.getsockname()[1]))
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "is in use" in out and "make run PORT=" in out
    assert "Traceback" not in out


@pytest.mark.tensorflow
def test_another_address_to_listen_on(tiny_store: Path) -> None:
    """The stack is waited for at that address, and the address is shown."""
    port = free_port()
    process = start(MODEL="tiny", MODEL_STORE=str(tiny_store), PORT=str(port), GATEWAY_HOST="::1")
    try:
        assert f"Open http://[::1]:{port}/ in a browser" in read_until(process, "in a browser")
    finally:
        process.terminate()
        process.communicate()


def test_a_wait_says_its_reason_before_it_ends(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the gateway knows, once, and again at the end."""
    monkeypatch.setattr(run, "SAY_AFTER_S", 0.3)
    monkeypatch.setattr(run, "READY_TIMEOUT_S", 2.0)
    answer = b'{"status": "unavailable", "model": {"error": "release.json is broken."}}'
    origin.answer = http_answer(answer, "503 Service Unavailable")
    with pytest.raises(RuntimeError, match=r"^The stack was not ready within 2 s: release.json is broken\. It logged"):
        run._wait_ready(origin.authority, [])
    assert capsys.readouterr().out.count("Waiting up to 2 s: release.json is broken. It logged nothing") == 1


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"<html>", b"\xff"])
@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
def test_another_program_is_not_the_gateway(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, answer: bytes, status: str
) -> None:
    """It may listen at the same port of another address of this machine."""
    monkeypatch.setattr(run, "READY_TIMEOUT_S", 0.3)
    origin.answer = http_answer(answer, status)
    with pytest.raises(RuntimeError, match=r"^The stack was not ready within 0.3 s: the gateway does not answer\."):
        run._wait_ready(origin.authority, [])
