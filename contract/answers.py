"""What a loaded version answers: its contract, and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.document import CONTRACT, DESCRIBE_SIGNATURE, QUERY

Run = Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs a signature, by its name, on inputs, and returns its outputs."""


def describe(run: Run) -> bytes:
    """Return the contract's JSON, as it is in the version's file."""
    return bytes(run(DESCRIBE_SIGNATURE, {QUERY: np.array([b""], dtype=object)})[CONTRACT][0])


def most_probable(classes: Sequence[str], probabilities: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """Return predictions of probabilities (k,), the most probable first; the lower index wins a tie."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": classes[i], "index": int(i), "probability": round(float(probabilities[i]), 6)} for i in order]
