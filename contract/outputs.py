"""What a loaded version answers: its contract, its predictions, and whether an image is unknown to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.document import CONTRACT, DESCRIBE_SIGNATURE, NOVELTY, PROBABILITIES, QUERY, Contract, GoldenExample

SECONDS = "engine-seconds"
"""The metadata after a Predict that say how long it ran; TensorFlow Serving does not."""


class Outputs(NamedTuple):
    """What a version gives for n images.

    Attributes:
        probabilities: Of each class (n, k).
        novelty: Scores (n), if the graph gives these.
        seconds: How long it ran, without waiting for its turn, if the model server says so.
    """

    probabilities: NDArray[np.float32]
    novelty: NDArray[np.float32] | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, NDArray[Any]]) -> Outputs:
        """Take them from the outputs of a signature."""
        return cls(outputs[PROBABILITIES], outputs.get(NOVELTY))

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Put together what was given for several images, one part at least."""
        scores = [part.novelty for part in parts if part.novelty is not None]
        known = [part.seconds for part in parts if part.seconds is not None]
        return cls(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate(scores) if scores else None,
            sum(known) if len(known) == len(parts) else None,
        )

    @classmethod
    def none(cls, contract: Contract) -> Outputs:
        """Return what a version gives for no image."""
        scores = np.empty(0, np.float32) if contract.novelty else None
        return cls(np.empty((0, len(contract.classes)), np.float32), scores, 0.0)

    def unknown(self, contract: Contract) -> NDArray[np.bool_] | None:
        """Tell which images (n) are unlike all training photos; None if the version gives no scores."""
        if contract.novelty is None or self.novelty is None:
            return None
        return np.asarray(self.novelty > contract.novelty.threshold)

    def difference(self, example: GoldenExample) -> float:
        """Return by how much a golden example, the only image, differs at most: in a probability or in its score."""
        received = self.probabilities[0] if self.novelty is None else np.append(self.probabilities[0], self.novelty)
        if len(received) != len(example.values):
            return np.nan
        return float(np.abs(received - np.array(example.values, np.float32)).max())


def describe(run: Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]) -> bytes:
    """Return the contract's JSON, as it is in the version's file; `run` runs a signature, by its name, on inputs."""
    return bytes(run(DESCRIBE_SIGNATURE, {QUERY: np.array([b""], dtype=object)})[CONTRACT][0])


def most_probable(classes: Sequence[str], probabilities: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """Return predictions of probabilities (k,), the most probable first; the lower index wins a tie."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": classes[i], "index": int(i), "probability": round(float(probabilities[i]), 6)} for i in order]
