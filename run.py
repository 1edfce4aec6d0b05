"""The whole stack on this machine, without Docker: `make run`, or `python run.py`.

Exports the ImageNet model if the store has none, then runs a model server and a gateway until Ctrl-C or SIGTERM.
`MODEL`, `PORT` and `ENGINE` choose the model, the port and what runs it. The gateway gets its other `GATEWAY_…`
settings from the environment, or else from `.env`. `LOGS` is the folder for what the programs log, each request too, in
a folder for each port; `LOGS=-` shows it here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from contract.arguments import Arguments
from contract.release import FILE_NAME
from contract.store import versions_of
from gateway.settings import Settings, SettingsError

READY_TIMEOUT_S = 60.0
SAY_AFTER_S = 10.0  # why it still waits
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_LINES = 20  # of a program's log, shown when it fails
STORE = Path(os.environ.get("MODEL_STORE") or "model-store")
PORT = os.environ.get("PORT", "9696")
LOGS = os.environ.get("LOGS") or "logs"
LOG_FOLDER = Path(LOGS, PORT)  # another stack may run from here, at another port
ENV_FILE = Path(".env")
ENV_LINE = re.compile(
    r"""(?:export\s+)?(?P<name>GATEWAY_\w+)\s*=\s*"""
    r"""(?:(?P<quote>["'])(?P<text>.*?)(?P=quote)|(?P<plain>.*?))(?:\s*(?<=\s)#.*)?"""
)
PHOTO = Path(__file__).resolve().parent / "docs" / "pictures" / "jeans.jpg"


def main() -> int:
    """Run until a signal; return the exit status."""
    Arguments("run.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    model = os.environ.get("MODEL", "imagenet")
    try:
        os.environ.update(read_settings(ENV_FILE) | os.environ)
        _check_own_settings(model)
        settings = Settings.from_env(os.environ)
    except SettingsError as exc:  # said before a model server has started for nothing
        print(exc, file=sys.stderr)
        return 2
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _interrupt)
    children: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        host = settings.host.strip("[]")
        port = _read_port(host, PORT)
        _ensure_version(model)
        with tempfile.TemporaryDirectory(prefix="image-classifier-") as folder:
            address = f"unix:{folder}/model.sock"
            try:
                _say(
                    f"Starting the model server and the gateway{'' if LOGS == '-' else f'; they log to {LOG_FOLDER}/'}"
                )
                children.append(("model server", _start_serving(model, address)))
                children.append(("gateway", _start("gateway", "gateway", **_own_settings(model, address))))
                address = _reach(host, port)
                _wait_ready(address, children)
                if PHOTO.exists():  # not in a container, where nobody has a terminal either
                    _say_how_to_ask(address + settings.path_prefix, with_key=bool(settings.api_keys))
                _watch(children)
            finally:
                _stop(children, settings.stop_timeout_s + 5)
    except KeyboardInterrupt:
        _say("Stopped.")
        return 0
    except RuntimeError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def read_settings(file: Path) -> dict[str, str]:
    """Return the gateway's variables in a file as Compose reads it: with quotes, comments and `export`, or without.

    A comment alone is no value, though most releases of Compose take it for one.

    Raises:
        SettingsError: It is not UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except UnicodeDecodeError as exc:
        before, wrong = exc.object[: exc.start], exc.object[exc.start : exc.end]
        line = before.count(b"\n") + 1
        raise SettingsError(f"Expected {file} to be UTF-8. Received: {wrong!r} in line {line}") from exc
    found = [match for line in lines if (match := ENV_LINE.fullmatch(line.strip()))]
    return {match["name"]: match["text"] if match["text"] is not None else match["plain"] for match in found}


def _own_settings(model: str, address: str = "") -> dict[str, str]:
    """Return the settings of the gateway that follow from what is chosen here."""
    settings = {"GATEWAY_MODEL_NAME": model, "GATEWAY_MODEL_ADDRESS": address, "GATEWAY_PORT": PORT}
    return settings | {"GATEWAY_RELEASE_FILE": str(STORE / model / FILE_NAME)}


def _check_own_settings(model: str) -> None:
    """Raise SettingsError if the environment has another value for a setting that would be replaced."""
    own = _own_settings(model)
    names = [name for name in own if os.environ.get(name, own[name]) != own[name]]
    if names:
        expected = "Expected this to be unset, as run.py sets it by MODEL and PORT"
        raise SettingsError("\n".join(f"{name}: {expected}. Received: {os.environ[name]!r}" for name in names))


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    _ignore_signals()  # the next one would interrupt `_stop`, and all programs would end at once
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _say(line: str) -> None:
    print(f"==> {line}", flush=True)


def _read_port(host: str, text: str) -> int:
    """Return the port that `text` names, if it can be listened on at an address of this machine."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise RuntimeError(f"Expected PORT from 1 to 65535. Received: {text!r}")
    port = int(text)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()  # as the gateway will
    except OSError as exc:
        another = f"make run PORT={9698 if port == 9697 else 9697}"
        if exc.errno == errno.EADDRINUSE:
            reason = f"Port {port} is in use, perhaps by another `make run`. Stop that, or choose another: {another}"
        else:
            reason = f"Cannot listen: {exc.strerror}. Mend GATEWAY_HOST, or choose another port: {another}"
        raise RuntimeError(reason) from exc
    return port


def _ensure_version(model: str) -> None:
    if versions_of(STORE, model):
        return
    if model != "imagenet":
        names = sorted(path.name for path in STORE.glob("*") if path.is_dir())
        raise RuntimeError(
            f"The store {STORE} has no version of {model!r}; it has {', '.join(names) or 'no model'}."
            f" To train one: python -m training train FOLDER --name {model}"
        )
    _say("The store has no ImageNet model yet: exporting EfficientNet-Lite0 (once, about half a minute)")
    export = [sys.executable, "-m", "training", "export", "--architecture", "efficientnet-lite0"]
    export += ["--weights", "imagenet", "--name", model, "--store", str(STORE)]
    with _open_log("export") as log:
        status = subprocess.run(export, stdout=log, stderr=log).returncode
    if status != 0:
        raise RuntimeError(f"The export ended with exit status {status}.{_last_lines('export')}")


def _start_serving(model: str, address: str) -> subprocess.Popen[bytes]:
    # A UNIX socket has no port to clash with, and carries 1,680 calls a second where TCP carries 1,060.
    return _start(
        "model server",
        "serving",
        f"--model_name={model}",
        f"--model_base_path={(STORE / model).resolve()}",
        "--port=0",
        f"--grpc_socket_path={address.removeprefix('unix:')}",
        f"--engine={os.environ.get('ENGINE', 'auto')}",
        "--grpc_max_threads=64",  # above what the gateway's workers ask for at once
    )


def _start(name: str, module: str, *flags: str, **environ: str) -> subprocess.Popen[bytes]:
    """Start a program in another session, so that Ctrl-C reaches it through us, in order."""
    command = [sys.executable, "-m", module, *flags]
    environ = {**os.environ, **environ}
    with _open_log(name) as log:
        return subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent
        )


def _log_file(name: str) -> Path:
    return LOG_FOLDER / f"{name.replace(' ', '-')}.log"


def _open_log(name: str) -> BinaryIO:
    """Empty a program's log and open it for the program to write to; it may be the terminal."""
    if LOGS == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    file = _log_file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        return file.open("ab")  # so that the lines of its processes stay whole
    except OSError as exc:
        raise RuntimeError(f"Cannot write {file}: {exc.strerror}. Choose another folder: make run LOGS=FOLDER") from exc


def _last_lines(*names: str) -> str:
    """Return what the logs of some programs end with, as they are named in a message."""
    if LOGS == "-":
        return " What it logged is above."
    logged = {file: file.read_text(errors="replace").splitlines() for file in map(_log_file, names) if file.exists()}
    ends = ("\n".join(["", f"{file} ends with:", *lines[-LAST_LINES:]]) for file, lines in logged.items() if lines)
    return "\n".join(ends) or f" It logged nothing to {LOG_FOLDER}/."


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when this process's parent ends, however it ends. Source: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _reach(host: str, port: int) -> str:
    """Return the address at which this machine reaches what listens on a host and port."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return f"localhost:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_ready(address: str, children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    begun, is_said = time.monotonic(), False
    reason = "the gateway does not answer"
    while time.monotonic() < begun + READY_TIMEOUT_S:
        _check_alive(children)
        if not is_said and time.monotonic() > begun + SAY_AFTER_S:
            _say(f"Waiting up to {READY_TIMEOUT_S:g} s: {reason}.{_last_lines(*(name for name, _ in children))}")
            is_said = True
        try:
            is_ready, model = _ask_ready(address)
        except (OSError, ValueError, HTTPException):  # or what listens there is something else
            pass
        else:
            if is_ready:
                _say(f"Ready: {model['name']}, version {model['versions'][0]}" if model else "Ready")
                return
            reason = str(model.get("error") or "the gateway has no model yet").rstrip(".")
        time.sleep(0.1)
    logged = _last_lines(*(name for name, _ in children))
    raise RuntimeError(f"The stack was not ready within {READY_TIMEOUT_S:g} s: {reason}.{logged}")


def _ask_ready(address: str) -> tuple[bool, dict[str, Any]]:
    """Return whether a gateway is ready, and what it says of its model: nothing, if that needs a key.

    Raises:
        OSError, HTTPException, ValueError: Nothing answers, or no gateway.
    """
    with closing(HTTPConnection(address, timeout=2)) as connection:
        connection.request("GET", "/readyz")
        with connection.getresponse() as response:
            answer = json.load(response)
            if not isinstance(answer, dict) or "status" not in answer:
                raise ValueError(f"Not the answer of a gateway: {answer}")
            return response.status == 200, answer.get("model") or {}


def _say_how_to_ask(address: str, with_key: bool) -> None:
    _say(f"Open http://{address}/ in a browser, or send it a photo from another terminal:")
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    print(
        f"\n    curl -s http://{address}/predict{key} -H 'Content-Type: image/jpeg' \\\n"
        f"      --data-binary {shlex.quote(f'@{PHOTO}')}\n",
        flush=True,
    )
    _say("Ctrl-C stops it")


def _watch(children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    while True:
        _check_alive(children)
        time.sleep(0.5)


def _check_alive(children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    # Signals wait: in the middle of `Popen.poll`, one left its lock taken, and `_stop` waited without end.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    statuses = [(name, child.poll()) for name, child in children]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    for name, status in statuses:
        if status is not None:
            raise RuntimeError(f"The {name} ended with exit status {status}.{_last_lines(name)}")


def _stop(children: list[tuple[str, subprocess.Popen[bytes]]], limit_s: float) -> None:
    """End the gateway first, so that its last requests still find a model server; signals do not interrupt this."""
    _ignore_signals()
    for name, child in reversed(children):
        if child.poll() is None:
            _say(f"Stopping the {name}")
            child.terminate()
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


if __name__ == "__main__":
    sys.exit(main())
