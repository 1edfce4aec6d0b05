"""Which exports are under the numbers of a model's versions, and whether each passed the golden gate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from contract.document import DESCRIBE_SIGNATURE, Contract, ContractError, find_identity
from contract.outputs import Outputs
from gateway.errors import GatewayError, ModelFailed, ModelTimeout, ModelUnavailable, Overloaded, VersionGone
from gateway.model.client import SEARCH_S, ModelClient, search
from gateway.model.gate import Refusal, open_gate
from gateway.model.protocol import Export, Version
from gateway.model.unloaded import FORGET_AFTER_S

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
RECENT_S = 3.0  # replicas take turns, so what a look met so shortly before the last two counts as loaded
MEETINGS = 4  # how often a look asks for a number under which several exports were met: one may be on each replica
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
        breaks: How many calls had found no server when the look began that described it last.
        attempts: How often in a row the model server failed while the gate was open for it.
        version: Set once it passed the gate.
        refusal: Why it may not answer; `refused_s` is since when.
    """

    number: int
    identity: str
    digest: str = ""
    look: int = 0
    seen_s: float = 0.0
    breaks: int = 0
    attempts: int = 0
    version: Version | None = None
    refusal: str | None = None
    refused_s: float = 0.0

    @property
    def export(self) -> Export:
        return Export(self.number, self.identity)

    @property
    def is_decided(self) -> bool:
        """Whether it passed or failed.

        A refusal is no longer one after a while if the model server failed, which may be well again. Neither is it
        without an identity, as the examples may have reached another export.
        """
        if self.refusal and (self.attempts or self.digest) and time.monotonic() - self.refused_s > FORGET_AFTER_S:
            return False
        return self.version is not None or self.refusal is not None


class Exports:
    """What the looks at a model server met. Not safe for threads: one look at a time."""

    def __init__(self, replicas: ModelClient, model: str, on_call: Callable[[], None]) -> None:
        """Ask the replicas of a model server; the model's name is for the log.

        A look may take long, so `on_call` is called before each call of it.
        """
        self._replicas, self._model, self._on_call = replicas, model, on_call
        self._known: dict[tuple[int, str, str], _Known] = {}
        self._looks = 0
        self.breaks = 0  # how many calls had found no server when the last look began
        self._began_s, self._before_s = 0.0, 0.0  # when the last look began, and the one before it

    def look(self, available: Iterable[int], breaks: int, *, is_thorough: bool) -> dict[Export, str]:
        """Find out which exports are under the numbers that are loaded, and try new ones at the golden gate.

        Args:
            available: The numbers, in the order in which new ones are tried; what is known already comes before those.
            breaks: How many calls had found no server when the look began.
            is_thorough: Whether to ask also for exports that were met before.

        Returns:
            What could not be asked or tried, and why; the next look tries again.
        """
        self._begin()
        self.breaks = breaks
        decided = {known.number for known in self._known.values() if known.is_decided}
        turns = sorted(available, key=lambda number: number not in decided)
        unasked = {Export(number): reason for number in turns if (reason := self._meet_all(number, is_thorough))}
        self._known = {key: known for key, known in self._known.items() if self._is_recent(known, FORGET_AFTER_S)}
        return unasked

    def miss(self) -> None:
        """Count a look that found no model server: what the look before it met must be asked again."""
        self._begin()

    def usable(self) -> list[Version]:
        """Return what passed the gate, and whose answers are surely its own; the newest comes first."""
        return [version for _, version in self._usable()]

    def loaded(self) -> list[Version]:
        """Return those of the usable versions that were met recently."""
        return [version for known, version in self._usable() if self._is_recent(known, RECENT_S)]

    def met(self) -> list[Version]:
        """Return those of the usable versions that the last look met, or met so far."""
        return [version for known, version in self._usable() if known.look == self._looks]

    def refused(self) -> dict[Export, str]:
        """Return what may not answer, and why; the newest comes first."""
        hidden = {known.export: AMONG_OTHERS for known in self._newest_first() if not self._is_told_apart(known)}
        return hidden | {known.export: known.refusal for known in self._newest_first() if known.refusal}

    def _begin(self) -> None:
        self._looks, self._before_s, self._began_s = self._looks + 1, self._began_s, time.monotonic()

    def _is_recent(self, known: _Known, within_s: float) -> bool:
        """Tell whether the last two looks met an export, or one at most so long before them.

        Looks are not counted, as those that requests cause are milliseconds apart; others may be minutes apart.
        """
        return known.seen_s > self._before_s - within_s

    def _usable(self) -> list[tuple[_Known, Version]]:
        surely = (each for each in self._newest_first() if self._is_told_apart(each) and self._is_described(each))
        return [(each, each.version) for each in surely if each.version]

    def _newest_first(self) -> list[_Known]:
        return sorted(self._known.values(), key=lambda each: (each.number, each.seen_s), reverse=True)

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
        before = [known for known in self._known.values() if known.number == number]
        if not is_thorough and len(before) == 1 and before[0].identity and before[0].is_decided:
            self._see(number, before[0].identity, "")  # another export there could not answer in its name
            return None
        recent = [known for known in before if self._is_recent(known, RECENT_S)]
        is_known = any(known.is_decided and self._is_described(known) for known in recent)
        try:
            known, description = self._identify(number, 0.0 if is_known else SEARCH_S)
        except GatewayError as exc:
            for known in before:
                if known.look >= self._looks - 1:  # what the last look found there is still so
                    known.look, known.seen_s = self._looks, time.monotonic()
            return None if is_known else f"{NOT_TRIED}: {_reason(exc)}"
        if known.is_decided or not self._is_told_apart(known):
            return None
        try:
            self._admit(known, description)
        except (ModelUnavailable, Overloaded, ModelTimeout) as exc:
            return f"{NOT_TRIED}: {exc.detail}"
        except Exception as exc:  # one bad version must not keep others from answering
            known.attempts = known.attempts + 1 if isinstance(exc, ModelFailed) else 0
            if 0 < known.attempts < ATTEMPTS_UNTIL_REFUSED:
                return f"{NOT_TRIED}: {_reason(exc)}"
            known.refusal, known.refused_s = _reason(exc), time.monotonic()
            if not isinstance(exc, Refusal | ModelFailed):
                _log.exception("version %s of %s cannot be used", known.export, self._model)
        return None

    def _identify(self, number: int, search_s: float) -> tuple[_Known, bytes]:
        """Return the export that is under a number where the calls arrive, and its contract if that was needed.

        Raises:
            GatewayError: It could not be asked.
        """
        signatures = self._ask(lambda: self._replicas.signatures(number), search_s)
        identity = find_identity(signatures)
        if DESCRIBE_SIGNATURE not in signatures:
            known = self._see(number, identity, "")
            known.refusal = NO_CONTRACT
            return known, b""
        if identity and (number, identity, "") in self._known and self._known[number, identity, ""].is_decided:
            return self._see(number, identity, ""), b""
        for _ in range(DESCRIPTIONS):
            description = self._ask(lambda: self._replicas.describe(number), search_s)
            digest = sha256(description).hexdigest()
            if not identity and (number, "", digest) in self._known:
                return self._see(number, "", digest), description
            if _identity(description) == identity:
                return self._see(number, identity, "" if identity else digest), description
        raise VersionGone("Its contract names another export than its signatures do, or replicas have different ones.")

    def _see(self, number: int, identity: str, digest: str) -> _Known:
        known = self._known.setdefault((number, identity, digest), _Known(number, identity, digest))
        known.look, known.seen_s, known.breaks = self._looks, time.monotonic(), self.breaks
        return known

    def _admit(self, known: _Known, description: bytes) -> None:
        """Try an export at the golden gate.

        Raises:
            Refusal: It does not pass.
            GatewayError: It could not be tried.
        """

        def predict(contract: Contract, pixels: NDArray[np.uint8]) -> Outputs:
            return self._ask(lambda: self._replicas.predict(known.number, contract, pixels))

        try:
            contract = open_gate(description, predict)
        except Refusal:
            others = self._other_files(known, description)
            if not others:
                raise
            contract = open_gate(description, predict, others)
        known.version, known.refusal = Version(known.number, contract), None
        _log.info("version %s of %s passed the golden gate", known.export, self._model)

    def _other_files(self, known: _Known, description: bytes) -> set[bytes]:
        """Return the contracts of an export's other files: each embedded server runs the one that is faster there."""
        if not known.identity:
            return set()
        asked = {self._ask(lambda: self._replicas.describe(known.number)) for _ in range(FILES_ASKED)}
        return {each for each in asked - {description} if _identity(each) == known.identity}

    def _ask(self, call: Callable[[], Answer], search_s: float = SEARCH_S) -> Answer:
        """Make a call of the gate, and once more if it reached a replica that hangs, as they take turns.

        Each call has its own time to reach a replica that has the export, however long those before it took.
        """
        self._on_call()
        try:
            return search(call, time.monotonic() + search_s)
        except ModelTimeout:
            self._on_call()
            return search(call, time.monotonic() + search_s)

    def _is_told_apart(self, known: _Known) -> bool:
        """Tell whether an answer must be this export's: it has an identity, or there is no other under its number."""
        return bool(known.identity) or all(
            other is known or other.number != known.number for other in self._known.values()
        )

    def _is_described(self, known: _Known) -> bool:
        """Tell whether no other export can have come into its place unseen: it has an identity, or no break came since.

        A look that cannot ask for it leaves it there, but after a break, another server may have its address.
        """
        return bool(known.identity) or known.breaks == self.breaks


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
