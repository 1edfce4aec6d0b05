"""monitoring/: what Prometheus scrapes and warns of exists in the gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from flask.testing import FlaskClient

from gateway import errors
from gateway.settings import Settings
from tests.conftest import ROOT, Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import wait_until

FOLDER = ROOT / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]


@pytest.fixture
def exported(gateway: FlaskClient, origin: Origin) -> str:
    """The gateway's metrics after an answer and a failure, each once, and perhaps others of a slow machine before."""
    for url, status in {
        origin.add("photo.jpg", encode(photo())): 200,
        f"http://{origin.authority}/none.jpg": 502,
    }.items():
        wait_until(lambda url=url, end=status: gateway.post("/predict", json={"url": url}).status_code == end, 60)
    return gateway.get("/metrics").get_data(as_text=True)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_the_gateway_exports(rule: dict[str, str], exported: str) -> None:
    """Each metric of an alert, with each of its labels, is among those that a gateway shows."""
    for name, selectors in re.findall(r"\b(gateway_\w+)(?:\{([^}]*)\})?", rule["expr"]):
        labels = re.findall(r'(\w+)[=!]~?"', selectors)
        families = re.findall(rf"^{name}(?:\{{(.*)\}})? ", exported, re.MULTILINE) or re.findall(
            rf"^# TYPE {name} gauge$", exported, re.MULTILINE
        )
        assert families, name
        assert not [label for label in labels if f'{label}="' not in families[0]], name


def test_the_errors_alert_counts_predictions(exported: str) -> None:
    """The labels that it selects by are those that a prediction and its failure get."""
    assert 'gateway_answers_total{code="",path="predict",status="200"} 1.0' in exported
    assert 'gateway_answers_total{code="fetch_failed",path="predict",status="502"} 1.0' in exported
    assert re.search(r'gateway_stage_seconds_bucket\{identity="\w+",le="1.0",stage="predict",version="1"\}', exported)


def test_the_errors_alert_counts_no_fault_of_others() -> None:
    """Of the codes with a status of 5xx, those of image hosts and of clients are left out."""
    (expression,) = (rule["expr"] for rule in RULES if rule["alert"] == "Errors")
    (others,) = re.findall(r'code!~"([^"]*)"', expression)
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and hasattr(kind, "code") and kind.status >= 500
    }
    left_out = {"fetch_failed", "fetch_timeout", "unsupported_coding", "unsupported_version"}
    assert {code for code in codes if re.fullmatch(others, code)} == left_out


def test_prometheus_scrapes_the_stack() -> None:
    """Its targets are the services, at the port of the gateway and at the path of the model server.

    Once the `#` is removed, it sends a key to the gateway alone. It reads edited files and upgraded alerts again, in a
    folder: a file that is mounted alone stays the old one.
    """
    text = (FOLDER / "prometheus.yaml").read_text()
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    assert set(jobs) == set(services) - {"prometheus", "release"}
    assert jobs["gateway"]["static_configs"] == [{"targets": [f"gateway:{Settings().port}"]}]
    with_key = yaml.safe_load(text.replace("#authorization", "authorization"))["scrape_configs"][0]
    assert with_key == {**jobs["gateway"], "authorization": {"credentials_file": "key"}}
    assert jobs["model"]["metrics_path"] in (ROOT / "serving" / "container" / "monitoring.config").read_text()
    assert jobs["model"]["static_configs"] == [{"targets": ["model:8501"]}]
    assert "--enable-feature=auto-reload-config" in services["prometheus"]["command"]
    assert "./monitoring:/etc/prometheus:ro,z" in services["prometheus"]["volumes"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's prometheus")
@pytest.mark.parametrize("command", ["check config prometheus.yaml", "test rules alerts_test.yaml"])
def test_promtool_agrees(command: str) -> None:
    """The files are valid, and the alerts fire when they should and not otherwise."""
    result = subprocess.run(["promtool", *command.split()], cwd=Path(FOLDER), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
