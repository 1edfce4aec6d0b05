"""Why versions are not loaded at the model server, if an operator should know."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from contract import messages_pb2 as messages
from gateway.model.protocol import Export

START, LOADING = messages.ModelVersionStatus.START, messages.ModelVersionStatus.LOADING
END = messages.ModelVersionStatus.END
LOADING_S = 20.0  # a version that loads for longer is named; TensorFlow Serving took 1.6 to 2.6 s
STILL_LOADING = f"The model server has not loaded it after {LOADING_S:g} s. It may try again; its log says more"
FAILURE_NAMED_S = 600.0  # how long a version that failed to load is named beside one that answers
FORGET_AFTER_S = 10.0  # what no look has met for so long counts as gone


@dataclass
class _Met:
    """What the model server said of a version that is not loaded.

    Attributes:
        since_s: When a look first met it so, and `seen_s`, when one last did.
        older: How many older versions were available at first.
    """

    since_s: float
    seen_s: float
    older: int


class Unloaded:
    """What the looks met that is not loaded."""

    def __init__(self) -> None:
        self._met: dict[tuple[int, str], _Met] = {}

    def name(self, statuses: Sequence[messages.ModelVersionStatus], available: Sequence[int]) -> dict[Export, str]:
        """Return why versions are not loaded, if an operator should know.

        TensorFlow Serving shows LOADING, without an error, for the minutes in which it tries a version again. Then it
        gives up, and shows the error until it restarts, also when the directory is gone by then. So an error is news,
        not a state. It is old when a newer version answers, or one more of the older ones, as happens when the
        directory goes. If neither does, it is old after a while; without a version that answers, it never is.
        """
        now, reasons = time.monotonic(), {}
        for each in statuses:
            failure = each.status.error_message if each.state == END and each.status.error_code else ""
            if not failure and each.state not in (START, LOADING):
                continue
            older = sum(number < each.version for number in available)
            met = self._met.setdefault((each.version, failure), _Met(now, now, older))
            met.seen_s, met.older, age_s = now, met.older or older, now - met.since_s
            is_old = available and (available[0] > each.version or older > met.older or age_s > FAILURE_NAMED_S)
            if failure and not is_old:
                reasons[Export(each.version)] = f"The model server could not load it: {failure}"
            elif not failure and age_s > LOADING_S:
                reasons[Export(each.version)] = STILL_LOADING
        self._met = {key: each for key, each in self._met.items() if now - each.seen_s < FORGET_AFTER_S}
        return reasons
