"""A request's stages before the model, fetch and decode, each for a list of images at once; and their clock."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from threading import BoundedSemaphore, Semaphore
from typing import Any, TypeVar

from contract.document import ImageSpec
from contract.image import DecodedImage, ImageError, decode
from gateway.errors import FetchTimeout, GatewayError, Overloaded, from_image_error
from gateway.fetch.fetcher import Fetcher
from gateway.memory import Held
from gateway.settings import Settings

U = TypeVar("U")

# How long an image waits for a place to fetch. While slow hosts take all of them, the others are refused.
FETCH_PLACE_WAIT_S = 1.0
# The part of the time left that fetches may take, all of a list together. Images that came are then still answered.
FETCH_SHARE = 0.75


class Stages:
    """What happens to images on their way to the model. From where an image fails, its error takes its place."""

    def __init__(self, settings: Settings) -> None:
        # Pillow warns of odd metadata: whoever sends images could write into the log, and not in JSON.
        warnings.filterwarnings("ignore", module="PIL")
        self._fetcher = Fetcher(settings)
        self._fetching = Stage("fetch", settings.fetch_limit, FETCH_PLACE_WAIT_S)
        self._decoding = Stage("decode", settings.decode_limit)
        self._max_pixels = settings.max_pixels

    def fetch(
        self, images: Sequence[str | bytes | GatewayError], deadline: float, held: Held
    ) -> list[bytes | GatewayError]:
        """Return the bytes of each image; those that came with the request are there already, and counted."""
        now = time.monotonic()
        deadline = now + FETCH_SHARE * (deadline - now)

        def fetch(url: str) -> bytes:
            if (left_s := deadline - time.monotonic()) <= 0:  # slow hosts of other images took the time
                raise FetchTimeout("The request took too long: no time was left to fetch the image.")
            return self._fetcher.fetch(url, left_s, held.add)

        urls = [image for image in images if isinstance(image, str)]
        fetched = iter(self._fetching.map(fetch, urls, deadline))
        return [next(fetched) if isinstance(image, str) else image for image in images]

    def decode(
        self, images: Sequence[bytes | GatewayError], spec: ImageSpec, deadline: float
    ) -> list[DecodedImage | GatewayError]:
        """Return the pixels of each image."""

        def decode_image(image: bytes) -> DecodedImage:
            if time.monotonic() > deadline:  # in a long list; it would be work for nothing
                raise Overloaded("The request took too long: no time was left to decode the image.")
            try:
                return decode(image, spec, self._max_pixels)
            except ImageError as exc:
                raise from_image_error(exc) from exc

        return self._decoding.map(decode_image, images, deadline)


class Stage:
    """A part of the work with a limit for the items at once; each of the others waits for a place."""

    def __init__(self, name: str, limit: int, wait_s: float = math.inf) -> None:
        self._name = name
        self._wait_s = wait_s
        self._places = BoundedSemaphore(limit)
        self._share = max(1, limit // 2)
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=name)

    def map(self, work: Callable[[Any], U], items: Sequence[Any], deadline: float) -> list[U | GatewayError]:
        """Return what the work makes of each item, or its error; a single item is worked on in this thread.

        So is the rest of a list whose deadline has passed: the work refuses it at once.
        """

        def attempt(item: Any) -> U | GatewayError:
            if isinstance(item, GatewayError):
                return item
            if not self._places.acquire(timeout=min(self._wait_s, max(0.0, deadline - time.monotonic()))):
                return Overloaded(f"The gateway is busy: no place to {self._name} was free in time. Try again shortly.")
            try:
                return work(item)
            except GatewayError as error:
                error.__cause__ = error.__context__ = None
                return error.with_traceback(None)  # its frames would keep the images
            finally:
                self._places.release()

        if len(items) < 2:
            return [attempt(item) for item in items]
        context = copy_context()  # the log lines of the stage's threads belong to this request
        window, futures = Semaphore(self._share), []
        for item in items:
            window.acquire()  # a long list leaves places for others, and a slow item delays no other
            if time.monotonic() >= deadline:  # the rest would stand in line behind others' work
                break
            futures.append(self._pool.submit(context.copy().run, attempt, item))
            futures[-1].add_done_callback(lambda _: window.release())
        return [future.result() for future in futures] + [attempt(item) for item in items[len(futures) :]]


class Clock:
    """Seconds by stage; those of a repeated stage add up."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Measure a block as one stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def milliseconds(self) -> dict[str, float]:
        """Return what was measured so far, and the total since the clock was made."""
        total_s = time.perf_counter() - self._started
        return {stage: round(s * 1000, 1) for stage, s in {**self.seconds, "total": total_s}.items()}
