"""What gives probabilities for photos: a Keras run, a version in the store, or a gateway; all answer alike."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import urllib3
from numpy.typing import NDArray

from contract.answers import describe
from contract.document import DESCRIBE_SIGNATURE, IMAGES, PREDICT_SIGNATURE, PROBABILITIES, Contract
from contract.store import versions_of
from serving.engines import open_engine
from serving.errors import ServingError
from training.data.pixels import Pixels
from training.errors import TrainingError

_log = logging.getLogger(__name__)

ENGINES = {"int8": "int8", "tflite": "tflite", "savedmodel": "tensorflow"}
_BATCH = 32
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, h, w, 3) to probabilities (n, k)."""
_CONCURRENCY = 8  # requests at once, as gateway.batch
_TIMEOUT_S = 60.0
# A gateway that is busy says when to come back; a request that it did not take changed nothing.
_RETRIES = urllib3.Retry(
    total=8, connect=2, status_forcelist=(503,), allowed_methods=("GET", "POST"), backoff_factor=0.2,
    raise_on_status=False,
)  # fmt: skip


class Predictor(Protocol):
    """Gives probabilities.

    Attributes:
        title: How it is told from others.
        contract: Its classes, and how its photos become pixels.
    """

    title: str
    contract: Contract

    def predict(self, photos: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, k) of decoded photos.

        Raises:
            TrainingError: One of them got no answer.
        """


class KerasRun:
    """The Keras model of a run folder."""

    def __init__(self, run: Path) -> None:
        from training.runs.folder import read_run

        self._model, self.contract, _ = read_run(run)
        self.title = f"Keras, {run.parent.name}/{run.name}"

    def predict(self, photos: Pixels) -> NDArray[np.float32]:
        return np.asarray(self._model.predict(photos.images, batch_size=_BATCH, verbose=0))


class StoredVersion:
    """A version in the model-store, by one of its files."""

    def __init__(self, store: Path, model: str, number: int | None, engine: str) -> None:
        found = versions_of(store, model)
        if not found or (number is not None and number not in found):
            known = ", ".join(sorted(path.name for path in store.glob("*") if path.is_dir())) or "no model"
            received = f"versions {', '.join(map(str, found))}" if found else f"no version; the store has {known}"
            wanted = "a version" if number is None else f"version {number}"
            raise TrainingError(f"Expected {wanted} of {model!r} in {store}. Received: {received}")
        self.number = max(found) if number is None else number
        try:
            self._engine = open_engine(found[self.number], ENGINES[engine], os.cpu_count() or 1)
            if DESCRIBE_SIGNATURE not in self._engine.signatures:
                raise TrainingError(
                    f"Expected version {self.number} of {model!r} to describe itself, as `training export` writes it."
                    f" Received a file without the signature {DESCRIBE_SIGNATURE}"
                )
            self.contract = Contract.from_json(describe(self._engine.run))
        except ServingError as exc:
            raise TrainingError(f"Expected version {self.number} of {model!r} to load. Received: {exc}") from exc
        self.title = f"{model} {self.number}, {engine}"

    def predict(self, photos: Pixels) -> NDArray[np.float32]:
        return self.predict_pixels(photos.images)

    def predict_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities (n, k) of pixels (n, h, w, 3)."""
        return predict_in_batches(
            lambda batch: self._engine.run(PREDICT_SIGNATURE, {IMAGES: batch})[PROBABILITIES], pixels
        )


class Gateway:
    """A running gateway, which gets the files as they are and decodes them itself."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager(maxsize=_CONCURRENCY, retries=_RETRIES, timeout=_TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {os.environ['GATEWAY_KEY']}"} if "GATEWAY_KEY" in os.environ else {}
        described = self._ask("GET", "/model")
        document = {**described["contract"], "golden": {"tolerance": 0.0, "examples": []}}  # it keeps its photos
        self.contract = Contract.from_json(json.dumps(document))
        self._version = described["version"], described.get("identity")
        self.title = f"gateway, {described['name']} {described['version']}"

    def predict(self, photos: Pixels) -> NDArray[np.float32]:
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return np.stack(list(pool.map(self._predict, photos.paths)))

    def _predict(self, path: Path) -> NDArray[np.float32]:
        k = len(self.contract.classes)
        answer = self._ask("POST", f"/predict?top_k={k}", path.read_bytes(), told=f" for {path}")
        if (answer["model"]["version"], answer["model"].get("identity")) != self._version:
            raise TrainingError(f"{self.title} was replaced by another version meanwhile. Run the command again")
        probabilities = np.zeros(k, np.float32)
        for each in answer["predictions"]:
            probabilities[each["index"]] = each["probability"]
        return probabilities

    def _ask(self, method: str, path: str, body: bytes | None = None, told: str = "") -> Any:
        headers = {**self._headers, "Content-Type": "application/octet-stream"}
        try:
            response = self._http.request(method, self._url + path, body=body, headers=headers)
            answer = json.loads(response.data)
            if response.status != 200:
                raise TrainingError(f"Expected an answer of the gateway{told}. Received: {answer['detail']}")
        except urllib3.exceptions.HTTPError as exc:
            reason = getattr(exc, "reason", exc)  # of the last of several tries
            raise TrainingError(f"Expected a gateway at {self._url}. Received: {reason}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise TrainingError(f"Expected a gateway at {self._url}. Received an answer of something else") from exc
        return answer


def predict_in_batches(predict: Predict, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return probabilities (n, k) of pixels (n, h, w, 3), which may lie on disk."""
    starts = range(0, len(pixels), _BATCH)
    return np.concatenate([predict(np.ascontiguousarray(pixels[start : start + _BATCH])) for start in starts])


def check_alike(models: Sequence[tuple[str, Contract]]) -> None:
    """Refuse to compare models with different classes, and log if they decode differently.

    Args:
        models: A title and a contract of each.

    Raises:
        TrainingError: The classes of two differ.
    """
    (title, first), *others = models
    for other_title, other in others:
        if other.classes != first.classes:
            raise TrainingError(
                f"Expected the same classes of {title} and {other_title}. Received"
                f" {', '.join(first.classes[:5])} … and {', '.join(other.classes[:5])} …"
            )
        if other.image != first.image:
            _log.info(f"Note: {title} and {other_title} decode photos in two ways, each by its contract")
