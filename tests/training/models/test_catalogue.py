"""training/models/catalogue.py: models by name, and how each of them wants its pixels."""

import numpy as np
import pytest

from training.errors import WeightsError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global catalogue, efficientnet_lite, find_architecture, imagenet_utils, keras, layers
    import keras
    from keras import layers
    from keras.applications import imagenet_utils

    from training.models import catalogue, efficientnet_lite
    from training.models.catalogue import find_architecture


# Architectures


@pytest.mark.parametrize("name", ["efficientnet-lite0", "EfficientNet-Lite0", "MobileNetV3Small", "mobilenetv3small"])
def test_architectures_are_found_in_any_case(name):
    """The name that comes back is the one that Keras knows."""
    assert find_architecture(name).name in ("efficientnet-lite0", "MobileNetV3Small")


def test_unknown_architecture_lists_the_known():
    """The message contains the name that came and those that would do."""
    with pytest.raises(WeightsError, match=r"efficientnet-lite0.*EfficientNetB7.*Xception.*Received: 'resnet18'"):
        find_architecture("resnet18")


def test_each_application_is_one_of_keras():
    """No name in the table is misspelt."""
    names = {each.name for each in catalogue.ARCHITECTURES.values()} - {*efficientnet_lite.VARIANTS, "plain-cnn"}
    assert names and all(callable(getattr(keras.applications, name)) for name in names)


def test_imagenet_classes_are_in_keras_order():
    """A thousand names, two of them twice."""
    classes = catalogue.imagenet_classes()
    assert len(classes) == 1000 and len(set(classes)) == 998
    assert (classes[0], classes[285], classes[-1]) == ("tench", "Egyptian_cat", "toilet_tissue")


# Preprocessing


@pytest.mark.parametrize(("mode", "keras_mode"), [("±1", "tf"), ("caffe", "caffe"), ("torch", "torch")])
def test_preprocessing_is_keras_own(pixels, mode, keras_mode):
    """Our layers give what imagenet_utils.preprocess_input gives."""
    expected = imagenet_utils.preprocess_input(pixels.copy(), mode=keras_mode)
    np.testing.assert_allclose(np.asarray(catalogue.preprocess(pixels, mode)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("none", 0, 255), ("0-1", 0, 1), ("±1", -1, 1), ("efficientnet-lite", -127 / 128, 1)]
)
def test_preprocessing_scales_to_its_range(mode, low, high):
    """0 and 255 go to the ends of the range."""
    ends = np.array([0, 255], np.float32).reshape(2, 1, 1, 1).repeat(3, axis=-1)
    np.testing.assert_allclose(np.asarray(catalogue.preprocess(ends, mode)).reshape(2, 3)[:, 0], [low, high])


def test_unknown_preprocessing_lists_the_known(pixels):
    """Keras' own word for ±1 is not ours, and the message says which is."""
    with pytest.raises(WeightsError, match=r"none, 0-1, ±1, caffe, torch, efficientnet-lite\. Received: 'tf'"):
        catalogue.preprocess(pixels, "tf")


@pytest.mark.parametrize("mode", ["none", "0-1", "±1", "caffe", "torch"])
def test_preprocessing_survives_a_file(tmp_path, pixels, mode):
    """A model with preprocessing in front, saved as .keras and loaded, answers the same."""
    network = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(3)])
    model = catalogue.with_preprocessing(network, mode)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(pixels), model(pixels))


@pytest.mark.network
def test_weights_of_keras_are_downloaded():
    """MobileNet comes with ImageNet's weights, and gives probabilities, also for grey."""
    grey = np.full((1, 224, 224, 3), 127.0, np.float32)
    answer = np.asarray(find_architecture("MobileNet").classifier("imagenet")(grey))
    assert answer.shape == (1, 1000) and answer.sum() == pytest.approx(1, abs=1e-4)
