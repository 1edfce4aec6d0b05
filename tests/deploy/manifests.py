"""The objects in kube/, as kubectl would send them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from tests.conftest import ROOT

KUBE = ROOT / "kube"
MIB = 1024 * 1024

Object = dict[str, Any]


def read_base() -> list[Object]:
    """Return the base's objects as they are written, which needs no kubectl."""
    files = [path for path in sorted((KUBE / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [each for path in files for each in yaml.safe_load_all(path.read_text())]


def render(folder: Path) -> list[Object]:
    """Return what `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("Expected kubectl 1.27 or newer, which renders the overlays. Received: none on the path")
    output = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(output))


def render_with(folder: Path, *components: str, overlay: str = "production") -> list[Object]:
    """Return an overlay with components. Production names them behind a `#`, as docs/deploy.md says."""
    shutil.copytree(KUBE, folder / "kube")
    file = folder / "kube" / "overlays" / overlay / "kustomization.yaml"
    text = file.read_text()
    if components == ("model-volume",) and overlay == "production":
        file.write_text(text.replace("#components: [", "components: ["))
    else:
        file.write_text(f"{text}\ncomponents: [{', '.join(f'../../{each}' for each in components)}]\n")
    return render(file.parent)


def find(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of that kind and name."""
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(objects: list[Object], tier: str) -> Object:
    """Return the Pod's spec in a tier's Deployment."""
    spec: Object = find(objects, "Deployment", tier)["spec"]["template"]["spec"]
    return spec


def container(objects: list[Object], tier: str) -> Object:
    """Return a tier's one container."""
    (only,) = pod(objects, tier)["containers"]
    return dict(only)


def variables() -> dict[str, dict[str, str]]:
    """Return the variables of each of the base's ConfigMaps, by its name."""
    configs = yaml.safe_load((KUBE / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    return {config["name"]: dict(literal.split("=", 1) for literal in config["literals"]) for config in configs}


def settings() -> Settings:
    """Return the gateway's settings in the cluster."""
    return Settings.from_env({**variables()["gateway"], "GATEWAY_MODEL_NAME": variables()["model"]["MODEL_NAME"]})
