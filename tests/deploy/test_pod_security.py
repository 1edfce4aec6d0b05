"""tests/programs/pod_security.py: the rules of the restricted Pod Security Standard bite."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.programs.pod_security import violations


@pytest.mark.parametrize(
    ("path", "value", "violation"),
    [
        ("hostNetwork", True, "hostNetwork"),
        ("volumes", [{"name": "v", "hostPath": {"path": "/"}}], "volume v"),
        ("securityContext.runAsUser", 0, "runAsUser"),
        ("securityContext.runAsNonRoot", False, "c: runAsNonRoot"),
        ("securityContext.seccompProfile", {"type": "Unconfined"}, "c: seccompProfile"),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}], "sysctl kernel.msgmax"),
        ("containers.0.securityContext.capabilities.add", ["SYS_ADMIN"], "c: capabilities"),
        ("containers.0.securityContext.capabilities.drop", ["CHOWN"], "c: capabilities"),
        ("containers.0.securityContext.allowPrivilegeEscalation", None, "c: allowPrivilegeEscalation"),
        ("containers.0.securityContext.privileged", True, "c: privileged"),
        ("containers.0.ports", [{"containerPort": 1, "hostPort": 1}], "c: hostPort"),
        ("containers.0.livenessProbe", {"httpGet": {"host": "metadata", "port": 80}}, "c: host of a probe"),
    ],
)
def test_the_standard_notices_what_is_lax(path: str, value: object, violation: str) -> None:
    """Each rule, broken alone, is named."""
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spec: Any = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": context}],
    }
    assert violations(spec) == []
    lax = target = copy.deepcopy(spec)
    *parents, last = path.split(".")
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value
    assert violations(lax) == [violation]
