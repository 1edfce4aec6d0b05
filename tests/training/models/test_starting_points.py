"""training/models/starting_points.py and backbones.py: the network in a file, without its own classifier."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from contract.document import Contract, ImageSpec, Origin
from training.errors import TrainingError

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> None:
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global find_start, keras, layers
    import keras
    from keras import layers

    from training.models.starting_points import find_start


def start(path: Path, name: str = "plain-cnn", **options: Any) -> keras.Model:
    """Return the backbone that a training would start from."""
    return find_start(name, str(path), **options).backbone("")


def answer(model: Any) -> Any:
    """Return what a model computes of two random images."""
    shape = (2, *model.input_shape[1:])
    return np.asarray(model(np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32), training=False))


# Whole models


def convolution(x: Any) -> Any:
    """Add a block with a batch norm."""
    return layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(x)))


def pooled(x: Any, keepdims: bool = False) -> Any:
    return layers.GlobalAveragePooling2D(keepdims=keepdims, name="features")(convolution(x))


def classified(x: Any) -> Any:
    return layers.Dense(3, activation="softmax")(layers.Dropout(0.2)(x))


def nested(x: Any) -> Any:
    """Put one model into another that is a model itself, as tutorials do; both have a layer of one name."""
    inside = keras.Input((16, 16, 3))
    base = keras.Model(inside, layers.Conv2D(5, 3, name="same")(inside))
    base.trainable = False
    x = layers.GlobalMaxPooling2D(name="features")(base(layers.Conv2D(3, 1, name="same")(x), training=False))
    return keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu"), layers.Dropout(0.5), layers.Dense(3)])(x)


NETWORKS = {
    "dense": lambda x: classified(pooled(x)),
    "several dense": lambda x: classified(layers.Dense(7, "relu")(layers.BatchNormalization()(pooled(x)))),
    "one unit": lambda x: layers.Dense(1, activation="sigmoid")(pooled(x)),
    "logits": lambda x: layers.Activation("softmax")(layers.Dense(3)(pooled(x))),
    "convolution": lambda x: layers.Softmax()(layers.Reshape((3,))(layers.Conv2D(3, 1)(pooled(x, keepdims=True)))),
    "flattened": lambda x: classified(layers.Dense(7, "relu", name="features")(layers.Flatten()(convolution(x)))),
    "two poolings": lambda x: classified(
        layers.Concatenate(name="features")([layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)])
    ),
    "no classifier": pooled,
    "normalized": lambda x: classified(pooled(layers.Normalization()(x))),
    "nested": nested,
}


NORMALIZATION = ("mean", "variance", "count")  # its weights


@pytest.mark.parametrize(("name", "suffix"), [*((name, ".keras") for name in NETWORKS), ("nested", ".h5")])
def test_a_network_ends_before_its_own_classifier(tmp_path: Path, name: str, suffix: str) -> None:
    """However the classifier is built: the features are the same, and each layer can be trained and is found."""
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, NETWORKS[name](inputs))
    for seed, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng(seed).uniform(0.1, 1, weight.shape))
    model.save(tmp_path / f"theirs{suffix}")
    backbone = start(tmp_path / f"theirs{suffix}", preprocessing="0-1")
    model = keras.models.load_model(tmp_path / f"theirs{suffix}", compile=False)
    features = keras.Model(model.inputs[0], model.get_layer("features").output)
    np.testing.assert_allclose(answer(backbone), answer(features).reshape(2, -1), rtol=1e-5)
    assert not any(isinstance(layer, keras.Model) for layer in backbone.layers)
    statistics = [each for each in features.weights if each.name in ("moving_mean", "moving_variance", *NORMALIZATION)]
    assert len(backbone.trainable_weights) == len(features.weights) - len(statistics)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x: layers.Conv2D(3, 3)(x),
        lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, activation="softmax")(x)) * 1.0,
        lambda x: layers.Average()([classified(pooled(x)), classified(layers.Flatten()(x))]),
        lambda x: classified(layers.Flatten()(layers.Conv2D(64, 3)(x))),
    ],
)
def test_a_network_without_pooled_features_is_refused(tmp_path: Path, outputs: Any) -> None:
    """A map, a classifier before the pooling, two classifiers, and 12,544 features; the message says what would do."""
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, outputs(inputs)).save(tmp_path / "theirs.keras")
    with pytest.raises(TrainingError, match=r"Expected a network that ends in pooled features .* Received .* Put a Gl"):
        start(tmp_path / "theirs.keras", preprocessing="none")


@pytest.mark.parametrize("name", ["pixels", "rescale", "head_dropout", "backbone_features"])
def test_a_network_may_have_the_name_of_a_layer_around_it(tmp_path: Path, name: str) -> None:
    """Or one of its layers may: what a training puts around it has names too, and a model has each of them once."""
    from training.fit.phases import build
    from training.fit.preset import find_preset

    inputs = keras.Input((16, 16, 3))
    features = layers.Flatten()(pooled(layers.Conv2D(3, 3, name=name)(inputs), keepdims=True))
    keras.Model(inputs, classified(features), name=name).save(tmp_path / "theirs.keras")
    given = {"weights": str(tmp_path / "theirs.keras"), "preprocessing": "0-1"}
    assert build(find_preset("default").changed(given), 2).model.output_shape == (None, 2)


def test_a_model_of_keras_2_can_be_saved_again(tmp_path: Path) -> None:
    """A run that started from it is loaded for its release, by Keras alone."""
    import h5py

    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(layers.DepthwiseConv2D(3)(inputs)))
    keras.Model(inputs, layers.Dense(3)(x)).save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"axis": -1', '"axis": [3]')
    backbone = start(tmp_path / "old.h5", preprocessing="none")
    backbone.save(tmp_path / "new.keras")
    np.testing.assert_array_equal(answer(keras.models.load_model(tmp_path / "new.keras")), answer(backbone))


# Weights alone


def save_as_keras_2(model: keras.Model, path: Path) -> None:
    """Write weights as Keras 2 did."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize(
    ("name", "top", "keras_2"),
    [
        *(("plain-cnn", classes, keras_2) for classes in (0, 7, 1000) for keras_2 in (False, True)),
        ("MobileNetV3Small", 7, False),
    ],
)
def test_weights_of_an_architecture_load_with_and_without_its_top(
    tmp_path: Path, name: str, top: int, keras_2: bool
) -> None:
    """Of any number of classes, by either Keras, and at another size than they were saved at."""
    architecture = find_start(name, "none", size_px=64)
    model = architecture.with_top("none", top) if top else architecture.backbone("none")
    for seed, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng(seed).uniform(0, 0.1, weight.shape))
    save = save_as_keras_2 if keras_2 else type(model).save_weights
    save(model, tmp_path / "a.weights.h5")
    received = start(tmp_path / "a.weights.h5", name, size_px=96).get_weights()
    assert len(received) == len(model.get_weights()) - 2 * (top > 0) - 2 * (name == "MobileNetV3Small")
    for mine, theirs in zip(received, model.get_weights(), strict=False):
        np.testing.assert_array_equal(mine, theirs)


def test_an_efficientnet_of_imagenet_keeps_its_contrast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras' own file, and what was tuned from it in either network: with the layer that Keras adds to it, or not."""
    import h5py

    options = {"include_top": False, "pooling": "avg", "input_shape": (32, 32, 3)}
    bare = keras.applications.EfficientNetB0(weights=None, **options)
    normalization = next(layer for layer in bare.layers if isinstance(layer, layers.Normalization))
    normalization.set_weights([np.array(each) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0)])
    normalization.finalize_state()
    bare.save_weights(tmp_path / "bare.weights.h5")
    save_as_keras_2(bare, tmp_path / "keras.h5")
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: tmp_path / "keras.h5")
    theirs = keras.applications.EfficientNetB0(weights="imagenet", **options)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    shutil.copy(tmp_path / "theirs.weights.h5", tmp_path / "2.13.weights.h5")
    with h5py.File(tmp_path / "2.13.weights.h5", "a") as file:  # as Keras 2.13 named the group
        file.move("layers", "_layer_checkpoint_dependencies")
    of_theirs = dict.fromkeys(("keras.h5", "theirs.weights.h5", "2.13.weights.h5"), theirs)
    expected = {"bare.weights.h5": bare, **of_theirs}
    for each in (bare, theirs):  # as Keras 2 wrote what was tuned to three classes
        save_as_keras_2(keras.Model(each.inputs, layers.Dense(3)(each.output)), tmp_path / f"tuned-{len(expected)}.h5")
        expected[f"tuned-{len(expected)}.h5"] = each
    for name, model in expected.items():
        received = start(tmp_path / name, "EfficientNetB0", size_px=32)
        ours, own = (
            answer(keras.Model(each.inputs[0], each.get_layer("stem_conv").output)) for each in (received, model)
        )
        np.testing.assert_allclose(ours, own, atol=1e-5, err_msg=name)


def test_an_optimizer_in_the_file_does_not_count(tmp_path: Path) -> None:
    """Keras saves it with the weights of a model that was trained."""
    model = find_start("plain-cnn", "none", size_px=16).with_top("none", 2)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.zeros((2, 16, 16, 3)), np.eye(2), verbose=0)
    model.save_weights(tmp_path / "mine.weights.h5")
    backbone = start(tmp_path / "mine.weights.h5", size_px=16)
    np.testing.assert_array_equal(backbone.get_weights()[0], model.get_weights()[0])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    """Also those of a larger one, whose first layers would fit; the message says how many numbers there would be."""
    inputs = keras.Input((16, 16, 3))
    mine = find_start("plain-cnn", "none", size_px=16).backbone("none")
    keras.Model(inputs, layers.Dense(5)(layers.Dense(5)(mine(inputs)))).save_weights(tmp_path / "theirs.weights.h5")
    with pytest.raises(TrainingError, match=r"weights of plain-cnn: [\d,]+ numbers, or .* Received: [\d,]+\. With"):
        start(tmp_path / "theirs.weights.h5", size_px=16)


# What is said beside the file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run at 16 by 20 pixels."""
    from training.runs.folder import write_run

    inputs = keras.Input((16, 20, 3))
    contract = Contract("shapes", ("a", "b", "c"), ImageSpec(16, 20, "box", "pad"), Origin("their-network"))
    return write_run(tmp_path, keras.Model(inputs, classified(pooled(inputs))), contract, {}, [])


def test_two_runs_of_one_second_get_a_folder_each(run: Path) -> None:
    """Trainings of one name may end at the same time."""
    from training.runs.folder import Run, write_run

    model, contract = keras.Sequential([keras.Input((1,)), layers.Flatten()]), Run(run).contract
    assert len({write_run(run.parent.parent, model, contract, {}, []) for _ in range(2)} | {run}) == 3


def test_a_run_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss it has no contract, or the state of its training is there. The optimizer is not in it."""
    from training.runs import folder

    synced = list[set[str]]()
    monkeypatch.setattr(folder, "sync_all", lambda run: synced.append({path.name for path in run.iterdir()}))
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    model.compile("adam", "mse")
    run = folder.write_run(tmp_path, model, Contract("m", ("a", "b"), ImageSpec(1, 2)), {}, [])
    folder.finish_run(run, "digest")
    first = {"model.keras", "history.json", "golden"}
    assert synced == [first, first | {"contract.json"}, first | {"contract.json", "made-of.txt"}]
    loaded = keras.models.load_model(run / "model.keras")
    assert not loaded.compiled and all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


@pytest.mark.parametrize("inside", ["", "model.keras"])
def test_a_run_brings_its_pixels(run: Path, inside: str) -> None:
    """Its preprocessing is inside, photos become pixels as in the run, and its model is known by the file's hash."""
    from training.runs.folder import sha256

    found = find_start("plain-cnn", str(run / inside))
    assert (found.name, found.preprocessing) == ("their-network", "none")
    assert found.photo_spec == ImageSpec(16, 20, "box", "pad")
    network, _ = found.made_of(str(run / inside))  # so another file is another unfinished training
    assert network["sha256"] == sha256(run / "model.keras")
    origin = found.origin("")
    assert origin["weights"] == f"shapes/{run.name}/model.keras"
    assert origin["weights_sha256"] == sha256(run / "model.keras")


def test_a_file_may_have_a_name_of_any_bytes(run: Path, tmp_path: Path) -> None:
    """The contract, which is UTF-8, has it with a mark in place of what is not."""
    path = tmp_path / os.fsdecode(b"mod\xe8le.keras")
    path.write_bytes((run / "model.keras").read_bytes())
    assert find_start("", str(path), preprocessing="none").origin("")["weights"] == "mod\ufffdle.keras"


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("nothing.keras", {}, "Expected --weights imagenet, none, a run folder or a file. Received: .*nothing.keras"),
        ("", {}, "Received a folder"),
        ("run", {"size_px": 32}, "Expected --size as .*model.keras has it, 16 by 20 pixels. Received: 32"),
        ("run", {"preprocessing": "0-1"}, "Expected no --preprocessing with a run, whose model contains it"),
        ("run/../whole.keras", {}, "Expected --preprocessing with .*whole.keras: what .* trained with, of: none, 0-1"),
        ("run/../whole.keras", {"preprocessing": "tf"}, "Expected a preprocessing of: none, 0-1.* Received: 'tf'"),
        ("run/../junk.h5", {"preprocessing": "none"}, "none by its content"),
    ],
)
def test_what_does_not_fit_is_told(
    run: Path, tmp_path: Path, weights: str, options: dict[str, Any], message: str
) -> None:
    """No file, no Keras file, another size, and preprocessing that is missing, unknown or too much."""
    (run.parent / "whole.keras").write_bytes((run / "model.keras").read_bytes())
    (run.parent / "junk.h5").write_bytes(b"junk")
    path = str(run) + weights.removeprefix("run") if weights.startswith("run") else str(tmp_path / weights)
    with pytest.raises(TrainingError, match=message):
        find_start("plain-cnn", path, **options)
