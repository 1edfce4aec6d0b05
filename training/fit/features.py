"""Features of a frozen backbone, computed once and kept beside the pixels."""

from __future__ import annotations

import hashlib

import keras
import numpy as np

from contract.disk import written_whole
from training.data.pixels import Pixels, Rows, has_rows
from training.models.features import Features, compute_features


def frozen_features(model: keras.Model, *splits: Pixels) -> list[Features]:
    """Return the features of the photos of some splits, which other trainings then find in the cache.

    Args:
        model: Pixels 0-255, float32 (n, h, w, 3), to features (n, c).
        splits: The photos. If one is a part of a split, the whole split's features are computed, for its other parts.
    """
    name = _digest(model)
    files = [photos.file.with_suffix(f".{name}.npy") for photos in splits]
    whole = {file: getattr(photos.images, "array", photos.images) for file, photos in zip(files, splits, strict=True)}
    if missing := {file: images for file, images in whole.items() if not has_rows(file, len(images))}:
        for file, features in zip(missing, compute_features(model, *missing.values()), strict=True):
            with written_whole(file) as draft, draft.open("wb") as opened:
                np.save(opened, features)
    rows = [photos.images.positions if isinstance(photos.images, Rows) else slice(None) for photos in splits]
    return [np.load(file, mmap_mode="r")[chosen] for file, chosen in zip(files, rows, strict=True)]


def _digest(model: keras.Model) -> str:
    """Return what tells models apart: their weights, and what they make of noise, in which every layer has a part."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:])).astype(np.float32)
    answer = keras.ops.convert_to_numpy(model(noise, training=False))
    digest = hashlib.sha256(repr([model.input_shape, keras.__version__]).encode())
    for values in (answer, *model.get_weights()):
        digest.update(values.tobytes())
    return digest.hexdigest()[:12]
