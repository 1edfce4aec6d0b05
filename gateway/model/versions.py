"""Which versions answer, and in which order: looks for them at the model server, and follows what is released."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.outputs import Outputs
from gateway.errors import GatewayError, ModelFailed, ModelTimeout, ModelUnavailable, Overloaded, VersionGone
from gateway.model.client import SEARCH_PAUSE_S, SEARCH_S, ModelClient, search
from gateway.model.exports import Exports
from gateway.model.following import Following
from gateway.model.protocol import ActiveTrial, Health, Version
from gateway.model.unloaded import Unloaded
from gateway.settings import Settings

# Every so many looks, exports are asked for their identity. At each look, that cost 2 % of the gateway.
LOOKS_UNTIL_THOROUGH = 4
LOOKS_UNTIL_AWAY = 2  # after so many looks in a row that nobody answered, nor a request, requests fail at once
LOOKS_UNTIL_SILENT = 20  # after every so many that nobody answered, though requests were, the log says so
LOOKS_UNTIL_RENEWED = 10  # after every so many such looks, its address is looked up again
LONGEST_PAUSE_S = 0.1  # between two tries of a request while a look takes long; each sends all its pixels
AVAILABLE = messages.ModelVersionStatus.AVAILABLE

_log = logging.getLogger(__name__)


class Versions:
    """One process's client of the model server. Safe for threads; make it after a fork, since it opens a channel."""

    def __init__(self, settings: Settings, on_health: Callable[[Health], None] = lambda health: None) -> None:
        """Open a channel; `on_health` is called with what each look found."""
        self.model = settings.model_name
        self._settings, self._on_health = settings, on_health
        self._replicas = ModelClient(settings.model_address, settings.model_name, settings.model_timeout_s)
        self._exports = Exports(self._replicas, self.model, self._keep)
        self._unloaded = Unloaded()
        self._following = Following(settings.release_file)
        self._usable: list[Version] = []
        self._loaded: list[Version] = []
        self._available = False
        self._described_after = 0
        self._failed_looks, self._silent_looks = 0, 0
        self.health = Health()
        self._turn = threading.Condition()  # of what the watch and those who wait for it share
        self._is_watched, self._is_wanted, self._is_closed = False, False, False
        self._poll_s: float | None = None  # until the start, the watch looks only when asked
        self._looks, self._ended = 0, 0  # how many looks began, and which of them ended last

    def start(self, wait_s: float = 0.0) -> None:
        """Look for versions from now on, in the background; wait at most so long for the first look to end."""
        self._poll_s = self._settings.model_poll_s
        self._look_again(time.monotonic() + wait_s)

    def close(self) -> None:
        """Stop looking, let nobody wait for a look any more, and close the channel."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()
        self._replicas.close()

    def newest(self) -> Version:
        """Return the version that answers first; while the model server is away, fail at once (a circuit breaker).

        Raises:
            ModelUnavailable: There is none, or the last looks found no model server.
        """
        if self._failed_looks >= LOOKS_UNTIL_AWAY:
            raise ModelUnavailable(self.health.error or "The model server does not answer.")
        loaded = self._answering(self._loaded)
        return loaded[0] if loaded else next(self.candidates(time.monotonic() + SEARCH_S))

    def trial(self) -> ActiveTrial | None:
        """Return the version that the release document tries, while it is loaded and accepted."""
        release = self.health.release
        if not (release and release.trial):
            return None
        number = release.trial.version
        version = next((each for each in self._current(self._loaded) if each.number == number), None)
        return ActiveTrial(version, release.trial) if version else None

    def candidates(self, deadline: float) -> Iterator[Version]:
        """Yield versions to try until one is loaded where the call arrives: in their order, then looking again.

        Replicas need not have the same exports, so each call may reach one that lacks the export. After the first
        round, the order is random, and so is whether another round comes before the next look. Replicas take turns:
        with a fixed number of calls between two tries, each try could reach the same replica for ever.

        Raises:
            ModelUnavailable: No accepted version is loaded anywhere, or the deadline passed.
        """
        give_up = min(deadline, time.monotonic() + SEARCH_S)
        versions, pause_s = self._answering(self._usable), SEARCH_PAUSE_S
        while True:
            yield from versions
            tried, is_left = bool(versions), bool(self._answering(self._usable))
            # A look may take long, as it tries new versions. Meanwhile another replica may still have an old one.
            looked = self._look_again(min(give_up, time.monotonic() + pause_s) if is_left else give_up)
            pause_s = SEARCH_PAUSE_S if looked else min(2 * pause_s, LONGEST_PAUSE_S)
            versions = self._answering(self._usable)
            if tried:
                versions = random.sample(versions, len(versions)) * random.choice((1, 2))  # noqa: S311  # no secret
            if (looked and not (versions and self._available)) or time.monotonic() > give_up:
                raise ModelUnavailable("There is no usable version of the model at the moment; /readyz says why.")
            time.sleep(SEARCH_PAUSE_S)

    def predict(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> Outputs:
        """Return what that version gives for pixels (n, h, w, 3), in calls of at most `max_batch`.

        Raises:
            VersionGone: The version is not loaded where the call arrived.
            GatewayError: A call failed otherwise.
        """
        parts = [Outputs.none(version.contract)]
        most = self._settings.max_batch
        for start in range(0, len(pixels), most):
            chunk = pixels[start : start + most]
            call = partial(self._predict_part, version, chunk, deadline)
            # A replica answered the first part, so the others find one too, however many replicas lack the export.
            parts.append(search(call, min(deadline, time.monotonic() + SEARCH_S)) if start else call())
        if len(pixels):
            self._failed_looks = 0  # whatever a look found, the model server answers
        return Outputs.joined(parts)

    def _predict_part(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> Outputs:
        timeout_s = deadline - time.monotonic()
        if timeout_s <= 0:
            raise ModelTimeout("The request took too long: no time was left for the prediction.")
        breaks = self._replicas.breaks
        try:
            outputs = self._replicas.predict(version.number, version.contract, pixels, timeout_s)
        except ModelFailed as exc:
            if version.contract.identity:
                raise
            self._look_again(deadline)
            if version in self._current(self._usable):
                raise
            raise VersionGone(exc.detail) from exc
        if version.contract.identity:
            return outputs
        if breaks != self._replicas.breaks or version not in self._current(self._usable):
            raise VersionGone("Another export may have answered.")
        return outputs

    def _look_again(self, deadline: float = math.inf) -> bool:
        """Let the watch look, and wait for a look that began after this call, but not beyond the deadline.

        Only the watch looks, since a look may try a version at the golden gate, for longer than a request has.

        Returns:
            Whether nothing is left to wait for: such a look ended, or the client is closed.
        """
        with self._turn:
            if not (self._is_watched or self._is_closed):
                threading.Thread(target=self._watch, name="model-watch", daemon=True).start()
                self._is_watched = True
            asked, self._is_wanted = self._looks, True
            self._turn.notify_all()
            timeout_s = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            return self._turn.wait_for(lambda: self._ended > asked or self._is_closed, timeout_s)

    def _watch(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._is_wanted or self._is_closed, self._poll_s)
                if self._is_closed:
                    return
                is_thorough = self._is_wanted or self._looks % LOOKS_UNTIL_THOROUGH == 0
                self._looks, self._is_wanted = self._looks + 1, False
            try:
                self._look(is_thorough)
            except Exception:
                if not self._is_closed:  # a closed channel ends the watch; anything else must not
                    _log.exception("looking for versions failed")
            with self._turn:
                self._ended = self._looks
                self._turn.notify_all()

    def _current(self, versions: list[Version]) -> list[Version]:
        """Return the versions, without those that another export could answer for: no identity, and a break since."""
        described = self._described_after == self._replicas.breaks
        return [version for version in versions if described or version.contract.identity]

    def _answering(self, versions: list[Version]) -> list[Version]:
        """Return the current versions, without those that the release document holds back."""
        return [version for version in self._current(versions) if self._following.lets_answer(version.number)]

    def _look(self, is_thorough: bool) -> None:
        breaks = self._replicas.breaks
        try:
            statuses = self._replicas.statuses()
            if random.random() < 0.5:  # noqa: S311  # or each look could reach the same replicas
                with suppress(ModelTimeout):  # one of them may hang
                    statuses = self._replicas.statuses()
        except VersionGone:
            statuses = ()
        except Overloaded:  # it is there, and busy
            self._keep()
            return
        except GatewayError as exc:
            self._find_nobody(exc)
            return
        self._failed_looks, self._silent_looks = 0, 0
        available = sorted((each.version for each in statuses if each.state == AVAILABLE), reverse=True)
        stable = self._following.stable()
        turns = sorted(available, key=lambda number: number != stable)
        unasked = self._exports.look(turns, breaks, is_thorough=is_thorough)
        self._available = bool(available)
        self._follow(self._exports.usable(), self._exports.loaded() if available else [])
        self._described_after = breaks
        refused = self._unloaded.name(statuses, available) | unasked | self._exports.refused()
        for export in refused.keys() - self.health.refused.keys():
            _log.warning("version %s of %s is refused: %s", export, self.model, refused[export])
        nothing = f"No usable version of {self.model!r} is loaded at the model server"
        error = next(filter(None, (self._following.error, *refused.values(), nothing)))
        engines = {each.version: each.engine for each in statuses if each.engine}
        self._set_health(refused=refused, error=error, engines=engines)

    def _find_nobody(self, failure: GatewayError) -> None:
        """Answer nothing from now on, unless the failure may be of one replica that hangs, among others."""
        self._failed_looks, self._silent_looks = self._failed_looks + 1, self._silent_looks + 1
        is_away = isinstance(failure, ModelUnavailable)
        if self._loaded and not is_away and self._failed_looks < LOOKS_UNTIL_AWAY:
            if self._silent_looks % LOOKS_UNTIL_SILENT == 0:
                silent = "the model server did not say %d times in a row which versions it has"
                _log.warning(silent, self._silent_looks)
            self._keep()
            return
        self._exports.miss()
        self._available, self._loaded = False, []
        if is_away and self._failed_looks % LOOKS_UNTIL_RENEWED == 0:
            self._replicas.renew()
        self._set_health(error=failure.detail, engines={})

    def _keep(self) -> None:
        """Leave what the last look found as it is, but for what is released; if it found nothing, take what is met."""
        if self._usable and self._available:
            self._follow(self._usable, self._loaded)
            self._set_health()
        elif usable := self._exports.usable():
            self._follow(usable, self._exports.met())
            self._described_after = self._exports.breaks
            self._set_health()

    def _follow(self, usable: list[Version], loaded: list[Version]) -> None:
        """Read the release document anew, and keep the versions in its order."""
        present = (self._available and loaded) or usable  # after a look that found nobody, not all were met yet
        self._following.look([version.number for version in present])
        self._usable, self._loaded = self._in_order(usable), self._in_order(loaded)

    def _in_order(self, versions: list[Version]) -> list[Version]:
        """Return the versions, unless nothing may answer; what answers first comes first."""
        if self._following.is_pending:
            return []
        return sorted(versions, key=lambda version: self._following.rank(version.number))

    def _set_health(self, **found: Any) -> None:
        """Show what answers and what is released, and what else a look found; an error only if nothing answers."""
        if any(self._following.lets_answer(version.number) for version in self._loaded):
            found["error"] = None
        found |= {"release": self._following.release, "release_error": self._following.error}
        health = replace(self.health, accepted=[version.export for version in self._loaded], **found)
        if health.error and health.error != self.health.error:
            _log.warning("model %s is not ready: %s", self.model, health.error)
        if health.ready and not self.health.ready:
            _log.info("model %s is ready: versions %s", self.model, health.versions)
        self.health = health
        self._on_health(health)
