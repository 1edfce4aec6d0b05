"""A Docker engine, the images of this repository built from a clean copy of it, and the stack of docker-compose.yaml.

`DOCKER` names the client and `PYTHON_IMAGE` the base, as for make. The model image is built on the embedded model
server, unless `SERVING_IMAGE` says otherwise.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from tests.programs.stack import ROOT, Gateway, free_port, wait_until

DOCKER = shlex.split(os.environ.get("DOCKER") or "docker")
ENVIRON = {
    **os.environ,
    "DOCKER": shlex.join(DOCKER),
    "DOCKER_BUILDKIT": "1",
    "SERVING_IMAGE": os.environ.get("SERVING_IMAGE", "embedded"),
    "TAG": "test",
    "COMPOSE_PROJECT_NAME": "image-classifier-test",
    # docker-compose 1.29 builds by calling `docker`.
    "PATH": f"{Path(shutil.which(DOCKER[0]) or DOCKER[0]).parent}:{os.environ['PATH']}",
}


def docker(*arguments: str) -> str:
    """Run the client; return what it printed."""
    return run(*DOCKER, *arguments)


def run(*command: str, cwd: Path = ROOT, **environ: str) -> str:
    """Run a command; return what it printed."""
    result = subprocess.run(command, cwd=cwd, env={**ENVIRON, **environ}, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout.strip()


def has_engine() -> bool:
    """Tell whether a Docker engine answers."""
    return bool(shutil.which(DOCKER[0])) and subprocess.run([*DOCKER, "info"], capture_output=True).returncode == 0


def compose() -> list[str]:
    """Return Compose's command, as the Makefile finds it: the client's plugin, or else docker-compose 1.29."""
    plugin = subprocess.run([*DOCKER, "compose", "version"], capture_output=True).returncode == 0
    return [*DOCKER, "compose"] if plugin else ["docker-compose"]


def clone(folder: Path) -> Path:
    """Copy what git would give a stranger: the model-store contains no model."""
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@dataclass
class Container:
    """A running container."""

    name: str

    def inspect(self, template: str) -> str:
        return docker("inspect", "--format", template, self.name)

    @property
    def address(self) -> str:
        """Its address, without the engine's proxy between."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    def run(self, *command: str, user: str = "10001") -> str:
        return docker("exec", "--user", user, self.name, *command)

    def logs(self) -> str:
        result = subprocess.run([*DOCKER, "logs", self.name], capture_output=True, text=True)
        return result.stdout + result.stderr

    def wait(self, template: str, expected: str, timeout_s: float = 60.0) -> None:
        """Wait until what `inspect` says is as expected."""
        wait_until(lambda: self.inspect(template) == expected, timeout_s, lambda: self.inspect(template) + self.logs())


@contextmanager
def container(image: str, *options: str, flags: tuple[str, ...] = ()) -> Iterator[Container]:
    """Run an image of this repository in the background, and remove it."""
    name = docker("run", "--detach", *options, f"image-classifier-{image}:test", *flags)
    try:
        yield Container(name)
    finally:
        docker("rm", "--force", "--volumes", name)


@dataclass
class Stack:
    """The stack of docker-compose.yaml in a clean clone."""

    clone: Path
    port: int
    rest_port: int

    @property
    def gateway(self) -> Gateway:
        """The gateway at its published port."""
        return Gateway(self.port, 0)

    @property
    def store(self) -> Path:
        return self.clone / "model-store"

    def container(self, service: str) -> Container:
        """Return the container of a service."""
        project = f"label=com.docker.compose.project={ENVIRON['COMPOSE_PROJECT_NAME']}"
        found = docker("ps", "--all", "--quiet", "--filter", project, "--filter",
                       f"label=com.docker.compose.service={service}")  # fmt: skip
        return Container(found)


@contextmanager
def stack(folder: Path, **environ: str) -> Iterator[Stack]:
    """`make up` in a clean clone, and `make down`."""
    running = Stack(folder, free_port(), free_port())
    environ |= {"PORT": str(running.port), "REST_PORT": str(running.rest_port)}
    try:
        run("make", "up", cwd=folder, **environ)
        yield running
    finally:
        run("make", "down", cwd=folder, **environ)


def bridge() -> str:
    """Return this machine's address as containers see it."""
    subnet = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
    return str(next(ip_network(subnet).hosts()))
