"""Prometheus metrics of several workers: each writes to a shared folder, and a scrape adds them up."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gateway.errors import GatewayError
from gateway.model.protocol import Export, Health

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# A series stays until the gateway ends. It takes 220 bytes of its process's file, and 1.5 kB of its memory. A process
# dies of SIGBUS when its file has no room, and /dev/shm of a container has 64 MB. So a metric by class has at most so
# many series in a process, and no further one while the file system has less room. All other metrics of a version
# take 17 kB.
MOST_CLASSES = 20_000
ROOM_BYTES = 8 << 20
OTHERS = "(others)"  # instead of the class, from then on

_log = logging.getLogger(__name__)


def share() -> None:
    """Make the folder for all workers; call it before the import of the client library, which reads the variable."""
    memory = Path("/dev/shm")  # noqa: S108  # in memory if possible: the files are counters that each worker maps
    is_usable = os.access(memory, os.W_OK) and _has_room(memory)
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="metrics-", dir=memory if is_usable else None)


def unshare() -> None:
    """Remove the folder when the last process ends."""
    if FOLDER in os.environ:  # it is set only once the gateway listens
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)


def forget_worker(pid: int) -> None:
    """Remove the gauges of a worker that ended; its counters stay."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Metrics:
    """What the gateway counts and measures."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._shown: set[Export] = set()
        self._trial: object = None
        self._counted = defaultdict[object, set[tuple[object, ...]]](set)
        # Without the cache, a request takes 20 us here; with it, half.
        self._child = cache(lambda metric, *labels: metric.labels(*labels))
        options: dict[str, Any] = {"registry": self._registry}
        self.answers = Counter("gateway_answers", "Answers, by path, status and error code.",
                               ["path", "status", "code"], **options)  # fmt: skip
        self.failures = Counter("gateway_image_failures", "Images that are none or were not fetched, by error code.",
                                ["code"], **options)  # fmt: skip
        self.stages = Histogram("gateway_stage_seconds", "Time in each stage of a prediction, by model version.",
                                ["stage", "version", "identity"], buckets=STAGE_BUCKETS_S, **options)  # fmt: skip
        self.classes = Counter("gateway_predictions", "Images by the class that was most probable, and version.",
                               ["version", "identity", "class"], **options)  # fmt: skip
        self.confidence = Histogram("gateway_confidence", "Probability of the most probable class, by version.",
                                    ["version", "identity"], buckets=CONFIDENCE_BUCKETS, **options)  # fmt: skip
        self.unknown = Counter("gateway_unknown", "Images unlike all that the version was trained on, by version.",
                               ["version", "identity"], **options)  # fmt: skip
        self.accepted = Gauge("gateway_version_accepted", "1 for each loaded version that passed the golden gate.",
                              ["version", "identity"], multiprocess_mode="livemin", **options)  # fmt: skip
        self.refused = Gauge("gateway_version_refused", "1 for each version refused, not tried, or not loaded.",
                             ["version", "identity"], multiprocess_mode="livemax", **options)  # fmt: skip
        self.serial = Gauge("gateway_release_serial", "Serial of the release document in force, in every worker.",
                            multiprocess_mode="livemin", **options)  # fmt: skip
        self.release_refused = Gauge("gateway_release_refused", "1 while the release document is not followed.",
                                     multiprocess_mode="livemax", **options)  # fmt: skip
        of_trial = ["version", "identity", "trial"]
        self.trial_requests = Counter("gateway_trial_requests", "Requests in a trial, by version and what it did.",
                                      [*of_trial, "outcome"], **options)  # fmt: skip
        self.trial_stopped = Gauge("gateway_trial_stopped", "1 while a worker does not try the version, which failed.",
                                   multiprocess_mode="livemax", **options)  # fmt: skip
        self.comparisons = Counter("gateway_comparisons", "Photos on which the tried version was compared.",
                                   of_trial, **options)  # fmt: skip
        self.comparison_signs = Counter("gateway_comparison_signs", "Compared photos, by what the tried version did.",
                                        [*of_trial, "sign"], **options)  # fmt: skip
        self.comparison_classes = Counter("gateway_comparison_classes", "Photos that each class gained or lost by it.",
                                          [*of_trial, "class", "change"], **options)  # fmt: skip
        self.ready = Gauge("gateway_ready", "1 while a usable version is loaded, in every worker.",
                           multiprocess_mode="livemin", **options)  # fmt: skip

    def observe(self, export: Export, seconds: Mapping[str, float], results: Sequence[Any]) -> None:
        """Count a request's results and measure its stages."""
        is_predicted = any(isinstance(result, dict) for result in results)
        for stage, value in seconds.items():
            if is_predicted or stage != "predict":  # without an image, no model was asked
                self._child(self.stages, stage, *export).observe(value)
        for error in (result for result in results if isinstance(result, GatewayError)):
            self.failures.labels(error.code).inc()
        for result in (result for result in results if isinstance(result, dict)):
            best = result["predictions"][0]
            self._child(self.classes, *export, self.name_class(self.classes, best["class"], *export)).inc()
            self._child(self.confidence, *export).observe(best["probability"])
            if "unknown" in result:
                self._child(self.unknown, *export).inc(result["unknown"])

    def name_class(self, metric: object, name: str, *others: object) -> str:
        """Return a class as a label beside others, or what stands for it if the metric may have no further series."""
        counted, labels = self._counted[metric], (name, *others)
        if labels not in counted:
            shared = os.environ.get(FOLDER)
            if len(counted) >= MOST_CLASSES or (shared and not _has_room(Path(shared).parent)):
                if (OTHERS,) not in counted:
                    counted.add((OTHERS,))
                    _log.warning("no room to count each class; until the gateway restarts, further ones are %s", OTHERS)
                return OTHERS
            counted.add(labels)
        return name

    def show(self, health: Health) -> None:
        """Show which versions a worker found."""
        self.ready.set(health.ready)
        self.serial.set(health.release.serial if health.release else 0)
        self.release_refused.set(health.release_error is not None)
        trial = health.release.trial.identity if health.release and health.release.trial else None
        if trial != self._trial:
            self._trial = trial
            self.trial_stopped.set(0)
        self._shown |= {*health.accepted, *health.refused}
        for export in self._shown:  # also 0, which shows that one worker disagrees
            self.accepted.labels(*export).set(export in health.accepted)
            self.refused.labels(*export).set(export in health.refused)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _has_room(folder: Path) -> bool:
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize >= ROOM_BYTES
