"""Where a run's model looks: Grad-CAM heat maps over the photos that tell most."""

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

from contract.image import decode
from training import page
from training.errors import TrainingError
from training.judge.selection import MOST_SCORED, Scored, choose_sections, find_photos, score
from training.models.backbones import is_map
from training.runs.folder import Run, read_run
from training.words import counted

_log = logging.getLogger(__name__)

OPACITY = 0.5  # of the colours over the photo
FIRST_PHOTOS = 5  # of a section in sight


@dataclass(frozen=True)
class Explanation:
    """What the model saw in a photo.

    Attributes:
        photo: The file, its class if that is known, and all probabilities.
        index: The class that is explained.
        pixels: The photo as the model sees it, (h, w, 3).
        overlay: The same, with warm colours on what spoke for the class.
    """

    photo: Scored
    index: int
    pixels: NDArray[np.uint8]
    overlay: NDArray[np.uint8]


def explain(run: Path, sources: Sequence[str], label: str | None, out: Path) -> dict[str, list[Explanation]]:
    """Explain a run's predictions for the photos that tell most, and write explain.html into a folder.

    Args:
        run: A run folder.
        sources: Files, and folders of photos.
        label: The class to explain; None takes the most probable one of each photo.
        out: The folder for the page.

    Returns:
        Sections of the page, see `choose_sections`.

    Raises:
        TrainingError: No photo decodes, the model does not know the class, or train did not make the model.
    """
    model, contract, *_ = read_run(run)
    classes = contract.classes
    if label is not None and label not in classes:
        raise TrainingError(f"Expected a class of: {', '.join(classes)}. Received: {label!r}")
    heat = HeatMaps(model)
    photos = find_photos(sources, classes)
    scored = score(photos, contract.image, model.predict_on_batch)
    sample = f", a sample of {len(photos)}" if len(photos) > MOST_SCORED else ""
    description = f"Scored {counted(len(scored), 'photo')}{sample}"
    _log.info(description)
    chosen, sections = choose_sections(scored), dict[str, list[Explanation]]()
    for name, section in chosen.items():
        _log.info(f"\n{name}" if len(chosen) > 1 else "")
        for photo in section:
            pixels = decode(Path(photo.path).read_bytes(), contract.image).pixels
            index = photo.predicted if label is None else classes.index(label)
            explanation = Explanation(photo, index, pixels, _overlay(pixels, heat.of(pixels, index)))
            sections.setdefault(name, []).append(explanation)
            _log.info(f"{_caption(explanation, classes)}  {photo.path}")
    out.mkdir(parents=True, exist_ok=True)
    written = page.write(
        out / "explain.html",
        "explain.html",
        title=Run(run).name,
        description=description,
        label=label,
        classes=classes,
        sections=sections,
        first=FIRST_PHOTOS,
    )
    _log.info(f"\nWrote {written}")
    return sections


def _caption(explanation: Explanation, classes: Sequence[str]) -> str:
    """Return the true class if it is known, the predicted and the explained one, with their probabilities."""
    photo = explanation.photo

    def named(index: int) -> str:
        return f"{classes[index]} {photo.probabilities[index]:.3f}"

    text = f"taken for {named(photo.predicted)}"
    if photo.label == photo.predicted:
        text = f"{named(photo.predicted)}, right"
    elif photo.label is not None:
        text = f"{named(photo.label)}, {text}"
    return text if explanation.index in (photo.label, photo.predicted) else f"{text}; {named(explanation.index)}"


class HeatMaps:
    """Grad-CAM on the last feature maps of a model that train made: preprocessing, backbone, head.

    Source: R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks (2017).
    """

    def __init__(self, model: keras.Model) -> None:
        backbone = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
        head = next((layer for layer in model.layers if layer.name == "head_probabilities"), None)
        if backbone is None or not isinstance(head, keras.layers.Dense) or head.activation != keras.activations.softmax:
            raise TrainingError("Expected a model that train made, with a backbone and a head. Received another")
        last = next(layer for layer in reversed(backbone.layers) if is_map(layer.output))
        self._features = keras.Model(backbone.inputs, [last.output, backbone.outputs[0]])
        self._head = head
        self._preprocess = keras.Model(model.inputs[0], backbone._inbound_nodes[-1].input_tensors[0])

    def of(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """Return how much each place spoke for a class, (rows, columns) from 0 to 1."""
        inputs = tf.constant(pixels[np.newaxis], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(inputs)  # without it, a wholly frozen backbone leaves no gradient
            maps, features = self._features(self._preprocess(inputs), training=False)
            logits = (features @ self._head.kernel + self._head.bias)[0]
            others = tf.concat([logits[:index], logits[index + 1 :]], axis=0)
            score = logits[index] - tf.reduce_logsumexp(others)  # log-odds, as a probability of 1 leaves no gradient
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1))[0].numpy()
        return np.asarray(heat / max(float(heat.max()), 1e-12))


def _overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    colours = 255 * mpl.colormaps["turbo"](large.clip(0, 1))[..., :3]
    return (pixels * (1 - OPACITY) + colours * OPACITY).astype(np.uint8)
