"""Labels that look wrong: most photos with similar features, by a frozen network, have another label.

Two class folders that were swapped as a whole, and exist nowhere else, go unnoticed: names mean nothing here.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from contract.disk import written_whole
from training.data.pixels import Pixels, has_rows
from training.explore.findings import Found, Item
from training.explore.inspection import Inspection
from training.models.quiet import import_tensorflow

NEIGHBOURS = 10
# Part of a photo's neighbours that agree on another class. Measured on 3,068 photos of clothing, as they are and with
# the labels of 3 % changed at random:
#   agreement   suspected as they are   changed labels found   changed, of those found then
#   0.7         4.1 %                   73 %                   99 %
#   0.8         2.3 %                   63 %                   99 %
#   0.9         1.0 %                   53 %                   99 %
PHOTO_AGREEMENT = 0.8
# Part of a folder's photos that look like one other class.
FOLDER_AGREEMENT = 0.5
MIN_FOLDER = 3  # photos; smaller folders are not judged
# Separation of two classes: 1 if all neighbours are of a photo's own class, 0 if they are of either by chance. The
# closest kinds of clothing, skirts and shorts, have 0.39; a fifth or half of a class under another name has 0.0. Few
# photos tell less. Clothing and trash with n photos of each class, pairs called the same in 20 draws of each set:
#   separation below   at n = 12   25   30   40   60   100   half of a class under another name, n = 12; from 16
#   0.2                       97   53   41   22    6     0   98 %; 99 %
#   0.1                       56   14    8    4    0     0   98 %; 99 %
#   0                         27    2    2    0    0     0   83 %; 89 %
MIN_SEPARATION = 0.1
SURE_PHOTOS = 40  # of the smaller class; with fewer, a pair is only suspected
_NETWORK = "efficientnet-lite0"
_BLOCK = 512


def find_suspects(inspection: Inspection, features: NDArray[np.float32]) -> Found:
    """Find labels that the photos contradict: whole folders, classes that are one, and single photos."""
    photos, labels = inspection.photos, np.array([photo.label for photo in inspection.photos])
    if len(set(labels.tolist())) < 2 or len(labels) <= 2 * NEIGHBOURS:
        return
    nearest = _nearest(features, np.arange(len(labels)), _neighbours(Counter(labels.tolist())))
    in_folders: set[int] = set()
    for positions, note in suspect_folders(inspection, features):
        in_folders.update(positions)
        yield "folder", Item(tuple(photos[position].path for position in positions), note)
    yield from suspect_pairs(labels, nearest)
    for position, note in suspect_photos(labels, nearest):
        if position not in in_folders:
            yield "label", Item((photos[position].path,), note)


def features(pixels: Pixels) -> NDArray[np.float32]:
    """Return EfficientNet-Lite0's pooled features (n, 1280) of length 1, computed once for the same photos."""
    file = pixels.file.with_suffix(f".{_NETWORK}.npy")  # by which a second call finds them without TensorFlow
    if not has_rows(file, len(pixels.images)):
        found = _compute(pixels.images)  # a draft without a new byte for an hour counts as abandoned
        with written_whole(file) as draft, draft.open("wb") as opened:
            np.save(opened, found)
    computed = np.load(file)
    return computed / np.maximum(np.linalg.norm(computed, axis=1, keepdims=True), 1e-12)


def _compute(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import_tensorflow()

    from training.models.catalogue import find_architecture, with_preprocessing
    from training.models.features import compute_features

    architecture = find_architecture(_NETWORK)
    backbone = architecture.backbone("imagenet")
    (found,) = compute_features(with_preprocessing(backbone, architecture.preprocessing), pixels)
    return found


def suspect_photos(labels: NDArray[np.str_], nearest: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Return photos with neighbours (n, k) that nearly all have one other label, and a note, the clearest first."""
    counts, k, suspects = Counter(labels.tolist()), nearest.shape[1], []
    for position, label in enumerate(labels.tolist()):
        other, votes = Counter(labels[nearest[position]].tolist()).most_common(1)[0]
        if other != label and votes >= PHOTO_AGREEMENT * k and counts[label] > k:
            suspects.append((-votes, position, f"labelled {label}; {votes} of its {k} neighbours are {other}"))
    return [(position, note) for _, position, note in sorted(suspects)]


def suspect_folders(inspection: Inspection, features: NDArray[np.float32]) -> list[tuple[list[int], str]]:
    """Return the photos of folders that mostly look like photos of another class in other folders, and a note of each.

    A folder is judged only if other folders have at least half as many photos with its label.
    """
    labels = np.array([photo.label for photo in inspection.photos])
    folders, counts = [str(photo.path.parent) for photo in inspection.photos], Counter(labels.tolist())
    k = _neighbours(counts)
    of_one: dict[tuple[str, str], list[int]] = {}  # photos of one folder and label
    for position, key in enumerate(zip(folders, labels.tolist(), strict=True)):
        of_one.setdefault(key, []).append(position)
    judged = [
        (label, members)
        for (_, label), members in sorted(of_one.items())
        if len(members) >= MIN_FOLDER and counts[label] - len(members) >= max(k, len(members) / 2)
    ]
    if not judged:
        return []
    positions, groups = np.concatenate([members for _, members in judged]), np.unique(folders, return_inverse=True)[1]
    votes = [Counter(labels[near].tolist()) for near in _nearest(features, groups, k, positions)]
    looks = {position: vote.most_common(1)[0][0] for position, vote in zip(positions.tolist(), votes, strict=True)}
    suspects = []
    for label, members in judged:
        other, count = Counter(looks[position] for position in members).most_common(1)[0]
        if other != label and count > FOLDER_AGREEMENT * len(members):
            photos = [position for position in members if looks[position] == other]
            folder = inspection.listing.name(inspection.photos[members[0]].path.parent)
            note = f"{folder} is labelled {label}, but {count} of its {len(members)} photos look like {other} elsewhere"
            suspects.append((photos, note))
    return suspects


def suspect_pairs(labels: NDArray[np.str_], nearest: NDArray[np.int64]) -> list[tuple[str, Item]]:
    """Return pairs of classes whose photos have neighbours (n, k) of the other as of their own, the closest first."""
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    near = np.zeros((len(names), len(names)))  # how often a class (row) has a neighbour of a class (column)
    np.add.at(near, (index[:, np.newaxis], index[nearest]), 1)
    pairs = []
    for a, b in combinations(np.flatnonzero(counts > nearest.shape[1]).tolist(), 2):
        separation = min(_separation(near, counts, a, b), _separation(near, counts, b, a))
        if separation < MIN_SEPARATION:
            kind = "pair" if min(counts[a], counts[b]) >= SURE_PHOTOS else "small-pair"
            note = f"{names[a]} and {names[b]}: photos of one are as close to the other as to their own class"
            pairs.append((separation, kind, note))
    return [(kind, Item((), note)) for _, kind, note in sorted(pairs)]


def _separation(near: NDArray[np.float64], counts: NDArray[np.int64], a: int, b: int) -> float:
    """Return how much more often than by chance neighbours of class a, out of a and b, are of a: 1 at most."""
    by_chance = (counts[a] - 1) / (counts[a] + counts[b] - 1)
    own = near[a, a] / max(1.0, near[a, a] + near[a, b])
    return float((own - by_chance) / (1 - by_chance))


def _neighbours(counts: Counter[str]) -> int:
    """Return how many neighbours are compared: fewer if classes have fewer than twenty photos."""
    return int(min(NEIGHBOURS, max(3, np.median(list(counts.values())) // 2)))


def _nearest(
    features: NDArray[np.float32], groups: NDArray[np.int64], k: int, members: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return positions (m, k) of the nearest photos outside its group for each member, by default for all photos."""
    members = np.arange(len(features)) if members is None else members
    found = []
    for start in range(0, len(members), _BLOCK):
        rows = members[start : start + _BLOCK]
        similarity = features[rows] @ features.T
        similarity[groups[rows][:, None] == groups[None]] = -np.inf
        found.append(np.argpartition(-similarity, k, axis=1)[:, :k])
    return np.concatenate(found)
