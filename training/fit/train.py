"""A folder of photos to a run folder: read, train in phases, calibrate, measure, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from contract.document import Contract, ImageSpec
from training.data.folder import Dataset
from training.data.pixels import Photos, Pixels, decoder
from training.fit import calibration, phases
from training.fit.preset import Preset
from training.fit.recipe import Recipe
from training.fit.report import augmented_photos, write_report
from training.fit.unfinished import History, open_unfinished
from training.judge.metrics import measure
from training.judge.report import Result
from training.models import novelty
from training.models.catalogue import Architecture
from training.runs.folder import provenance, write_run
from training.runs.track import Tracking
from training.words import counted

_log = logging.getLogger(__name__)

GOLDEN_PHOTOS = 3
SCORE_PHOTOS = 1000  # of train, whose features are computed for the score; all 3,068 of clothing made it no better


def train(
    photos: Photos,
    preset: Preset,
    *,
    name: str,
    runs: Path,
    fresh: bool = False,
    distribute: str = "none",
    tracking: Tracking | None = None,
) -> Path:
    """Train a classifier on a folder of photos.

    Args:
        photos: Class folders, or split folders with class folders inside.
        preset: The network, its weights and the recipe.
        name: The model's name.
        runs: Where run folders go.
        fresh: Start again, though the same training was interrupted; without it, that one continues.
        distribute: Which devices share the work, see `_strategy`.
        tracking: What is sent each epoch's figures.

    Returns:
        The run folder, see `training/runs/folder.py`.
    """
    preset.check_trains()
    recipe = preset.recipe
    keras.utils.set_random_seed(recipe.seed)
    architecture = phases.start_of(preset)
    dataset, spec = photos.splits(), architecture.photo_spec
    start = _log_start(architecture, preset)
    splits = _read(photos, dataset, spec)
    strategy = _strategy(distribute, recipe)
    digests = {split: pixels.digest for split, pixels in splits.items()}
    made_of = [asdict(architecture), preset.weights, asdict(recipe), digests, keras.__version__, decoder()]
    with open_unfinished(runs, name, made_of, fresh) as unfinished, strategy.scope():
        if tracking:
            unfinished.follow = tracking.start(name, unfinished.path)
        network = phases.build(preset, len(dataset.classes))
        _log_class_weights(network.model, splits["train"], dataset.classes, recipe)
        history = phases.Phases(network, preset, unfinished).fit(splits)
        origin = replace(
            provenance(),
            **start,
            data_digest=digests,
            recipe=asdict(recipe),
            temperature=round(_calibrate(network.model, splits["validation"], recipe), 4),
            training_s=round(unfinished.spent_s),
        )
        contract = Contract(name, dataset.classes, spec, origin)
        return _keep(runs, network.model, contract, history=history, splits=splits, recipe=recipe)


def _read(photos: Photos, dataset: Dataset, spec: ImageSpec) -> dict[str, Pixels]:
    """Read each split, and log what there is."""
    for line in dataset.describe():
        _log.info(line)
    splits = {split: photos.read(split, files, spec) for split, files in dataset.splits.items()}
    if (few := len(splits["validation"].labels)) < phases.FEW_PHOTOS:
        _log.info(f"Note: only {counted(few, 'validation photo')} to choose the best epoch by, and to decide on int8")
    return splits


def _log_start(architecture: Architecture, preset: Preset) -> dict[str, str]:
    """Log which file a training starts from, if any, and return what the contract says of it."""
    start, spec = architecture.origin(preset.weights), architecture.photo_spec
    if "weights_sha256" in start:
        _log.info(
            f"Starting from {start['weights']}: {architecture.name} at {spec.height} by {spec.width} pixels, with"
            f" preprocessing: {architecture.preprocessing}"
        )
    return start


def _keep(
    runs: Path,
    model: keras.Model,
    contract: Contract,
    *,
    history: Mapping[str, History],
    splits: Mapping[str, Pixels],
    recipe: Recipe,
) -> Path:
    """Measure a model on what was held out, and write its run folder with a report."""
    held_out = {split: splits[split] for split in ("validation", "test") if split in splits}
    results = {split: _measure(split, model, pixels, contract) for split, pixels in held_out.items()}
    score, results = _fit_score(model, splits, results)
    contract = replace(contract, novelty=score.novelty if score else None)
    contract = replace(contract, metrics={"train_photos": len(splits["train"].labels), **_metrics(results)})
    split, result = list(results.items())[-1]
    run = write_run(
        runs,
        model,
        contract,
        history,
        _telling_photos(held_out[split], result),
        directions=score.directions if score else None,
    )
    augmented = augmented_photos(splits["train"], recipe)
    write_report(
        run, model, contract, history=history, result=result, photos=held_out[split], split=split, augmented=augmented
    )
    return run


def _calibrate(model: keras.Model, pixels: Pixels, recipe: Recipe) -> float:
    """Fit a temperature on validation and bake it into the head."""
    probabilities = model.predict(pixels.images, batch_size=recipe.batch_size, verbose=0)
    temperature = calibration.fit_temperature(probabilities, pixels.labels)
    calibration.bake(model, "head_probabilities", temperature)
    if temperature != 1.0:
        _log.info(f"Divided the logits by a temperature of {temperature:.2f}, fitted on validation")
    return temperature


def _log_class_weights(model: keras.Model, pixels: Pixels, classes: Sequence[str], recipe: Recipe) -> None:
    if recipe.class_weights != "balanced":
        return
    by_class = phases.class_weights(phases.one_hot(pixels.labels, model))
    _log.info("Class weights: " + ", ".join(f"{classes[k]} {weight:.2f}" for k, weight in by_class.items()))


def _fit_score(
    model: keras.Model, splits: Mapping[str, Pixels], results: Mapping[str, Result]
) -> tuple[novelty.Score | None, dict[str, Result]]:
    """Fit the score for unknown images, and add to the results which photos it would turn away."""
    of_images = novelty.feature_model(model)
    if of_images is None:
        return None, dict(results)
    train = splits["train"].images
    chosen = np.linspace(0, len(train) - 1, min(len(train), SCORE_PHOTOS)).round().astype(int)
    features = {split: of_images.predict(splits[split].images, verbose=0) for split in results}
    score = novelty.fit(of_images.predict(train[chosen], verbose=0), features["validation"])
    if score is None:
        return None, dict(results)
    unknown = {split: score.is_unknown(features[split]) for split in results}
    return score, {split: replace(result, unknown=unknown[split]) for split, result in results.items()}


def _measure(split: str, model: keras.Model, pixels: Pixels, contract: Contract) -> Result:
    probabilities = model.predict(pixels.images, verbose=0)
    figures = measure(probabilities, pixels.labels, contract.classes)
    accuracy = figures.accuracy
    _log.info(
        f"Accuracy on {split}: {accuracy.value:.4f} of {counted(figures.photos, 'photo')},"
        f" 95 % interval {accuracy.low:.3f} to {accuracy.high:.3f}"
    )
    return Result(f"{contract.model}, {split}", probabilities, figures, None)


def _metrics(results: Mapping[str, Result]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split, result in results.items():
        metrics[f"{split}_accuracy"] = round(result.figures.accuracy.value, 4)
        metrics[f"{split}_calibration_error"] = round(result.figures.calibration_error, 4)
        metrics[f"{split}_photos"] = result.figures.photos
    return metrics


def _telling_photos(pixels: Pixels, result: Result) -> list[bytes]:
    """Return the held-out photos that the model is least sure of: they show a change of pixels first."""
    top = result.probabilities.max(axis=1)
    return [pixels.paths[position].read_bytes() for position in np.argsort(top)[:GOLDEN_PHOTOS]]


def _strategy(name: str, recipe: Recipe) -> tf.distribute.Strategy:
    """Return how work is shared: `none`, or `mirrored` for all GPUs of this machine, or its CPU devices without one."""
    if name == "none":
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    _log.info(f"Sharing each batch of {recipe.batch_size} among {counted(len(devices), 'device')}")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
