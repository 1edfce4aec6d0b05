"""What a loaded version says: of itself, and of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.document import CONTRACT, DESCRIBE_SIGNATURE, QUERY

Run = Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs a signature, by its name, on inputs, and returns its outputs."""


def describe(run: Run) -> bytes:
    """Return the contract of a version, as it is in its file."""
    return bytes(run(DESCRIBE_SIGNATURE, {QUERY: np.array([b""], dtype=object)})[CONTRACT][0])


def most_probable(classes: Sequence[str], probabilities: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """Return so many classes of (k,) as answers show them, the most probable first; of equal ones the lower index."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": classes[i], "index": int(i), "probability": round(float(probabilities[i]), 6)} for i in order]
