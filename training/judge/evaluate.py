"""Measures predictors on labelled photos: chooses the photos, asks, measures, reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contract.document import Contract
from training import page
from training.data.folder import Photo, left_out_files, read_rows, read_split
from training.data.pixels import Photos
from training.data.splits import find_splits
from training.data.table import is_table
from training.errors import DataError
from training.judge import metrics, report
from training.judge.predictors import Predictor, check_alike
from training.judge.report import Result
from training.words import counted

_log = logging.getLogger(__name__)

Models = Sequence[tuple[str, Contract]]  # titles and contracts


@dataclass(frozen=True)
class _Split:
    """Where the photos of a split are, in words; their folder, if it is not a CSV that names them; what reads them."""

    place: str
    folders: tuple[Path, ...]
    read: Callable[[], list[Photo]]


def evaluate(photos: Photos, predictors: Sequence[Predictor], split: str, out: Path) -> list[Result]:
    """Measure predictors on the same photos, and write a report.

    Args:
        photos: Class folders, or split folders with class folders inside.
        predictors: One or more; each is compared with the first.
        split: `train`, `validation`, `test`, `all`, or `auto`, see `choose_photos`.
        out: A folder for evaluation.html, evaluation.json and the plots.

    Raises:
        TrainingError: There are no such photos, or a predictor does not answer.
    """
    models = [(each.title, each.contract) for each in predictors]
    check_alike(models)
    contract = predictors[0].contract
    chosen, description = choose_photos(photos, models, split)
    _log.info(f"Evaluating on {description}")
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    decoded = [photos.pixels(chosen, each.contract.image) for each in predictors]
    for predictor, pixels in zip(predictors, decoded, strict=True):
        _log.info(f"Asking {predictor.title}")
        probabilities, unknown = predictor.predict(pixels)
        agreement = metrics.compare(results[0].probabilities, probabilities) if results else None
        figures = metrics.measure(probabilities, pixels.labels, contract.classes)
        results.append(Result(predictor.title, probabilities, figures, agreement, unknown))
    first = decoded[0]
    for path, reason in first.skipped.items():
        _log.info(f"Skipped {path}: {reason}")
    if first.skipped:
        description += f"; {len(first.skipped)} of them cannot be decoded"
    _log.info("")
    report.show(results)
    shown = report.draw(results, first, contract, description, out)
    written = page.write(out / "evaluation.html", "evaluation.html", **shown)
    _log.info(f"\nWrote {written}, evaluation.json and plots beside it")
    return results


def choose_photos(photos: Photos, models: Models, split: str) -> tuple[list[Photo], str]:
    """Return photos with labels by the first model's classes, and their description.

    `auto` is the test split, or else validation. Training may have taken a split that the folder does not have from
    its train photos: these are taken again, and the digest in its contract shows whether they are the same. Without any
    split, `auto` takes the whole folder.

    Raises:
        DataError: No such folder, split or class.
    """
    folder, contract = photos.folder, models[0][1]
    splits = _splits(folder, contract.classes)
    for name in {"auto": ("test", "validation"), "all": ()}.get(split, (split,)):
        if name in splits:
            chosen = _read([splits[name]])
            description = f"{counted(len(chosen), 'photo')} of {splits[name].place}"
        elif name != "train" and (chosen := _find_held_out(photos, contract, name)):
            description = f"{counted(len(chosen), 'photo')} of {folder}, which training held out for {name}"
        else:
            continue
        return chosen, description + _warning(photos, chosen, models, maybe_trained_on=name == "train")
    if split not in ("auto", "all"):
        held_out = split != "train" and split in contract.origin.data_digest
        other = " The model held out other photos for it." if held_out else ""
        or_same = ", or the folder that the model was trained on, with the same photos" if split != "train" else ""
        raise DataError(
            f"Expected a {split} split in {folder}{or_same}."
            f" Received: {', '.join(filter(None, splits)) or 'none'}.{other}"
        )
    chosen = _read(splits.values())
    description = f"all of {folder}, {counted(len(chosen), 'photo')}"
    return chosen, description + _warning(photos, chosen, models, maybe_trained_on=True)


def _splits(folder: Path, classes: Sequence[str]) -> dict[str, _Split]:
    """Return the splits of a folder or a CSV; photos that are not split have no name."""
    if is_table(folder):
        rows, _, remarks = read_rows(folder, classes)
        splits = {
            split: _Split(f"{split} in {folder}", (), partial(list[Photo], chosen)) for split, chosen in rows.items()
        }
    else:
        found = find_splits(folder)
        remarks, places = found.remarks, found.folders or {"": found.root}
        splits = {
            split: _Split(str(path), (path,), partial(read_split, path, classes, complete=False))
            for split, path in places.items()
        }
    for remark in remarks:
        _log.info(remark)
    return splits


def _read(splits: Iterable[_Split]) -> list[Photo]:
    """Return the photos of splits, and log what is left out of their folders."""
    photos = [photo for split in splits for photo in split.read()]
    for remark in left_out_files([folder for split in splits for folder in split.folders]):
        _log.info(remark)
    return photos


def _find_held_out(photos: Photos, contract: Contract, split: str) -> list[Photo]:
    """Return the photos that training took from train for a split; none if it read another folder."""
    digests = contract.origin.data_digest
    if split not in digests:
        return []
    try:
        dataset = photos.splits()
        if dataset.classes != contract.classes:
            return []
        found = dataset.splits.get(split, [])
        return found if photos.pixels(found, contract.image).digest == digests[split] else []
    except DataError:  # a folder that cannot be trained on is another
        return []


def _warning(photos: Photos, chosen: list[Photo], models: Models, maybe_trained_on: bool) -> str:
    """Return a warning that figures are too good if the training of a model used the photos, or may have."""
    uses = [_use(photos, chosen, contract, maybe_trained_on) for _, contract in models]
    alike = ["the model" if len(models) == 1 else "each model"]
    titles = alike if len(set(uses)) == 1 else [title for title, _ in models]
    told = "".join(f"; {use.format(title)}" for title, use in zip(titles, uses, strict=False) if use)
    return f"{told}, so expect lower figures on new photos" if told else ""


def _use(photos: Photos, chosen: list[Photo], contract: Contract, maybe_trained_on: bool) -> str:
    """Return what a training did with the photos, with a place for the model; nothing if it did not use them."""
    digests = contract.origin.data_digest
    digest = photos.pixels(chosen, contract.image).digest
    if digest == digests.get("train"):
        return "{} was trained on them"
    if digest == digests.get("validation"):
        return "they were used to choose {}'s weights"
    if not digests or digest in digests.values():
        return ""
    return f"{{}} {'' if maybe_trained_on else 'held out other photos, and '}may have been trained on some of them"
