"""The files that build and deploy the programs: linters find nothing, and they name only what the programs have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.release.__main__ import _parser as release_parser
from gateway.settings import PREFIX, Settings
from gateway.telemetry.metrics import Metrics
from serving.settings import Settings as ServingSettings
from tests.conftest import ROOT, make_store
from tests.programs.origins import Origin, http_answer

GATEWAY_PORT, GRPC_PORT, REST_PORT = 9696, 8500, 8501
OTHER_PORTS = {80, 53, 443, 9090}  # of the cluster's Service, of the DNS, of image hosts, and of Prometheus
OTHER_VARIABLES = {"GATEWAY_KEY"}  # of the batch command
# Of TensorFlow Serving alone. Source: tensorflow/serving 2.20, model_servers/main.cc.
OTHER_FLAGS = {
    *("batching_parameters_file", "enable_batching", "enable_grpc_healthcheck_service", "monitoring_config_file"),
    *("model_config_file_poll_wait_seconds", "num_load_threads"),
    *("tensorflow_inter_op_parallelism", "tensorflow_intra_op_parallelism"),
}

DOCKERFILES = sorted(ROOT.glob("image-*.dockerfile"))
CONTAINER = sorted((ROOT / "serving" / "container").iterdir())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMPOSE = ROOT / "docker-compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
KUBE = sorted(path for path in (ROOT / "kube").rglob("*.yaml") if path.name != "checkov.yaml")
LINTED = [("hadolint", path) for path in DOCKERFILES]
LINTED += [("shellcheck", path) for path in (*CONTAINER, *sorted((ROOT / "kube").glob("*.sh"))) if path.suffix == ".sh"]


@pytest.fixture(
    params=[*DOCKERFILES, *CONTAINER, COMPOSE, *KUBE, ROOT / "docs" / "deploy.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def text(request: pytest.FixtureRequest) -> str:
    """The text of each file that deploys something."""
    path: Path = request.param
    return path.read_text()


@pytest.mark.parametrize(("linter", "path"), LINTED, ids=lambda value: getattr(value, "name", value))
def test_linters_find_nothing(linter: str, path: Path) -> None:
    """Each exception has its reason beside it."""
    program = shutil.which(linter, path=f"{Path(sys.executable).parent}")
    if not program:
        pytest.skip(f"needs {linter}")
    result = subprocess.run([program, path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_scripts_of_the_model_image_may_be_run() -> None:
    """Git keeps the right to execute them, and that of the cluster's."""
    scripts = [path for linter, path in LINTED if linter == "shellcheck"]
    assert len(scripts) >= 4 and all(path.stat().st_mode & 0o111 for path in scripts)


def test_make_builds_on_the_bases_that_are_set(tmp_path: Path) -> None:
    """In the environment, or else in .env, as Compose does; without them, on those that the dockerfile names."""
    shutil.copy(ROOT / "Makefile", tmp_path)

    def bases(name: str, **environ: str) -> list[str]:
        make = ["make", f"{name}-image", "--dry-run", "DOCKER=docker"]
        path = {"PATH": os.environ["PATH"]}
        done = subprocess.run(make, cwd=tmp_path, env=path | environ, capture_output=True, text=True, check=True)
        return re.findall(r"--build-arg (\w+_IMAGE(?:=\S+)?)", done.stdout.replace("MODEL_IMAGE", ""))

    assert bases("model") == []
    assert bases("gateway", SERVING_IMAGE="embedded", PYTHON_IMAGE="python:here") == ["PYTHON_IMAGE=python:here"]
    for before, quote in (("", ""), ("export ", '"'), ("GATEWAY_KEY\nNOTE='a\nb'\n", "'")):
        lines = (f"{before}SERVING_IMAGE={quote}embedded{quote}", f"PYTHON_IMAGE = {quote}python:here{quote}  # 3.11")
        (tmp_path / ".env").write_text("\n".join(lines))
        assert bases("model") == ["PYTHON_IMAGE=python:here", "SERVING_IMAGE=embedded"]
        assert bases("model", SERVING_IMAGE="there") == ["PYTHON_IMAGE=python:here", "SERVING_IMAGE=there"]


def test_make_warns_of_an_image_with_a_version_that_is_tried(tmp_path: Path) -> None:
    """Of the model that it builds, during the trial."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    ledger = make_store(tmp_path / "model-store", "1", "2")
    ledger.promote(1)
    make = ["make", "images", "DOCKER=true", "MODEL=m"]
    assert subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stderr == ""
    ledger.try_version(2, "shadow")
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Warning: the image carries a version that is tried" in done.stderr


def test_the_base_that_an_upgrade_pulls_is_the_one_that_images_have() -> None:
    """Building again does not look for a newer one."""
    (pulled,) = re.findall(r"`docker pull (\S+)`", (ROOT / "docs" / "operate.md").read_text())
    assert [path.name for path in DOCKERFILES if f"\nARG PYTHON_IMAGE={pulled}\n" not in path.read_text()] == []


def test_an_init_process_may_signal_the_server_that_left_root() -> None:
    """Or `docker stop` would not reach it: the init process is root, with no more rights than it keeps."""
    for name, service in SERVICES.items():
        leaves_root = service.get("init") and "SETUID" in service.get("cap_add", ())
        assert not leaves_root or "KILL" in service["cap_add"], name


def test_compose_limits_the_logs() -> None:
    """Docker keeps all of them by default, until the disk is full."""
    assert [
        name for name, each in SERVICES.items() if not {"max-size", "max-file"} <= set(each["logging"]["options"])
    ] == []


def test_compose_shares_folders_under_selinux() -> None:
    """Which keeps containers from a folder of the machine without this label."""
    folders = [each for service in SERVICES.values() for each in service.get("volumes", ()) if each.startswith("./")]
    assert len(folders) == 4 and all("z" in each.split(":")[2].split(",") for each in folders)


def test_compose_has_the_release_command() -> None:
    """Of the gateway's image, for the same model and store; it may write what belongs to someone else."""
    service, gateway = SERVICES["release"], SERVICES["gateway"]
    assert (service["image"], service["build"]) == (gateway["image"], gateway["build"])
    assert service["profiles"] == ["release"] and "./model-store:/models:z" in service["volumes"]
    python, *command = service["entrypoint"]
    assert (python, command[:2]) == ("python", ["-m", "gateway.release"])
    options = release_parser().parse_args([*command[2:], *service["command"]])
    assert (options.model, options.store) == ("${MODEL_NAME:-imagenet}", Path("/models"))
    assert f"GATEWAY_RELEASE_FILE={options.store}/{options.model}/release.json" in gateway["environment"]
    assert {"USER", "GATEWAY_KEY"} < set(service["environment"])
    assert service["user"] == "root" and {"CHOWN", "DAC_OVERRIDE", "FOWNER"} == set(service["cap_add"])


def test_make_and_the_release_have_every_image() -> None:
    """A dockerfile that nobody builds or pushes would rot."""
    names = {path.name.removeprefix("image-").removesuffix(".dockerfile") for path in DOCKERFILES}
    (targets,) = re.findall(r"^images: (.*?) +##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {each.removesuffix("-image") for each in targets.split()} == names
    lists = re.findall(r"for name in (.*); do", (ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert [set(each.split()) for each in lists] == [names, names]


def test_a_release_is_pushed_under_its_own_tag_alone() -> None:
    """As `latest`, a trial of the next release, or a mend of an old one, would reach everybody."""
    assert "latest" not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_images_copy_may_be_read(path: Path) -> None:
    """By their users too: a checkout with umask 077 has files that only its owner may read, and COPY keeps that."""
    stages = re.split(r"^FROM ", path.read_text(), flags=re.MULTILINE)
    copying = [stage for stage in stages if re.search(r"^COPY (?!--from=|requirements/)", stage, re.MULTILINE)]
    assert copying and all("chmod -R a+rX" in stage for stage in copying)


@pytest.mark.parametrize(("image", "variable"), [("gateway", "GATEWAY_PORT"), ("single", "PORT")])
def test_health_checks_ask_the_container_itself(image: str, variable: str, origin: Origin) -> None:
    """And not the proxy that Docker names to containers."""
    text = (ROOT / f"image-{image}.dockerfile").read_text()
    (written,) = re.findall(r"^HEALTHCHECK .* CMD (.*)$", text, re.MULTILINE)
    command = [sys.executable, *json.loads(written)[1:]]
    environ = {variable: str(origin.port), "http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}

    def is_healthy() -> bool:
        return subprocess.run(command, env=environ, capture_output=True).returncode == 0

    assert not is_healthy()
    origin.answers["/readyz"] = http_answer(b"ready")
    assert is_healthy()


def test_the_real_server_and_the_embedded_one_differ_in_the_base_only() -> None:
    """By default the last stage starts from TensorFlow Serving; nothing in it asks which base it has."""
    text = (ROOT / "image-model.dockerfile").read_text()
    assert "\nARG SERVING_IMAGE=tensorflow/serving:2.21.0\n" in text
    last = text[text.rindex("\nFROM ") :]
    assert last.startswith("\nFROM ${SERVING_IMAGE}\n")
    assert text.count("SERVING_IMAGE}") == 1
    assert "RUN" not in last


@pytest.mark.parametrize("image", ["model", "single"])
def test_the_embedded_server_keeps_its_measurements_where_it_can_write(image: str) -> None:
    """Its user has no home in an image, and after a restart it would measure again."""
    assert " XDG_CACHE_HOME=/tmp\n" in (ROOT / f"image-{image}.dockerfile").read_text()


def test_variables_are_settings(text: str) -> None:
    """The gateway does not start with an unknown variable."""
    known = {PREFIX + each.name.upper() for each in fields(Settings)}
    assert set(re.findall(r"\bGATEWAY_[A-Z_]+\b", text)) <= known | OTHER_VARIABLES


def test_flags_are_the_model_servers(text: str) -> None:
    """TensorFlow Serving would ignore a flag that it does not know, and start."""
    known = {each.name for each in fields(ServingSettings)} | OTHER_FLAGS
    assert set(re.findall(r"--([a-z]+(?:_[a-z]+)+)\b", text)) <= known


def test_ports_are_the_programs(text: str) -> None:
    """Ports of the loopback address, of containers and of Services."""
    known = {GATEWAY_PORT, GRPC_PORT, REST_PORT} | OTHER_PORTS
    assert Settings().port == GATEWAY_PORT
    assert ServingSettings().port == GRPC_PORT
    named = re.findall(r"(?i)(?:port\w*: *|EXPOSE (?:\d+ )*|localhost:|127\.0\.0\.1:|[a-z]:///?\w+:)(\d{2,5})\b", text)
    assert set(map(int, named)) <= known


def test_paths_are_routes(text: str, connect: Callable[[str], Versions]) -> None:
    """What a probe or a command asks for is what a program answers."""
    app = create_app(Settings(), connect("localhost:1"), Metrics())
    known = {rule.rule for rule in app.url_map.iter_rules()} | {"/monitoring/prometheus/metrics"}
    paths = re.findall(r"(?:path: *\"?|9696\}?)(/(?!spec/)[a-z][a-z/.]*)", text)
    assert set(paths) <= known


def test_a_full_call_of_the_gateway_fits_a_batch_of_the_model_server() -> None:
    """TensorFlow Serving refuses a call with more images than its largest batch."""
    text = (ROOT / "serving" / "container" / "batching.config").read_text()
    (largest,) = re.findall(r"max_batch_size *{ *value: *(\d+)", text)
    assert int(largest) >= Settings().max_batch


def test_compose_gives_the_model_server_time_to_drain() -> None:
    """Docker's own grace is as long as the drain, and would kill it at that moment."""
    service = SERVICES["model"]
    assert int(service["stop_grace_period"].removesuffix("s")) > ServingSettings().drain_seconds


def test_compose_publishes_the_gateway_and_gives_it_time_to_finish() -> None:
    """The grace period is longer than a request may take, and than gunicorn waits for it."""
    service = SERVICES["gateway"]
    assert service["ports"] == [f"${{PORT:-{Settings().port}}}:{Settings().port}"]
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().stop_timeout_s


def test_stacks_beside_each_other_have_ports_of_their_own() -> None:
    """A variable chooses each published port; docs/operate.md sets all of them for a second model."""
    published = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", ())]
    names = re.findall(r"(\w+):-", " ".join(published))
    assert len(names) == len(published) == 3
    page = (ROOT / "docs" / "operate.md").read_text()
    (line,) = re.findall(r"^COMPOSE_PROJECT_NAME=.* make up$", page.replace("\\\n", ""), re.MULTILINE)
    assert [name for name in names if f" {name}=" not in line] == []


def test_compose_passes_every_setting_to_the_gateway() -> None:
    """All but those that are the container's own; a new setting needs its line there."""
    environment = SERVICES["gateway"]["environment"]
    own = {
        "GATEWAY_MODEL_NAME=${MODEL_NAME:-imagenet}",
        "GATEWAY_MODEL_ADDRESS=model:8500",
        "GATEWAY_RELEASE_FILE=/models/${MODEL_NAME:-imagenet}/release.json",
    }
    settings = {PREFIX + each.name.upper() for each in fields(Settings)}
    of_the_container = {f"{PREFIX}{name}" for name in ("HOST", "PORT", "MODEL_NAME", "MODEL_ADDRESS", "RELEASE_FILE")}
    assert set(environment) == own | (settings - of_the_container)


def test_compose_reads_settings_from_its_file(tmp_path: Path) -> None:
    """As docker-compose 1.29 or newer shows it: what .env says arrives, and what nobody says does not."""
    command = next(
        (each for each in (["docker", "compose"], ["docker-compose"]) if shutil.which(each[0]) and works(each)), None
    )
    if not command:
        pytest.skip("needs Compose")
    shutil.copy(COMPOSE, tmp_path)
    (tmp_path / ".env").write_text("GATEWAY_WORKERS=3\nGATEWAY_FETCH_USER_AGENT=shop/1.0 (+https://shop.test)\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GATEWAY_TOP_K": "4"}
    shown = subprocess.run([*command, "config"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    environment = yaml.safe_load(shown.stdout)["services"]["gateway"]["environment"]
    assert {name: value for name, value in environment.items() if value is not None} == {
        "GATEWAY_MODEL_NAME": "imagenet",
        "GATEWAY_MODEL_ADDRESS": "model:8500",
        "GATEWAY_RELEASE_FILE": "/models/imagenet/release.json",
        "GATEWAY_WORKERS": "3",
        "GATEWAY_FETCH_USER_AGENT": "shop/1.0 (+https://shop.test)",
        "GATEWAY_TOP_K": "4",
    }


def test_make_names_settings_that_compose_does_not_pass(tmp_path: Path) -> None:
    """Misspelt ones, and those that are the container's own, in .env and in the environment."""
    for name in ("Makefile", "docker-compose.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".env").write_text("GATEWAY_WORKERS=3\nexport GATEWAY_PORT=80\n# GATEWAY_NONE=1\nGATEWAY_KEY=a\n")
    environ = {"PATH": os.environ["PATH"], "GATEWAY_WROKERS": "4", "GATEWAY_TOP_K": "4"}
    command = ["make", "up", "DOCKER=true", "COMPOSE=true"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert re.findall(r"Warning: (\S+) does not reach", done.stderr) == ["GATEWAY_PORT", "GATEWAY_WROKERS"]


def works(command: list[str]) -> bool:
    return subprocess.run([*command, "version"], capture_output=True).returncode == 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_may_do_little(path: Path) -> None:
    """Actions by commit, read-only by default, and write access named at the job that needs it."""
    text = path.read_text()
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40}", each) for each in re.findall(r"uses: (\S+)", text))
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
