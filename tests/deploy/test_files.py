"""The files that deploy the programs name only what the programs have: settings, flags, ports and paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from gateway.app import create_app
from gateway.model.versions import Versions
from gateway.settings import PREFIX, Settings
from gateway.telemetry.metrics import Metrics
from serving.settings import _WITHOUT_EFFECT, _flags
from tests.conftest import ROOT

GATEWAY_PORT, GRPC_PORT, REST_PORT = 9696, 8500, 8501
OTHER_PORTS = {80, 53, 9090}  # of the cluster's Service, of the DNS, and of Prometheus
OTHER_VARIABLES = {"GATEWAY_KEY"}  # of the batch command

DEPLOYMENT = [
    *sorted(ROOT.glob("*.dockerfile")),
    *sorted(ROOT.glob("docker-compose*.yaml")),
    *sorted(path for path in (ROOT / "kube").rglob("*.yaml") if path.name != "checkov.yaml"),
    *sorted(path for path in (ROOT / "serving" / "container").glob("*")),
    ROOT / "docs" / "deploy.md",
]


@pytest.fixture(params=DEPLOYMENT, ids=lambda path: str(path.relative_to(ROOT)))
def text(request: pytest.FixtureRequest) -> str:
    """The text of each file that deploys something."""
    path: Path = request.param
    return path.read_text()


def test_variables_are_settings(text: str) -> None:
    """A variable that is none would keep the gateway from starting."""
    known = {PREFIX + each.name.upper() for each in fields(Settings)}
    assert set(re.findall(r"\bGATEWAY_[A-Z_]+\b", text)) <= known | OTHER_VARIABLES


def test_flags_are_the_model_servers(text: str) -> None:
    """TensorFlow Serving would ignore a flag that it does not know, and start."""
    known = {*_flags(), *_WITHOUT_EFFECT.split()}
    used = set(re.findall(r"--([a-z]+(?:_[a-z]+)+)\b", text))
    assert used <= known


def test_ports_are_the_programs(text: str) -> None:
    """Ports of the loopback address, of containers and of Services."""
    known = {GATEWAY_PORT, GRPC_PORT, REST_PORT} | OTHER_PORTS
    assert Settings().port == GATEWAY_PORT
    assert _flags()["port"][2] == GRPC_PORT
    named = re.findall(r"(?i)(?:port\w*: *|EXPOSE (?:\d+ )*|localhost:|127\.0\.0\.1:|[a-z]:///?\w+:)(\d{2,5})\b", text)
    assert set(map(int, named)) <= known


def test_paths_are_routes(text: str, connect: Callable[[str], Versions]) -> None:
    """What is asked for in a probe or a command is what a program answers."""
    app = create_app(Settings(), connect("localhost:1"), Metrics())
    known = {rule.rule for rule in app.url_map.iter_rules()} | {"/monitoring/prometheus/metrics"}
    paths = re.findall(r"(?:path: *\"?|9696\}?)(/(?!spec/)[a-z][a-z/.]*)", text)
    assert set(paths) <= known


def test_a_full_call_of_the_gateway_fits_a_batch_of_the_model_server() -> None:
    """TensorFlow Serving refuses a call with more images than its largest batch."""
    text = (ROOT / "serving" / "container" / "batching.config").read_text()
    (largest,) = re.findall(r"max_batch_size *{ *value: *(\d+)", text)
    assert int(largest) >= Settings().max_batch


def test_files_are_yaml() -> None:
    """Each reads as YAML, and holds something."""
    files = [path for path in DEPLOYMENT if path.suffix == ".yaml"]
    assert len(files) >= 9
    for path in files:
        assert all(isinstance(each, dict) for each in yaml.safe_load_all(path.read_text())), path
