"""kube/ on the cluster that kubectl points at: roll-outs, versions, policies and refusals: `make test-kube`.

Everything is in namespaces of the tests' own, with two Pods of each tier and a tiny model, and is removed at the end.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import run_export
from tests.deploy import cluster
from tests.deploy.cluster import NAMESPACE, OUTSIDE, OUTSIDE_POD, Manifests, kubectl
from tests.deploy.cluster_load import ClusterLoad
from tests.programs.containers import clone, has_engine, run
from tests.programs.photos import encode, photo
from tests.programs.stack import Reference, wait_until

pytestmark = [pytest.mark.kube, pytest.mark.tensorflow]

IMAGES = {"one": encode(photo(seed=1)), "two": encode(photo(seed=2), "PNG")}
# Small models by name; `other` has other classes, and takes larger images.
MODELS = {
    "first": {},
    "other": {"seed": 1, "size": 24, "classes": ["a", "b", "c", "d"]},
    "next": {"seed": 2},
    "last": {"seed": 3},
}
BATCH = 8000  # times each image, in a batch: with 4,000, the part to kill had ended on a fast processor
LOCAL = "overlays/local/kustomization.yaml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone, to build images in."""
    if not has_engine() or not cluster.is_reachable():
        pytest.skip("needs a Docker engine, kubectl, and a cluster that its current context reaches")
    return clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def exports(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The versions on this machine."""
    store = tmp_path_factory.mktemp("exports")
    run_export(store, "tiny", *MODELS.values())
    return {name: store / "tiny" / str(number) for number, name in enumerate(MODELS, 1)}


@pytest.fixture(scope="module")
def reference(exports: dict[str, Path]) -> Reference:
    """What each version answers to each image."""
    return Reference.of(exports.values(), IMAGES)


@pytest.fixture(scope="module")
def identities(reference: Reference) -> dict[str, str]:
    """The identity of each version."""
    return dict(zip(MODELS, dict.fromkeys(str(identity) for identity, _ in reference.predictions), strict=True))


@pytest.fixture(scope="module")
def manifests(source: Path, exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifests]:
    """The local overlay, applied, with two Pods of each tier; the Pod outside is there too."""
    cluster.load_images(
        cluster.build(source, "gateway", "latest"),
        cluster.build(source, "model", "latest", v1=exports["first"]),
        cluster.build(source, "model", "next", v1=exports["other"], v2=exports["next"]),
    )
    cluster.remove()
    manifests = Manifests.copy(tmp_path_factory.mktemp("manifests"))
    try:
        kubectl("apply", "--filename=-", namespace=OUTSIDE, stdin=OUTSIDE_POD)
        print(manifests.apply())
        kubectl("scale", "deployment/model", "deployment/gateway", "--replicas=2")
        cluster.wait_until_ready()
        kubectl("wait", "--for=condition=Ready", "pod/outside", "--timeout=60s", namespace=OUTSIDE)
        yield manifests
    finally:
        cluster.remove()


def check(load: ClusterLoad, reference: Reference, statuses: set[int]) -> None:
    """Check that no request was lost, and that each answer is what the version that it names says."""
    print(Counter(status for _, status, _ in load.answers))
    assert load.lost == []
    assert {status for _, status, _ in load.answers} <= statuses
    assert all(reference.matches(name, answer) for name, status, answer in load.answers if status == 200)


def test_applying_again_changes_nothing(manifests: Manifests) -> None:
    """Each object is unchanged."""
    lines = kubectl("apply", "--kustomize", f"{manifests.folder}/overlays/local").splitlines()
    assert len(lines) >= 12
    assert [line for line in lines if not line.endswith(" unchanged")] == []


@pytest.mark.parametrize("components", ["", "../../image-host, ../../model-volume"])
def test_the_cluster_accepts_production(manifests: Manifests, tmp_path: Path, components: str) -> None:
    """Its admission and its validation too, with and without the components."""
    copy = Manifests.copy(tmp_path)
    with (copy.folder / "overlays" / "production" / "kustomization.yaml").open("a") as file:
        file.write(f"components: [{components}]\n")
    lines = kubectl("apply", "--dry-run=server", "--kustomize", f"{copy.folder}/overlays/production").splitlines()
    assert len(lines) >= 14
    assert all(line.endswith("(server dry run)") for line in lines)


def test_policies_open_what_the_tiers_need_and_no_more(manifests: Manifests) -> None:
    """From outside only the gateway; from the gateway only the model server; from there nothing."""
    (gateway, _), (model, _) = cluster.pods("gateway"), cluster.pods("model")
    name, other = gateway["metadata"]["name"], model["metadata"]["name"]
    address, server = f"{gateway['status']['podIP']}:9696", model["status"]["podIP"]
    private = f"{cluster.host()}:{cluster.ORIGIN_PORT}"
    api = kubectl("get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}", namespace="default") + ":443"

    def opened() -> dict[str, list[str]]:
        asked = [address, f"{server}:8500", f"{server}:8501", private, api]
        return {
            "outside": [each for each in asked if cluster.is_open("outside", "clients", each, OUTSIDE)],
            "gateway": [each for each in asked[1:] if cluster.is_open(name, "gateway", each)],
            "model": [each for each in (address, private, api) if cluster.is_open(other, "model", each)],
        }

    expected = {"outside": [address, private, api], "gateway": [f"{server}:8500"], "model": []}
    wait_until(lambda: opened() == expected, 60, lambda: (opened(), expected))


def test_replaced_and_deleted_pods_lose_nothing(manifests: Manifests, reference: Reference) -> None:
    """Every Pod of both tiers in a roll-out, and then one of each."""
    old = {pod["metadata"]["name"] for tier in ("gateway", "model") for pod in cluster.pods(tier)}
    with ClusterLoad(IMAGES) as load:
        load.wait_for(100)
        kubectl("rollout", "restart", "deployment/gateway", "deployment/model")
        cluster.wait_until_ready()
        new = [[pod["metadata"]["name"] for pod in cluster.pods(tier)] for tier in ("gateway", "model")]
        deleted = {next(name for name in names if name not in old) for names in new}
        kubectl("delete", "pod", "--wait=false", *deleted)
        cluster.wait_for_ends(old | deleted)
        load.wait_for(100)
    check(load, reference, {200})


def test_a_batch_in_parts_loses_and_repeats_nothing(
    manifests: Manifests, reference: Reference, identities: dict[str, str], tmp_path: Path
) -> None:
    """By `kube/batch`. The Pod of a part is killed as it works; another one goes on, and the parts fit together."""
    photos, before = cluster.put_photos(IMAGES, BATCH), b""
    kubectl("apply", "--kustomize", f"{manifests.folder}/batch")

    def is_under_way() -> bool:
        nonlocal before
        before = cluster.outside("sh", "-c", "cat /store/photos/predictions-0.csv || true", container="owner")
        return before.count(b"\n") > 10

    def pod_names() -> list[str]:
        return [pod["metadata"]["name"] for pod in cluster.pods("batch")]

    wait_until(lambda: any(name.startswith("batch-0-") for name in pod_names()), 60)
    (killed,) = (name for name in pod_names() if name.startswith("batch-0-"))
    wait_until(is_under_way, 120)
    kubectl("delete", "pod", killed, "--grace-period=0", "--force")
    kubectl("wait", "--for=condition=Complete", "job/batch", "--timeout=5m")
    assert killed not in pod_names() and any(name.startswith("batch-0-") for name in pod_names())
    parts = [tmp_path / f"predictions-{part}.csv" for part in range(4)]
    for part in parts:
        part.write_bytes(cluster.outside("cat", f"/store/photos/{part.name}", container="owner"))
    assert parts[0].read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "began anew"
    asked = [row["source"] for part in parts for row in read_rows(part)]
    assert sorted(asked) == sorted(f"/photos/{path}" for path in photos)
    out = tmp_path / "predictions.csv"
    run(sys.executable, "-m", "gateway.batch", "--merge", *map(str, parts), "--out", str(out))
    best = {name: reference.predictions[identities["first"], name][0]["class"] for name in IMAGES}
    received = sorted((row["source"].removeprefix("/photos/"), row["class"]) for row in read_rows(out))
    assert received == sorted((path, best[Path(path).parent.name]) for path in photos)


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the first row of each answer in a file of a batch."""
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["rank"] == "1"]


def test_another_model_under_a_number_already_seen_mixes_nothing(
    manifests: Manifests, source: Path, exports: dict[str, Path], reference: Reference, identities: dict[str, str]
) -> None:
    """Another image under the same tag, by `make kube`: answers are right or 503, and at the end the new model's."""
    cluster.load_images(cluster.build(source, "model", "latest", v1=exports["other"]))
    old = {pod["metadata"]["name"] for pod in cluster.pods("model")}
    with ClusterLoad(IMAGES) as load:
        load.wait_for(100)
        said = manifests.apply()
        cluster.wait_for_ends(old)
        load.wait_for_identity(identities["other"])
    assert "deployment.apps/model restarted" in said
    check(load, reference, {200, 503})
    assert load.identities == {identities["first"], identities["other"]}


def test_a_version_by_image_loses_nothing(
    manifests: Manifests, reference: Reference, identities: dict[str, str]
) -> None:
    """An image with another tag carries version 1, which answers, and version 2."""
    old = {pod["metadata"]["name"] for pod in cluster.pods("model")}
    manifests.change(LOCAL, "-model, newTag: latest", "-model, newTag: next")
    with ClusterLoad(IMAGES) as load:
        load.wait_for(100)
        manifests.apply()
        load.wait_for_identity(identities["next"])
        cluster.wait_for_ends(old)
        load.wait_for(100)
    check(load, reference, {200})
    assert load.identities == {identities["other"], identities["next"]}


def test_a_private_image_host_is_fetched_from_once_both_places_name_it(
    manifests: Manifests, reference: Reference
) -> None:
    """Refused by the gateway before."""
    url, host = cluster.put_image("two.png", IMAGES["two"]), cluster.host()
    with ClusterLoad({"two": url}, clients=1) as load:
        load.wait_for(3)
    assert {(status, answer["code"]) for _, status, answer in load.answers} == {(403, "url_not_allowed")}
    component = "image-host/kustomization.yaml"
    manifests.change(component, "images.internal:443", f"{host}:{cluster.ORIGIN_PORT}")
    manifests.change(component, r"10\.1\.2\.3", host)
    manifests.change(component, "port: 443", f"port: {cluster.ORIGIN_PORT}")
    manifests.name_components("image-host")
    manifests.apply()
    with ClusterLoad({"two": url}, clients=1) as load:
        load.wait(lambda: [status for _, status, _ in load.answers[-10:]] == [200] * 10)
    assert all(reference.matches(name, answer) for name, status, answer in load.answers if status == 200)


def test_a_version_by_volume_loses_nothing(
    manifests: Manifests, exports: dict[str, Path], reference: Reference, identities: dict[str, str]
) -> None:
    """The volume gets the version of the image; then another is renamed into it, without a roll-out."""
    cluster.add_volume()
    cluster.outside("sh", "-c", "rm -rf /store/* /store/.[!.]* && chown 10001:10001 /store", container="owner")
    manifests.name_components("image-host", "model-volume")
    with ClusterLoad(IMAGES) as load:
        load.wait_for(100)
        manifests.apply()
        cluster.copy(exports["last"], "/store/tiny", "3")
        load.wait_for_identity(identities["last"])
    check(load, reference, {200})
    assert load.identities == {identities["next"], identities["last"]}


def test_a_release_is_tried_and_rolled_back_within_2_s(
    manifests: Manifests, reference: Reference, identities: dict[str, str]
) -> None:
    """By `kube/release.sh`, on that volume; from the document on, every gateway follows."""

    def release(*arguments: str) -> str:
        script = f"{manifests.folder}/release.sh"
        return run(script, *arguments, "--gateway", "http://gateway-pods:9696", USER="ann")

    assert release("promote", "2").startswith("Release 1: version 2 answers.")
    with ClusterLoad(IMAGES) as load:
        load.wait_for_identity(identities["next"])
        release("try", "3", "--share", "50%")
        load.wait(lambda: identities["last"] in load.identities)
        release("promote")
        load.wait_for_identity(identities["last"])
        assert "Release 4 is followed by" in release("rollback", "--reason", "too red")
        load.wait_for(100)
    check(load, reference, {200})
    entry = json.loads(cluster.outside("tail", "-n", "1", "/store/tiny/history.jsonl", container="owner"))
    assert entry["who"].startswith("ann@") and entry["why"] == "too red"
    answered = zip(load.sent, (answer["model"]["identity"] for _, _, answer in load.answers), strict=True)
    last = max(sent for sent, identity in answered if identity == identities["last"])
    assert last < datetime.fromisoformat(entry["when"]).timestamp() + 2
    cluster.outside("sh", "-c", "rm -rf /store/* /store/.[!.]*", container="owner")


def test_a_missing_image_ends_make_kube_with_a_hint(manifests: Manifests, reference: Reference) -> None:
    """Within a minute, while the old Pods continue to answer."""
    manifests.change(LOCAL, r"-model, newTag: \w+", "-model, newTag: missing")
    with ClusterLoad(IMAGES) as load:
        load.wait_for(10)
        started = time.monotonic()
        result = subprocess.run([manifests.folder / "apply.sh", "local"], capture_output=True, text=True)
        assert time.monotonic() - started < 60
        load.wait_for(10)
    assert result.returncode == 1
    assert f"ErrImageNeverPull {NAMESPACE}-model:missing" in result.stdout
    assert "make images" in result.stdout
    check(load, reference, {200})
