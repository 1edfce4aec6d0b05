"""What the gateway needs of a model, in a model server (`versions.py`) or in this process (`serverless/`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.document import Contract
from contract.outputs import Outputs
from contract.release import Release, Trial


class Export(NamedTuple):
    """A version's number, and the identity of the export under it; empty if it has none, or is not known yet."""

    number: int
    identity: str = ""

    def __str__(self) -> str:
        return f"{self.number} ({self.identity})" if self.identity else str(self.number)


@dataclass(frozen=True, eq=False)
class Version:
    """A version that passed the golden gate."""

    number: int
    contract: Contract

    @property
    def export(self) -> Export:
        return Export(self.number, self.contract.identity)


class ActiveTrial(NamedTuple):
    """A version that is tried, once it is loaded and passed the gate."""

    version: Version
    trial: Trial

    @property
    def labels(self) -> tuple[int, str, int]:
        """What tells its counters from those of others, such as an earlier trial of the version."""
        return *self.version.export, self.trial.serial


@dataclass(frozen=True)
class Health:
    """What the last look found.

    Attributes:
        accepted: Exports that passed the gate and are loaded; the one that answers first is first.
        refused: Exports that the gate refused or could not try yet, or that the model server could not load; and why.
        error: Why no version is usable, or None.
        engines: What runs each number at the model server that was asked last, and why; empty if it does not say.
        release: The release document in force; without one, the newest version answers.
        release_error: What is wrong with the document as it is now, or None.
    """

    accepted: Sequence[Export] = ()
    refused: Mapping[Export, str] = field(default_factory=dict)
    error: str | None = "Not looked yet"
    engines: Mapping[int, str] = field(default_factory=dict)
    release: Release | None = None
    release_error: str | None = None

    @property
    def versions(self) -> list[int]:
        """The accepted numbers; the one that answers first is first."""
        return list(dict.fromkeys(each.number for each in self.accepted))

    def reason(self, number: int) -> str | None:
        """Return why an export under a number may not answer, if there is one that may not."""
        return next((reason for export, reason in self.refused.items() if export.number == number), None)

    @property
    def ready(self) -> bool:
        return bool(self.accepted) and self.error is None


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

    def trial(self) -> ActiveTrial | None:
        """Return the version that is tried beside the others, if one is."""

    def candidates(self, deadline: float) -> Iterator[Version]:
        """Yield versions to try until one is loaded; the one that answers first comes first.

        Raises:
            ModelUnavailable: There was none before the deadline.
        """

    def predict(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> Outputs:
        """Return what that version gives for pixels (n, h, w, 3); n may be 0.

        Raises:
            VersionGone: The version is not loaded any more.
            GatewayError: The prediction failed otherwise.
        """
