"""Whether what a trial showed can still be chance: each criterion is a share of photos, and a limit for that share.

A criterion with a limit m looks at k of n photos. Its evidence is the mean, over shares p above m, of the likelihood of
p divided by that of m. While the true share is m or less, no way of looking raises it for long: the probability that it
ever reaches 1/alpha is at most alpha. Source: J. Ville, Étude critique de la notion de collectif (1939).

So a trial within all limits is rolled back with a probability of at most `ALPHA`, however often one looks. Where the
stable version fails too, the limit of failures is an estimate, and this holds only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gateway.trial.trials import share_of_stable

ALPHA = 0.01
# A busy machine fails both versions, so a trial may fail so many times the part that the stable version fails, see
# gateway/trial/trials.py for what was measured.
TIMES_STABLE = 2
_SHARES = 64  # of the grid; with 16 or 256, as many photos were needed until an alarm, within 6 %


@dataclass(frozen=True)
class Counts:
    """What gateways counted in a trial.

    Attributes:
        photos: Photos on which both versions were compared.
        signs: Those that showed a sign, by its name.
        classes: Those that only the trial's version called a class (`gained`), or only the stable one (`lost`).
        requests: Requests that were the trial's.
        failed: Those of them that the stable version had to answer.
        stable_requests: Those that were the stable version's.
        stable_failed: Those of them that it failed, or for which it took longer than the trial's version may.
    """

    photos: int = 0
    signs: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    stable_requests: int = 0
    stable_failed: int = 0


@dataclass(frozen=True)
class Criterion:
    """A share, and the limit above which a trial is rolled back.

    Attributes:
        kind: `requests`, a sign, or what happened to a class.
        limit: Largest share that is fine, in (0, 1).
        alpha: Probability of an alarm while the share is within its limit.
        measured: Whether the limit comes from the export of the version.
        name: The class, for one of a class.
    """

    kind: str
    limit: float
    alpha: float
    measured: bool = False
    name: str = ""

    def judge(self, counts: Counts) -> Finding:
        """Weigh what was counted."""
        k, n = counts.signs.get(self.kind, 0), counts.photos
        if self.kind == "requests":
            k, n = counts.failed, counts.requests
        elif self.name:
            k = counts.classes.get((self.name, self.kind), 0)
        n = max(k, n)  # a scrape may come between two counters
        limit = self.limit
        if self.kind in ("requests", "failed"):
            usual = TIMES_STABLE * share_of_stable(counts.stable_failed, counts.stable_requests)
            limit = min(max(limit, usual), _HIGHEST_LIMIT)
        return Finding(replace(self, limit=limit), k, n, float(log_evidence(k, n, limit)))


@dataclass(frozen=True)
class Finding:
    """What a criterion found: k of n, and the logarithm of its evidence."""

    criterion: Criterion
    k: int
    n: int
    log_evidence: float

    @property
    def alarms(self) -> bool:
        """Whether chance does not explain it."""
        return self.log_evidence >= -math.log(self.criterion.alpha)

    def describe(self, stable: int) -> str:
        """Return it as a sentence's end, such as a reason for going back."""
        each = self.criterion
        what = _WORDS[each.kind].format(k=self.k, n=self.n, stable=stable, name=each.name)
        return f"{what}; at most {each.limit:.0%} {'was expected from its export' if each.measured else 'may be'}"


_WORDS = {
    "requests": "version {stable} had to answer {k} of its {n} requests",
    "failed": "it failed on {k} of {n} photos that version {stable} answered",
    "slower": "it was far slower than version {stable} on {k} of {n} photos",
    "disagrees": "it disagrees with version {stable} on {k} of {n} photos",
    "surer": "it is much surer than version {stable} on {k} of {n} photos",
    "less_sure": "it is much less sure than version {stable} on {k} of {n} photos",
    "gained": "it answers {name!r} on {k} of {n} photos where version {stable} does not",
    "lost": "it does not answer {name!r} on {k} of {n} photos where version {stable} does",
}
# A replica that restarts costs the one version an answer and not the other.
_FAILED = 0.01
_SLOWER = 0.5  # so that the median decides

# What is added to a share of an export's photos, beside three standard errors: users send other photos. On trash (6
# classes), clothing (10) and four pairs of classes, 40 heads on frozen features, half of them better by two points,
# were compared with 6 stable ones. On other photos of the same kind, shares were above that bound by up to 0.07, of a
# class never. With half of the photos of one rare class, `disagrees` was by up to 0.23, and a class by 0.26.
_OTHER_PHOTOS = {"disagrees": 0.1, "surer": 0.1, "less_sure": 0.1, "class": 0.05}
# Without a measurement. Those heads disagreed on up to 20 %, and were surer or less sure on up to 79 %. Permuted
# classes disagree on 97 %, and a class that is answered for 80 % gains 65 %.
_UNMEASURED = {"disagrees": 0.5, "surer": 0.8, "less_sure": 0.8, "class": 0.4}
_HIGHEST_LIMIT = 0.95  # photos of which more may do so show nothing
_METRICS = {"disagrees": "disagreement", "surer": "surer", "less_sure": "less_sure", "class": "class_change"}
KINDS = 7  # `requests`, the signs, and all classes together


def criteria(metrics: Mapping[str, Any], classes: Sequence[str], *, stable: int) -> list[Criterion]:
    """Return the criteria for a version, by its contract's metrics and class names.

    What its export measured counts if that compared it with the stable version.
    """
    alpha, names = ALPHA / KINDS, list(dict.fromkeys(classes))
    photos = _number(metrics.get("compared_photos")) or 0 if metrics.get("compared_version") == stable else 0

    def criterion(kind: str, alpha: float, name: str = "") -> Criterion | None:
        key = "class" if name else kind
        share = _number(metrics.get(_METRICS[key]))
        if share is None or not 0 <= share <= 1 or photos < 1:
            return Criterion(kind, _UNMEASURED[key], alpha, name=name)
        limit = highest(share, photos) + _OTHER_PHOTOS[key]
        return Criterion(kind, limit, alpha, True, name) if limit <= _HIGHEST_LIMIT else None

    measured = [
        *(criterion(kind, alpha) for kind in ("disagrees", "surer", "less_sure")),
        *(criterion(kind, alpha / 2 / len(names), name) for name in names for kind in ("gained", "lost")),
    ]
    return [
        Criterion("requests", _FAILED, alpha),
        Criterion("failed", _FAILED, alpha),
        Criterion("slower", _SLOWER, alpha),
        *filter(None, measured),
    ]


def _number(value: Any) -> float | None:
    """Return a figure of a contract, which may contain anything."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def highest(share: float, photos: float) -> float:
    """Return the upper end of Wilson's interval for a share of some photos, at three standard errors."""
    z2 = 9 / photos
    spread = 3 * (share * (1 - share) / photos + z2 / photos / 4) ** 0.5
    return float((share + z2 / 2 + spread) / (1 + z2))


def log_evidence(k: ArrayLike, n: ArrayLike, limit: float) -> NDArray[np.float64]:
    """Return the logarithm of the evidence that a share is above its limit, after it was k of n; k and n broadcast."""
    shares = limit + (1 - limit) * (np.arange(_SHARES) + 0.5) / _SHARES
    yes, no = np.log(shares / limit), np.log((1 - shares) / (1 - limit))
    k, n = np.asarray(k)[..., np.newaxis], np.asarray(n)[..., np.newaxis]
    bets: Any = k * yes + (n - k) * no
    return np.asarray(np.logaddexp.reduce(bets, axis=-1) - np.log(_SHARES))
