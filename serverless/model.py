"""The stable version of a model in a model-store, or else its newest one, run here by the model server's engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.document import IMAGES, Contract
from contract.outputs import Outputs, describe
from contract.release import FILE_NAME, read_release
from contract.store import versions_of
from gateway.errors import ModelFailed, ModelTimeout
from gateway.model.gate import open_gate
from gateway.model.protocol import ActiveTrial, Health, Version
from serving.engines import open_engine
from serving.errors import DeadlineExceededError, NotFoundError, ServingError

_log = logging.getLogger(__name__)


class OwnModel:
    """A `gateway.model.protocol.Model` of one version, which this process has loaded."""

    def __init__(self, store: Path, model: str) -> None:
        """Load the version that the release document names as stable, or else the newest; try it at the golden gate.

        Raises:
            ReleaseError: The document cannot be read.
            ServingError: There is no such version, or it cannot be loaded.
            Refusal: Its golden examples did not come back as they were at export.
        """
        versions = versions_of(store, model)
        if not versions:
            raise NotFoundError(f"Expected a version of {model!r} in {store}. Received: none")
        release = read_release(store / model / FILE_NAME)
        number = release.stable if release else max(versions)
        if number not in versions:
            raise NotFoundError(f"{store / model / FILE_NAME} names version {number} as stable, which is not there.")
        self.model = model
        self._engine = open_engine(versions[number], "auto", os.cpu_count() or 1)
        # At each start, since it must be true on the processor that answers, and a first run is slow anyway. With three
        # examples it takes 0.09 s of a start's 0.7 s.
        self._version = Version(number, open_gate(describe(self._engine.run), self._run))
        self.health = Health([self._version.export], error=None)
        _log.info("version %s of %s passed the golden gate", self._version.export, model)

    def newest(self) -> Version:
        return self._version

    def trial(self) -> ActiveTrial | None:
        return None

    def candidates(self, deadline: float) -> Iterator[Version]:
        yield self._version

    def predict(self, version: Version, pixels: NDArray[np.uint8], deadline: float) -> Outputs:
        if len(pixels) == 0:
            return Outputs.none(version.contract)
        try:
            outputs = self._run(version.contract, pixels, deadline - time.monotonic())
        except DeadlineExceededError as exc:
            raise ModelTimeout("The request took too long: no time was left for the prediction.") from exc
        except ServingError as exc:
            _log.exception("the model failed")
            raise ModelFailed("The model failed; see the log.") from exc
        if not all(np.isfinite(each).all() for each in outputs if each is not None):
            raise ModelFailed("The model did not answer with a probability for each class.")
        return outputs

    def _run(self, contract: Contract, pixels: NDArray[np.uint8], timeout_s: float | None = None) -> Outputs:
        return Outputs.of(self._engine.run(contract.signature, {IMAGES: pixels}, timeout_s))
