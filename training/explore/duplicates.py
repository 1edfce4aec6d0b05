"""Photos that appear twice: the same bytes, or the same picture in another size, quality or brightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.explore.inspection import Inspection

# Two conditions, because different clothes on the same carpet meet one of them. Measured on 3,068 photos of clothing:
#   300 copies (JPEG quality 40, half the size, 15 % brighter)      all found
#   the same copies, cropped by 3 %                                 85 % found
#   4.7 million pairs of different photos                           1 pair found; a 64-bit hash within 4 found 394
HASH_SIDE = 16
MAX_DISTANCE = 56  # of 256 bits
MIN_CORRELATION = 0.97  # of 16 by 16 colours
_BLOCK = 256  # photos compared with all others at once: 80 MB for 10,000 photos


def find_groups(inspection: Inspection) -> list[list[int]]:
    """Return the positions of photos that show the same picture, in groups of two or more."""
    hashes, colours = zip(*map(_fingerprint, inspection.pixels), strict=True)
    pairs = _similar_pairs(np.stack(hashes), np.stack(colours))
    shas = np.array([photo.sha256 for photo in inspection.photos])
    order = np.argsort(shas, kind="stable")
    same = shas[order[1:]] == shas[order[:-1]]  # plain photos correlate with nothing, not even with their copies
    rows = np.concatenate([pairs[:, 0], order[:-1][same]])
    columns = np.concatenate([pairs[:, 1], order[1:][same]])
    count = len(inspection.photos)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    groups, group_of = connected_components(graph, directed=False)
    sizes = np.bincount(group_of, minlength=groups)
    return [np.flatnonzero(group_of == group).tolist() for group in np.flatnonzero(sizes > 1)]


def _fingerprint(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Return a difference hash (4) and standardised colours (768); the product of two photos' is their correlation."""
    img = Image.fromarray(pixels)
    grey = np.asarray(img.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    colours = np.asarray(img.resize((16, 16), Image.Resampling.BOX), np.float32).ravel()
    centred = colours - colours.mean()
    length = np.linalg.norm(centred)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64), centred / (length if length > 1 else 1)


def _similar_pairs(hashes: NDArray[np.uint64], colours: NDArray[np.float32]) -> NDArray[np.int64]:
    """Compare all photos, which takes 5 s for 10,000; return pairs of positions (n, 2), the lower first."""
    found = []
    for start in range(0, len(hashes), _BLOCK):
        rest_hashes, rest_colours = hashes[start:], colours[start:]
        close = rest_colours[:_BLOCK] @ rest_colours.T >= MIN_CORRELATION
        rows, columns = np.nonzero(np.triu(close, k=1))
        distance = np.bitwise_count(rest_hashes[rows] ^ rest_hashes[columns]).sum(axis=1)
        found.append(start + np.stack([rows, columns], axis=1)[distance <= MAX_DISTANCE])
    return np.concatenate(found)
