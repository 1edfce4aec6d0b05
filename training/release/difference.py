"""How much a new version differs from the one before on held-out photos: what a trial of it should see."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from contract.comparison import find_signs
from training.judge.calibration import fit_temperature

_log = logging.getLogger(__name__)

# Factor between the temperatures that two versions need, from which the new one's confidence is false. One whose logits
# are doubled needs 2; on 308 held-out photos of trash and 512 of clothing, 240 calibrated heads needed up to 1.22.
FALSE_CONFIDENCE = 1.5
LIKELIHOOD = 4.5  # natural logarithm by which the labels must be likelier then: three standard errors


def measure_difference(
    new: NDArray[np.float32],
    before: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    number: int,
    recorded: float = 1.0,
) -> dict[str, float]:
    """Return the parts of held-out photos on which a new version differs from the one before, for its contract.

    A trial should expect no mistakes. So photos are left out that only the version before has right, if these are more
    than chance explains. If the new version is much more overconfident, what counts is what it would say if it was only
    as overconfident as the version before.

    Args:
        new: Its probabilities (n, k).
        before: Those of the version before (n, k).
        labels: The right classes (n).
        number: The version before.
        recorded: Its accuracy by its own contract. It may be higher here, because it was trained on these photos.
    """
    n, first, first_before = len(labels), new.argmax(axis=1), before.argmax(axis=1)
    changed, signs = first != first_before, find_signs(_without_false_confidence(new, before, labels), before)
    unexpected = _unexpected_mistakes(first == labels, first_before == labels, recorded)
    changes = max(np.bincount(each[changed]).max(initial=0) for each in (first, first_before))
    shares = {
        "disagreement": (changed.sum() - unexpected) / n,
        "surer": signs["surer"].mean(),
        "less_sure": signs["less_sure"].mean(),
        "class_change": max(changes - unexpected, 0) / n,
    }
    _log.info(
        f"Compared with version {number} on {n} held-out photos: another class on {changed.mean():.1%},"
        f" much surer on {shares['surer']:.1%}, much less sure on {shares['less_sure']:.1%}"
    )
    if unexpected:
        _log.info(f"Warning: it is less accurate than version {number}, so a trial may end with a rollback")
    measured = {name: round(float(share), 4) for name, share in shares.items()}
    return {**measured, "compared_photos": n, "compared_version": number}


def _unexpected_mistakes(right: NDArray[np.bool_], right_before: NDArray[np.bool_], recorded: float) -> int:
    """Return how many photos are wrong that the version before should have right, beyond three standard errors."""
    more = min(right_before.sum(), recorded * len(right)) - right.sum()
    return max(0, int(more - 3 * (right != right_before).sum() ** 0.5))


def _without_false_confidence(
    new: NDArray[np.float32], before: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the new version's probabilities, less confident if it is much more overconfident than the one before."""
    factor = fit_temperature(new, labels) / max(1.0, fit_temperature(before, labels))
    powers = np.maximum(new, 1e-30) ** (1 / factor)
    calmer = np.asarray(powers / powers.sum(axis=1, keepdims=True))
    of_labels = np.arange(len(labels)), labels
    gain = np.log(np.maximum(calmer[of_labels], 1e-30) / np.maximum(new[of_labels], 1e-30)).sum()
    if factor < FALSE_CONFIDENCE or gain < LIKELIHOOD:
        return new
    _log.info(f"Warning: its confidence is false by a temperature of {factor:.2f}, so a trial may end with a rollback")
    return calmer
