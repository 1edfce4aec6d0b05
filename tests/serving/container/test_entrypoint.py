"""What TensorFlow Serving's container starts: the server, with its flags, on the versions that the release names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, make_store
from tests.programs.stack import wait_until


@pytest.fixture
def entrypoint(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A function that starts the entrypoint on `models`, with a server that prints its flags, then waits for input."""
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    server = 'printf "%s\\n" "$@"; exec 1>&-; read -r _'
    for name, line in {"tensorflow_model_server": server, "id": "echo 10001", "nproc": "echo 7"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": f"{tmp_path}"}
    environ |= {"MODEL_NAME": "m", "MODEL_BASE_PATH": f"{tmp_path}/models"}
    command = ROOT / "serving" / "container" / "entrypoint.sh"

    def start(*flags: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Root may read everything, but for these.
        unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        return subprocess.Popen([*unprivileged, command, *flags], env=environ, text=True, **pipes)

    return start


def read_flags(server: subprocess.Popen[str]) -> dict[str, str]:
    """Return the flags that a server was started with."""
    assert server.stdout
    lines = iter(server.stdout.readline, "--port=1\n")
    return dict(line.strip().removeprefix("--").partition("=")[::2] for line in lines)


def test_the_entrypoint_starts_the_server_with_its_flags(entrypoint: Callable[..., subprocess.Popen[str]]) -> None:
    """One thread for each operation and as many operations at a time as there are cores; arguments come last."""
    with entrypoint("--port=1") as server:
        flags = read_flags(server)
    assert (flags["tensorflow_intra_op_parallelism"], flags["tensorflow_inter_op_parallelism"]) == ("1", "7")
    assert (flags["grpc_max_threads"], flags["port"]) == ("256", "8500")
    assert flags["model_config_file_poll_wait_seconds"] == "5"


@pytest.mark.parametrize("folder", ["models", "models/m"])
def test_the_entrypoint_names_a_folder_that_it_cannot_read(
    entrypoint: Callable[..., subprocess.Popen[str]], tmp_path: Path, folder: str
) -> None:
    """As a checkout with umask 077 leaves one; it looks empty, and was said to need a version."""
    (tmp_path / folder).chmod(0o000)
    with entrypoint() as server:
        _, said = server.communicate(timeout=20)
    (tmp_path / folder).chmod(0o755)
    instead = "Run `chmod -R a+rX` on the folder that is mounted there"
    assert (server.returncode, said) == (1, f"User 10001 cannot read {tmp_path / folder}. {instead}\n")


@pytest.mark.tensorflow
def test_the_entrypoint_follows_the_release(entrypoint: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """The server reads which versions to keep, as the command wrote it elsewhere, from the start and at each change.

    A document that is missing for a moment was not removed.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

    document, away = tmp_path / "models" / "m" / "release.json", tmp_path / "away"
    returns = f'[ "$1" != 3 ] || mv {away} {document} 2>&-'  # while the entrypoint waits for it
    notes = f"cat {tmp_path}/tmp.* >>{tmp_path}/configs"
    (tmp_path / "sleep").write_text(f"#!/bin/sh\n{returns}\n{notes}\nexec /bin/sleep 0.1\n")
    (tmp_path / "sleep").chmod(0o755)
    ledger = make_store(tmp_path / "models", "1", "2", "3", "010", "draft")
    ledger.promote(1)
    ledger.promote(10)
    ledger.try_version(2, "shadow")
    written = ledger.home / "models.config"
    other = 'config { name: "n"\n base_path: "/n"\n model_version_policy { specific {\n versions: 3\n } } }'
    written.write_text(written.read_text().replace('/m"', '/elsewhere/m"').replace("{\n", "{\n" + other, 1))
    with entrypoint("--port=1") as server:
        config = Path(read_flags(server)["model_config_file"])

        def read() -> ModelConfig:
            (model,) = text_format.Parse(config.read_text(), ModelServerConfig()).model_config_list.config
            assert (model.name, model.base_path, model.model_platform) == ("m", f"{tmp_path}/models/m", "tensorflow")
            return model

        assert list(read().model_version_policy.specific.versions) == [1, 2, 10]
        ledger.rollback()
        wait_until(lambda: list(read().model_version_policy.specific.versions) == [1, 10])
        document.rename(away)
        wait_until(document.exists)
        assert list(read().model_version_policy.specific.versions) == [1, 10]
        ledger.try_version(3, "shadow")
        wait_until(lambda: list(read().model_version_policy.specific.versions) == [1, 3, 10])
        assert "latest" not in (tmp_path / "configs").read_text()
        document.unlink()
        wait_until(lambda: read().model_version_policy.latest.num_versions == 2)
