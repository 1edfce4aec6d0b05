"""What gateways counted of a trial, added up over their addresses and restarts."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from contract.document import Contract, ContractError
from contract.release import Trial
from gateway.release.evidence import Counts
from gateway.release.gateways import Address, find_addresses, without_closed
from gateway.release.ledger import Refused
from gateway.telemetry.metrics import OTHERS
from gateway.trial.trials import FAILURES_UNTIL_STOPPED

COUNTERS = ("gateway_comparisons", "gateway_comparison_signs", "gateway_comparison_classes", "gateway_trial_requests")
LABELS = ("sign", "class", "change", "outcome")  # that tell their series apart, in this order
STOPPED = "gateway_trial_stopped"
ANSWERS = "gateway_answers"  # of all requests, whichever version answers
MOST_TURNS = 3  # of one address, as below
RECENT_LOOKS = 10  # after which a gateway that restarted may have counted as much as before

_Series = tuple[str, ...]  # a counter's name, and what tells its series apart


class _NoAnswer(Exception):
    """What an address answered, or did not, is of no use; the message says why."""


@dataclass
class _Seen:
    """What was seen of an address.

    Attributes:
        recent: Its counters, at the last looks.
        total: Increments, over restarts.
        turns: How often the counters fell and soon were what they had been, as they do not after a restart.
        is_stopped: Whether a process had stopped its part in a trial at the last look; None before the first.
        has_stopped: Whether one did so in this watch.
        problem: Why it does not take part, at the last look; empty if it does.
    """

    address: Address
    recent: deque[Counter[_Series]] = field(default_factory=lambda: deque(maxlen=RECENT_LOOKS))
    total: Counter[_Series] = field(default_factory=Counter)
    turns: int = 0
    is_stopped: bool | None = None
    has_stopped: bool = False
    problem: str = ""


class Observation:
    """The counters of a trial at each address.

    The names of gateways are looked up at each look, because a cluster replaces Pods. What one counted still counts.
    """

    def __init__(self, gateways: Sequence[str], model: str, trial: Trial) -> None:
        """Begin to observe.

        Args:
            gateways: Their URLs.
            model: The name of the model that they serve.
            trial: What is tried.

        Raises:
            Refused: A name has no address.
        """
        self._gateways, self._seen = gateways, dict[tuple[object, ...], _Seen]()
        self._present = self._find()
        self._model, self._trial = model, trial
        self.contract: Contract | None = None

    @property
    def counts(self) -> Counts:
        """What was counted until the last look."""
        total: Counter[_Series] = sum((each.total for each in self._seen.values()), Counter())
        signs = {key[1]: number for key, number in total.items() if key[0] == "gateway_comparison_signs"}
        classes = {(key[1], key[2]): number for key, number in total.items() if key[0] == "gateway_comparison_classes"}

        def requests(whose: str) -> tuple[int, int]:
            failed = total["gateway_trial_requests", f"{whose}failed"]
            return failed + total["gateway_trial_requests", f"{whose}answered"], failed

        return Counts(total[("gateway_comparisons",)], signs, classes, *requests(""), *requests("stable_"))

    @property
    def answers(self) -> int:
        """How many requests for predictions were answered until the last look."""
        return sum(each.total[ANSWERS,] for each in self._seen.values())

    @property
    def problems(self) -> list[str]:
        """Why no trial may be called good: addresses that do not take part, or classes that nobody counts.

        Of a name's addresses, only one must take part.
        """
        expected, present = without_closed([each.address for each in self._present]), self._present
        problems = [f"{each.address} {each.problem}" for each in present if each.problem and each.address in expected]
        if any(name == OTHERS for name, _ in self.counts.classes):
            problems.append("some classes are no longer counted one by one; restart the gateways, and watch again")
        return problems

    @property
    def stopped(self) -> list[str]:
        """The addresses at which a worker stopped the trial while this watched."""
        return [str(each.address) for each in self._seen.values() if each.has_stopped]

    def look(self) -> None:
        """Read the counters of each address, and the contract of the version.

        Raises:
            Refused: Several gateways answer at one address.
        """
        with suppress(Refused):  # without an answer of the DNS, the addresses are those of before
            self._present = self._find()
        for each in self._present:
            each.problem = ""
            if self._is_known_by_ipv4(each.address):
                continue
            try:
                self._read_contract(each.address)
                self._add(each, _get(each.address, "/metrics").decode())
                if each.is_stopped and not each.has_stopped:
                    each.problem = "has a process that stopped this trial, or an earlier one"
            except (_NoAnswer, ValueError, AttributeError) as exc:
                each.problem = str(exc)
            if each.turns >= MOST_TURNS:
                raise Refused(
                    f"The counters of {each.address} fell and came back {each.turns} times, as if several gateways"
                    " answered there in turn. Name each gateway with --gateway, or a name that resolves to all of their"
                    " addresses."
                )

    def _find(self) -> list[_Seen]:
        found = sorted(find_addresses(self._gateways), key=lambda each: ":" in each.ip)
        return [self._seen.setdefault(each.place, _Seen(each)) for each in found]

    def _is_known_by_ipv4(self, address: Address) -> bool:
        """Tell whether an IPv6 address may show the counters of IPv4 ones of its name, which would count twice."""
        others = (each for each in self._present if each.address.url == address.url and ":" not in each.address.ip)
        return ":" in address.ip and any(not each.address.is_closed for each in others)

    def _read_contract(self, address: Address) -> None:
        """Check that a gateway tries the version.

        Raises:
            _NoAnswer: It does not, or does not answer.
        """
        shown = json.loads(_get(address, "/model"))
        if (name := shown.get("name")) != self._model:
            raise _NoAnswer(f"serves another model, {name!r}")
        trial = shown.get("trial") or {}
        if trial.get("version") != self._trial.version:
            health = json.loads(_get(address, "/readyz"))
            reason = health.get("release_error") or "it has not begun"
            raise _NoAnswer(f"does not try version {self._trial.version}: {reason}")
        if not self.contract:
            try:
                self.contract = Contract.from_json(json.dumps(trial["contract"]))
            except (KeyError, TypeError, ContractError) as exc:
                raise _NoAnswer(f"does not show the contract of version {self._trial.version}: {exc}") from exc

    def _add(self, seen: _Seen, text: str) -> None:
        found, is_stopped = Counter[_Series](), False
        identity = self.contract.identity if self.contract else None
        of_trial = {"version": str(self._trial.version), "identity": identity, "trial": str(self._trial.serial)}
        for name, labels, value in _samples(text):
            if name == STOPPED:
                is_stopped = is_stopped or value > 0
            elif name == ANSWERS:
                found[name,] += int(value) * (labels.get("path") == "predict")
            elif of_trial.items() <= labels.items():
                found[name, *(labels[key] for key in LABELS if key in labels)] += int(value)
        last = seen.recent[-1] if seen.recent else Counter[_Series]()
        if any(found >= each and not last >= each for each in seen.recent):
            seen.turns += 1
            seen.recent.clear()
        seen.recent.append(found)
        before = last if found >= last else Counter()
        seen.total.update({series: number - before[series] for series, number in found.items()})
        failed = found["gateway_trial_requests", "failed"] + found["gateway_comparison_signs", "failed"]
        is_of_this = seen.is_stopped is False or failed >= FAILURES_UNTIL_STOPPED
        seen.has_stopped |= is_stopped and is_of_this
        seen.is_stopped = is_stopped


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the samples that this needs: a metric's name, labels and value."""
    for family in text_string_to_metric_families(text):
        if family.name in (*COUNTERS, STOPPED, ANSWERS):
            for sample in family.samples:
                if sample.name.removesuffix("_total") == family.name:
                    yield family.name, dict(sample.labels), sample.value


def _get(address: Address, path: str) -> Any:
    """Return the body of an answer.

    Raises:
        _NoAnswer: There is none, or one with an error.
    """
    try:
        response = address.get(path)
    except urllib3.exceptions.NewConnectionError as exc:
        raise _NoAnswer("does not listen") from exc
    except urllib3.exceptions.HTTPError as exc:
        raise _NoAnswer(f"does not answer: {exc}") from exc
    if response.status == 401:
        raise _NoAnswer("asks for an API key; set GATEWAY_KEY")
    if response.status != 200:
        raise _NoAnswer(f"answers {path} with status {response.status}")
    return response.data
