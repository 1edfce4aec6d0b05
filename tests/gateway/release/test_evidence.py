"""gateway/release/evidence.py: false alarms are as rare as stated, and bad versions are found soon."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.release.evidence import ALPHA, KINDS, Counts, Criterion, criteria, log_evidence

PHOTOS = 300
MEASURED = {"disagreement": 0.12, "surer": 0.16, "less_sure": 0.18, "class_change": 0.04, "compared_photos": 308,
            "compared_version": 1}  # fmt: skip


def alarms_after(share: float, limit: float, alpha: float, *, runs: int, photos: int) -> NDArray[np.int64]:
    """Return after how many photos each run alarms that is looked at after every photo; `photos` + 1 for none."""
    n = np.arange(1, photos + 1)
    least, most = np.zeros_like(n), n + 1  # the fewest photos k that alarm after n of them, by bisection
    while (least < most).any():
        middle = (least + most) // 2
        alarms = (log_evidence(middle, n, limit) >= -math.log(alpha)) | (middle > n)
        least, most = np.where(alarms, least, middle + 1), np.where(alarms, middle, most)
    k = (np.random.default_rng(0).random((runs, photos), np.float32) < share).cumsum(axis=1)
    alarms = k >= least
    return np.where(alarms.any(axis=1), alarms.argmax(axis=1) + 1, photos + 1)


@pytest.mark.parametrize("limit", [0.01, 0.2, 0.5, 0.95])
def test_false_alarms_are_rarer_than_stated(limit: float) -> None:
    """With a share at its limit, and a look after each of 2,000 photos; without an alarm for less than that."""
    alarms = alarms_after(limit, limit, 0.1, runs=2000, photos=2000) <= 2000
    assert 0 < alarms.mean() < 0.1


@pytest.mark.parametrize(
    ("share", "limit", "typical", "nearly_all"),
    [(0.1, 0.01, 70, 220), (0.98, 0.5, 15, 25), (0.7, 0.3, 25, 70), (0.6, 0.3, 40, 110), (0.5, 0.25, 55, 180)],
)
def test_bad_shares_are_found_soon(share: float, limit: float, typical: int, nearly_all: int) -> None:
    """Of one photo in ten that fails to one class for nearly all, within 300 photos."""
    needed = alarms_after(share, limit, ALPHA / KINDS, runs=1000, photos=PHOTOS)
    assert np.percentile(needed, 50) <= typical and np.percentile(needed, 99) <= nearly_all <= PHOTOS


def test_all_criteria_together_have_the_stated_probability() -> None:
    """However many classes there are, and though two have one name."""
    for classes in (["a", "b"], ["crane", "crane", *map(str, range(998))]):
        found = criteria(MEASURED, classes, stable=1)
        assert math.fsum(each.alpha for each in found) == pytest.approx(ALPHA)
        assert len({(each.kind, each.name) for each in found}) == len(found)


def test_limits_come_from_the_export() -> None:
    """Those of what it measured are above that, the more the fewer photos it had; others are fixed."""
    limits = {each.kind: each.limit for each in criteria(MEASURED, ["a", "b"], stable=1)}
    few = {each.kind: each.limit for each in criteria({**MEASURED, "compared_photos": 20}, ["a", "b"], stable=1)}
    assert limits == pytest.approx(
        {
            "requests": 0.01,
            "failed": 0.01,
            "slower": 0.5,
            "disagrees": 0.287,
            "surer": 0.332,
            "less_sure": 0.354,
            "gained": 0.138,
            "lost": 0.138,
        },
        abs=0.001,
    )
    assert few["failed"] == 0.01 and all(few[kind] > limits[kind] for kind in ("disagrees", "surer", "gained"))
    nearly_all = {each.kind for each in criteria({**MEASURED, "less_sure": 0.9}, ["a", "b"], stable=1)}
    assert nearly_all == set(limits) - {"less_sure"}, "no share of the photos would be too high"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"disagreement": 0.1, "compared_version": 1},
        {"disagreement": "?", "compared_photos": True, "compared_version": 1},
        {**MEASURED, "compared_version": 2},
    ],
)
def test_without_a_measurement_limits_are_wide(metrics: dict[str, object]) -> None:
    """As for a version that was exported without photos, or was the first one, or was compared with another."""
    found = {each.kind: each for each in criteria(metrics, ["a", "b"], stable=1)}
    assert found["disagrees"].limit == 0.5 and not found["disagrees"].measured


def test_a_finding_says_what_was_counted() -> None:
    """It is the reason that the history keeps."""
    counts = Counts(80, {"disagrees": 61}, {("shirt", "gained"): 60}, 200, 40)
    disagrees, gained, requests = (
        Criterion(kind, 0.21, 0.001, name == "shirt" or kind == "disagrees", name).judge(counts)
        for kind, name in (("disagrees", ""), ("gained", "shirt"), ("requests", ""))
    )
    assert disagrees.alarms and gained.alarms and not requests.alarms
    assert disagrees.describe(3) == (
        "it disagrees with version 3 on 61 of 80 photos; at most 21% was expected from its export"
    )
    assert gained.describe(3).startswith("it answers 'shirt' on 60 of 80 photos where version 3 does not")
    assert requests.describe(3) == "version 3 had to answer 40 of its 200 requests; at most 21% may be"


@pytest.mark.parametrize(("failed", "stable_failed", "alarms"), [(30, 0, True), (30, 270, False), (120, 270, True)])
def test_failures_weigh_against_those_of_the_stable_version(failed: int, stable_failed: int, alarms: bool) -> None:
    """Both run out of time while a machine is busy; of the tried version's requests twice as many may."""
    counts = Counts(0, {}, {}, 1000, failed, 9000, stable_failed)
    found = {each.kind: each.judge(counts) for each in criteria({}, ["a"], stable=1)}
    assert found["requests"].alarms == alarms
    assert found["requests"].criterion.limit == pytest.approx(0.06 if stable_failed else 0.01, abs=0.001)
    assert found["failed"].criterion.limit == found["requests"].criterion.limit > 0
    assert found["slower"].criterion.limit == 0.5


def test_a_stable_version_that_fails_nothing_excuses_nothing() -> None:
    """However few requests it had, as when the tried one gets nearly all."""
    counts = Counts(0, {}, {}, 61, 24, 1, 0)
    assert Criterion("requests", 0.01, 0.001).judge(counts).alarms


def test_nothing_is_no_evidence() -> None:
    """Before the first photo, and with counters that were read at two moments."""
    assert log_evidence(0, 0, 0.3) == pytest.approx(0.0)
    assert Criterion("failed", 0.01, 0.001).judge(Counts(0, {"failed": 1})).n == 1
