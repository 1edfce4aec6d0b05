"""Compares the tried version with the stable one on users' photos, off their path; only counts leave this process."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from contract.comparison import find_signs
from contract.disk import written_whole
from contract.outputs import most_probable
from gateway.errors import GatewayError, ModelFailed, ModelTimeout, ModelUnavailable, Overloaded, VersionGone
from gateway.memory import Held, Room
from gateway.model.protocol import ActiveTrial, Model, Version
from gateway.settings import Settings
from gateway.stages import Stages
from gateway.telemetry.metrics import Metrics
from gateway.trial.trials import Trials

# One of so many photos is compared, and of a request one at most. A comparison is the work of two, so shadow adds 2 %;
# with one of 50, the p99 of users was 1.07 times as long. With a share, it answers users, and sooner evidence is worth
# 13 %. With 10 %, a version that calls 80 % of photos one class then needs 250 requests in 99 of 100 replays, and 334
# with one of 20.
EVERY = {"shadow": 100, "share": 15}
LONGEST_WAIT_S = 5.0  # with fewer requests, the work matters less than the evidence
MOST_REPEATS = 2  # comparisons of one photo in a process: a health check that sends it again is no new evidence
MOST_REMEMBERED = 100_000  # photos
ANSWER_S = 0.02  # until the answer has left, before the thread begins
SLOWER = 1.5  # times the stable version's time from which the tried one counts as slower
MOST_KEPT = 200  # photos of a trial in the folder of those that differ

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reply:
    """What a version says of one photo.

    Attributes:
        seconds: How long decode and prediction took.
        run_s: How long both ran, without waiting for the model server, if that says so.
        probabilities: Of each class (k,).
    """

    version: Version
    seconds: float
    run_s: float | None
    probabilities: NDArray[np.float32]

    @property
    def best(self) -> str:
        return self.version.contract.classes[int(self.probabilities.argmax())]


class Comparisons:
    """One thread that asks both versions about a photo now and then. It keeps one at most; all others are let go."""

    def __init__(
        self, model: Model, trials: Trials, stages: Stages, *, metrics: Metrics, room: Room, settings: Settings
    ) -> None:
        self._model, self._trials, self._stages, self._metrics, self._room = model, trials, stages, metrics, room
        self._timeout_s = settings.model_timeout_s
        self._folder = Path(settings.trial_folder) if settings.trial_folder else None
        self._offers: SimpleQueue[tuple[ActiveTrial, bytes, Held]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._photos, self._last = 0.0, 0.0  # since the last comparison, and when that was
        self._compared: Counter[int] = Counter()  # how often each photo was, by its hash
        self._trial: object = None

    def offer(self, active: ActiveTrial, images: Sequence[bytes | GatewayError]) -> None:
        """Offer a request's images, one of which may be compared."""
        photos, now, trial = [image for image in images if isinstance(image, bytes)], time.monotonic(), active.trial
        with self._lock:
            self._photos += len(photos) / trial.share  # those that are not offered count too
            is_due = self._photos >= EVERY[trial.mode] or now - self._last > LONGEST_WAIT_S
            if not is_due or self._is_busy:
                return
            if trial.identity != self._trial or len(self._compared) > MOST_REMEMBERED:
                self._trial = trial.identity
                self._compared.clear()
            fresh = [image for image in photos if self._compared[hash(image)] < MOST_REPEATS]
            if not fresh:
                return
            image, held = random.choice(fresh), Held(self._room)  # noqa: S311  # no secret
            with suppress(Overloaded, RuntimeError):  # a process without room, or threads, has no time either
                if not self._thread:
                    thread = threading.Thread(target=self._run, name="comparison", daemon=True)
                    thread.start()
                    self._thread = thread
                held.add(len(image))
                self._photos, self._last, self._is_busy = 0.0, now, True
                self._compared[hash(image)] += 1
                self._offers.put((active, image, held))

    def _run(self) -> None:
        while True:
            active, image, held = self._offers.get()
            time.sleep(ANSWER_S)
            try:
                self._compare(active, image)
            except GatewayError as exc:  # the stable version cannot say either, or the server is busy
                _log.debug("a photo was not compared: %s", exc.detail)
            except Exception:
                _log.exception("a photo could not be compared")
            finally:
                held.release()
            del active, image, held
            self._is_busy = False

    def _compare(self, active: ActiveTrial, image: bytes) -> None:
        """Ask both versions, the one or the other first, and count how their answers differ.

        Raises:
            GatewayError: The photo or the moment is to blame, and not the tried version.
        """
        stable, tried, release = self._model.newest(), active.version, self._model.health.release
        # It was promoted a moment ago, or another version stands in for the stable one.
        if stable is tried or not release or stable.number != release.stable:
            return
        replies: dict[Version, _Reply] = {}
        failed = False
        for version in random.sample((stable, tried), 2):
            try:
                replies[version] = self._ask(version, image)
            except (ModelFailed, ModelTimeout, ModelUnavailable) as exc:
                if version is not tried or isinstance(exc, VersionGone):
                    raise
                failed = True
        self._trials.record(active, failed=failed)
        self._metrics.comparisons.labels(*active.labels).inc()
        if failed:
            self._metrics.comparison_signs.labels(*active.labels, "failed").inc()
            return
        self._count(active, replies[stable], replies[tried])
        if self._folder and replies[stable].best != replies[tried].best:
            _keep(self._folder, f"{active.trial.version}-{active.trial.serial}", image, replies[stable], replies[tried])

    def _ask(self, version: Version, image: bytes) -> _Reply:
        started, before_s = time.perf_counter(), time.thread_time()
        (decoded,) = self._stages.decode([image], version.contract.image, time.monotonic() + self._timeout_s)
        if isinstance(decoded, GatewayError):
            raise decoded
        decode_s = time.thread_time() - before_s  # without waiting for a place
        outputs = self._model.predict(version, decoded.pixels[np.newaxis], time.monotonic() + self._timeout_s)
        run_s = None if outputs.seconds is None else decode_s + outputs.seconds
        return _Reply(version, time.perf_counter() - started, run_s, outputs.probabilities[0])

    def _count(self, active: ActiveTrial, stable: _Reply, tried: _Reply) -> None:
        metrics = self._metrics
        disagrees = tried.best != stable.best
        found = find_signs(tried.probabilities[np.newaxis], stable.probabilities[np.newaxis])
        signs = {"disagrees": disagrees, "slower": _is_slower(tried, stable), **found}
        for sign in (sign for sign, is_so in signs.items() if is_so):
            metrics.comparison_signs.labels(*active.labels, sign).inc()
        if disagrees:
            for best, change in ((tried.best, "gained"), (stable.best, "lost")):
                name = metrics.name_class(metrics.comparison_classes, best, *active.labels, change)
                metrics.comparison_classes.labels(*active.labels, name, change).inc()


def _is_slower(tried: _Reply, stable: _Reply) -> bool:
    """Tell whether the tried version took far longer.

    Under load, most of an answer's time may be that of others in the model server's line. With it, a version that took
    three times as long was promoted: it was far slower on under half of the photos, at 80 requests/s on two cores.
    """
    if tried.run_s is None or stable.run_s is None:
        return tried.seconds > SLOWER * stable.seconds
    return tried.run_s > SLOWER * stable.run_s


def _keep(folder: Path, trial: str, image: bytes, *replies: _Reply) -> None:
    """Keep a photo on which the versions of a trial differ, and what each says, while there is room for its photos."""
    name = f"{trial}-{sha256(image).hexdigest()[:16]}"
    answers = {
        reply.version.number: most_probable(reply.version.contract.classes, reply.probabilities, 3) for reply in replies
    }
    photo, said = folder / name, folder / f"{name}.json"
    try:
        if len(list(folder.glob(f"{trial}-*.json"))) < MOST_KEPT:
            with written_whole(said) as said_draft, written_whole(photo) as photo_draft:
                photo_draft.write_bytes(image)
                said_draft.write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
    except OSError as exc:
        _log.warning("a photo on which versions differ could not be kept in %s: %s", folder, exc.strerror)
