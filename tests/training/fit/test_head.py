"""training/fit/head.py and features.py: a linear head, and the features that it is fitted to."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from training.fit.head import fit_head, soften
from training.judge import calibration


def draw(counts: tuple[int, ...], seed: int, distance: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, 20) of classes around points of their own, and labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    points = distance * np.eye(len(counts), 20)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 20))
    return (points[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize("counts", [(60, 60), (60, 40, 20, 5)])
def test_a_head_tells_classes_apart_as_well_as_it_says(counts: tuple[int, ...]) -> None:
    """Two classes and more, one of them rare; accuracy and confidence on other photos are those of the folds."""
    head = fit_head(*draw(counts, 0), seed=0)
    features, labels = draw(tuple(10 * count for count in counts), 1)
    probabilities = softmax(features @ head.kernel + head.bias, axis=1)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert head.accuracy is not None and accuracy > 0.9
    assert accuracy == pytest.approx(head.accuracy, abs=0.06)
    assert probabilities.max(axis=1).mean() == pytest.approx(accuracy, abs=0.06)


@pytest.mark.parametrize(
    ("counts", "distance", "sure"),
    [((12,) * 6, 0.13, False), ((5, 5), 0.22, True), ((12,) * 6 + (4,), 0.2, False), ((20, 4), 0.13, False)],
)
def test_a_head_of_few_photos_is_not_too_sure(counts: tuple[int, ...], distance: float, sure: bool) -> None:
    """Of fewer photos than features, without a mistake in cross-validation or with some; few classes may be in it."""
    points = distance * np.random.default_rng(9).normal(size=(len(counts), 1280))

    def photos(times: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(counts)), np.multiply(counts, times))
        noise = np.random.default_rng(seed).normal(size=(len(labels), 1280))
        return (points[labels] + noise).astype(np.float32), labels

    head = fit_head(*photos(1, 0), seed=0)
    features, labels = photos(10, 1)
    losses = -log_softmax(features @ head.kernel + head.bias, axis=1)[np.arange(len(labels)), labels]
    assert (head.accuracy == 1.0) is sure and losses.mean() < 1


def test_a_rare_class_can_count_as_much_as_others() -> None:
    """With `balanced`, more photos are given the rare class."""
    features, labels = draw((200, 10), 0, distance=1.0)
    heads = [fit_head(features, labels, seed=0, balanced=balanced) for balanced in (False, True)]
    few, many = (int((features @ head.kernel + head.bias).argmax(axis=1).sum()) for head in heads)
    assert few < 15 < many


def test_many_photos_of_many_classes_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos times classes is what training has no memory for, so a tenth of the logits gives the temperature."""
    features, labels = draw((20,) * 100, 0)
    of_all = soften(fit_head(features, labels, seed=0), features, labels, 0.1)
    monkeypatch.setattr(calibration, "MOST_LOGITS", len(labels) * 100 // 10)
    tracemalloc.start()
    head = soften(fit_head(features, labels, seed=0), features, labels, 0.1)
    assert tracemalloc.get_traced_memory()[1] < 12 * len(labels) * 100
    tracemalloc.stop()
    assert np.linalg.norm(head.kernel) == pytest.approx(np.linalg.norm(of_all.kernel), rel=0.15)


@pytest.mark.parametrize("counts", [(1, 2, 9), (1, 1, 1)])
def test_few_photos_make_a_head_too(counts: tuple[int, ...]) -> None:
    """One photo of one class or each is enough, and features that never change do no harm; nothing is claimed then."""
    features, labels = draw(counts, 0)
    features[:, 10:] = 0
    head = fit_head(features, labels, seed=0)
    assert head.accuracy is None
    assert ((features @ head.kernel + head.bias).argmax(axis=1) == labels).all() and np.isfinite(head.kernel).all()


def test_a_soft_head_fits_smoothed_labels() -> None:
    """It says the same classes, and neither smaller nor larger logits have less loss."""
    features, labels = draw((60, 40, 20), 0, distance=4.0)
    head = fit_head(features, labels, seed=0)
    soft = soften(head, features, labels, 0.1)
    targets = 0.9 * np.eye(3)[labels] + 0.1 / 3

    def loss(scale: float) -> float:
        return -float((targets * log_softmax(scale * (features @ soft.kernel + soft.bias), axis=1)).sum(axis=1).mean())

    assert loss(1.0) < min(loss(0.8), loss(1.25))
    assert np.abs(soft.kernel).max() < np.abs(head.kernel).max() / 2
    np.testing.assert_array_equal(*((features @ each.kernel + each.bias).argmax(axis=1) for each in (head, soft)))


@pytest.mark.tensorflow
def test_features_are_those_of_keras_and_are_kept(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are computed once for the parts of a split, and again for other weights or another preprocessing."""
    monkeypatch.setattr("training.progress.WAIT_S", math.inf)  # a slow machine would log how long it takes
    import keras

    from tests.programs.small_training import SMALL, draw
    from training.data.folder import read_folder
    from training.data.pixels import load_pixels
    from training.fit.features import frozen_features
    from training.models.catalogue import with_preprocessing

    photos = load_pixels(read_folder(draw(tmp_path / "photos")).splits["train"], SMALL.photo_spec, tmp_path)
    backbone = SMALL.backbone("none")
    model = with_preprocessing(backbone, SMALL.preprocessing)
    odd, even = (photos.part(np.arange(start, len(photos.labels), 2)) for start in (1, 0))
    parts = frozen_features(model, odd, even)
    expected = model.predict(np.asarray(photos.images), verbose=0)
    np.testing.assert_allclose(parts[0], expected[1::2], atol=1e-4)
    np.testing.assert_allclose(parts[1], expected[0::2], atol=1e-4)
    np.testing.assert_array_equal(frozen_features(keras.models.clone_model(model), even)[0].shape, parts[1].shape)
    np.testing.assert_array_equal(frozen_features(model, even)[0], parts[1])
    for mode in ("torch", "caffe"):
        other = with_preprocessing(backbone, mode)
        expected = other.predict(np.asarray(photos.images), verbose=0)
        np.testing.assert_allclose(frozen_features(other, even)[0], expected[0::2], atol=1e-4 * np.abs(expected).max())
    assert [line.partition(" in ")[0] for line in lines] == [f"Computed the features of {len(expected)} photos"] * 4


@pytest.mark.tensorflow
def test_keras_computes_features_where_tflite_cannot(lines: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """A note says before the training that a release will fail, and why."""
    import keras

    from training.models.features import compute_features

    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Flatten()(keras.ops.erfinv(inputs / 300)))
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    (features,) = compute_features(model, images)
    np.testing.assert_allclose(features, np.asarray(model(images.astype(np.float32))), atol=1e-6)
    why = "as it does not convert to TFLite: operations that TFLite lacks: Erfinv"
    assert lines[0] == f"Note: a release of this network will fail, {why}"
    assert "'tf.Erfinv'" not in capfd.readouterr().err


@pytest.mark.tensorflow
def test_a_failing_interpreter_does_not_end_a_training(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras computes the features, and a note says why, and that a release will probably fail."""
    import keras

    from serving.errors import DataLossError
    from training.models import features

    def fail(*_: object) -> None:
        raise DataLossError("no memory")

    monkeypatch.setattr(features, "open_engine", fail)
    inputs = keras.Input((4, 4, 3))
    (found,) = features.compute_features(
        keras.Model(inputs, keras.layers.Flatten()(inputs)), np.ones((1, 4, 4, 3), "u1")
    )
    assert (found == 1).all()
    why = "a release will probably fail, as TFLite could not run this network: no memory"
    assert lines[0] == f"Note: Keras computes these features, and {why}"
