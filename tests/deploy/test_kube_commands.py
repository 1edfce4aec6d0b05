"""kube/release.sh and kube/batch, whose programs run in Pods of their own, and kube/apply.sh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

from gateway.batch.__main__ import _parser as batch_parser
from gateway.release.__main__ import _parser as release_parser
from tests.deploy.manifests import KUBE, container, find, pod, read_base, render, render_with, settings


def test_the_release_command_runs_on_the_volume(tmp_path: Path) -> None:
    """As a Pod that the namespace lets in, which reaches the gateways and is removed; arguments arrive as they are.

    A cluster that does not answer for a moment ends nothing.
    """
    objects = render_with(tmp_path, "model-volume")
    gateway = container(objects, "gateway")
    program = tmp_path / "kubectl"
    program.write_text(f"""#!{sys.executable}
import json, pathlib, sys
arguments = sys.argv[1:]
if "get" in arguments:
    key = arguments[-1].rstrip("}}").rpartition(".")[2]
    found = {{**{gateway!r}, "startedAt": "now", "exitCode": "4"}}[key]
    if key == "exitCode" and not (answered := pathlib.Path("{tmp_path}/answered")).exists():
        answered.touch()
        sys.exit("i/o timeout")
    pod = "release-1 " if "pod" in arguments else ""
    print(pod + (found if isinstance(found, str) else json.dumps(found)))
elif "logs" in arguments:
    print("Version 2 was rolled back.")
else:
    open("{tmp_path}/calls", "a").write(json.dumps(arguments) + chr(10))
""")
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "USER": "ann"}
    arguments = ["try", "2", "--share", "10%", "--reason", """it's "red" $(x)"""]
    done = subprocess.run([KUBE / "release.sh", *arguments], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "Version 2 was rolled back.\n"), done.stderr
    started, removed = map(json.loads, (tmp_path / "calls").read_text().splitlines())
    flags, sent = split(started, "--")
    assert sent == arguments and "USER=ann" in flags and gateway["image"] in flags
    spec = json.loads(flags[flags.index("--overrides") + 1])["spec"]
    (only,) = spec["containers"]
    assert (
        only["name"] == flags[flags.index("run") + 1] == removed[removed.index("pod") + 1]
    )  # or the image and the arguments would be another container's
    metadata = {"name": only["name"], "labels": dict([flags[flags.index("--labels") + 1].split("=")])}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    only |= {"image": gateway["image"], "args": sent}
    kubernetes_validate.validate(whole, kubernetes_validate.utils.all_versions()[-1], strict=True)
    assert only["securityContext"] == gateway["securityContext"]
    assert spec["securityContext"] == {**pod(objects, "gateway")["securityContext"], "fsGroup": 10001}
    options = release_parser().parse_args([*only["command"][3:], *sent])
    assert (options.model, f"{options.store}/{options.model}/release.json") == (
        "$(GATEWAY_MODEL_NAME)",
        next(each["value"] for each in only["env"] if each["name"] == "GATEWAY_RELEASE_FILE"),
    )
    policy = find(objects, "NetworkPolicy", "release")["spec"]
    assert policy["podSelector"]["matchLabels"] == metadata["labels"]
    dns, _, public = find(objects, "NetworkPolicy", "gateway")["spec"]["egress"]
    assert policy["egress"][0] == dns and "ports" not in public
    service = find(objects, "Service", "gateway-pods")["spec"]
    assert (service["clusterIP"], service["selector"]) == ("None", {"app.kubernetes.io/name": "gateway"})
    assert service["ports"] == [{"name": "http", "port": settings().port, "targetPort": "http"}]
    assert [port["port"] for port in policy["egress"][1]["ports"]] == [settings().port]


def test_a_batch_runs_in_parts(tmp_path: Path) -> None:
    """As Pods that the namespace lets in, each with a part of the photos and a file of its own; they reach gateways."""
    objects = render(KUBE / "batch")
    for each in objects:
        assert each["metadata"]["namespace"] == "image-classifier"
        for version in kubernetes_validate.utils.all_versions()[-3:]:
            kubernetes_validate.validate(each, version, strict=True)
    job = find(objects, "Job", "batch")["spec"]
    spec = job["template"]["spec"]
    (only,) = spec["containers"]
    gateway = container(read_base(), "gateway")
    assert only["securityContext"] == gateway["securityContext"]
    assert spec["securityContext"] == {
        **pod(read_base(), "gateway")["securityContext"],
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    assert spec["volumes"] == [{"name": "photos", "persistentVolumeClaim": {"claimName": "photos"}}]
    assert job["podReplacementPolicy"] == "Failed"
    program, calls = tmp_path / "python", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {calls}\nexit $STATUS\n')
    program.chmod(0o755)
    given = {each["name"]: each["value"] for each in only["env"]}
    statuses = []
    for index, status in enumerate((0, 3, 1, 2)):
        extra = {"JOB_COMPLETION_INDEX": str(index), "STATUS": str(status), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run([*only["command"], *only["args"]], env={**given, **extra})
        statuses.append(done.returncode == 0)
    assert statuses == [True, True, False, False]  # a photo that has no prediction is no reason to try again
    sent = [line for line in calls.read_text().split("-m\n") if line]
    parsed = [batch_parser().parse_args(each.splitlines()[1:]) for each in sent]
    assert [each.shard for each in parsed] == [(index, job["completions"]) for index in range(4)]
    assert len({each.out for each in parsed}) == 4 and {each.gateway for each in parsed} == {"http://gateway"}
    assert find(read_base(), "Service", "gateway")["spec"]["ports"][0]["port"] == 80
    policy = find(objects, "NetworkPolicy", "batch")["spec"]
    assert policy["podSelector"]["matchLabels"] == job["template"]["metadata"]["labels"]
    release = yaml.safe_load((KUBE / "model-volume" / "network.yaml").read_text())["spec"]
    assert policy["egress"] == release["egress"]


def test_make_kube_waits_for_ten_minutes(tmp_path: Path) -> None:
    """Also for a Deployment that has missed its progress deadline, for which kubectl does not wait at all."""
    programs = {
        "kubectl": 'case "$*" in *" rollout status "*) echo >> asked; exit 1 ;; esac',
        "date": "echo >> looked; echo $(($(wc -l < looked) * 150))",  # the clock goes on by 150 s with each look
        "sleep": "",
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([KUBE / "apply.sh", "local"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "deployment/model was not ready after ten minutes" in done.stdout
    assert (tmp_path / "asked").read_text() == "\n" * 5  # of a clock, not of tries


def split(values: list[str], separator: str) -> tuple[list[str], list[str]]:
    """Return what stands before a separator, and after it."""
    at = values.index(separator)
    return values[:at], values[at + 1 :]
