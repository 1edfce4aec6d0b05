"""What gives probabilities for photos: a Keras run, a version in the store, or a gateway."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import urllib3
from numpy.typing import NDArray

from contract.client import key_header
from contract.document import DESCRIBE_SIGNATURE, IMAGES, Contract, ContractError
from contract.outputs import Outputs, describe
from contract.store import versions_of
from serving.engines import open_engine
from serving.errors import ServingError
from training.cores import CORES
from training.data.pixels import Pixels
from training.errors import TrainingError
from training.models.quiet import quiet
from training.progress import Given, in_batches
from training.runs.folder import Run, read_run
from training.words import counted, difference

_log = logging.getLogger(__name__)

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, h, w, 3) to probabilities (n, k)."""
_BATCH = 32
_NAMED = 20  # versions in a message, the newest
_CONCURRENCY = 8  # requests at once, as in gateway.batch
_TIMEOUT_S = 60.0
# A busy gateway says when to come back. Asking again is safe: an answer changes nothing.
_RETRIES = urllib3.Retry(
    total=8, connect=2, status_forcelist=(503,), allowed_methods=("GET", "POST"), backoff_factor=0.2,
    raise_on_status=False,
)  # fmt: skip


class Predicted(NamedTuple):
    """What a predictor says of n photos: probabilities (n, k), and which are unknown (n) if it can tell."""

    probabilities: NDArray[np.float32]
    unknown: NDArray[np.bool_] | None


class KerasRun:
    """The Keras model of a run folder."""

    def __init__(self, run: Path) -> None:
        from training.models.novelty import with_score

        model, self.contract, _, directions = read_run(run)
        self._model = with_score(model, directions)
        self.title = f"Keras, {Run(run).name}"

    def predict(self, photos: Pixels) -> Predicted:
        from training.models.novelty import predict

        outputs = predict(self._model, photos.images)
        return Predicted(outputs.probabilities, outputs.unknown(self.contract))


class StoredVersion:
    """A version in the model-store, run from one of its files; without a number, the newest version."""

    def __init__(self, store: Path, model: str, number: int | None, engine: str, at_once: int = 1) -> None:
        """Load it, to run so many batches at once where TFLite does; TensorFlow runs each on all cores anyway.

        Raises:
            TrainingError: There is no such version, or it does not load.
        """
        found = versions_of(store, model)
        self.number = max(found, default=0) if number is None else number
        if self.number not in found:
            models = ", ".join(sorted(path.name for path in store.glob("*") if path.is_dir())) or "no model"
            newest = ["…"] * (len(found) > _NAMED) + [*found][-_NAMED:]
            received = f"versions {', '.join(map(str, newest))}" if found else f"no version; the store has {models}"
            wanted = "a version" if number is None else f"version {number}"
            raise TrainingError(f"Expected {wanted} of {model!r} in {store}. Received: {received}")
        self.title = f"{model} {self.number}, {engine}"
        self._at_once = 1 if engine == "tensorflow" else at_once
        try:
            with quiet():  # XNNPACK announces itself at the first run
                self._engine = open_engine(found[self.number], engine, CORES // self._at_once, self._at_once)
                described = DESCRIBE_SIGNATURE in self._engine.signatures and describe(self._engine.run)
        except ServingError as exc:
            raise TrainingError(f"{self.title} does not load: {exc}") from exc
        if not described:
            raise TrainingError(
                f"Expected a version that describes itself, as `training export` writes it. Received {self.title},"
                f" without the signature {DESCRIBE_SIGNATURE}"
            )
        try:
            self.contract = Contract.from_json(described)
        except ContractError as exc:
            raise TrainingError(
                f"{self.title} has another contract: {exc}. Use the release of this project that wrote it,"
                " or a newer one"
            ) from exc

    def predict(self, photos: Pixels) -> Predicted:
        outputs = Outputs.joined(predict_all(self.run, photos.images, self._at_once))
        return Predicted(outputs.probabilities, outputs.unknown(self.contract))

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return what the version gives for pixels (n, h, w, 3), in one batch."""
        return Outputs.of(self._engine.run(self.contract.signature, {IMAGES: pixels}))


def predict_all(run: Callable[[NDArray[np.uint8]], Given], pixels: NDArray[np.uint8], at_once: int) -> list[Given]:
    """Return what a function gives for each batch of pixels (n, h, w, 3) on disk, some of them at once."""
    (parts,) = in_batches(run, [pixels], _BATCH, at_once, f"Predicting {counted(len(pixels), 'photo')}")
    return parts


class Gateway:
    """A running gateway, which gets the files and decodes them itself."""

    def __init__(self, url: str) -> None:
        try:
            headers = {"Content-Type": "application/octet-stream", **key_header()}
        except ValueError as exc:
            raise TrainingError(str(exc)) from exc
        self._url = url
        self._http = urllib3.PoolManager(maxsize=_CONCURRENCY, retries=_RETRIES, timeout=_TIMEOUT_S, headers=headers)
        model = self._ask("GET", "/model")
        self.contract = Contract.from_json(json.dumps(model["contract"]))
        self._version = model["version"], model.get("identity")
        self.title = f"gateway, {model['name']} {model['version']}"

    def predict(self, photos: Pixels) -> Predicted:
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            probabilities, unknown = zip(*pool.map(self._predict, photos.paths), strict=True)
        return Predicted(np.stack(probabilities), None if None in unknown else np.array(unknown))

    def _predict(self, path: Path) -> tuple[NDArray[np.float32], bool | None]:
        probabilities = np.zeros(len(self.contract.classes), np.float32)
        answer = self._ask("POST", f"/predict?top_k={len(probabilities)}", path.read_bytes(), f" for {path}")
        if (answer["model"]["version"], answer["model"].get("identity")) != self._version:
            raise TrainingError(
                f"Another version than that of {self.title} answered: it was replaced, or another is tried by share."
                " Run the command again once no trial runs"
            )
        for each in answer["predictions"]:
            probabilities[each["index"]] = each["probability"]
        return probabilities, answer.get("unknown")

    def _ask(self, method: str, path: str, body: bytes | None = None, purpose: str = "") -> Any:
        try:
            response = self._http.request(method, self._url + path, body=body)
            if response.status != 200:
                raise TrainingError(f"The gateway has no answer{purpose}: {response.json()['detail']}")
            return response.json()
        except urllib3.exceptions.HTTPError as exc:
            reason = getattr(exc, "reason", exc)  # of the last of several tries
            raise TrainingError(f"Expected a gateway at {self._url}. Received: {reason}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise TrainingError(f"Expected a gateway at {self._url}. Received an answer of something else") from exc


Predictor = KerasRun | StoredVersion | Gateway
"""Each has a title for reports and a contract, and predicts decoded photos, or raises a TrainingError."""


def check_alike(contracts: Sequence[tuple[str, Contract]]) -> None:
    """Refuse to compare models of different classes, and log where photos are decoded differently.

    Raises:
        TrainingError: The classes of two differ.
    """
    (first, expected), *others = contracts
    for title, contract in others:
        if contract.classes != expected.classes:
            raise TrainingError(
                f"Expected the same classes of {first} and {title}. Received of the latter:"
                f" {difference(contract.classes, expected.classes)}"
            )
        if contract.image != expected.image:
            _log.info(f"Note: {first} and {title} decode photos differently, each by its contract")
