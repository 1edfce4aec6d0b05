"""Watches a trial until there is evidence: promotes the version, goes back, or says that there was too little traffic.

A trial within all limits is rolled back with a probability of at most 1 %, however often and long one looks; for an
exception see gateway/release/evidence.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from gateway.release.evidence import ALPHA, KINDS, Criterion, Finding, criteria
from gateway.release.ledger import Change, Ledger, Passing, Refused, Unwritable
from gateway.release.observation import Observation
from gateway.release.output import say

POLL_S = 2.0
PROGRESS_S = 30.0  # between two lines of progress
QUIET_LOOKS = 10  # without a request, until a line says so
# Photos that are enough, also where more requests were asked for. Bad versions of a trash classifier were found
# after at most so many, in 99 of 100 trials: permuted classes 31, one class for 80 % 161, doubled logits 66, a failure
# of one photo in ten 193, and pixels of 0 to 1 in training 136.
ENOUGH_PHOTOS = 300
_CLASSES_SHOWN = 4


@dataclass(frozen=True)
class Outcome:
    """How a watch ended.

    Attributes:
        is_good: True if the version was promoted, or is good so far; False if it was rolled back; None if unknown.
        reasons: Why.
        change: What the watch changed, if anything.
    """

    is_good: bool | None
    reasons: tuple[str, ...] = ()
    change: Change | None = None


class Watch:
    """A trial that is under way, and what is known of it."""

    def __init__(self, ledger: Ledger, gateways: Sequence[str]) -> None:
        """Begin to watch.

        Raises:
            Refused: Nothing is tried, or the name of a gateway has no address.
        """
        state = ledger.read()
        if not state.release or not state.release.trial:
            raise Refused("Nothing is being tried. Begin with try VERSION.")
        self._ledger, self.release, self.trial = ledger, state.release, state.release.trial
        self.observed = Observation(gateways, ledger.home.name, self.trial)
        self._criteria: list[Criterion] = []
        self._said, self._said_at = "", -PROGRESS_S
        self._passing = set[str]()  # what was said of a store that is away
        self._reasons: tuple[str, ...] = ()
        self._answers, self._quiet_looks, self._said_quiet = 0, 0, False

    def look(self) -> list[Finding]:
        """Ask every gateway once, and return what each criterion finds; nothing while no gateway tries the version."""
        self.observed.look()
        contract, counts = self.observed.contract, self.observed.counts
        if contract and not self._criteria:
            self._criteria = criteria(contract.metrics, contract.classes, stable=self.release.stable)
        return [each.judge(counts) for each in self._criteria]

    def run(self, promote_after: int | None, within_s: float) -> Outcome:
        """Look until the trial can be decided, or the time is over.

        Raises:
            Refused: The store cannot be written, or was away when the time was over.
        """
        with suppress(Passing), self._ledger.alone():
            pass
        give_up = time.monotonic() + within_s
        while True:
            left_s = give_up - time.monotonic()
            if ended := self._try(self.ended, left_s):
                return ended
            decide = partial(self._decide, self.look(), promote_after)
            if decided := self._try(decide, left_s):
                return decided
            self._say()
            self._say_if_quiet()
            if left_s <= 0:
                break
            time.sleep(min(POLL_S, left_s))
        needed = self._photos_needed(promote_after)
        is_enough = self.observed.counts.photos >= needed
        is_good = True if is_enough and not promote_after and not self.observed.problems else None
        why = f"it needs {needed} photos compared, and a process compares one twice at most, so send different ones"
        hint = () if is_enough else (why,)
        return Outcome(is_good, (self.progress, *self.observed.problems, *hint, "the trial goes on"))

    def _try(self, step: Callable[[], Outcome | None], left_s: float) -> Outcome | None:
        """Take a step; a store that is away or read-only meanwhile, or just changed by others, ends no watch."""
        try:
            return step()
        except (Passing, Unwritable) as exc:
            if left_s <= 0:
                raise
            if str(exc) not in self._passing:
                say(f"{exc} The watch goes on.")
            self._passing.add(str(exc))
            return None

    def _decide(self, findings: Sequence[Finding], promote_after: int | None) -> Outcome | None:
        """End the trial if there is enough evidence.

        Raises:
            Refused: Somebody else has ended it, or the store is away or read-only.
        """
        self._reasons = self._reasons or self._alarms(findings)
        if self._reasons:
            why = "; ".join(self._reasons)
            try:
                change = self._ledger.rollback(f"Rolled back by watch: {why}", trial_serial=self.trial.serial)
            except Unwritable as exc:
                raise Unwritable(f"Version {self.trial.version} must be rolled back: {why}. {exc}") from exc
            return Outcome(False, self._reasons, change)
        if promote_after and self._has_seen(promote_after):
            why = f"Promoted by watch after {self.progress}"
            return Outcome(True, (self.progress,), self._ledger.promote(reason=why, trial_serial=self.trial.serial))
        return None

    def ended(self) -> Outcome | None:
        """Return the outcome if somebody else ended the trial."""
        state = self._ledger.read()
        release, last = state.release, state.by_hand or state.history.last
        if release and release.trial and release.trial.serial == self.trial.serial:
            self.trial = release.trial  # its share may have grown
            return None
        who = f" by {last.who or 'hand'}" if last else ""
        stable = release.stable if release else max(state.on_disk, default=None)  # without one, the newest answers
        return Outcome(stable == self.trial.version, (f"the trial was ended meanwhile{who}",))

    def _alarms(self, findings: Sequence[Finding]) -> tuple[str, ...]:
        alarms = sorted((each for each in findings if each.alarms), key=lambda each: -each.log_evidence)
        stopped = [
            f"a process of {each} stopped the trial, because its requests failed" for each in self.observed.stopped
        ]
        return (*stopped, *(each.describe(self.release.stable) for each in alarms[:_CLASSES_SHOWN]))

    def _photos_needed(self, promote_after: int | None) -> int:
        needed = promote_after or ENOUGH_PHOTOS
        return min(needed, ENOUGH_PHOTOS) if self.trial.mode == "share" else needed

    def _has_seen(self, requests: int) -> bool:
        """Tell whether every gateway takes part, and enough was counted."""
        counts = self.observed.counts
        if self.observed.problems or counts.photos < self._photos_needed(requests):
            return False
        return self.trial.mode == "shadow" or counts.requests >= requests

    @property
    def progress(self) -> str:
        """How much was counted."""
        counts = self.observed.counts
        answered = f", {counts.requests - counts.failed} requests answered" if self.trial.mode == "share" else ""
        return f"{counts.photos} photo{'s' * (counts.photos != 1)} compared{answered}"

    def _say(self) -> None:
        """Print how far it is: when something went wrong or right again, and else from time to time."""
        problems = "".join(f"; {each}" for each in self.observed.problems)
        if problems == self._said and time.monotonic() < self._said_at + PROGRESS_S:
            return
        self._said, self._said_at = problems, time.monotonic()
        say(f"Version {self.trial.version}: {self.progress}{problems}.")

    def _say_if_quiet(self) -> None:
        """Print once that no request comes, after some looks without one."""
        answers = self.observed.answers
        self._quiet_looks = 0 if self.observed.problems or answers != self._answers else self._quiet_looks + 1
        self._answers = answers
        if self._quiet_looks >= QUIET_LOOKS and not self._said_quiet:
            self._said_quiet = True
            say(f"No request has reached the gateway for {QUIET_LOOKS * POLL_S:.0f} s. A trial needs some.")


def table(findings: Sequence[Finding], stable: int) -> str:
    """Return a line for each finding, of the classes only for those with most evidence, and what the limits mean."""
    seen = [each for each in findings if each.n]  # in the shadow, there are no requests
    general = [each for each in seen if not each.criterion.name]
    classes = [each for each in seen if each.criterion.name]
    shown = sorted((each for each in classes if each.k), key=lambda each: -each.log_evidence)[:_CLASSES_SHOWN]
    lines = [f"  {_judgement(each):<14} {each.describe(stable)}" for each in (*general, *shown)]
    if all(each.criterion.kind == "requests" for each in seen):
        lines.append("  No photo was compared yet. The first one is within seconds of the first requests.")
    if left := len(classes) - len(shown):
        lines.append(f"  and {left} more lines about classes, with less evidence")
    lines.append(
        f"A version within its limits is rolled back with a probability of {ALPHA:.0%} at most, however often one"
        f" looks: {ALPHA / KINDS:.2%} for each line, and as much for all classes together. While the stable version"
        " fails too, the limits of failures are estimates."
    )
    return "\n".join(lines)


def _judgement(finding: Finding) -> str:
    if finding.alarms:
        return "ABOVE"
    return "perhaps above" if finding.k > finding.criterion.limit * finding.n else "within"
