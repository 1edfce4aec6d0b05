"""training/models/files.py: Keras files of a whole model, or the weights of an architecture."""

import json
import zipfile

import numpy as np
import pytest

from training.__main__ import main
from training.errors import WeightsError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global catalogue, find_architecture, keras, layers, load_file, small
    import keras
    from keras import layers

    from tests.programs.tiny_model import small
    from training.models import catalogue
    from training.models.catalogue import find_architecture
    from training.models.files import load_file


def flat(*inputs):
    """Return a model of these inputs, or of none that are defined."""
    return keras.Sequential([*inputs, layers.Flatten(), layers.Dense(3)])


def own_layer():
    """Return a layer that a file names, and does not contain."""

    class Own(layers.Layer):
        def call(self, x):
            return x

    return Own()


def rename(model, path, suffix):
    """Save a model, or its weights, under a suffix, and give the file another name."""
    saved = path.with_name("saved" + suffix)
    (model.save_weights if suffix == ".weights.h5" else model.save)(saved)
    saved.rename(path)


def run(model, pixels):
    return np.asarray(model(pixels, training=False))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_whole_models_load(tmp_path, pixels, suffix):
    """A file is a model for pixels 0-255, its preprocessing in front."""
    model = small(layers.Dense(3, activation="softmax"))
    model.save(tmp_path / f"model{suffix}")
    loaded = load_file(tmp_path / f"model{suffix}", None, 3, "0-1")
    np.testing.assert_allclose(run(loaded, pixels), run(model, pixels / 255), atol=1e-6)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights of MobileNetV3Small with three classes, and the model that they are of."""
    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small(weights=None, classes=3)
    model.save_weights(path)
    return path, model


def test_weights_load_into_their_architecture(weights_file):
    """A .weights.h5 file with its architecture named is the model that wrote it."""
    path, model = weights_file
    loaded = load_file(path, find_architecture("MobileNetV3Small"), 3, "none")
    for received, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_weights_of_another_size_are_released_at_it(weights_file, tmp_path, monkeypatch):
    """The contract has the size that was asked for, which is not the architecture's own."""
    released = []
    monkeypatch.setattr("training.release.sources.release", lambda source, *_, **__: released.append(source))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    options = ["--architecture", "MobileNetV3Small", "--size", "96", "--preprocessing", "none", "--name", "small"]
    classes = ["--classes", str(tmp_path / "classes.txt")]
    assert main(["export", "--weights", str(weights_file[0]), *options, *classes]) == 0
    (source,) = released
    assert source.model.input_shape == (None, 96, 96, 3)
    assert (source.contract.image.height, source.contract.image.width) == (96, 96)


@pytest.fixture
def dense():
    """An architecture of next to nothing."""

    class Dense(catalogue.Architecture):
        def with_top(self, weights, classes=1000):
            return small(layers.Dense(classes, activation="softmax"))

    return Dense("dense", 16, "none")


# h5py's datasets do not know NumPy 2's copy keyword, which Keras uses to print a variable in its message.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_weights_with_other_classes_are_refused(tmp_path, dense):
    """The message says how many classes were expected, and stays readable."""
    dense.with_top("none", 3).save_weights(tmp_path / "mine.weights.h5")
    with pytest.raises(WeightsError, match="all weights of dense, with 4 classes on top") as refusal:
        load_file(tmp_path / "mine.weights.h5", dense, 4, "none")
    assert len(str(refusal.value)) < 1200 and "\n" not in str(refusal.value)


def test_weights_without_architecture_are_refused(weights_file):
    """A .weights.h5 file contains no model."""
    with pytest.raises(WeightsError, match=r"Expected --architecture with mine\.weights\.h5, which contains weights"):
        load_file(weights_file[0], None, 3, "none")


def test_what_a_file_has_itself_is_not_asked_for(weights_file, dense, tmp_path):
    """The architecture of a whole model, and one of the outputs where there is one; the contract would name either."""
    dense.with_top("none", 3).save(tmp_path / "mine.keras")
    with pytest.raises(WeightsError, match=r"no --architecture with mine\.keras, which contains a whole model"):
        load_file(tmp_path / "mine.keras", dense, 3, "none")
    with pytest.raises(WeightsError, match=r"no --output with mine\.weights\.h5, as its architecture has only one"):
        load_file(weights_file[0], dense, 3, "none", output="probabilities")


def test_layers_that_keras_leaves_random_are_refused(weights_file, dense, monkeypatch):
    """What Keras only warns of, weights that the file lacks, would be released as noise."""
    import warnings

    def load_weights(model, path):
        warnings.warn(
            "Skipping nested container. Affected layers will retain freshly-initialized weights.", stacklevel=1
        )

    monkeypatch.setattr(keras.Model, "load_weights", load_weights)
    with pytest.raises(WeightsError, match="Skipping nested container"):
        load_file(weights_file[0], dense, 3, "none")


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")  # one of the cases
@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (lambda path: None, "a.keras", r"none: .*a\.keras"),
        *(
            (lambda path: path.write_bytes(b"junk"), name, "none by its content")
            for name in ("a.keras", "a.h5", "a.onnx")
        ),
        (lambda path: zipfile.ZipFile(path, "w").close(), "a.pt", r"a\.pt, which is none by its content \(22 bytes\)"),
        (lambda path: cut_off(small(), path), "a.h5", "none by its content .* cut off"),
        (lambda path: path.mkdir(), "a", "Received a folder: .*a"),
        (
            lambda path: rename(small(layers.Dense(3)), path, ".weights.h5"),
            "a.keras",
            r"ends in \.weights\.h5, as only",
        ),
        (
            lambda path: quantized(small(layers.Dense(3))).save(path),
            "a.keras",
            "not quantized.* int8_from_float32. Save it before",
        ),
        (lambda path: rename(small(), path, ".keras"), "a.h5", r"ends in \.keras, as the content does.*a\.h5\. Rename"),
        (lambda path: rename(small(), path, ".h5"), "a.keras", r"ends in \.h5, as the content does.*a\.keras\. Rename"),
        (lambda path: rename(small(layers.Dense(3)), path, ".weights.h5"), "a.h5", r"ends in \.weights\.h5"),
        (lambda path: small(layers.Dense(3)).export(path, verbose=False), "a", "Received a SavedModel: .*a. Keras"),
        (lambda path: small(own_layer()).save(path), "a.keras", "the layer Own, which Keras does not have. The file"),
        (lambda path: small(own_layer()).save(path), "a.h5", "the layer Own, which Keras does not have. The file"),
        (
            lambda path: small(own_function()).save(path),
            "a.keras",
            "the function own, which Keras does not have. The file",
        ),
        (
            lambda path: small(own_function()).save(path),
            "a.h5",
            "the function own, which Keras does not have. The file",
        ),
        (lambda path: small(layers.Lambda(lambda x: x)).save(path), "a.keras", "A Lambda layer is code"),
        (lambda path: small(layers.Lambda(lambda x: x)).save(path), "a.h5", "A Lambda layer is code"),
        (lambda path: flat(keras.Input((16, 16, 1))).save(path), "a.keras", r"Received: \[\(None, 16, 16, 1\)\]"),
        (lambda path: flat().save(path), "a.keras", "Received: none defined"),
    ],
)
def test_files_that_are_no_model_of_photos_are_refused(tmp_path, write, name, message):
    """No file, no Keras model, another name, weights, code, unknown layers, integers, greyscale, and no inputs."""
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=message):
        load_file(tmp_path / name, None, 3, "none")


def test_preprocessing_is_checked_before_a_file_is_loaded(tmp_path):
    """A large file takes a while, and is not even looked for."""
    with pytest.raises(WeightsError, match="Expected a preprocessing of: none, 0-1"):
        load_file(tmp_path / "large.keras", None, 3, "bogus")


def own_function():
    """Return a layer with a function of its own."""

    def own(x):
        return x * 1.0

    return layers.Activation(own)


def cut_off(model, path):
    """Save half of a model's file."""
    model.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def quantized(model):
    """Return a model whose dense layer has integers for weights."""
    model.layers[-1].quantize("int8")
    return model


@pytest.mark.parametrize(
    ("layer", "written"),
    [
        (lambda: layers.DepthwiseConv2D(3), {"groups": 1}),
        (lambda: layers.SeparableConv2D(4, 3), {"groups": 1}),
        (lambda: layers.Conv2DTranspose(4, 3), {"groups": 1}),
        (lambda: layers.BatchNormalization(), {"axis": [3]}),
        (lambda: layers.Conv2D(3, 3, groups=3), {}),
        (lambda: layers.Conv2D(4, 3), {"dtype": {"class_name": "Policy", "config": {"name": "float32"}}}),
    ],
)
def test_layers_of_keras_2_load(tmp_path, inputs, pixels, layer, written):
    """What Keras 2 wrote of them and Keras 3 does not take changes nothing; real groups stay."""
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layer()(inputs)))
    save_as_keras_2(model, tmp_path / "old.h5", written)
    loaded = load_file(tmp_path / "old.h5", None, model.output_shape[-1], "none")
    np.testing.assert_allclose(run(loaded, pixels), run(model, pixels), atol=1e-6)


def save_as_keras_2(model, path, written):
    """Save a model, and add to the configuration of its first layer."""
    import h5py

    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"] |= written
        file.attrs["model_config"] = json.dumps(config)


def test_keras_2_file_that_does_not_load_says_what_to_do(tmp_path, inputs):
    """A layer option that Keras 3 does not know is shown together with the way out."""
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(inputs)))
    save_as_keras_2(model, tmp_path / "old.h5", {"groups": 2})
    with pytest.raises(WeightsError, match=r"'groups': 2.*If Keras 2 .* install tf-keras.*--architecture\."):
        load_file(tmp_path / "old.h5", None, 3, "none")


@pytest.mark.parametrize(
    ("policy", "suffix"),
    [
        *(("mixed_float16", ".keras"), ("mixed_float16", ".h5"), ("mixed_bfloat16", ".h5"), ("bfloat16", ".keras")),
        ("float64", ".keras"),
    ],
)
def test_other_precision_is_released_in_float32(tmp_path, pixels, policy, suffix):
    """The variables keep their values, and every layer computes in float32, nested models included."""
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((16, 16, 3))
        nested = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization()])
        x = layers.GlobalAveragePooling2D()(nested(inputs))
        model = keras.Model(inputs, layers.Dense(3, activation="softmax", dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / f"mixed{suffix}")
    loaded = load_file(tmp_path / f"mixed{suffix}", None, 3, "0-1")
    assert {layer.dtype_policy.name for layer in loaded._flatten_layers()} == {"float32"}
    np.testing.assert_allclose(run(loaded, pixels), np.float32(run(model, pixels / 255)), atol=0.01)


def test_open_input_size_must_be_given(tmp_path):
    """A model without a size takes it from --size, and is refused without."""
    open_input = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 10)(open_input))
    keras.Model(open_input, layers.Dense(3)(x)).save(tmp_path / "open.keras")
    assert load_file(tmp_path / "open.keras", None, 3, "none", size_px=20).input_shape == (None, 20, 20, 3)
    with pytest.raises(WeightsError, match="Expected --size"):
        load_file(tmp_path / "open.keras", None, 3, "none")
    with pytest.raises(WeightsError, match=r"Expected a --size that .*open\.keras takes, such .* Received: 9"):
        load_file(tmp_path / "open.keras", None, 3, "none", size_px=9)
