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

_log = logging.getLogger(__name__)


class Trials:
    """The trials of one process; safe for threads."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics
        self._lock = Lock()
        self._counted: tuple[int, int, str] | None = None  # the trial that the counts are of
        self._counts: Counter[bool] = Counter()
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
            return None if self._is_stopped else active

    def record(self, active: ActiveTrial, *, failed: bool) -> None:
        """Count what the tried version was asked, and whether it failed where the stable version answered."""
        with self._lock:
            if active.trial.identity != self._counted:  # a slow request, or comparison, of an earlier trial
                return
            self._counts[failed] += 1
            failures, requests = self._counts[True], self._counts.total()
            too_many = failures >= FAILURES_UNTIL_STOPPED and failures >= SHARE_UNTIL_STOPPED * requests
            if too_many and not self._is_stopped:
                self._is_stopped = True
                self._metrics.trial_stopped.set(1)
                export = active.version.export
                _log.error(
                    "version %s is not tried here any more: it failed %d of %d times", export, failures, requests
                )
