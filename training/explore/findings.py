"""What is wrong with the photos, in words that a person can act on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.photos import SUFFIXES_BY_FORMAT
from training.data.folder import read_folder
from training.data.splits import SPLIT_NAMES
from training.data.table import WHOLE, real_path
from training.errors import DataError
from training.explore.inspection import SPEC, InspectedPhoto, Inspection, is_too_large
from training.explore.listing import Listing
from training.words import counted, plural

PROBLEM, SUSPICION, NOTE = "problem", "suspicion", "note"
MIN_PHOTOS = 20  # of a class in train; fewer leave two or less for validation
MAX_IMBALANCE = 10  # photos of the largest class for each one of the smallest
MAX_ROBUST_Z = 3.5  # Source: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers (1993)
MAX_ELONGATION = 2.0  # long side to short side; beyond it, training sees less than half of the photo
_SIDE = min(SPEC.height, SPEC.width)


@dataclass(frozen=True)
class Item:
    """Photos or folders that belong together, and a note about them."""

    paths: tuple[Path, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of fault: how bad it is, what it is, what to do, and where it was seen."""

    kind: str
    severity: str
    title: str
    advice: str
    items: tuple[Item, ...]


_LOOK = "Look at them: delete photos that show nothing, and keep what the model will meet in use."
_SAME = "Merge the classes if they are one. If not, one of the folders contains photos of the other."
# Title and advice for each kind of fault, the worst first; a word in braces stands for a number of things.
_WORDS = {
    PROBLEM: {
        "refused": ("Train refuses these photos", "Correct this first. Train names one fault at a time."),
        "empty": ("{folders} without a photo", "Put photos into the folder, or delete it."),
        "names": ("Class names that differ only in case, spaces or signs", "Rename or merge the folders."),
        "splits": (
            "Splits with different classes",
            "Give each split the same class folders as train; train refuses other classes.",
        ),
        "missing": ("{files} of the CSV not found", "Correct the paths; they start at the CSV's folder."),
        "unknown": (
            "Splits of the CSV by names that train does not take",
            f"Call them {', '.join(SPLIT_NAMES)}; train leaves out the rows of others.",
        ),
        "unlabelled": ("{files} of the CSV without a label", "Fill in the label, or delete the row."),
        "large": ("{files} too large and skipped by training", "Save smaller copies in their place."),
        "corrupt": (
            "{files} unreadable and skipped by training",
            "Do what their lines advise. Where they advise nothing, copy the original files again, or delete these.",
        ),
        "conflict": (
            "{photos} in two classes at once",
            "One of the labels is wrong: keep only the copy in the right class.",
        ),
        "leak": (
            "{photos} in two splits at once, so accuracy is measured on photos that were trained on",
            "Keep one copy, preferably in validation or test, and delete the other.",
        ),
        "folder": (
            "{folders} with photos that look like another class",
            "Rename the folder, or move its photos to the class that they show.",
        ),
        "pair": ("Classes that look the same", _SAME),
    },
    SUSPICION: {
        "warnings": ("What train warns of", "Change the folders, unless they are as you mean them."),
        "few": (f"{{classes}} with fewer than {MIN_PHOTOS} photos", "Collect more; a model learns little from so few."),
        "imbalance": (
            f"The largest class has more than {MAX_IMBALANCE} times the photos of the smallest",
            "Collect more photos of the small classes, and compare models by macro F1 instead of accuracy.",
        ),
        "dark": ("{photos} much darker than the others", _LOOK),
        "bright": ("{photos} much brighter than the others", _LOOK),
        "blurred": ("{photos} much less sharp than the others", _LOOK),
        "duplicate": (
            "{photos} more than once in a class",
            "Keep one copy: duplicates count twice, and can end up in two splits.",
        ),
        "small-pair": ("Small classes that look the same", _SAME),
        "label": (
            "{photos} that may have a wrong label",
            "Move those that show the other class; leave those that only look like it.",
        ),
    },
    NOTE: {
        "remarks": ("What train says of these photos", "Check that each is as you mean it."),
        "outside": (
            "{photos} outside the class folders that train reads",
            "Move those of a class into its folder, and the others elsewhere.",
        ),
        "ignored": (
            "{files} not read as photos ({suffixes})",
            "If they are photos, save them as JPEG, PNG or WebP inside the folder of their class.",
        ),
        "small": (
            f"{{photos}} with a side below {_SIDE} pixels",
            "Training enlarges them; larger photos show more detail.",
        ),
        "elongated": (
            "{photos} more than twice as long as wide",
            "Training sees the centre; crop them to what matters.",
        ),
        "misnamed": ("{photos} of another format than the name says", "Training reads them in their real format."),
    },
}
Found = Iterator[tuple[str, Item]]  # a kind of fault, and where it was seen


def find_findings(
    source: Path, inspection: Inspection, groups: Sequence[Sequence[int]], suspects: Found
) -> list[Finding]:
    """Return what is wrong, the worst first.

    Args:
        source: The folder or CSV that was inspected.
        inspection: Every photo.
        groups: Positions of photos that show the same picture.
        suspects: Labels that look wrong.
    """
    items: dict[str, list[Item]] = defaultdict(list)
    for found in (
        _in_training(source),
        _in_names(inspection.listing),
        _in_counts(inspection.listing),
        _in_files(inspection),
        _in_copies(inspection, groups),
        suspects,
    ):
        for kind, item in found:
            items[kind].append(item)
    return [
        Finding(kind, severity, _title(title, items[kind]), advice, tuple(items[kind]))
        for severity, kinds in _WORDS.items()
        for kind, (title, advice) in kinds.items()
        if kind in items
    ]


def _title(title: str, items: Sequence[Item]) -> str:
    count = len(items)
    numbers = {plural(2, noun): counted(count, noun) for noun in ("class", "file", "folder", "photo")}
    suffixes = Counter(path.suffix.lower() or "no suffix" for item in items for path in item.paths).most_common(5)
    return title.format(**numbers, suffixes=", ".join(f"{number} {suffix}" for suffix, number in suffixes))


def _in_training(source: Path) -> Found:
    """Find why train refuses the photos, or what it says of them."""
    try:
        for remark in read_folder(source).remarks:
            warning = remark.removeprefix("Warning: ")
            yield "remarks" if warning == remark else "warnings", Item((), warning)
    except DataError as exc:
        yield "refused", Item((), str(exc))


def _in_names(listing: Listing) -> Found:
    """Find faults in the folders' names, and in the CSV."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in listing.all_classes:
        spellings[re.sub(r"[\W_]+", "", name.casefold())].append(name)
    for alike in spellings.values():
        if len(alike) > 1:
            yield "names", Item((), f"look like one class: {' and '.join(map(repr, alike))}")
    for split, present in listing.classes.items():
        for other, others in listing.classes.items():
            if missing := sorted(set(others) - set(present)):
                yield "splits", Item((), f"{split} has no folder for: {', '.join(missing)} (of {other})")
    for split in sorted(set(listing.classes) - {WHOLE, *SPLIT_NAMES}):
        photos = sum(listing.counts[split, name] for name in listing.classes[split])
        yield "unknown", Item((), f"{split}: {counted(photos, 'photo')}")
    for kind in ("missing", "unlabelled", "outside", "ignored"):
        for path in getattr(listing, kind):
            yield kind, Item((path,))


def _in_counts(listing: Listing) -> Found:
    """Find classes with no photos, few photos, or far fewer than another."""
    for split, names in listing.classes.items():
        for name in names:
            if not listing.counts[split, name]:
                yield "empty", Item((), f"{listing.place(split, name)} has no photo")
    split = "train" if "train" in listing.classes else next(iter(listing.classes))
    counts = sorted((count, name) for (each, name), count in listing.counts.items() if each == split)
    for count, name in counts:
        if count < MIN_PHOTOS:
            yield "few", Item((), f"{listing.place(split, name)}: {count}")
    if counts and counts[-1][0] > MAX_IMBALANCE * counts[0][0]:
        (fewest, small), (most, large) = counts[0], counts[-1]
        yield "imbalance", Item((), f"{large} has {counted(most, 'photo')}, {small} {fewest}")


def _in_files(inspection: Inspection) -> Found:
    """Find faults of single files, the clearest first."""
    for path, reason in inspection.broken.items():
        yield "large" if is_too_large(path) else "corrupt", Item((path,), reason)
    photos = inspection.photos
    brightness = _robust_z([photo.brightness for photo in photos])
    sharpness = _robust_z([photo.sharpness for photo in photos])
    short, long = np.sort([(photo.width, photo.height) for photo in photos]).T
    misnamed = [_is_misnamed(photo) for photo in photos]
    for kind, score, most in (
        ("dark", -brightness, MAX_ROBUST_Z),
        ("bright", brightness, MAX_ROBUST_Z),
        ("blurred", -sharpness, MAX_ROBUST_Z),
        ("small", _SIDE - short, 0),
        ("elongated", long / short, MAX_ELONGATION),
        ("misnamed", np.array(misnamed), 0),
    ):
        for position in np.argsort(-score.astype(float), kind="stable"):
            photo = photos[position]
            if score[position] > most:
                yield kind, Item((photo.path,), f"{photo.width}×{photo.height} {photo.format}")


def _is_misnamed(photo: InspectedPhoto) -> bool:
    kind = photo.format.replace("MPO", "JPEG")  # a JPEG of several frames
    return photo.path.suffix.lower() not in SUFFIXES_BY_FORMAT.get(kind, ())


def _robust_z(values: Sequence[float]) -> NDArray[np.float64]:
    """Return distances from the median in deviations, which outliers do not move."""
    distance = np.array(values) - np.median(values)
    return distance / max(1.4826 * float(np.median(np.abs(distance))), 1e-6)


def _in_copies(inspection: Inspection, groups: Sequence[Sequence[int]]) -> Found:
    """Find photos that are there more than once: across classes, across splits, or within a class."""
    for group in groups:
        photos = [inspection.photos[position] for position in group]
        note = "the same bytes" if len({photo.sha256 for photo in photos}) == 1 else "look the same"
        if len({real_path(photo.path) for photo in photos}) == 1:
            note = "one file, listed several times: correct that, and keep the file"
        labels = sorted({photo.label for photo in photos})
        across_classes, across_splits = len(labels) > 1, len({photo.split for photo in photos}) > 1
        if across_classes:
            note += f", labelled {' and '.join(labels)}"
        item = Item(tuple(photo.path for photo in photos), note)
        if across_classes:
            yield "conflict", item
        if across_splits:
            yield "leak", item
        if not across_classes and not across_splits:
            yield "duplicate", item
