"""What is wrong with the photos, in words that a person can act on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.explore.inspection import SPEC, Inspection
from training.explore.labels import Suspects
from training.explore.listing import Listing

PROBLEM, SUSPICION, NOTE = "problem", "suspicion", "note"
MIN_PHOTOS = 20  # of a class in train; fewer leave two or less for validation
MAX_IMBALANCE = 10  # times that the largest class may have the smallest
MAX_ROBUST_Z = 3.5  # Source: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers (1993)
MAX_ELONGATION = 2.0  # of a photo's sides; beyond it, less than half of it is in the centre that training sees
_SUFFIX_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    **{name: (f".{name.lower()}",) for name in ("PNG", "WEBP", "GIF", "BMP", "AVIF")},
}


@dataclass(frozen=True)
class Item:
    """Photos or folders that belong together, and what is said of them."""

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


def of_listing(listing: Listing) -> list[Finding]:
    """Return what folders, names and counts tell, before a photo is opened."""
    rules = (_single_class, _empty_classes, _alike_names, _uneven_splits, _few_photos)
    findings = [finding for rule in rules for finding in rule(listing)]
    for kind, paths, title, advice in (
        (
            "missing",
            listing.missing,
            "of the CSV not there",
            "Correct the paths; they are relative to the CSV's folder.",
        ),
        ("unlabelled", listing.unlabelled, "of the CSV without a label", "Fill in the label, or delete the row."),
    ):
        if paths:
            items = tuple(Item((path,)) for path in paths)
            findings.append(Finding(kind, PROBLEM, f"{_files(items)} {title}", advice, items))
    if listing.ignored:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in listing.ignored)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        items = tuple(Item((path,)) for path in listing.ignored)
        advice = "If they are photos, save them as JPEG, PNG or WebP inside the folder of their class."
        findings.append(Finding("ignored", NOTE, f"{_files(items)} not read as photos ({told})", advice, items))
    return findings


def of_files(inspection: Inspection) -> list[Finding]:
    """Return what single files tell: corrupt, misnamed, too small, too long, too dark, too bright, blurred."""
    findings = []
    if inspection.broken:
        items = tuple(Item((path,), reason) for path, reason in inspection.broken.items())
        title = f"{_files(items)} corrupt: training skips {'it' if len(items) == 1 else 'them'}"
        findings.append(
            Finding("corrupt", PROBLEM, title, "Copy them anew from where they came, or delete them.", items)
        )
    photos = inspection.photos
    brightness = np.array([photo.brightness for photo in photos])
    sharpness = np.array([photo.sharpness for photo in photos])
    bright, blur = _robust_z(brightness), _robust_z(sharpness)
    side = min(SPEC.height, SPEC.width)
    small = np.array([min(photo.width, photo.height) < side for photo in photos])
    elongated = np.array([max(p.width, p.height) > MAX_ELONGATION * min(p.width, p.height) for p in photos])
    misnamed = np.array([p.path.suffix.lower() not in _SUFFIX_FORMATS.get(p.format, ()) for p in photos])
    look = "Look at them: delete those that show nothing, keep what the model will meet in use."
    for kind, severity, chosen, notes, title, advice in (
        ("dark", SUSPICION, bright < -MAX_ROBUST_Z, brightness, "much darker than the others", look),
        ("bright", SUSPICION, bright > MAX_ROBUST_Z, brightness, "much brighter than the others", look),
        ("blurred", SUSPICION, blur < -MAX_ROBUST_Z, sharpness, "much less sharp than the others", look),
        (
            "small",
            NOTE,
            small,
            None,
            f"with a side below {side} pixels",
            "Training enlarges them; larger ones tell more.",
        ),
        (
            "elongated",
            NOTE,
            elongated,
            None,
            "more than twice as long as wide",
            "Training sees their centre; crop them to what counts.",
        ),
        ("misnamed", NOTE, misnamed, None, "of another format than the name says", "They are read as what they are."),
    ):
        positions = np.flatnonzero(chosen)
        if notes is not None:
            positions = positions[np.argsort(np.abs(notes[positions] - np.median(notes)))[::-1]]
        if len(positions):
            items = tuple(
                Item((photos[i].path,), f"{photos[i].width}×{photos[i].height} {photos[i].format}") for i in positions
            )
            findings.append(Finding(kind, severity, f"{_photos(len(items))} {title}", advice, items))
    return findings


def of_duplicates(inspection: Inspection, groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Return photos that are there more than once: across classes, across splits, or within a class."""
    kinds: dict[str, list[Item]] = defaultdict(list)
    for group in groups:
        photos = [inspection.photos[i] for i in group]
        exact = len({photo.sha256 for photo in photos}) == 1
        labels = sorted({photo.label for photo in photos})
        across_classes = len(labels) > 1
        note = "the same bytes" if exact else "look the same"
        note += f", labelled {' and '.join(labels)}" if across_classes else ""
        item = Item(tuple(photo.path for photo in photos), note)
        across_splits = len({photo.split for photo in photos}) > 1
        if across_classes:
            kinds["conflict"].append(item)
        if across_splits:
            kinds["leak"].append(item)
        if not across_classes and not across_splits:
            kinds["duplicate"].append(item)
    told = {
        "conflict": (
            PROBLEM,
            "{} in two classes at once",
            "One label must be wrong. Keep the photo in the class that is right, and delete the other.",
        ),
        "leak": (
            PROBLEM,
            "{} in two splits at once, so accuracy is measured on photos that were trained on",
            "Keep one copy, best the one in validation or test, and delete the other.",
        ),
        "duplicate": (
            SUSPICION,
            "{} more than once in a class",
            "Keep one of each: a copy only counts double, and can come to lie in two splits.",
        ),
    }
    return [
        Finding(kind, severity, title.format(_photos(len(kinds[kind]))), advice, tuple(kinds[kind]))
        for kind, (severity, title, advice) in told.items()
        if kinds[kind]
    ]


def of_labels(inspection: Inspection, suspects: Suspects) -> list[Finding]:
    """Return labels that the photos contradict: whole folders, single photos, and classes that are one."""
    findings = []
    if suspects.folders:
        items = tuple(
            Item(
                tuple(inspection.photos[i].path for i in folder.positions),
                f"{inspection.listing.name(folder.path)} is labelled {folder.label}, but {len(folder.positions)} of its"
                f" {folder.photos} photos look like {folder.looks_like} elsewhere",
            )
            for folder in suspects.folders
        )
        title = f"{len(items)} folder{'s' if len(items) > 1 else ''} whose photos look like another class"
        advice = "Look at the photos beside each other: rename the folder, or move its photos to the class they show."
        findings.append(Finding("folder", PROBLEM, title, advice, items))
    if suspects.pairs:
        items = tuple(
            Item((), f"{pair.first} and {pair.second}: their photos are each other's neighbours as often as their own")
            for pair in suspects.pairs
        )
        advice = "Merge them if they are one class; if not, one of the folders holds photos of the other."
        severity = PROBLEM if any(pair.photos >= MIN_PHOTOS for pair in suspects.pairs) else SUSPICION
        findings.append(Finding("pair", severity, "Classes that cannot be told apart", advice, items))
    if suspects.photos:
        items = tuple(
            Item(
                (inspection.photos[photo.position].path,),
                f"labelled {photo.label}; {photo.votes} of its {photo.neighbours} neighbours are {photo.looks_like}",
            )
            for photo in suspects.photos
        )
        advice = "Move those that show the other class; leave those that only look like it."
        title = f"{_photos(len(items))} that may have a wrong label"
        findings.append(Finding("label", SUSPICION, title, advice, items))
    return findings


def _empty_classes(listing: Listing) -> list[Finding]:
    counts = listing.counts
    empty = [(split, name) for split, names in listing.classes.items() for name in names if not counts[split, name]]
    if not empty:
        return []
    items = tuple(Item((), f"{_place(split, name)} holds no photo") for split, name in empty)
    advice = "Put photos into the folder, or delete it; train refuses an empty class."
    title = f"{len(items)} class folder{'s' if len(items) > 1 else ''} without a photo"
    return [Finding("empty", PROBLEM, title, advice, items)]


def _single_class(listing: Listing) -> list[Finding]:
    if len(listing.all_classes) > 1:
        return []
    item = Item((), f"the only class is {listing.all_classes[0]}")
    advice = "Give each class a folder of its own below the one that is named; train needs two."
    return [Finding("single", PROBLEM, "Fewer than two classes", advice, (item,))]


def _alike_names(listing: Listing) -> list[Finding]:
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in listing.all_classes:
        spellings[re.sub(r"[\W_]+", "", name.casefold())].add(name)
    items = [
        Item((), "are one class by their names: " + " and ".join(repr(name) for name in sorted(names)))
        for names in spellings.values()
        if len(names) > 1
    ]
    items += [
        Item((), f"begins or ends with a space: {name!r}") for name in listing.all_classes if name != name.strip()
    ]
    if not items:
        return []
    advice = "Rename or merge the folders; as they are, each is a class of its own."
    return [Finding("names", PROBLEM, "Class names that differ only in case, spaces or signs", advice, tuple(items))]


def _uneven_splits(listing: Listing) -> list[Finding]:
    items = []
    for split, names in listing.classes.items():
        for other, others in listing.classes.items():
            if missing := sorted(set(others) - set(names)):
                items.append(Item((), f"{split} has no folder for: {', '.join(missing)} (of {other})"))
    if not items:
        return []
    advice = "Give each split the same class folders; train refuses classes that its train folder does not have."
    return [Finding("splits", PROBLEM, "Splits with different classes", advice, tuple(items))]


def _few_photos(listing: Listing) -> list[Finding]:
    split = "train" if "train" in listing.classes else next(iter(listing.classes))
    counts = {name: listing.counts[split, name] for name in listing.classes[split]}
    counts = {name: count for name, count in sorted(counts.items(), key=lambda each: each[1]) if count}
    findings = []
    if few := [Item((), f"{_place(split, name)}: {count}") for name, count in counts.items() if count < MIN_PHOTOS]:
        title = f"{len(few)} class{'es' if len(few) > 1 else ''} with fewer than {MIN_PHOTOS} photos"
        findings.append(
            Finding("few", SUSPICION, title, "Collect more; what is learned of so few is luck.", tuple(few))
        )
    if len(counts) > 1 and max(counts.values()) > MAX_IMBALANCE * min(counts.values()):
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        note = f"{most} has {counts[most]} photos, {least} {counts[least]}"
        title = f"The largest class has {counts[most] / counts[least]:.0f} times the photos of the smallest"
        advice = "Collect more of the small classes, and judge by macro F1 in place of accuracy."
        findings.append(Finding("imbalance", SUSPICION, title, advice, (Item((), note),)))
    return findings


def _robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return distances from the median in deviations, which outliers do not move."""
    distance = values - np.median(values)
    return distance / max(1.4826 * float(np.median(np.abs(distance))), 1e-6)


def _place(split: str, label: str) -> str:
    return label if split == "all" else f"{split}/{label}"


def _files(items: Sequence[Item]) -> str:
    return "1 file" if len(items) == 1 else f"{len(items)} files"


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"
