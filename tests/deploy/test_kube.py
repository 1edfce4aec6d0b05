"""kube/: what kubectl would apply fits Kubernetes' schemas, its strictest standard, and the programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from contract.release import Release
from gateway.app import create_app
from gateway.fetch.addresses import REFUSED
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from serving.settings import Settings as ServingSettings
from tests.conftest import ROOT
from tests.deploy.manifests import (
    KUBE,
    MIB,
    Object,
    container,
    find,
    pod,
    read_base,
    render,
    render_with,
    settings,
    variables,
)

SOURCES: dict[str, Callable[[Path], list[Object]]] = {
    "base": lambda _: read_base(),
    "local": lambda _: render(KUBE / "overlays" / "local"),
    "production": lambda _: render(KUBE / "overlays" / "production"),
    "volume": lambda folder: render_with(folder, "model-volume"),
    "configmap": lambda folder: render_with(folder, "release-configmap"),
}


COMPONENTS = sorted(
    path.parent.name for path in KUBE.glob("*/kustomization.yaml") if "\nkind: Component\n" in path.read_text()
)


@pytest.fixture(scope="module", params=SOURCES)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The objects of the base, of each overlay, and of production with its volume or with its release in git."""
    return SOURCES[request.param](tmp_path_factory.mktemp("kube"))


def test_every_object_is_valid_in_the_three_newest_versions(objects: list[Object]) -> None:
    """No field is misspelt, of a wrong type, or of another version of the API."""
    versions = kubernetes_validate.utils.all_versions()[-3:]
    assert len(objects) >= 12
    for each in objects:
        for version in versions:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("overlay", ["local", "production"])
@pytest.mark.parametrize("components", [(), *((each,) for each in COMPONENTS), tuple(COMPONENTS)], ids="+".join)
def test_every_object_is_in_the_namespace(tmp_path: Path, overlay: str, components: tuple[str, ...]) -> None:
    """Also what a component adds, which does not get the namespace of the base."""
    assert COMPONENTS == ["image-host", "model-volume", "release-configmap"]
    objects = render_with(tmp_path, *components, overlay=overlay)
    outside = [each for each in objects if each["metadata"].get("namespace") != "image-classifier"]
    assert [each["kind"] for each in outside] == ["Namespace"]
    configs = {each["metadata"]["name"].rpartition("-")[0] for each in objects if each["kind"] == "ConfigMap"}
    assert configs == {"model", "gateway", *([""] if "release-configmap" in components else [])}


def test_pods_meet_the_restricted_standard(objects: list[Object]) -> None:
    """The cluster refuses laxer Pods. A field that is not named here needs a look at the Pod Security Standards."""
    labels = find(objects, "Namespace", "image-classifier")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    user = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    for tier in ("gateway", "model"):
        spec, only = pod(objects, tier), container(objects, tier)
        assert {**spec["securityContext"], "fsGroup": 10001} == {**user, "fsGroup": 10001}
        assert only["securityContext"] == rights
        assert {field for volume in spec["volumes"] for field in volume} <= {
            "name",
            "configMap",
            "emptyDir",
            "persistentVolumeClaim",
        }
        assert all(port.keys() <= {"name", "containerPort"} for port in only["ports"])
        assert not [field for field in spec if field.startswith(("host", "init", "ephemeral"))]


def test_pods_have_no_token_of_the_cluster(objects: list[Object]) -> None:
    """Each tier has an account without rights, and its Pods get no token of it."""
    for tier in ("gateway", "model"):
        assert pod(objects, tier)["serviceAccountName"] == tier
        assert pod(objects, tier)["automountServiceAccountToken"] is False
        assert find(objects, "ServiceAccount", tier)["automountServiceAccountToken"] is False


def test_the_gateway_accepts_its_variables() -> None:
    """Each is a setting, and the model server is the headless Service, every replica of which is found by name."""
    model = find(read_base(), "Service", "model")["spec"]
    assert model["clusterIP"] == "None"
    assert settings().model_address == f"dns:///model:{model['ports'][0]['port']}"


def test_variables_of_the_cluster_do_not_reach_the_gateway(objects: list[Object]) -> None:
    """A Service called gateway would set GATEWAY_PORT to a URL, on which the gateway refuses to start."""
    assert find(objects, "Service", "gateway")
    assert pod(objects, "gateway")["enableServiceLinks"] is False


def test_the_overlays_keep_the_variables(objects: list[Object]) -> None:
    """ConfigMaps have what the base says, read under the names that kustomize gave them; one names the model."""
    configs = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    configs = configs or variables()  # not in the base as it is written
    gateway, model = (container(objects, tier) for tier in ("gateway", "model"))
    (name,) = [each for each in gateway["env"] if each["name"] == "GATEWAY_MODEL_NAME"]
    assert name["valueFrom"]["configMapKeyRef"]["key"] == "MODEL_NAME"
    for tier, named in (
        ("gateway", gateway["envFrom"][0]["configMapRef"]["name"]),
        ("model", model["envFrom"][0]["configMapRef"]["name"]),
        ("model", name["valueFrom"]["configMapKeyRef"]["name"]),
    ):
        assert configs[named] == variables()[tier]


@pytest.mark.parametrize(
    "components", [("model-volume",), ("release-configmap",), ("release-configmap", "model-volume")]
)
def test_gateways_follow_the_release(tmp_path: Path, components: tuple[str, ...]) -> None:
    """The document on the volume, where they may only read, or that of git, whichever component comes first."""
    objects = render_with(tmp_path, *components)
    gateway = container(objects, "gateway")
    variables = {each["name"]: each.get("value") for each in gateway["env"]}
    assert len(variables) == len(gateway["env"])
    mounts = {each["mountPath"]: each for each in gateway["volumeMounts"]}
    volumes = {each["name"]: each for each in pod(objects, "gateway")["volumes"]}
    if "model-volume" in components:
        assert mounts["/models"]["readOnly"] is True
        claim = volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]["claimName"]
        assert find(objects, "PersistentVolumeClaim", claim)
    if "release-configmap" in components:
        assert variables["GATEWAY_RELEASE_FILE"] == "/release/release.json"
        assert "subPath" not in mounts["/release"]  # Kubernetes never changes such a file
        config = find(objects, "ConfigMap", volumes[mounts["/release"]["name"]]["configMap"]["name"])
        Release.from_dict(json.loads(config["data"]["release.json"]))
    else:
        # Kubernetes puts in only variables that stand before.
        assert list(variables) == ["GATEWAY_MODEL_NAME", "GATEWAY_RELEASE_FILE"]
        assert variables["GATEWAY_RELEASE_FILE"] == "/models/$(GATEWAY_MODEL_NAME)/release.json"


def test_only_production_insists_on_keys(objects: list[Object]) -> None:
    """It listens to the internet; its Pods wait for the Secret."""
    (keys,) = [each["secretRef"] for each in container(objects, "gateway")["envFrom"] if "secretRef" in each]
    is_open = find(objects, "Service", "gateway")["spec"].get("type") == "LoadBalancer"
    assert (keys["name"], keys["optional"]) == ("gateway-keys", not is_open)


def test_ports_and_probes_are_the_programs(objects: list[Object], connect: Callable[[str], Versions]) -> None:
    """Ports are the defaults, probed paths are routes, and Services and policies lead to the same ports."""
    ports = {"gateway": settings().port, "model": ServingSettings.from_argv(["--model_base_path=/m"]).port}
    app = create_app(settings(), connect("localhost:1"), Metrics())
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    for tier, port in ports.items():
        spec = container(objects, tier)
        (named,) = spec["ports"]
        assert named["containerPort"] == port
        (service,) = find(objects, "Service", tier)["spec"]["ports"]
        assert service["targetPort"] == named["name"]
        (ingress,) = find(objects, "NetworkPolicy", tier)["spec"]["ingress"]
        assert ingress["ports"] == [{"port": port, "protocol": "TCP"}]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if tier == "gateway":
                assert spec[kind]["httpGet"] == {"path": spec[kind]["httpGet"]["path"], "port": named["name"]}
                assert spec[kind]["httpGet"]["path"] in routes
            else:
                assert spec[kind]["grpc"] == {"port": port}
    assert container(objects, "gateway")["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_local_overlay_takes_the_images_that_are_built_here(tmp_path: Path) -> None:
    """Their names are those that `make images` gives, and no node looks for them in a registry."""
    local = SOURCES["local"](tmp_path)
    for tier in ("gateway", "model"):
        assert container(local, tier)["image"] == f"image-classifier-{tier}:latest"
        assert container(local, tier)["imagePullPolicy"] == "Never"


def test_selectors_find_their_pods(objects: list[Object]) -> None:
    """Services, budgets, policies and spreads mean the tier that they are named after."""
    for tier in ("gateway", "model"):
        deployment = find(objects, "Deployment", tier)["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == tier
        selectors = [
            deployment["selector"]["matchLabels"],
            find(objects, "Service", tier)["spec"]["selector"],
            find(read_base(), "PodDisruptionBudget", tier)["spec"]["selector"]["matchLabels"],
            find(objects, "NetworkPolicy", tier)["spec"]["podSelector"]["matchLabels"],
            *(
                each["labelSelector"]["matchLabels"]
                for each in deployment["template"]["spec"]["topologySpreadConstraints"]
            ),
        ]
        assert len(selectors) == 6
        assert all(selector.items() <= labels.items() for selector in selectors)
        assert "replicas" not in deployment  # it would undo the autoscaler's work
        assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_node_can_be_drained_while_no_pod_is_ready() -> None:
    """By default, a budget then lets none of them go."""
    for tier in ("gateway", "model"):
        budget = find(read_base(), "PodDisruptionBudget", tier)["spec"]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_autoscalers_mean_their_tier_and_the_local_overlay_has_none(tmp_path: Path) -> None:
    """On a machine's few cores, more Pods only take turns; and one Pod needs no budget."""
    for tier in ("gateway", "model"):
        target = find(read_base(), "HorizontalPodAutoscaler", tier)["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", tier)
    kinds = {each["kind"] for each in SOURCES["local"](tmp_path)}
    assert not kinds & {"HorizontalPodAutoscaler", "PodDisruptionBudget"}


def test_a_private_image_host_is_opened_in_both_places(tmp_path: Path) -> None:
    """In the gateway's settings and in its network, and nothing else changes."""
    objects, plain = render_with(tmp_path, "image-host"), SOURCES["production"](tmp_path)
    config = next(each["data"] for each in objects if each["metadata"]["name"].startswith("gateway-"))
    assert Settings.from_env(config).fetch_allow == "images.internal:443"
    assert {**config, "GATEWAY_FETCH_ALLOW": ""} == {**variables()["gateway"], "GATEWAY_FETCH_ALLOW": ""}
    *before, added = find(objects, "NetworkPolicy", "gateway")["spec"]["egress"]
    assert before == find(plain, "NetworkPolicy", "gateway")["spec"]["egress"]
    assert added == {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443, "protocol": "TCP"}]}


def test_the_gateway_reaches_dns_the_model_and_public_addresses_only(objects: list[Object]) -> None:
    """What the policy leaves out of the internet is what the gateway itself refuses to fetch from."""
    rules = find(objects, "NetworkPolicy", "gateway")["spec"]["egress"]
    open_rules = [rule for rule in rules if "ports" not in rule]
    (public,) = open_rules
    assert [{port["port"] for port in rule["ports"]} for rule in rules if "ports" in rule] == [{53}, {8500}]
    in_cluster, *addresses = rules[0]["to"]
    (expression,) = in_cluster["podSelector"]["matchExpressions"]
    assert expression == {"key": "k8s-app", "operator": "In", "values": ["kube-dns", "node-local-dns"]}
    assert [each["ipBlock"]["cidr"] for each in addresses] == ["169.254.20.10/32", "169.254.169.254/32"]
    for folder in ("batch", "model-volume"):  # whose Pods ask the same DNS
        policy = yaml.safe_load((KUBE / folder / "network.yaml").read_text())
        assert policy["spec"]["egress"][0] == rules[0]
    blocks = {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in public["to"]}
    assert list(blocks) == ["0.0.0.0/0", "2000::/3"]
    closed = [ip_network(network) for networks in blocks.values() for network in networks]
    for whole, parts in blocks.items():
        assert all(ip_network(part).subnet_of(ip_network(whole)) for part in parts)  # type: ignore[arg-type]
    assert all(network in REFUSED for network in closed)
    for network in REFUSED:
        same = [each for each in closed if each.version == network.version]
        outside = network.version == 6 and not network.subnet_of(ip_network("2000::/3"))  # type: ignore[arg-type]
        assert outside or any(network.subnet_of(each) for each in same), network  # type: ignore[arg-type]


def test_the_model_server_is_reached_by_the_gateway_only(objects: list[Object]) -> None:
    """And reaches nobody: what no policy allows is closed in both directions."""
    (ingress,) = find(objects, "NetworkPolicy", "model")["spec"]["ingress"]
    assert ingress["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]
    assert "egress" not in find(objects, "NetworkPolicy", "model")["spec"]
    nobody = find(objects, "NetworkPolicy", "nobody")["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_memory_suffices_for_the_largest_images() -> None:
    """The limit covers what the gateway's settings let its worker take; figures of docs/settings.md."""
    limit = container(read_base(), "gateway")["resources"]["limits"]["memory"]
    tuned = settings()
    pixels = 21 * tuned.decode_limit * tuned.max_pixels
    worker = 70e6 + pixels + 2.25 * tuned.max_held_bytes + 8 * tuned.max_body_bytes
    assert int(limit.removesuffix("Mi")) * MIB > tuned.workers * worker


def test_the_model_server_has_a_thread_for_every_call() -> None:
    """TensorFlow Serving refuses what is beyond its threads; all gateways may ask the only replica left."""
    entrypoint = (ROOT / "serving" / "container" / "entrypoint.sh").read_text()
    threads = int(entrypoint.split("--grpc_max_threads=")[1].split()[0])
    gateways = find(read_base(), "HorizontalPodAutoscaler", "gateway")["spec"]["maxReplicas"]
    probes = 2
    assert threads > gateways * settings().workers * settings().threads + probes


def test_the_gateway_has_time_to_answer_what_it_began() -> None:
    """It goes on for a while after SIGTERM, then finishes, and is not killed before."""
    tuned = settings()
    assert tuned.shutdown_delay_s >= 10
    grace_s = pod(read_base(), "gateway")["terminationGracePeriodSeconds"]
    assert grace_s >= tuned.stop_timeout_s


def test_the_gateways_have_time_to_leave_a_model_server() -> None:
    """A signal kills TensorFlow Serving in the midst of its calls, so that none may come any more by then."""
    spec = container(read_base(), "model")
    pre_stop_s = spec["lifecycle"]["preStop"]["sleep"]["seconds"]
    (argument,) = spec["args"]
    ((name, age_ms),) = ServingSettings.from_argv(["--model_base_path=/m", argument]).grpc_channel_arguments
    assert name == "grpc.max_connection_age_ms"
    heard_s, kept_s, oldest_s, between_look_ups_s = 2, 30, int(age_ms) / 1000 * 1.1, 2
    assert pre_stop_s >= heard_s + kept_s + oldest_s + between_look_ups_s + settings().model_timeout_s
    assert pod(read_base(), "model")["terminationGracePeriodSeconds"] > pre_stop_s


def test_a_restart_of_the_model_server_leaves_the_gateways_in_their_service() -> None:
    """A minute at least passes before a gateway without a model counts as not ready."""
    probe = container(read_base(), "gateway")["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


@pytest.mark.processes
def test_checkov_has_no_finding_that_is_not_explained() -> None:
    """kube/checkov.yaml says why for each check that is left out."""
    version = (ROOT / "Makefile").read_text().split("CHECKOV := ")[1].split()[0]
    uv = [sys.executable, "-m", "uv", "tool", "run", "--offline", version, "--version"]
    if shutil.which("kubectl") is None or subprocess.run(uv, capture_output=True).returncode != 0:
        pytest.skip("Expected kubectl, and checkov in uv's cache, where `make check-kube` puts it")
    result = subprocess.run(["make", "--old-file=setup", "check-kube"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "Failed checks: 0" in result.stdout
