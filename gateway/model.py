"""What the gateway asks of a model, wherever it runs: at a model server (`gateway.client`), or in this very process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contract.document import Contract


@dataclass(frozen=True)
class Version:
    """A version that passed the golden gate."""

    number: int
    contract: Contract


@dataclass(frozen=True)
class Health:
    """What the last look found.

    Attributes:
        versions: Accepted and loaded ones, newest first.
        refused: Those that the gate refused, or could not try yet, or that the model server could not load; and why.
        error: Why no version is usable, or None.
    """

    versions: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    error: str | None = "Not looked yet"

    @property
    def ready(self) -> bool:
        return bool(self.versions) and self.error is None


class Model(Protocol):
    """A model whose versions answer. Safe to call from many threads at once.

    Attributes:
        model: Its name.
        health: What is known of its versions.
    """

    model: str
    health: Health

    def newest(self) -> Version:
        """Return the version that answers first.

        Raises:
            ModelUnavailable: There is none.
        """

    def candidates(self, deadline: float) -> Iterator[Version]:
        """Yield versions to try until one is there, newest first.

        Raises:
            ModelUnavailable: There is none before the deadline.
        """

    def predict(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> NDArray[np.float32]:
        """Return probabilities (n, k) of pixels (n, h, w, 3) by that very version; n may be 0.

        Raises:
            VersionGone: The version is not there any more.
            GatewayError: What else a prediction can end in.
        """
