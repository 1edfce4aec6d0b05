"""Photos that appear twice: the same bytes, or the same picture in another size, quality, brightness, crop or mirrored.

Two looks. The first compares 8 by 8 greys of all photos: copies agree, but many different photos do too. The second
lays the details of such a pair over each other, where only copies agree in every part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.explore.inspection import Inspection
from training.progress import estimated

# Measured on 3,409 photos of clothing and 2,057 of rubbish; 120 of them had copies:
#   copies of JPEG quality 40, half the size, 15 % brighter, 40 % darker, grey, or mirrored    all found
#   40 % brighter, which burns out white photos                                               96 %
#   3 %, 5 % and 10 % of each side cut off                                                    99 %, 97 %, 67 %
#   8 million pairs of real photos       22 found, all of one scene; the overlap of the next one is 0.54
SIDE = 64
ZOOMS = (1, 0.975, 0.95, 0.925, 0.9)  # parts of a photo that a cropped copy may show
MIN_LIKENESS = 0.9  # correlation of greys: the first look
MOST_LIKELY = 100  # photos that one is compared with in the second look, or a fixed camera's would take days
MIN_OVERLAP = 0.55  # correlation of details: the second look
MIN_PART = 0.15  # the same of each sixteenth; shirts that differ only in their print have 0 somewhere, copies 0.2
MIN_COLOUR = 3.0  # of 255; a paler photo, or a grey one, may be a copy of any colour
MIN_HUE_LIKENESS = 0.5  # a cosine; one shirt in another colour is no copy
_NOISE = 4.0  # of 255; what differs less is no detail
_BLOCK = 256  # photos compared with all others at once


def find_groups(inspection: Inspection) -> list[list[int]]:
    """Return the positions of photos that show the same picture, in groups of two or more."""
    shas = np.array([photo.sha256 for photo in inspection.photos])
    order = np.argsort(shas, kind="stable")
    same = shas[order[1:]] == shas[order[:-1]]  # photos without details overlap with nothing, not even their copies
    pairs = [np.stack([order[:-1][same], order[1:][same]], axis=1), *_find_pairs(inspection.pixels.images)]
    rows, columns = np.concatenate(pairs).T
    count = len(inspection.photos)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    groups, group_of = connected_components(graph, directed=False)
    sizes = np.bincount(group_of, minlength=groups)
    return [np.flatnonzero(group_of == group).tolist() for group in np.flatnonzero(sizes > 1)]


def _find_pairs(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of positions (n, 2) of which the second shows the first, or a part of it, perhaps mirrored."""
    whole = shown = _greys(pixels, 1)
    details, colours = _details(whole), _colours(pixels)
    for step in estimated(range(2 * len(ZOOMS)), "Comparing photos"):
        zoom, mirrored = ZOOMS[step // 2], step % 2
        shown = shown[:, :, ::-1] if mirrored else _greys(pixels, zoom) if step else whole
        for rows, column in _likely(_likeness(whole), _likeness(shown)):
            rows = rows[_may_be_one_colour(colours[rows], colours[column])]
            found = rows[_agree(details[rows], _details(shown[[column]]))]
            yield np.stack([found, np.full_like(found, column)], axis=1)


def _greys(pixels: NDArray[np.uint8], zoom: float) -> NDArray[np.uint8]:
    """Return the middle of photos as small greys (n, SIDE, SIDE)."""
    edge = pixels.shape[1] * (1 - zoom) / 2
    box = (edge, edge, pixels.shape[2] - edge, pixels.shape[1] - edge)
    shape, box_filter = (SIDE, SIDE), Image.Resampling.BOX
    greys = np.empty((len(pixels), *shape), np.uint8)
    for grey, each in zip(greys, pixels, strict=True):
        grey[:] = np.asarray(Image.fromarray(each).convert("L").resize(shape, box_filter, box))
    return greys


def _likeness(greys: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return standardised greys (n, 64); the product of two photos' is their correlation."""
    coarse = greys.reshape(len(greys), 8, SIDE // 8, 8, SIDE // 8).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 64)
    coarse -= coarse.mean(axis=1, keepdims=True)
    return coarse / np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1)


def _likely(first: NDArray[np.float32], second: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield positions in the first that look like one of the second, the likest ones, and the position of that one."""
    for start in range(0, len(second), _BLOCK):
        likeness = second[start : start + _BLOCK] @ first.T
        np.fill_diagonal(likeness[:, start:], 0)
        for column, row in enumerate(likeness, start):
            close = np.flatnonzero(row >= MIN_LIKENESS)
            if len(close) > MOST_LIKELY:
                close = close[np.argpartition(row[close], -MOST_LIKELY)[-MOST_LIKELY:]]
            if len(close):
                yield close, column


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean colours of photos (n, 3), without their brightness."""
    means: NDArray[np.float64] = pixels.mean(axis=(1, 2))
    return means - means.mean(axis=1, keepdims=True)


def _may_be_one_colour(many: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which colours (n, 3) are like one (3,), or are too pale to tell."""
    lengths, length = np.linalg.norm(many, axis=1), np.linalg.norm(one)
    is_pale = (lengths < MIN_COLOUR) | (length < MIN_COLOUR)
    return is_pale | (many @ one >= MIN_HUE_LIKENESS * lengths * length)


def _agree(many: NDArray[np.complex64], one: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Return which spectra (n, …) have the details of one (1, …), wherever they are shifted to, and in each part."""
    overlaps = fft.irfft2(many * one.conj(), s=(SIDE, SIDE))
    agree = overlaps.max(axis=(1, 2)) >= MIN_OVERLAP
    for i in np.flatnonzero(agree):
        shift = np.unravel_index(overlaps[i].argmax(), (SIDE, SIDE))
        first = fft.irfft2(many[i], s=(SIDE, SIDE))
        second = np.roll(fft.irfft2(one[0], s=(SIDE, SIDE)), shift, axis=(0, 1))
        common, *own = (_in_parts(each) for each in (first * second, first**2, second**2))
        telling = np.maximum(*own) > own[0].mean() / 4  # the others are plain
        agree[i] = (common >= MIN_PART * np.sqrt(own[0] * own[1]))[telling].all()
    return agree


def _in_parts(details: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of each sixteenth (4, 4), without the border that a shift brings in from the other side."""
    inner = details[4:-4, 4:-4]
    side = len(inner) // 4
    return inner.reshape(4, side, 4, side).sum(axis=(1, 3))


def _details(greys: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Return the spectra (n, SIDE, SIDE // 2 + 1) of what stands out from its surroundings, evenly strong everywhere.

    Evenly, so that two dark trousers on a white bed do not overlap by their outline alone.
    """
    spectra = np.empty((len(greys), SIDE, SIDE // 2 + 1), np.complex64)
    for spectrum, grey in zip(spectra, (each.astype(np.float32) for each in greys), strict=True):
        detail = grey - gaussian_filter(grey, 1)
        detail /= np.sqrt(gaussian_filter(detail * detail, 2)) + _NOISE
        detail -= detail.mean()
        spectrum[:] = fft.rfft2(detail / max(float(np.linalg.norm(detail)), 1))
    return spectra
