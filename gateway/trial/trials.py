"""A process's part in a trial: which requests the tried version answers, and when it stops on plain errors."""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

from gateway.model.protocol import ActiveTrial, Model
from gateway.telemetry.metrics import Metrics

# A process stops its part in a trial at so many failures, if they are such a part of its requests. The watch needs more
# evidence, but may not run.
FAILURES_UNTIL_STOPPED = 5
SHARE_UNTIL_STOPPED = 0.05
# Where the stable version fails too, so many times its part, up to half. Of 60 good versions, simulated with 6,000
# requests of which 3 % run out of time, five in a row, at most 2 are stopped or rolled back with a share of 10 or 50 %,
# and without this 33 and 58. With 90 % it is 20, as little is known of the stable one. A version that always hangs is
# stopped after as many requests, and one that fails a tenth beside those time-outs after 620 in place of 440.
TIMES_STABLE_UNTIL_STOPPED = 5
MOST_UNTIL_STOPPED = 0.5

_log = logging.getLogger(__name__)


def share_of_stable(failed: int, requests: int) -> float:
    """Return the part that the stable version failed; if it failed any, one more, as few may be chance."""
    return (failed + 1) / (requests + 1) if failed else 0.0


class Trials:
    """The trials of one process; safe for threads."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics
        self._lock = Lock()
        self._counted: tuple[int, int, str] | None = None  # the trial that the counts are of
        self._counts: Counter[bool] = Counter()  # of failed, and not
        self._stable: Counter[bool] = Counter()  # the same of the stable version's requests
        self._is_stopped = False

    def choose(self, key: str) -> ActiveTrial | None:
        """Return the trial that takes part in the requests of a key, if there is one, and it goes on here."""
        active = self._model.trial()
        if not active or not active.trial.includes(key):
            return None
        with self._lock:
            if active.trial.identity != self._counted:  # a larger share of the same trial is no other one
                self._counted, self._is_stopped = active.trial.identity, False
                self._counts.clear()
                self._stable.clear()
            return None if self._is_stopped else active

    def record_stable(self, *, failed: bool) -> None:
        """Count a request that the stable version was asked, and whether it failed, or took longer than a trial may."""
        active = self._model.trial()
        if not active:
            return
        self._metrics.trial_requests.labels(*active.labels, "stable_failed" if failed else "stable_answered").inc()
        with self._lock:
            if active.trial.identity == self._counted:
                self._stable[failed] += 1

    def record_request(self, active: ActiveTrial, *, failed: bool) -> None:
        """Count a request that the tried version was asked, as `record` does."""
        self._metrics.trial_requests.labels(*active.labels, "failed" if failed else "answered").inc()
        self.record(active, failed=failed)

    def record(self, active: ActiveTrial, *, failed: bool) -> None:
        """Count what the tried version was asked, and whether it failed where the stable version answered."""
        release = self._model.health.release
        running = release.trial.identity if release and release.trial else None
        with self._lock:
            if not active.trial.identity == running == self._counted:  # slow, and of an earlier trial
                return
            self._counts[failed] += 1
            failures, requests = self._counts[True], self._counts.total()
            usual = TIMES_STABLE_UNTIL_STOPPED * share_of_stable(self._stable[True], self._stable.total())
            share = max(SHARE_UNTIL_STOPPED, min(usual, MOST_UNTIL_STOPPED))
            too_many = failures >= max(FAILURES_UNTIL_STOPPED, share * requests)
            if too_many and not self._is_stopped:
                self._is_stopped = True
                self._metrics.trial_stopped.set(1)
                export = active.version.export
                _log.error(
                    "version %s is not tried here any more: it failed %d of %d times", export, failures, requests
                )
