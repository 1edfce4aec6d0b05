"""Where a run's model looks: Grad-CAM heat maps over chosen photos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from contract.image import ContractPreprocessor, ImageError
from training import page
from training.errors import DataError, TrainingError
from training.models.catalogue import find_architecture, preprocess
from training.runs.folder import read_run

_log = logging.getLogger(__name__)

OPACITY = 0.5  # of the colours over the photo
MOST_PHOTOS = 24  # on a page; each takes 0.2 s


@dataclass(frozen=True)
class Explanation:
    """What the model saw in a photo.

    Attributes:
        source: The file.
        pixels: The photo as the model sees it, (h, w, 3).
        overlay: The same, with warm colours on what spoke for the class.
        label: The class.
        probability: Its probability.
    """

    source: str
    pixels: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    label: str
    probability: float


def explain(run: Path, images: Sequence[str], label: str | None, out: Path) -> list[Explanation]:
    """Explain a run's predictions, and write explain.html into a folder.

    Args:
        run: A run folder.
        images: Files.
        label: The class to explain; None takes the most probable one of each photo.
        out: The folder for the page.

    Raises:
        TrainingError: No photo decodes, the model does not know the class, or train did not make the model.
    """
    model, contract, _ = read_run(run)
    if label is not None and label not in contract.classes:
        raise TrainingError(f"Expected a class of: {', '.join(contract.classes)}. Received: {label!r}")
    preprocessor = ContractPreprocessor(contract.image)
    heat = HeatMaps(model, find_architecture(contract.origin.architecture).preprocessing)
    found: list[Explanation] = []
    for position, image in enumerate(images):
        if len(found) == MOST_PHOTOS:
            _log.info(f"The page shows {MOST_PHOTOS} photos; {len(images) - position} more were left out")
            break
        try:
            pixels = preprocessor.from_path(image)[0]
        except (ImageError, OSError) as exc:
            _log.info(f"Skipped {image}: {exc}")
            continue
        index, probability, map_ = heat.of(pixels, None if label is None else contract.classes.index(label))
        found.append(Explanation(image, pixels, _overlay(pixels, map_), contract.classes[index], probability))
        _log.info(f"{contract.classes[index]} {probability:.3f}  {image}")
    if not found:
        raise DataError(f"Expected photos that decode. Received {len(images)} that do not")
    out.mkdir(parents=True, exist_ok=True)
    shown = [{**vars(each), "urls": [page.thumbnail(each.pixels), page.thumbnail(each.overlay)]} for each in found]
    page.write(out / "explain.html", "explain.html", title=f"{run.parent.name}/{run.name}", explanations=shown)
    _log.info(f"\nWrote {out / 'explain.html'}")
    return found


class HeatMaps:
    """Grad-CAM on the last feature maps of a model that train made: preprocessing, backbone, head.

    Source: R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks (2017).
    """

    def __init__(self, model: keras.Model, preprocessing: str) -> None:
        backbone = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
        if backbone is None or "head_probabilities" not in [layer.name for layer in model.layers]:
            raise TrainingError("Expected a model that train made, with a backbone and a head. Received another")
        last = next(layer for layer in reversed(backbone.layers) if len(layer.output.shape) == 4)
        self._features = keras.Model(backbone.inputs, [last.output, backbone.outputs[0]])
        self._head = model.get_layer("head_probabilities")
        self._preprocessing = preprocessing

    def of(self, pixels: NDArray[np.uint8], index: int | None) -> tuple[int, float, NDArray[np.float32]]:
        """Return a class, its probability, and how much each place spoke for it, (rows, columns) from 0 to 1."""
        inputs = tf.constant(pixels[np.newaxis], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(inputs)  # without it, a wholly frozen backbone leaves no gradient
            maps, features = self._features(preprocess(inputs, self._preprocessing), training=False)
            probabilities = self._head(features)[0]
            chosen = int(tf.argmax(probabilities)) if index is None else index
            score = tf.math.log(probabilities[chosen] + 1e-12)
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1))[0].numpy()
        return chosen, float(probabilities[chosen]), heat / max(float(heat.max()), 1e-12)


def _overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    colours = 255 * mpl.colormaps["turbo"](large.clip(0, 1))[..., :3]
    return (pixels * (1 - OPACITY) + colours * OPACITY).astype(np.uint8)
