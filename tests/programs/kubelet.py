"""What a cluster does to Pods, with processes in their place: starts, probes, announces, replaces and stops them.

The times are those of the manifests. What the cluster itself adds, the delay until everybody has heard of a change, is
an argument.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Probe = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Spec:
    """A Pod's spec, as far as it says when things happen."""

    startup: dict[str, Any]
    readiness: dict[str, Any]
    pre_stop_s: float
    grace_s: float

    @classmethod
    def of(cls, pod: dict[str, Any]) -> Spec:
        """Read a manifest."""
        (container,) = pod["containers"]
        return cls(
            container["startupProbe"],
            container["readinessProbe"],
            container["lifecycle"]["preStop"]["sleep"]["seconds"] if "lifecycle" in container else 0.0,
            pod["terminationGracePeriodSeconds"],
        )


class Pod:
    """One process in its Pod's life. It is started at once, and probed from then on."""

    def __init__(self, address: str, command: list[str], environ: dict[str, str], spec: Spec, probe: Probe) -> None:
        self.address = address
        self._spec, self._probe = spec, probe
        self.process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.ready = threading.Event()
        self._terminating = threading.Event()
        self._prober = threading.Thread(target=self._probe_until_terminating, daemon=True)
        self._prober.start()

    @property
    def in_service(self) -> bool:
        """Whether the Pod's address belongs to its Service: ready, and not asked to end."""
        return self.ready.is_set() and not self._terminating.is_set()

    def _probe_until_terminating(self) -> None:
        while not self._probe(self._spec.startup):
            if self._terminating.wait(self._spec.startup["periodSeconds"]):
                return
        failures = 0
        while True:
            if self._probe(self._spec.readiness):
                failures = 0
                self.ready.set()
            else:
                failures += 1
                if failures >= self._spec.readiness.get("failureThreshold", 3):
                    self.ready.clear()
            if self._terminating.wait(self._spec.readiness["periodSeconds"]):
                return

    def terminate(self, heeds_sigterm: bool) -> int:
        """Stop it as a kubelet does, and return its exit status."""
        killed_at = time.monotonic() + self._spec.grace_s
        self._terminating.set()
        time.sleep(self._spec.pre_stop_s)
        if heeds_sigterm:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(killed_at - time.monotonic())
            except subprocess.TimeoutExpired:
                pass
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """End the process at once, if it still runs."""
        self._terminating.set()
        self.process.kill()
        self.process.wait()
        self._prober.join()


class Deployment:
    """Pods of one kind, and the addresses of those in service as others know them, some seconds late."""

    def __init__(self, create: Callable[[], Pod], replicas: int, announce_after_s: float) -> None:
        self.pods = [create() for _ in range(replicas)]
        self.addresses: list[str] = []
        self._create, self._announce_after_s = create, announce_after_s
        self._closed = threading.Event()
        self._announcer = threading.Thread(target=self._announce, daemon=True)
        self._announcer.start()

    def _announce(self) -> None:
        seen: list[tuple[float, list[str]]] = []
        while not self._closed.wait(0.1):
            now = time.monotonic()
            seen.append((now, [pod.address for pod in self.pods if pod.in_service]))
            while seen and seen[0][0] <= now - self._announce_after_s:
                self.addresses[:] = seen.pop(0)[1]

    def roll_out(self, heeds_sigterm: bool) -> list[int]:
        """Replace every Pod, with maxUnavailable 0 and maxSurge 1; return the exit statuses of the old ones."""
        statuses: list[int] = []
        stops = []
        for old in [pod for pod in self.pods if pod.process.poll() is None]:
            new = self._create()
            self.pods.append(new)
            assert new.ready.wait(120), "the new Pod did not become ready"
            stop = threading.Thread(target=lambda pod=old: statuses.append(pod.terminate(heeds_sigterm)))
            stop.start()  # the next new one need not wait for its end
            stops.append(stop)
        for stop in stops:
            stop.join()
        return statuses

    def close(self) -> None:
        """End all processes."""
        self._closed.set()
        self._announcer.join()
        for pod in self.pods:
            pod.close()
