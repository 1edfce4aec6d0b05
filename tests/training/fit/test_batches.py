"""training/fit/batches.py: in which order photos come, and how far they are changed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.programs.photos import photo
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow


def change(augmentation: float) -> float:
    """Return by how much a batch of photos differs from the photos, 0-255."""
    from training.fit import batches

    images = np.stack([np.asarray(photo(32, 32, seed)) for seed in range(16)])
    recipe, targets = Recipe(batch_size=16, augmentation=augmentation, cutmix=0), np.zeros((16, 1), np.float32)
    (batch, _) = next(iter(batches.shuffled(images, targets, recipe, range(1))))
    flipped = np.where(_nearer(batch.numpy(), images)[:, None, None, None], images[:, :, ::-1], images)
    return float(np.abs(batch.numpy() - flipped).mean())


def _nearer(batch: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Tell which photos of a batch are nearer to the flipped ones."""
    straight, flipped = (np.abs(batch - each).mean(axis=(1, 2, 3)) for each in (images, images[:, :, ::-1]))
    return flipped < straight


def test_the_extent_scales_all_changes() -> None:
    """0 leaves photos as they are, a little changes little, and 2 goes further than 1."""
    extents = [change(extent) for extent in (0.0, 0.05, 1.0, 2.0)]
    assert extents[0] == 0 < extents[1] < 4 < 3 * extents[1] < extents[2] < extents[3]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(batch_size=4, augmentation=0.0, cutmix=0.0),
        Recipe(batch_size=8, augmentation=1.0, cutmix=0.0),
        Recipe(batch_size=8, augmentation=0.0, cutmix=1.0),
    ],
)
def test_the_seed_alone_decides_the_batches(recipe: Recipe) -> None:
    """The order; then, with all photos in one batch, how they are changed, and the pasted squares."""
    from training.fit import batches

    images = np.stack([np.asarray(photo(32, 32, seed)) for seed in range(8)])

    def first(seed: int) -> np.ndarray:
        (batch, _) = next(iter(batches.shuffled(images, np.eye(8, dtype="f4"), replace(recipe, seed=seed), range(1))))
        return np.asarray(batch)

    np.testing.assert_array_equal(first(0), first(0))
    assert (first(0) != first(1)).any()


def test_pasted_squares_bring_their_part_of_the_class() -> None:
    """Each image is one colour, so its pixels tell how much of it is of which; images need not be square."""
    import tensorflow as tf

    from training.fit import batches

    images = np.zeros((32, 40, 60, 3), np.float32) + np.arange(32, dtype=np.float32)[:, None, None, None]
    recipe = Recipe(augmentation=0.0, cutmix=0.5)
    mixed, targets = batches.augmentation(recipe)(tf.constant(0), images, np.eye(32, dtype=np.float32))
    found = [[(image == colour).mean() for colour in range(32)] for image in mixed.numpy()]
    np.testing.assert_allclose(found, targets, atol=1e-5)
    assert 4 < (targets.numpy().max(axis=1) < 1).sum() < 28


@pytest.mark.parametrize(("devices", "sizes"), [(1, [4, 3]), (2, [4, 4]), (4, [4, 4])])
def test_devices_get_equal_parts_of_each_validation_batch(
    monkeypatch: pytest.MonkeyPatch, devices: int, sizes: list[int]
) -> None:
    """All photos are there, and the first ones again where the last batch is filled up."""
    import tensorflow as tf

    from training.fit import batches

    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: SimpleNamespace(num_replicas_in_sync=devices))
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    found = list(batches.in_order(images, np.eye(7, dtype=np.float32), Recipe(batch_size=4)))
    assert [len(photos) for photos, _ in found] == sizes
    order = [0, 1, 2, 3, 4, 5, 6, 0][: sum(sizes)]
    assert [int(photo) for photos, _ in found for photo in photos.numpy().ravel()] == order
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), np.eye(7)[order])
