"""Long work in steps, and how long it takes, for whoever waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
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


def in_batches(
    run: Callable[[NDArray[np.uint8]], Given], sets: Sequence[NDArray[np.uint8]], size: int, at_once: int, work: str
) -> list[list[Given]]:
    """Return what a function gives for each batch of each set of images (n, h, w, 3), some batches at once.

    The images may be on disk; `work` is as in `estimated`.
    """
    starts = [range(0, len(images), size) for images in sets]
    waited, found = estimated(range(sum(map(len, starts))), work), []
    with ThreadPoolExecutor(at_once) as pool:
        for images, steps in zip(sets, starts, strict=True):
            parts = pool.map(lambda at, images=images: run(np.ascontiguousarray(images[at : at + size])), steps)
            found.append([part for part, _ in zip(parts, waited)])  # noqa: B905, the latter goes on
    return found
