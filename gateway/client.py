"""Which versions may answer: looks for them at the model server, and lets them through the golden gate."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract import tensor
from contract.document import Contract
from gateway.errors import (
    GatewayError,
    ModelFailed,
    ModelTimeout,
    ModelUnavailable,
    Overloaded,
    VersionGone,
)
from gateway.gate import Refusal, open_gate
from gateway.model import Health, Version
from gateway.replicas import Replicas

# Replicas behind one address take turns in answering, so one look shows one replica's versions.
FORGET_AFTER_S = 10.0  # a version counts as gone once no look has seen it for so long
SEARCH_S = 2.0  # how long a request, or the gate, tries to reach a replica that holds a version
SEARCH_PAUSE_S = 0.005
LOOKS_UNTIL_AWAY = 2  # so many looks in a row that found no model server open the circuit breaker
LOOKS_UNTIL_RENEWED = 10  # after each so many, its address is looked up anew
ATTEMPTS_UNTIL_REFUSED = 3  # how often a version may fail in the model server before it is refused

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class ModelClient:
    """One process's client of the model server. Safe for threads; to be made after a fork, since it opens a channel."""

    def __init__(
        self,
        address: str,
        model: str,
        poll_s: float = 0.5,
        timeout_s: float = 5.0,
        max_batch: int = 16,
        on_health: Callable[[Health], None] = lambda health: None,
    ) -> None:
        """Open a channel.

        Args:
            address: The model server's, as gRPC names it.
            model: The name that the model server knows the model by.
            poll_s: How often to look for versions, once started.
            timeout_s: Limit for one call.
            max_batch: Most images in one call.
            on_health: Called with what each look found.
        """
        self.model = model
        self._poll_s, self._max_batch, self._on_health = poll_s, max_batch, on_health
        self._replicas = Replicas(address, model, timeout_s)
        self._accepted: dict[int, Version] = {}
        self._refused: dict[int, str] = {}
        self._broken: dict[int, str] = {}
        self._untried: dict[int, str] = {}
        self._attempts: dict[int, int] = {}
        self._failed_looks = 0
        self._available: set[int] = set()
        self._seen: dict[int, float] = {}
        self.health = Health()
        self._looking = threading.Lock()
        self._looks = 0
        self._looked = threading.Event()
        self._stopped = threading.Event()

    def start(self, wait_s: float = 0.0) -> None:
        """Look for versions from now on, in the background; wait so long at most for the first look to end."""
        threading.Thread(target=self._watch, name="model-watch", daemon=True).start()
        self._looked.wait(wait_s)

    def close(self) -> None:
        """Stop looking, and close the channel."""
        self._stopped.set()
        self._replicas.close()

    def newest(self) -> Version:
        """Return the version that answers first; while the model server is away, fail at once (a circuit breaker).

        Raises:
            ModelUnavailable: There is none, or the last looks found no model server.
        """
        if self._failed_looks >= LOOKS_UNTIL_AWAY:
            raise ModelUnavailable(self.health.error or "Expected a model server. Received: none.")
        loaded = [version for version in self._newest_first() if version.number in self._available]
        return loaded[0] if loaded else next(self.candidates(time.monotonic() + SEARCH_S))

    def candidates(self, deadline: float) -> Iterator[Version]:
        """Yield versions to try until one is loaded where the call arrives: newest first, then looking again.

        Replicas need not hold the same versions, so each call may reach one that lacks the version asked for. After
        the first round the order is random: in a fixed one, two replicas that take turns could refuse for ever.

        Raises:
            ModelUnavailable: No accepted version is loaded anywhere, or the deadline passed.
        """
        give_up = min(deadline, time.monotonic() + SEARCH_S)
        versions = self._newest_first()
        while True:
            yield from versions
            tried = bool(versions)
            self._look_again()
            versions = self._newest_first()
            if tried:
                random.shuffle(versions)
            if not (versions and self._available) or time.monotonic() > give_up:
                raise ModelUnavailable(
                    "Expected a usable version of the model. Received: none at the moment; /readyz says why."
                )
            time.sleep(SEARCH_PAUSE_S)

    def _newest_first(self) -> list[Version]:
        return sorted(self._accepted.values(), key=lambda version: -version.number)

    def predict(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> NDArray[np.float32]:
        """Return probabilities (n, k) of pixels (n, h, w, 3) by that very version, in calls of at most `max_batch`.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: What else a call can end in.
        """
        parts = [np.empty((0, len(version.contract.classes)), np.float32)]
        for start in range(0, len(pixels), self._max_batch):
            timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                raise ModelTimeout("Expected time left for the prediction. Received: none, the request took too long.")
            chunk = pixels[start : start + self._max_batch]
            parts.append(self._replicas.predict(version.number, version.contract, chunk, timeout_s))
        if len(pixels):
            self._failed_looks = 0  # whatever a look found, the model server answers
        return np.concatenate(parts)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look_again()
            except Exception:
                if not self._stopped.is_set():  # a closed channel ends the watch; anything else must not
                    _log.exception("looking for versions failed")
            self._looked.set()
            self._stopped.wait(self._poll_s)

    def _look_again(self) -> None:
        """Look now, or wait for a look that began after this call."""
        asked = self._looks
        with self._looking:
            if self._looks == asked:  # a look counts from its begin, so that one under way does not stand for this one
                self._look()

    def _look(self) -> None:
        self._looks += 1
        try:
            statuses = self._replicas.statuses()
        except VersionGone:
            statuses = ()
        except Overloaded:  # it is there, and busy: what the last look found still holds
            return
        except GatewayError as exc:
            self._available = set()
            self._failed_looks += 1
            if isinstance(exc, ModelUnavailable) and self._failed_looks % LOOKS_UNTIL_RENEWED == 0:
                self._replicas.renew()
            self._set_health(Health(refused=self._refused | self._broken, error=exc.detail))
            return
        self._failed_looks = 0
        available = {each.version for each in statuses if each.state == messages.ModelVersionStatus.AVAILABLE}
        self._forget_unseen(available)
        self._broken = {
            each.version: f"The model server could not load it: {each.status.error_message}"
            for each in statuses
            if each.state == messages.ModelVersionStatus.END and each.status.error_code
        }
        untried = {}
        for number in sorted(available - set(self._accepted) - set(self._refused), reverse=True):
            if reason := self._admit(number):
                untried[number] = reason
                if reason != self._untried.get(number):
                    _log.warning("version %d of %s: %s", number, self.model, reason)
        self._untried = untried
        loaded = sorted(available & set(self._accepted), reverse=True)
        nothing = f"No usable version of {self.model!r} is loaded at the model server"
        error = None if loaded else next(iter(untried.values()), nothing)
        self._available = available
        self._set_health(Health(loaded, self._refused | self._broken | untried, error))

    def _forget_unseen(self, available: set[int]) -> None:
        now = time.monotonic()
        self._seen |= dict.fromkeys(available, now)
        for number in [number for number, seen in self._seen.items() if now - seen > FORGET_AFTER_S]:
            del self._seen[number]
            self._accepted.pop(number, None)
            self._refused.pop(number, None)
            self._attempts.pop(number, None)

    def _admit(self, number: int) -> str | None:
        """Open the golden gate for a version, or refuse it; return what kept it from being tried, if anything."""

        give_up = time.monotonic() + SEARCH_S

        def predict(contract: Contract, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return _search(lambda: self._replicas.predict(number, contract, pixels), give_up)

        try:
            description = _search(lambda: self._replicas.describe(number), give_up)
            self._accepted[number] = Version(number, open_gate(description, predict))
            _log.info("version %d of %s passed the golden gate", number, self.model)
        except (ModelUnavailable, Overloaded, ModelTimeout) as exc:
            return f"The golden gate could not try it: {exc.detail}"  # the next look tries again
        except Exception as exc:  # whatever a version says of itself, it must not keep others from answering
            cause = exc.__cause__
            reason = f"{exc} ({cause.details()})" if isinstance(cause, grpc.RpcError) else f"{exc}"
            self._attempts[number] = self._attempts.get(number, 0) + 1
            if isinstance(exc, ModelFailed) and self._attempts[number] < ATTEMPTS_UNTIL_REFUSED:
                return f"The golden gate could not try it: {reason}"
            self._refused[number] = reason
            expected = isinstance(exc, Refusal | ModelFailed | tensor.TensorError)
            _log.warning("version %d of %s is refused: %s", number, self.model, reason, exc_info=not expected)
        return None

    def _set_health(self, health: Health) -> None:
        if health.error and health.error != self.health.error:
            _log.warning("model %s is not ready: %s", self.model, health.error)
        if health.ready and not self.health.ready:
            _log.info("model %s is ready: versions %s", self.model, health.versions)
        self.health = health
        self._on_health(health)


def _search(call: Callable[[], Answer], give_up: float) -> Answer:
    """Repeat a call until it reaches a replica that holds the version."""
    while True:
        try:
            return call()
        except VersionGone:
            if time.monotonic() > give_up:
                raise
            time.sleep(SEARCH_PAUSE_S)
