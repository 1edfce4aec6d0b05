"""How long something takes, for whoever waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

_log = logging.getLogger(__name__)

WAIT_S = 2.0  # before a rate is believed
WORTH_SAYING_S = 10.0


def estimated(steps: range, work: str) -> Iterator[int]:
    """Yield the steps of some work; log once how long the rest will take, unless that is soon."""
    started, said = time.monotonic(), False
    for done, step in enumerate(steps):
        passed_s = time.monotonic() - started
        if done and passed_s > WAIT_S and not said:
            said = True
            if (left_s := passed_s / done * (len(steps) - done)) >= WORTH_SAYING_S:
                _log.info(f"{work}: about {left_s:.0f} s left")
        yield step
