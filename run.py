"""The whole stack on this machine, without Docker: `make run`, or `python run.py`.

Exports the ImageNet model if the store has none, then runs a model server and a gateway until Ctrl-C or SIGTERM.
`MODEL`, `PORT` and `ENGINE` choose the model, the port and what runs it; the gateway gets its `GATEWAY_…` settings.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import NoReturn

from contract.store import versions_of
from gateway.settings import Settings, SettingsError

READY_TIMEOUT_S = 60.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STORE = Path(os.environ.get("MODEL_STORE", "model-store"))
PHOTO = "https://upload.wikimedia.org/wikipedia/commons/3/3a/Cat03.jpg"


def main() -> int:
    """Run until a signal; return the exit status."""
    if sys.argv[1:]:
        print(f"{__doc__}\nExpected no arguments. Received: {' '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    model = os.environ.get("MODEL", "imagenet")
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as exc:  # said before a model server has started for nothing
        print(exc, file=sys.stderr)
        return 2
    for number in ENDING:
        signal.signal(number, _interrupt)
    children: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        host = os.environ.get("GATEWAY_HOST", "0.0.0.0").strip("[]")  # noqa: S104  # the gateway's default
        port = _read_port(host, os.environ.get("PORT", "9696"))
        _ensure_version(model)
        with tempfile.TemporaryDirectory(prefix="image-classifier-") as folder:
            address = f"unix:{folder}/model.sock"
            try:
                _say(f"Starting the model server for {model}, versions in {STORE / model}")
                children.append(("model server", _start_serving(model, address)))
                _say(f"Starting the gateway on port {port}")
                children.append(("gateway", _start_gateway(model, port, address)))
                address = _reach(host, port)
                _wait_ready(address, children)
                _say_how_to_ask(address)
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
        raise RuntimeError(f"Cannot listen on port {port}: {exc.strerror}. Choose another: make run PORT=9697") from exc
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
    result = subprocess.run([*export, "--weights", "imagenet", "--name", model, "--store", str(STORE)])
    if result.returncode != 0:
        raise RuntimeError("The export failed; its message is above.")


def _start_serving(model: str, address: str) -> subprocess.Popen[bytes]:
    # A UNIX socket has no port to clash with, and carries 1,680 calls a second where TCP carries 1,060.
    return _start(
        "serving",
        f"--model_name={model}",
        f"--model_base_path={(STORE / model).resolve()}",
        "--port=0",
        f"--grpc_socket_path={address.removeprefix('unix:')}",
        f"--engine={os.environ.get('ENGINE', 'auto')}",
        "--grpc_max_threads=64",  # above what the gateway's workers ask for at once
    )


def _start_gateway(model: str, port: int, address: str) -> subprocess.Popen[bytes]:
    return _start("gateway", GATEWAY_MODEL_NAME=model, GATEWAY_MODEL_ADDRESS=address, GATEWAY_PORT=str(port))


def _start(program: str, *flags: str, **environ: str) -> subprocess.Popen[bytes]:
    """Start a program in another session, so that Ctrl-C reaches it through us, in order."""
    command = [sys.executable, "-m", program, *flags]
    environ = {**os.environ, **environ}
    return subprocess.Popen(command, env=environ, start_new_session=True, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when this process's parent ends, however it ends. Source: prctl(2), PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _reach(host: str, port: int) -> str:
    """Return the address at which this machine reaches what listens on a host and port."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return f"localhost:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_ready(address: str, children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # http_proxy is for other hosts
    deadline = time.monotonic() + READY_TIMEOUT_S
    reason = "no answer from the gateway"
    while time.monotonic() < deadline:
        _check_alive(children)
        try:
            with ask(f"http://{address}/readyz", timeout=2) as response:
                ready = json.load(response).get("model")  # shown to clients with a key only, if keys are needed
                _say(f"Ready: {ready['name']}, version {ready['versions'][0]}" if ready else "Ready")
                return
        except urllib.error.HTTPError as exc:
            reason = json.load(exc)
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"The stack was not ready within {READY_TIMEOUT_S:g} s: {reason}")


def _say_how_to_ask(address: str) -> None:
    _say(f"Open http://{address}/ in a browser, or ask it from another terminal:")
    print(
        f"\n    curl -s http://{address}/predict -H 'Content-Type: application/json' \\\n"
        f'      -d \'{{"url": "{PHOTO}"}}\'\n',
        flush=True,
    )
    _say("Ctrl-C stops it")


def _watch(children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    while True:
        _check_alive(children)
        time.sleep(0.5)


def _check_alive(children: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    for name, child in children:
        if child.poll() is not None:
            raise RuntimeError(f"The {name} ended with exit status {child.returncode}; its message is above.")


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
