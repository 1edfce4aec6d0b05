"""A cluster that kubectl points at: kube/ under names of the tests' own, and a Pod that is outside of what it deploys.

`KUBE_LOAD` is the command that puts images of the Docker engine into the cluster.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT
from tests.programs.containers import docker, run
from tests.programs.stack import wait_until

# In copies of kube/, this takes the place of `image-classifier`: the namespace, and the first words of the images.
NAMESPACE = "image-classifier-test"
OUTSIDE = f"{NAMESPACE}-outside"
STORE = f"{NAMESPACE}-store"  # a volume, and its class
LOAD = shlex.split(os.environ.get("KUBE_LOAD") or "kind load docker-image")
ORIGIN_PORT = 8000

# One Pod in a namespace of its own: clients, a host of images on a private address, and the owner of the model-store.
OUTSIDE_POD = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {OUTSIDE}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: outside, namespace: {OUTSIDE}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - &container
      name: clients
      image: {NAMESPACE}-gateway:latest
      imagePullPolicy: Never
      command: [sleep, infinity]
    - <<: *container
      name: origin
      command: [python, -m, http.server, "{ORIGIN_PORT}", --directory, /srv]
      volumeMounts: [{{name: images, mountPath: /srv}}]
    - <<: *container
      name: owner
      securityContext: {{runAsUser: 0}}
      volumeMounts: [{{name: images, mountPath: /srv}}, {{name: store, mountPath: /store}}]
  volumes:
    - name: images
      emptyDir: {{}}
    - name: store
      hostPath: {{path: /var/tmp/{STORE}, type: DirectoryOrCreate}}
"""

# A volume on one node, which is enough for replicas on that node.
VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  storageClassName: {name}
  accessModes: [ReadWriteMany]
  capacity: {{storage: 10Gi}}
  hostPath: {{path: {path}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: ["{hostname}"]}}]
"""

PHOTOS = f"{NAMESPACE}-photos"
PHOTOS_CLAIM = f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: photos}}
spec:
  storageClassName: {PHOTOS}
  accessModes: [ReadWriteMany]
  resources: {{requests: {{storage: 10Gi}}}}
"""


def kubectl(*arguments: str, namespace: str = NAMESPACE, stdin: str | None = None) -> str:
    """Run kubectl, by default in the namespace that is deployed; return what it printed."""
    command = ["kubectl", "--namespace", namespace, *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout.strip()


def is_reachable() -> bool:
    """Tell whether there is kubectl, and a cluster that answers it."""
    command = ["kubectl", "version", "--request-timeout=10s"]
    return bool(shutil.which("kubectl")) and subprocess.run(command, capture_output=True).returncode == 0


def get(*arguments: str) -> Any:
    """Return objects of the cluster."""
    return json.loads(kubectl("get", *arguments, "--output=json"))


def pods(tier: str) -> list[dict[str, Any]]:
    """Return the Pods of a tier, also those that are ending."""
    found: list[dict[str, Any]] = get("pods", f"--selector=app.kubernetes.io/name={tier}")["items"]
    return found


def wait_until_ready() -> None:
    """Wait until all Pods of the newest specs are ready."""
    for tier in ("model", "gateway"):
        kubectl("rollout", "status", f"deployment/{tier}", "--timeout=3m")


def wait_for_ends(names: set[str]) -> None:
    """Wait until Pods are gone; a model server takes almost a minute to leave."""

    def are_gone() -> bool:
        time.sleep(1)
        return not names & {pod["metadata"]["name"] for pod in get("pods")["items"]}

    wait_until(are_gone, 150, lambda: names)


def in_pod(pod: str, *command: str, container: str, namespace: str = NAMESPACE, stdin: bytes = b"") -> bytes:
    """Run a command in a Pod; return what it printed."""
    options = ("--namespace", namespace, "--stdin", pod, "--container", container)
    result = subprocess.run(["kubectl", "exec", *options, "--", *command], input=stdin, capture_output=True)
    assert result.returncode == 0, f"{command}\n{result.stderr.decode()[-4000:]}"
    return result.stdout


def outside(*command: str, container: str = "clients", stdin: bytes = b"") -> bytes:
    """Run a command in the Pod that is outside of what is deployed."""
    return in_pod("outside", *command, container=container, namespace=OUTSIDE, stdin=stdin)


def is_open(pod: str, container: str, address: str, namespace: str = NAMESPACE) -> bool:
    """Tell whether a Pod can connect to an address, `host:port`; bash is in all of the images."""
    script = f"timeout 3 bash -c '</dev/tcp/{address.replace(':', '/')}' && echo open || echo closed"
    return in_pod(pod, "sh", "-c", script, container=container, namespace=namespace).strip() == b"open"


def copy(source: Path, folder: str, name: str) -> None:
    """Copy a version into the store under a name that is not a number, then rename it; it belongs to 10001."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(source, "draft")
    script = f"mkdir -p {folder} && cd {folder} && tar x && chown -R 10001:10001 . && mv draft {name}"
    outside("sh", "-euc", script, container="owner", stdin=archive.getvalue())


def add_volume(name: str = STORE, path: str = f"/var/tmp/{STORE}") -> None:
    """Add a volume, a folder of the node on which the Pod outside runs, of a class with its own name."""
    node = kubectl("get", "pod", "outside", "--output=jsonpath={.spec.nodeName}", namespace=OUTSIDE)
    hostname = get("node", node)["metadata"]["labels"]["kubernetes.io/hostname"]
    kubectl("apply", "--filename=-", stdin=VOLUME.format(name=name, path=path, hostname=hostname))


def put_photos(images: Mapping[str, bytes], times: int) -> list[str]:
    """Put images, each under many names, on a volume that the namespace claims as `photos`, /store/photos here.

    Returns:
        Their paths on the volume: `NAME/NUMBER.jpg`.
    """
    link = "import os, sys; [os.link(sys.argv[1], f'{sys.argv[2]}/{each:04}.jpg') for each in range(int(sys.argv[3]))]"
    outside("rm", "-rf", "/store/photos", container="owner")
    for name, image in images.items():
        folder = f"/store/photos/{name}"
        outside("sh", "-euc", f"mkdir -p {folder} && cat > {folder}/0.jpg", container="owner", stdin=image)
        outside("python", "-c", link, f"{folder}/0.jpg", folder, str(times), container="owner")
        outside("rm", f"{folder}/0.jpg", container="owner")
    outside("chown", "-R", "10001:10001", "/store/photos", container="owner")
    add_volume(PHOTOS, f"/var/tmp/{STORE}/photos")
    kubectl("apply", "--filename=-", stdin=PHOTOS_CLAIM)
    return [f"{name}/{each:04}.jpg" for name in images for each in range(times)]


def put_image(name: str, image: bytes) -> str:
    """Put an image on the private host; return its URL."""
    outside("sh", "-c", f"cat > /srv/{name}", container="owner", stdin=image)
    return f"http://{host()}:{ORIGIN_PORT}/{name}"


def host() -> str:
    """Return the address of the Pod that is outside."""
    return kubectl("get", "pod", "outside", "--output=jsonpath={.status.podIP}", namespace=OUTSIDE)


def build(clone: Path, tier: str, tag: str, **versions: Path) -> str:
    """Build an image in a clone, with `v1=` and so on of `tiny`; return the name that the cluster knows it by."""
    store = clone / "model-store" / "tiny"
    shutil.rmtree(store, ignore_errors=True)
    for number, version in versions.items():
        shutil.copytree(version, store / number.removeprefix("v"))
    run("make", f"{tier}-image", "MODEL=tiny", "TAG=kube", cwd=clone)
    name = f"{NAMESPACE}-{tier}:{tag}"
    docker("tag", f"image-classifier-{tier}:kube", name)
    return name


def load_images(*names: str) -> None:
    """Put images into the cluster."""
    run(*LOAD, *names)


def remove() -> None:
    """Remove all that the tests make; Pods without the time to leave that their specs give them."""
    kubectl("delete", "deployments,jobs", "--all")
    kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
    kubectl("delete", "namespace", NAMESPACE, OUTSIDE, "--ignore-not-found")
    kubectl("delete", "persistentvolume", STORE, PHOTOS, "--ignore-not-found")


@dataclass
class Manifests:
    """A copy of kube/ under the tests' names, for the model `tiny`."""

    folder: Path

    @classmethod
    def copy(cls, folder: Path) -> Self:
        """Copy kube/, with a volume of the class that the tests make."""
        shutil.copytree(ROOT / "kube", folder / "kube")
        manifests = cls(folder / "kube")
        for path in filter(Path.is_file, manifests.folder.rglob("*")):
            path.write_text(path.read_text().replace("image-classifier", NAMESPACE))
        manifests.change("base/kustomization.yaml", "MODEL_NAME=imagenet", "MODEL_NAME=tiny")
        manifests.change("model-volume/volume.yaml", "# storageClassName: NAME", f"storageClassName: {STORE}")
        return manifests

    def change(self, path: str, old: str, new: str) -> None:
        """Replace a pattern in a file of the copy."""
        text, count = re.subn(old, new, (self.folder / path).read_text())
        assert count == 1, (path, old)
        (self.folder / path).write_text(text)

    def name_components(self, *names: str) -> None:
        """Give the local overlay these components, and no others."""
        path = self.folder / "overlays" / "local" / "kustomization.yaml"
        listed = ", ".join(f"../../{name}" for name in names)
        path.write_text(path.read_text().split("\ncomponents:")[0].rstrip() + f"\ncomponents: [{listed}]\n")

    def apply(self) -> str:
        """Do what `make kube` does; return what it said."""
        return run(f"{self.folder}/apply.sh", "local")
