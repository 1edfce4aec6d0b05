"""A folder of photos to a run folder: read, train in phases, calibrate, measure, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract.document import Contract, ImageSpec
from training.data.folder import Photo, read_folder
from training.data.pixels import Pixels, decoder, load_pixels
from training.fit import batches, calibration, phases
from training.fit.recipe import Recipe
from training.fit.report import write_report
from training.fit.unfinished import History, open_unfinished
from training.judge.metrics import measure
from training.judge.report import Result
from training.models.catalogue import Architecture, image_spec
from training.runs.folder import provenance, write_run

_log = logging.getLogger(__name__)

GOLDEN_PHOTOS = 3
SAMPLES = 12  # augmented photos that a run's report shows


def train(
    folder: Path,
    name: str,
    *,
    architecture: Architecture,
    weights: str | None,
    recipe: Recipe,
    runs: Path,
    cache: Path,
    fresh: bool = False,
    distribute: str = "none",
) -> Path:
    """Train a classifier on a folder of photos.

    Args:
        folder: Class folders, or split folders with class folders inside.
        name: The model's name.
        architecture: The backbone; its size decides the pixels.
        weights: `imagenet`, or None to start from random ones.
        recipe: How to train.
        runs: Where run folders go.
        cache: Where decoded pixels go.
        fresh: Start anew, though the same run was interrupted; without it, that one goes on.
        distribute: Which devices share the work, see `_strategy`.

    Returns:
        The run folder, see `training/runs/folder.py`.
    """
    recipe.check_trains(weights)
    keras.utils.set_random_seed(recipe.seed)
    dataset, spec = read_folder(folder, recipe.seed), image_spec(architecture)
    splits = {split: load(split, photos, spec, cache) for split, photos in dataset.splits.items()}
    if (few := len(splits["validation"].labels)) < phases.FEW_PHOTOS:
        _log.info(
            f"Note that {few} photos for validation measure roughly: by them epochs are chosen, and int8 is released"
        )
    made_of = {
        "architecture": asdict(architecture),
        "weights": weights,
        "recipe": asdict(recipe),
        "data": {split: pixels.digest for split, pixels in splits.items()},
        "keras": keras.__version__,
        "decoder": decoder(),
    }
    shared = _strategy(distribute)
    if distribute != "none":
        _log.info(f"Sharing each batch of {recipe.batch_size} among {shared.num_replicas_in_sync} devices")
    with open_unfinished(runs, name, made_of, fresh) as unfinished, shared.scope():
        backbone = architecture.backbone(weights, include_top=False)
        model = phases.assemble(architecture, backbone, len(dataset.classes), recipe)
        if recipe.class_weights == "balanced":
            _log_class_weights(model, splits["train"], dataset.classes)
        training = phases.Phases(model, recipe, unfinished)
        history: dict[str, History] = {
            "head": training.head(splits) if weights else {},  # random layers are not worth freezing
            "upper layers": training.upper_layers(backbone, recipe.unfreeze if weights else 1.0, splits),
        }
        temperature = _calibrate(model, splits["validation"], recipe)
        held_out: dict[str, Pixels] = {name: splits[name] for name in ("validation", "test") if name in splits}
        results = {split: _measure(name, split, model, pixels, dataset.classes) for split, pixels in held_out.items()}
        origin = {
            "architecture": architecture.name,
            "weights": weights or "none",
            "data_digest": made_of["data"],
            "recipe": asdict(recipe),
            "temperature": round(temperature, 4),
            "training_s": round(unfinished.spent_s),
            **provenance(),
        }
        contract = Contract(name, dataset.classes, spec, origin, _metrics(results))
        split, result = list(results.items())[-1]
        run = write_run(runs, model, contract, history, _telling_photos(held_out[split], result))
        augmented = _samples(splits["train"], recipe)
        write_report(run, model, contract, history=history, result=result, photos=held_out[split], split=split,
                     augmented=augmented)  # fmt: skip
    return run


def load(split: str, photos: Sequence[Photo], spec: ImageSpec, cache: Path) -> Pixels:
    """Read the pixels of a split, and tell what was read and skipped."""
    started = time.monotonic()
    pixels = load_pixels(photos, spec, cache)
    for path, reason in pixels.skipped.items():
        _log.info(f"Skipped {path}: {reason}")
    _log.info(f"Read {len(pixels.labels)} photos for {split} in {time.monotonic() - started:.1f} s")
    return pixels


def _calibrate(model: keras.Model, pixels: Pixels, recipe: Recipe) -> float:
    """Fit a temperature on validation and bake it into the head."""
    probabilities = model.predict(pixels.images, batch_size=recipe.batch_size, verbose=0)
    temperature = calibration.fit_temperature(probabilities, pixels.labels)
    calibration.bake(model, "head_probabilities", temperature)
    if temperature != 1.0:
        _log.info(f"Divided the logits by a temperature of {temperature:.2f}, fitted on validation")
    return temperature


def _log_class_weights(model: keras.Model, pixels: Pixels, classes: Sequence[str]) -> None:
    by_class = phases.class_weights(phases.one_hot(pixels.labels, model))
    _log.info("Class weights: " + ", ".join(f"{classes[k]} {weight:.2f}" for k, weight in by_class.items()))


def _measure(name: str, split: str, model: keras.Model, pixels: Pixels, classes: Sequence[str]) -> Result:
    probabilities = model.predict(pixels.images, verbose=0)
    figures = measure(probabilities, pixels.labels, classes)
    accuracy = figures.accuracy
    _log.info(
        f"Accuracy on {split}: {accuracy.value:.4f} of {figures.photos} photos,"
        f" 95 % interval {accuracy.low:.3f} to {accuracy.high:.3f}"
    )
    return Result(f"{name}, {split}", probabilities, figures, None)


def _metrics(results: Mapping[str, Result]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split, result in results.items():
        metrics[f"{split}_accuracy"] = round(result.figures.accuracy.value, 4)
        metrics[f"{split}_calibration_error"] = round(result.figures.calibration_error, 4)
        metrics[f"{split}_photos"] = result.figures.photos
    return metrics


def _samples(pixels: Pixels, recipe: Recipe) -> NDArray[np.uint8]:
    """Return some photos as the first batch of the upper layers has them, augmented; none where these do not train."""
    if not recipe.epochs:
        return np.empty((0, *pixels.images.shape[1:]), np.uint8)
    targets = np.zeros((len(pixels.labels), 1), np.float32)
    augmented, _ = next(iter(batches.shuffled(pixels.images, targets, recipe, range(1), augment=True)))
    return np.clip(augmented.numpy()[:SAMPLES], 0, 255).astype(np.uint8)


def _telling_photos(pixels: Pixels, result: Result) -> list[bytes]:
    """Return the held-out photos that the model is least sure of: they show a change of pixels first."""
    top = result.probabilities.max(axis=1)
    return [pixels.paths[position].read_bytes() for position in np.argsort(top)[:GOLDEN_PHOTOS]]


def _strategy(name: str) -> tf.distribute.Strategy:
    """Return how work is shared: `none`, or `mirrored` for all GPUs of this machine, or its CPU devices without one."""
    if name == "none":
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
