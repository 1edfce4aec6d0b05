"""A folder of photos to a run folder: read, train in phases, calibrate, measure, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract.document import Contract
from training.data.folder import Dataset
from training.data.pixels import Photos, Pixels, decoder, spread_by_class
from training.errors import TrainingError
from training.fit import phases
from training.fit.features import frozen_features
from training.fit.plan import Plan, find_plan
from training.fit.preset import Preset
from training.fit.recipe import Recipe
from training.fit.report import Course, write_report
from training.judge import calibration
from training.judge.metrics import measure
from training.judge.report import Result
from training.models import novelty
from training.models.features import compute_features
from training.release.golden import telling_photos
from training.runs.folder import Run, find_same, finish_run, provenance, run_of, write_run
from training.runs.track import KNOWN, Tracking
from training.runs.unfinished import Unfinished, digest_of, open_unfinished, read_kept
from training.words import counted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Photos to train on and held-out ones, by split, as a network needs them, and the names of their classes."""

    photos: Photos
    classes: tuple[str, ...]
    splits: dict[str, Pixels]


def read_data(photos: Photos, preset: Preset) -> Data:
    """Read each split as a preset's network needs it.

    Raises:
        DataError: There is too little, or nothing that decodes.
    """
    start = phases.start_of(preset)
    dataset, spec, origin = photos.splits(), start.photo_spec, start.origin(preset.weights)
    if "weights_sha256" in origin:
        _log.info(
            f"Starting from {origin['weights']}: {start.name} at {spec.height} by {spec.width} pixels, with"
            f" preprocessing: {start.preprocessing}"
        )
    splits = {split: photos.read(split, files, spec) for split, files in dataset.splits.items()}
    run, measured = run_of(Path(preset.weights)), "test" if "test" in splits else "validation"
    known = run.contract.origin.data_digest if run else {}
    if known and known.get(measured) != splits[measured].digest:
        _log.info(
            f"Note: {origin['weights']} held out other photos. It may have been trained on some that are held out now,"
            " so their accuracy may be too high. A test/ beside train/, whose photos stay, prevents this"
        )
    return Data(photos, dataset.classes, splits)


def describe_data(dataset: Dataset) -> None:
    """Log how many photos each split has."""
    for line in dataset.describe():
        _log.info(line)
    if (few := len(dataset.splits["validation"])) < phases.FEW_PHOTOS:
        decided = "" if "test" in dataset.splits else " and decide on int8"  # which test photos do, if there are any
        too_few = f"Note: only {counted(few, 'validation photo')} to choose the best epoch{decided}"
        _log.info(f"{too_few}; they are too few to calibrate the network's probabilities")


@contextmanager
def memory_watched() -> Iterator[None]:
    """Say what to do where the memory of a GPU does not suffice.

    Raises:
        TrainingError: It does not.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as exc:
        raise TrainingError("Training ran out of memory. A smaller batch size or input size takes less") from exc


@contextmanager
def train(
    data: Data,
    preset: Preset,
    *,
    name: str,
    runs: Path,
    strategy: tf.distribute.Strategy,
    minutes: float | None = None,
    passed_s: float = 0.0,
    fresh: bool = False,
    tracking: Tracking | None = None,
    first: Path | None = None,
) -> Iterator[Path]:
    """Train a classifier on photos, and yield its run folder, see `training/runs/folder.py`.

    Its state stays until the block ends, as a release may be interrupted too. No run is made twice:

        the same training before               now
        none, or any with `fresh`              trains
        interrupted                            goes on after its last epoch; with other minutes, by another plan
        ended, or interrupted in its release   trains nothing, and yields that run

    Args:
        data: The photos, from `read_data` with the preset.
        preset: The network, its weights and the recipe. Without epochs, only the head is fitted.
        strategy: Which devices share the work, from `find_strategy`.
        minutes: For all, from the first version to the release; None if only the epochs count.
        passed_s: Seconds of them that have passed.
        tracking: What is sent each epoch's figures; it is not begun for a run that is there already.
        first: The run of the first version, to compare with in the report.
    """
    made_of = _made_of(data, preset)
    digest = digest_of([*made_of, minutes])
    with open_unfinished(runs, name, made_of, fresh) as unfinished:
        begun = unfinished.path / "plan.json"
        is_other = begun.is_file() and read_kept(begun)["minutes"] != minutes
        run = None if fresh else find_same(runs / name, digest, since=None if is_other else begun)
        if tracking and (not run or (unfinished.path / KNOWN).is_file()):  # an interrupted one is sent to its end
            unfinished.follow = tracking.start(name, unfinished.path)
        if run:
            unfinished.is_kept = is_other  # it may still go on with its own minutes
            _log_ended(run, preset)
        else:
            with memory_watched(), strategy.scope():
                plan = find_plan(begun, preset, data, minutes, passed_s)
                unfinished.begin()
                data = data if plan.preset.architecture == preset.architecture else read_data(data.photos, plan.preset)
                run = _train(data, plan, name, unfinished, runs=runs, first=first)
            finish_run(run, digest)
        yield run


def _log_ended(run: Path, preset: Preset) -> None:
    if preset.recipe.epochs:
        _log.info(f"Nothing is trained, as {run} is made of the same. With --fresh it trains again")
    else:
        _log.info(f"The first version is there already: {run}")


def _made_of(data: Data, preset: Preset) -> list[Any]:
    """Return all that makes a training what it is, but for its minutes, as JSON values."""
    digests = {split: pixels.digest for split, pixels in data.splits.items()}
    network = [*phases.start_of(preset).made_of(preset.weights), preset.larger, asdict(preset.recipe)]
    return [*network, digests, list(data.classes), keras.__version__, decoder()]


def _train(data: Data, plan: Plan, name: str, unfinished: Unfinished, *, runs: Path, first: Path | None) -> Path:
    """Train, calibrate and measure a network, and write its run folder with a report."""
    preset, recipe, splits = plan.preset, plan.preset.recipe, data.splits
    keras.utils.set_random_seed(recipe.seed)
    start, begun = phases.start_of(preset), provenance()
    network = phases.build(preset, len(data.classes))
    _log_class_weights(network.model, splits["train"], data.classes, recipe)
    history = phases.Phases(network, preset, unfinished, limit_s=plan.limit_s, trainings=plan.trainings).fit(splits)
    some = splits["train"].part(spread_by_class(splits["train"].labels, novelty.SCORE_PHOTOS))
    features = _compute_features(network, {**splits, "train": some}, recipe)
    known: dict[str, Any] = {
        **start.origin(preset.weights),
        "data_digest": {split: pixels.digest for split, pixels in splits.items()},
        "recipe": asdict(recipe),
        "temperature": round(_calibrate(network, features["validation"], splits["validation"].labels), 4),
        "created_at": provenance().created_at,
        "training_s": round(unfinished.spent_s),
    }
    contract = Contract(name, data.classes, start.photo_spec, replace(begun, **known))
    results: dict[str, Result] = {
        split: _measure(split, network.head.predict(features[split], verbose=0), splits[split], contract)
        for split in ("validation", "test")
        if split in splits
    }
    score = novelty.fit(features["train"], some.labels, features["validation"], len(data.classes))
    if score:
        contract = replace(contract, novelty=score.novelty)
        results = {
            split: replace(result, unknown=score.is_unknown(features[split])) for split, result in results.items()
        }
    contract = replace(contract, metrics={"train_photos": len(splits["train"].labels), **_metrics(results)})
    split, result = list(results.items())[-1]
    photos = telling_photos(splits[split].paths, result.probabilities)
    directions = score.directions if score else None
    course = Course(plan.text, Run(first).contract.metrics if first else None, history)
    run = write_run(runs, network.model, contract, history, photos, directions=directions)
    write_report(run, network.model, contract, course=course, result=result, splits=splits, split=split, recipe=recipe)
    _log.info(f"Saved the run in {run}")
    return run


def _compute_features(
    network: phases.Network, splits: Mapping[str, Pixels], recipe: Recipe
) -> dict[str, NDArray[np.float32]]:
    """Return the features (n, c) of each split."""
    if recipe.epochs:
        images = (np.asarray(pixels.images[:]) for pixels in splits.values())
        return dict(zip(splits, compute_features(network.features, *images), strict=True))
    return dict(zip(splits, frozen_features(network.features, *splits.values()), strict=True))


def _calibrate(network: phases.Network, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Fit a temperature on validation and bake it into the head.

    Raises:
        TrainingError: The network answers nan.
    """
    probabilities = network.head.predict(features, verbose=0)
    if not np.isfinite(probabilities).all():
        raise TrainingError("Expected numbers as probabilities on validation. Received: nan. Lower --learning-rate")
    temperature = calibration.fit_temperature(probabilities, labels)
    calibration.bake(network.model, "head_probabilities", temperature)
    if temperature != 1.0:
        _log.info(f"Divided the logits by a temperature of {temperature:.2f}, fitted on validation")
    return temperature


def _log_class_weights(model: keras.Model, pixels: Pixels, classes: Sequence[str], recipe: Recipe) -> None:
    if recipe.class_weights != "balanced":
        return
    by_class = phases.class_weights(pixels.labels, model.output_shape[-1])
    low, high = (f"{by_class[k]:.2f} ({classes[k]})" for k in (int(by_class.argmin()), int(by_class.argmax())))
    _log.info(f"Class weights: {low} to {high}")


def _measure(split: str, probabilities: NDArray[np.float32], pixels: Pixels, contract: Contract) -> Result:
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
        metrics[f"{split}_log_loss"] = round(result.figures.log_loss, 4)
        metrics[f"{split}_calibration_error"] = round(result.figures.calibration_error, 4)
        metrics[f"{split}_photos"] = result.figures.photos
    return metrics


def find_strategy(name: str, batch_size: int) -> tf.distribute.Strategy:
    """Return how work is shared: `none`, or `mirrored` for all GPUs of this machine, or its CPU devices without one.

    Raises:
        TrainingError: The devices cannot have equal parts of a batch, which Keras needs.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    names = [each.name for each in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    devices = counted(len(names), "device")
    if rest := batch_size % len(names):
        enough = batch_size + len(names) - rest
        raise TrainingError(
            f"Expected a --batch-size that {devices} can share in equal parts, such as {enough}. Received: {batch_size}"
        )
    _log.info(f"Sharing each batch of {batch_size} among {devices}")
    return tf.distribute.MirroredStrategy(names)
