"""A second output of a network: how unlike all training photos an image is.

The score is the part of an image's pooled features, squared, that lies outside the directions which training photos
use. It needs no photos of something else. How well scores tell photos of clothing, held out of training, from 1,093
others, with a fine-tuned EfficientNet-Lite0 (area under the ROC curve):

| score                                  | textures, noise, colours | text, screens | photos of things | all   |
|----------------------------------------|--------------------------|---------------|------------------|-------|
| highest probability                    | 0.94                     | 0.76          | 0.93             | 0.910 |
| entropy of the probabilities           | 0.94                     | 0.76          | 0.94             | 0.924 |
| log of the sum of exponentiated logits | 0.76                     | 0.56          | 0.94             | 0.878 |
| cosine to the nearest class mean       | 1.00                     | 1.00          | 0.98             | 0.988 |
| cosine to the nearest training photo   | 0.97                     | 1.00          | 0.99             | 0.987 |
| this one                               | 1.00                     | 1.00          | 0.99             | 0.993 |
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.utils.extmath import randomized_svd

from contract.document import NOVELTY, PROBABILITIES, Novelty
from contract.outputs import Outputs
from training.models.features import Features
from training.words import counted

_log = logging.getLogger(__name__)

SCORE_PHOTOS = 1000  # of train, whose features the score is fitted to; all 3,068 of clothing made it no better
# As many as classes, since a trained network uses hardly more; 16 of clothing's 10 have 0.990 in place of the 0.993 of
# 64. More take in noise: after half an hour on trash's 6 classes, it had 0.88 with 64, 0.93 with 32, 0.97 with 16.
FEWEST_DIRECTIONS, MOST_DIRECTIONS = 16, 64
# With fewer held-out photos, more than 5 % of others may be above the highest of their scores, on average.
FEWEST_PHOTOS = 20
MOST_TURNED_AWAY, CONFIDENCE = 0.05, 0.95
_LEAST = 1e-9  # of a length, so that features that are all 0 divide nothing by 0


@dataclass(frozen=True)
class Score:
    """A score that was fitted.

    Attributes:
        directions: Those that training photos use (c, d), of length 1 and at right angles.
        novelty: The threshold.
    """

    directions: NDArray[np.float32]
    novelty: Novelty

    def is_unknown(self, features: Features) -> NDArray[np.bool_]:
        """Tell which photos (n) are above the threshold."""
        return np.asarray(_score(features, self.directions) > self.novelty.threshold)


def fit(train: Features, labels: NDArray[np.int64], held_out: Features, classes: int) -> Score | None:
    """Fit a score to features of training photos, and its threshold to those of held-out ones; None if these are few.

    All classes of the training photos' labels (n) count the same.

    The threshold is the lowest one above which few others will be: `MOST_TURNED_AWAY`, with `CONFIDENCE`. The binomial
    distribution says how many of the held-out photos may be above it then.
    """
    if min(len(train), len(held_out)) < FEWEST_PHOTOS:
        _log.info(f"No score for unknown images: it needs {FEWEST_PHOTOS} photos in train and in validation")
        return None
    count = min(max(FEWEST_DIRECTIONS, min(classes, MOST_DIRECTIONS)), *(size // 2 for size in train.shape))
    lengths = np.maximum(np.linalg.norm(train, axis=1, keepdims=True), _LEAST)
    # Were photos to count the same, frequent classes would take all directions. Trained with 10 shoes among clothing,
    # 0.96 of other shoes were unknown, now 0.20; mean over its classes, each cut to 10 in turn: 0.18, now 0.05.
    weights = 1 / np.sqrt(np.bincount(labels)[labels, np.newaxis])
    _, _, rows = randomized_svd(train / lengths * weights, count, random_state=0)
    directions = np.asarray(rows.T, np.float32)
    scores = _score(held_out, directions)
    above = int(binom.ppf(1 - CONFIDENCE, len(scores), MOST_TURNED_AWAY)) - 1
    threshold = math.ceil(float(np.sort(scores)[::-1][max(0, above)]) * 1e6) / 1e6
    turned_away = float((scores > threshold).mean())
    _log.info(
        f"Images unlike the training photos are unknown: those with a score above {threshold:.3f}, as"
        f" {turned_away:.1%} of {counted(len(scores), 'validation photo')}"
    )
    return Score(directions, Novelty(threshold, round(turned_away, 4), len(scores)))


def _score(features: Features, directions: NDArray[np.float32]) -> NDArray[np.float32]:
    inside = np.square(features @ directions).sum(axis=1)
    return np.asarray(1 - inside / np.maximum(np.square(features).sum(axis=1), _LEAST))


def with_score(model: keras.Model, directions: NDArray[np.float32] | None) -> keras.Model:
    """Return a classifier that train made, as one that gives probabilities (n, k) and scores (n) in a dict.

    Without directions, it is as it was.
    """
    if directions is None:
        return model
    features = model.get_layer("head_dropout").input
    project = layers.Dense(directions.shape[1], use_bias=False, trainable=False, name="novelty_directions")
    inside = ops.sum(ops.square(project(features)), axis=-1)
    score = 1.0 - inside / ops.maximum(ops.sum(ops.square(features), axis=-1), _LEAST)
    project.set_weights([directions])
    return keras.Model(model.inputs[0], {PROBABILITIES: model.outputs[0], NOVELTY: score}, name=model.name)


def predict(model: keras.Model, images: NDArray[np.uint8]) -> Outputs:
    """Return what a classifier, with or without a score, gives for images (n, h, w, 3)."""
    outputs = model.predict(images, verbose=0)
    return Outputs.of(outputs) if isinstance(outputs, dict) else Outputs(outputs)
