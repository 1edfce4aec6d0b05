"""The dockerfiles and what goes into the images, without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.settings import PREFIX, Settings
from tests.conftest import ROOT

DOCKERFILES = sorted(ROOT.glob("image-*.dockerfile"))
SCRIPTS = sorted((ROOT / "serving" / "container").glob("*.sh"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def linter(name: str) -> str:
    """Return the path of a linter that is installed beside Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}")
    if not found:
        pytest.skip(f"needs {name}")
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_is_clean(path: Path) -> None:
    """No finding; each exception has its reason beside it."""
    result = subprocess.run([linter("hadolint"), path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_is_clean(path: Path) -> None:
    """No finding in the scripts of the model image, which are executable."""
    result = subprocess.run([linter("shellcheck"), path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert path.stat().st_mode & 0o111


def test_make_and_the_release_have_every_image() -> None:
    """A dockerfile that nobody builds or pushes would rot."""
    names = {path.name.removeprefix("image-").removesuffix(".dockerfile") for path in DOCKERFILES}
    (targets,) = re.findall(r"^images: (.*?) +##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {each.removesuffix("-image") for each in targets.split()} == names
    lists = re.findall(r"for name in (.*); do", (ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert [set(each.split()) for each in lists] == [names, names]


def test_the_real_server_and_the_embedded_one_differ_in_the_base_only() -> None:
    """By default the last stage starts from TensorFlow Serving; nothing in it asks which base it has."""
    text = (ROOT / "image-model.dockerfile").read_text()
    assert "\nARG SERVING_IMAGE=tensorflow/serving:2.20.0\n" in text
    last = text[text.rindex("\nFROM ") :]
    assert last.startswith("\nFROM ${SERVING_IMAGE}\n")
    assert text.count("SERVING_IMAGE}") == 1
    assert "RUN" not in last


def test_the_servers_batch_holds_the_gateways() -> None:
    """A full call of the gateway is one batch: more rows than max_batch_size would be refused."""
    config = (ROOT / "serving" / "container" / "batching.config").read_text()
    (size,) = re.findall(r"^max_batch_size \{ value: (\d+) \}$", config, re.MULTILINE)
    assert int(size) >= Settings().max_batch


def test_compose_sets_what_the_gateway_has() -> None:
    """Every GATEWAY_ variable is a setting, and the gateway is reached at its default port."""
    service = COMPOSE["services"]["gateway"]
    names = [each.partition("=")[0] for each in service["environment"]]
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__}
    assert set(names) <= known
    assert service["ports"] == [f"${{PORT:-{Settings().port}}}:{Settings().port}"]


def test_compose_gives_the_gateway_time_to_finish() -> None:
    """The grace period is longer than a request may take, and than gunicorn waits for it."""
    grace_s = int(COMPOSE["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings().request_timeout_s + 5


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_may_do_little(path: Path) -> None:
    """Actions by commit, read-only by default, and write access named at the job that needs it."""
    text = path.read_text()
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40}", each) for each in re.findall(r"uses: (\S+)", text))
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
