"""Evaluates predictors on photos with labels: choose the photos, ask, measure, report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from contract.document import Contract
from training.data.folder import SPLIT_FOLDERS, Photo, read_split, split_folder
from training.data.pixels import Photos
from training.errors import DataError
from training.judge import metrics, report
from training.judge.predictors import Predictor, check_alike
from training.judge.report import Result

_log = logging.getLogger(__name__)


def evaluate(
    photos: Photos, predictors: Sequence[Predictor], split: str, *, out: Path, console: Console
) -> list[Result]:
    """Measure predictors on the same photos, and write a report.

    Args:
        photos: Class folders, or split folders with class folders inside.
        predictors: One or more; the others are compared with the first.
        split: `train`, `validation`, `test`, `all`, or `auto`, the most held-out photos there are: `choose_photos`.
        out: A folder for evaluation.html, evaluation.json and the plots.
        console: Takes the tables.

    Raises:
        TrainingError: No such photos, or a predictor that does not answer.
    """
    check_alike([(each.title, each.contract) for each in predictors])
    contract = predictors[0].contract
    chosen, told = choose_photos(photos, contract, split)
    _log.info(f"Evaluating on {told}")
    results: list[Result] = []
    for predictor in predictors:
        pixels = photos.pixels(chosen, predictor.contract.image)
        _log.info(f"Asking {predictor.title}")
        probabilities = predictor.predict(pixels)
        agreement = metrics.compare(results[0].probabilities, probabilities) if results else None
        figures = metrics.measure(probabilities, pixels.labels, contract.classes)
        results.append(Result(predictor.title, probabilities, figures, agreement))
    for path, reason in pixels.skipped.items():
        _log.info(f"Skipped {path}: {reason}")
    _log.info("")
    report.show(results, console)
    page = report.write(results, pixels, contract.classes, told, out)
    _log.info(f"\nWrote {page}, evaluation.json and plots beside it")
    return results


def choose_photos(photos: Photos, contract: Contract, split: str) -> tuple[list[Photo], str]:
    """Return photos with labels by the contract's classes, and how they are told.

    `auto` is the test split, or validation without one. A split that the folder does not have may be one that training
    took from its train photos, which are found again by its seed and their digest. Without any, the folder is taken
    whole.

    Raises:
        DataError: No such folder, split or class.
    """
    folder = photos.folder
    if not folder.is_dir():
        raise DataError(f"Expected a folder of photos. Received a path where there is none: {folder}")
    folders = {name: split_folder(folder, spellings) for name, spellings in SPLIT_FOLDERS.items()}
    own = {name: path for name, path in folders.items() if path}
    for name in {"auto": ("test", "validation"), "all": ()}.get(split, (split,)):
        if name in own:
            found = read_split(own[name], contract.classes, complete=False)
            return found, f"{len(found)} photos of {own[name]}{_trained_on(photos, found, contract, name == 'train')}"
        if name != "train" and (held_out := _held_out_again(photos, contract, name)):
            taken = f"{len(held_out)} photos of {folder}, which training set aside for {name}"
            return held_out, f"{taken}{_trained_on(photos, held_out, contract)}"
    if split not in ("auto", "all"):
        raise DataError(
            f"Expected a {split} split in {folder}, or the folder that the model was trained on."
            f" Received: {', '.join(own) or 'class folders'}"
        )
    places = list(own.values()) or [folder]
    found = [photo for path in places for photo in read_split(path, contract.classes, complete=False)]
    return found, f"all {len(found)} photos of {folder}{_trained_on(photos, found, contract, whole=True)}"


def _held_out_again(photos: Photos, contract: Contract, split: str) -> list[Photo] | None:
    """Return the photos of a split that training took from train, if it is of this folder."""
    recipe, digests = contract.origin.recipe, contract.origin.data_digest
    if "seed" not in recipe or split not in digests:
        return None
    try:
        dataset = photos.splits(recipe["seed"])
        found = dataset.splits.get(split, [])
        same_classes = dataset.classes == contract.classes
        if found and same_classes and photos.pixels(found, contract.image).digest == digests[split]:
            return found
    except DataError:  # a folder that could not be trained on is not the one that was
        pass
    return None


def _trained_on(photos: Photos, chosen: list[Photo], contract: Contract, whole: bool = False) -> str:
    """Say so where the photos chose the weights, or may have if they are a whole folder: figures on them flatter."""
    digests = contract.origin.data_digest
    used = {
        digests.get("train"): "the model was trained on them",
        digests.get("validation"): "they were used to choose the model's weights",
    }
    note = used.get(photos.pixels(chosen, contract.image).digest)
    if note is None and whole and digests:
        note = "the model may have been trained on some of them"
    return f"; {note}, which makes figures better than they are" if note else ""
