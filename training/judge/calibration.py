"""Temperature: one number, fitted on validation, that calibrates the probabilities."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

# With label smoothing and pasted squares, trash needs less than 0.5. A model without a mistake on validation would need
# the lowest temperature there is, hence the bound. With few photos any value can come out, hence the minimum.
BOUNDS = (0.3, 5.0)
MIN_PHOTOS = 100
MOST_LOGITS = 10_000_000  # one number needs no more, and each takes 57 bytes while it is fitted


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature at which probabilities (n, k) give labels (n) the lowest log loss; 1 for few photos.

    Source: C. Guo et al., On Calibration of Modern Neural Networks (2017). The logits are known but for a constant in
    each row, which the softmax takes out again.
    """
    if len(labels) < MIN_PHOTOS:
        return 1.0
    some = pick_photos(labels, probabilities.shape[1])
    logits = np.log(np.maximum(probabilities[some], 1e-30)).astype(np.float64)
    return best_temperature(logits, labels[some], bounds=BOUNDS)


def pick_photos(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the positions of photos that suffice for a temperature: all, or every nth in the order of the classes."""
    step = -(-len(labels) * classes // MOST_LOGITS)
    return np.sort(np.argsort(labels, kind="stable")[::step])


def best_temperature(
    logits: NDArray[Any], labels: NDArray[np.int64], *, bounds: tuple[float, float], smoothing: float = 0.0
) -> float:
    """Return the temperature at which logits (n, k) have the lowest log loss against labels (n), perhaps smoothed."""

    def log_loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        of_labels = scaled[np.arange(len(labels)), labels]
        wanted = (1 - smoothing) * of_labels + smoothing * scaled.mean(axis=1)
        return float((logsumexp(scaled, axis=1) - wanted).mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(bounds), method="bounded").x))


def bake(model: keras.Model, head: str, temperature: float) -> None:
    """Divide a model's logits by a temperature, in the weights of its softmax layer: the first place stays first."""
    layer = model.get_layer(head)
    layer.set_weights([weights / temperature for weights in layer.get_weights()])
