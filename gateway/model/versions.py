"""Which versions may answer: looks for them at the model server, and tries them at the golden gate."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from contract import messages_pb2 as messages
from contract.answers import Outputs
from contract.document import DESCRIBE_SIGNATURE, Contract, ContractError, find_identity
from gateway.errors import GatewayError, ModelFailed, ModelTimeout, ModelUnavailable, Overloaded, VersionGone
from gateway.model.client import ModelClient
from gateway.model.following import Following
from gateway.model.gate import Refusal, open_gate
from gateway.model.protocol import ActiveTrial, Export, Health, Version
from gateway.model.unloaded import FORGET_AFTER_S, Unloaded
from gateway.settings import Settings

# Replicas behind one address take turns in answering, so one look finds the versions of one replica.
SEARCH_S = 2.0  # how long a request, or the gate, tries to reach a replica that has an export
SEARCH_PAUSE_S = 0.005
# Every so many looks, exports are asked for their identity. At each look, that cost 2 % of the gateway.
LOOKS_UNTIL_THOROUGH = 4
LOOKS_UNTIL_AWAY = 2  # after so many looks in a row that nobody answered, nor a request, requests fail at once
LOOKS_UNTIL_SILENT = 20  # after every so many that nobody answered, though requests were, the log says so
LOOKS_UNTIL_RENEWED = 10  # after every so many such looks, its address is looked up again
AMONG_OTHERS = (
    "It has no identity, and another export was under its number a moment ago. Export it again to give it one"
)
NO_CONTRACT = (
    "It has no contract, without which the gateway does not know its classes and pixels. Release the model's .keras or"
    " .h5 file with `python -m training export --weights FILE`. A SavedModel alone cannot be released, as Keras 3 does"
    " not load it: save the model as .keras where it was trained"
)
NOT_TRIED = "The golden gate could not try it"
DESCRIPTIONS = 5  # how often replicas are asked until one describes the export that another was asked about
FILES_ASKED = 12  # how often replicas are asked for another file of a refused export: twice for each of six
RECENT_LOOKS = 4  # replicas take turns, so what one of the last looks met counts as loaded
MEETINGS = 4  # how often a look asks for a number under which several exports were met: one may be on each replica
AVAILABLE = messages.ModelVersionStatus.AVAILABLE
ATTEMPTS_UNTIL_REFUSED = 3  # how often an export may fail in the model server before it is refused

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


@dataclass
class _Known:
    """An export that a look met under a number, and what the golden gate said of it.

    Attributes:
        identity: The export's; empty if it is from before there were identities.
        digest: The contract's, to recognize an export without an identity; empty if it has an identity, or no contract.
        look: The last look that met it; `seen_s` is when that was.
        attempts: How often the model server failed while the gate was open for it.
        version: Set once it passed the gate.
        refusal: Why it may not answer; `refused_s` is since when.
    """

    number: int
    identity: str
    digest: str = ""
    look: int = 0
    seen_s: float = 0.0
    attempts: int = 0
    version: Version | None = None
    refusal: str | None = None
    refused_s: float = 0.0

    @property
    def export(self) -> Export:
        return Export(self.number, self.identity)

    @property
    def is_decided(self) -> bool:
        """Whether it passed or failed. Without an identity, the examples may have reached another export: ask again."""
        if self.refusal and self.digest and time.monotonic() - self.refused_s > FORGET_AFTER_S:
            return False
        return self.version is not None or self.refusal is not None


class Versions:
    """One process's client of the model server. Safe for threads; make it after a fork, since it opens a channel."""

    def __init__(self, settings: Settings, on_health: Callable[[Health], None] = lambda health: None) -> None:
        """Open a channel; `on_health` is called with what each look found."""
        self.model = settings.model_name
        self._settings, self._on_health = settings, on_health
        self._replicas = ModelClient(settings.model_address, settings.model_name, settings.model_timeout_s)
        self._known: dict[tuple[int, str, str], _Known] = {}
        self._unloaded = Unloaded()
        self._following = Following(settings.release_file)
        self._usable: list[Version] = []
        self._loaded: list[Version] = []
        self._available = False
        self._described_after = 0
        self._failed_looks, self._silent_looks = 0, 0
        self.health = Health()
        self._looking = threading.Lock()
        self._is_patient = False  # a look in a request's time is not
        self._looks = 0
        self._looked = threading.Event()
        self._stopped = threading.Event()

    def start(self, wait_s: float = 0.0) -> None:
        """Look for versions from now on, in the background; wait at most so long for the first look to end."""
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
            raise ModelUnavailable(self.health.error or "The model server does not answer.")
        loaded = self._current(self._loaded)
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
        versions = self._current(self._usable)
        while True:
            yield from versions
            tried = bool(versions)
            self._look_again(give_up)
            versions = self._current(self._usable)
            if tried:
                versions = random.sample(versions, len(versions)) * random.choice((1, 2))  # noqa: S311  # no secret
            if not (versions and self._available) or time.monotonic() > give_up:
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
            parts.append(_search(call, min(deadline, time.monotonic() + SEARCH_S)) if start else call())
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

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look_again(is_thorough=self._looks % LOOKS_UNTIL_THOROUGH == 0)
            except Exception:
                if not self._stopped.is_set():  # a closed channel ends the watch; anything else must not
                    _log.exception("looking for versions failed")
            self._looked.set()
            self._stopped.wait(self._settings.model_poll_s)

    def _look_again(self, deadline: float = math.inf, is_thorough: bool = True) -> None:
        """Look now, or wait for a look that began after this call, but not beyond the deadline."""
        asked = self._looks
        if not self._looking.acquire(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)):
            return
        try:
            self._is_patient = deadline == math.inf
            if self._looks == asked:  # none has begun since this call: one that was already under way is not enough
                self._look(is_thorough)
        finally:
            self._looking.release()

    def _current(self, versions: list[Version]) -> list[Version]:
        """Return the versions, without those that another export could answer for: no identity, and a break since."""
        described = self._described_after == self._replicas.breaks
        return [version for version in versions if described or version.contract.identity]

    def _look(self, is_thorough: bool) -> None:
        self._looks += 1
        started_s, breaks = time.monotonic(), self._replicas.breaks
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
            self._failed_looks, self._silent_looks = self._failed_looks + 1, self._silent_looks + 1
            is_away = isinstance(exc, ModelUnavailable)  # all replicas; else it may be one that hangs
            if self._loaded and not is_away and self._failed_looks < LOOKS_UNTIL_AWAY:
                if self._silent_looks % LOOKS_UNTIL_SILENT == 0:
                    silent = "the model server did not say %d times in a row which versions it has"
                    _log.warning(silent, self._silent_looks)
                self._keep()
                return
            self._available, self._loaded = False, []
            if is_away and self._failed_looks % LOOKS_UNTIL_RENEWED == 0:
                self._replicas.renew()
            self._set_health(replace(self.health, accepted=(), error=exc.detail, engines={}))
            return
        self._failed_looks, self._silent_looks = 0, 0
        available = sorted((each.version for each in statuses if each.state == AVAILABLE), reverse=True)
        unasked = {Export(number): reason for number in available if (reason := self._meet_all(number, is_thorough))}
        self._known = {key: known for key, known in self._known.items() if started_s - known.seen_s < FORGET_AFTER_S}
        known = sorted(self._known.values(), key=lambda each: (each.number, each.seen_s), reverse=True)
        usable = [(each, each.version) for each in known if each.version and self._is_told_apart(each)]
        recent = self._looks - RECENT_LOOKS
        loaded = [version for each, version in usable if each.number in available and each.look > recent]
        self._follow([version for _, version in usable], loaded)
        self._available, self._described_after = bool(available), breaks
        hidden = {each.export: AMONG_OTHERS for each in known if not self._is_told_apart(each)}
        failed = {each.export: each.refusal for each in known if each.refusal}
        refused = self._unloaded.name(statuses, available) | unasked | hidden | failed
        for export in refused.keys() - self.health.refused.keys():
            _log.warning("version %s of %s is refused: %s", export, self.model, refused[export])
        nothing = f"No usable version of {self.model!r} is loaded at the model server"
        reasons = filter(None, (self._following.error, *refused.values(), nothing))
        error = None if self._loaded else next(reasons)
        engines = {each.version: each.engine for each in statuses if each.engine}
        accepted = [version.export for version in self._loaded]
        followed = self._following
        self._set_health(Health(accepted, refused, error, engines, followed.release, followed.error))

    def _keep(self) -> None:
        """Leave what the last look found as it is, but for what is released."""
        for known in self._known.values():
            known.look += 1  # this look does not count
        if self._loaded:
            self._follow(self._usable, self._loaded)
            accepted, followed = [version.export for version in self._loaded], self._following
            self._set_health(
                replace(self.health, accepted=accepted, release=followed.release, release_error=followed.error)
            )

    def _follow(self, usable: list[Version], loaded: list[Version]) -> None:
        """Read the release document anew, and keep the versions in its order."""
        self._following.look([version.number for version in loaded])
        self._usable, self._loaded = self._in_order(usable), self._in_order(loaded)

    def _in_order(self, versions: list[Version]) -> list[Version]:
        """Return the versions that may answer; what answers first comes first."""
        if self._following.is_pending:
            return []
        return sorted(versions, key=lambda version: self._following.rank(version.number))

    def _meet_all(self, number: int, is_thorough: bool) -> str | None:
        """Find out which exports are under a number; return as `_meet` does."""
        for _ in range(MEETINGS):
            reason = self._meet(number, is_thorough)
            known = [each for each in self._known.values() if each.number == number]
            if reason or all(each.look == self._looks for each in known):
                return reason
        return None

    def _meet(self, number: int, is_thorough: bool) -> str | None:
        """Find out which export is under a number, and try a new one at the golden gate.

        Returns:
            Why it could not be asked or tried, if so; the next look tries again.
        """
        give_up = time.monotonic() + SEARCH_S
        before = [known for known in self._known.values() if known.number == number]
        if not is_thorough and len(before) == 1 and before[0].identity and before[0].is_decided:
            self._see(number, before[0].identity, "")  # another export there could not answer in its name
            return None
        try:
            known, description = self._identify(number, 0.0 if before else give_up)
        except GatewayError as exc:
            kept = [known for known in before if known.look >= self._looks - 1]
            for known in kept:  # what the last look found there is still so
                known.look, known.seen_s = self._looks, time.monotonic()
            return None if any(known.is_decided for known in kept) else f"{NOT_TRIED}: {_reason(exc)}"
        if known.is_decided or not self._is_told_apart(known):
            return None
        try:
            self._admit(known, description, give_up)
        except (ModelUnavailable, Overloaded, ModelTimeout) as exc:
            return f"{NOT_TRIED}: {exc.detail}"
        except Exception as exc:  # one bad version must not keep others from answering
            known.attempts += 1
            if isinstance(exc, ModelFailed) and known.attempts < ATTEMPTS_UNTIL_REFUSED:
                return f"{NOT_TRIED}: {_reason(exc)}"
            known.refusal, known.refused_s = _reason(exc), time.monotonic()
            if not isinstance(exc, Refusal | ModelFailed):
                _log.exception("version %s of %s cannot be used", known.export, self.model)
        return None

    def _identify(self, number: int, give_up: float) -> tuple[_Known, bytes]:
        """Return the export that is under a number where the calls arrive, and its contract if that was needed.

        Raises:
            GatewayError: It could not be asked.
        """
        signatures = self._ask(lambda: self._replicas.signatures(number), give_up)
        identity = find_identity(signatures)
        if DESCRIBE_SIGNATURE not in signatures:
            known = self._see(number, identity, "")
            known.refusal = NO_CONTRACT
            return known, b""
        if identity and (number, identity, "") in self._known and self._known[number, identity, ""].is_decided:
            return self._see(number, identity, ""), b""
        for _ in range(DESCRIPTIONS):
            description = self._ask(lambda: self._replicas.describe(number), give_up)
            digest = sha256(description).hexdigest()
            if not identity and (number, "", digest) in self._known:
                return self._see(number, "", digest), description
            if _identity(description) == identity:
                return self._see(number, identity, "" if identity else digest), description
        raise VersionGone("Its contract names another export than its signatures do, or replicas have different ones.")

    def _see(self, number: int, identity: str, digest: str) -> _Known:
        known = self._known.setdefault((number, identity, digest), _Known(number, identity, digest))
        known.look, known.seen_s = self._looks, time.monotonic()
        return known

    def _admit(self, known: _Known, description: bytes, give_up: float) -> None:
        """Try an export at the golden gate.

        Raises:
            Refusal: It does not pass.
            GatewayError: It could not be tried.
        """

        def predict(contract: Contract, pixels: NDArray[np.uint8]) -> Outputs:
            return self._ask(lambda: self._replicas.predict(known.number, contract, pixels), give_up)

        try:
            contract = open_gate(description, predict)
        except Refusal:
            others = self._other_files(known, description, give_up)
            if not others:
                raise
            contract = open_gate(description, predict, others)
        known.version, known.refusal = Version(known.number, contract), None
        _log.info("version %s of %s passed the golden gate", known.export, self.model)

    def _other_files(self, known: _Known, description: bytes, give_up: float) -> set[bytes]:
        """Return the contracts of an export's other files: each embedded server runs the one that is faster there."""
        if not known.identity:
            return set()
        asked = {self._ask(lambda: self._replicas.describe(known.number), give_up) for _ in range(FILES_ASKED)}
        return {each for each in asked - {description} if _identity(each) == known.identity}

    def _ask(self, call: Callable[[], Answer], give_up: float) -> Answer:
        """Make a call of the gate; the watch makes it again if it reached a replica that hangs, as they take turns."""
        try:
            return _search(call, give_up)
        except ModelTimeout:
            if not self._is_patient:
                raise
            return _search(call, give_up)

    def _is_told_apart(self, known: _Known) -> bool:
        """Tell whether an answer must be this export's: it has an identity, or there is no other under its number."""
        return bool(known.identity) or all(
            other is known or other.number != known.number for other in self._known.values()
        )

    def _set_health(self, health: Health) -> None:
        if health.error and health.error != self.health.error:
            _log.warning("model %s is not ready: %s", self.model, health.error)
        if health.ready and not self.health.ready:
            _log.info("model %s is ready: versions %s", self.model, health.versions)
        self.health = health
        self._on_health(health)


def _identity(description: bytes) -> str:
    """Return the identity in a contract; empty if it has none, or cannot be read."""
    try:
        return Contract.from_json(description).identity
    except ContractError:
        return ""


def _reason(exc: Exception) -> str:
    """Return what went wrong, with the model server's own words if it failed, or what is wrong with its answer."""
    cause = exc.__cause__
    if isinstance(exc, ModelFailed) and cause:
        return f"{exc.detail} ({cause.details() if isinstance(cause, grpc.RpcError) else cause})"
    return str(exc)


def _search(call: Callable[[], Answer], give_up: float) -> Answer:
    """Repeat a call until it reaches a replica that has the version."""
    while True:
        try:
            return call()
        except VersionGone:
            if time.monotonic() > give_up:
                raise
            time.sleep(SEARCH_PAUSE_S)
