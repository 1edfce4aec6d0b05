"""The Keras models that can be exported or trained, each with the preprocessing that it was made for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from contract.document import ImageSpec
from training.errors import WeightsError
from training.models import efficientnet_lite, plain_cnn

PREPROCESSING = ("none", "0-1", "±1", "caffe", "torch", "efficientnet-lite")
# Function of keras.applications, input size in pixels, preprocessing. Families that scale their input themselves have
# "none". Source: the defaults of each function in Keras 3.15.
_APPLICATIONS: tuple[tuple[str, int, str], ...] = (
    *((f"EfficientNetB{i}", size, "none") for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))),
    *((f"EfficientNetV2B{i}", size, "none") for i, size in enumerate((224, 240, 260, 300))),
    *((f"EfficientNetV2{size}", px, "none") for size, px in (("S", 384), ("M", 480), ("L", 480))),
    *((f"ConvNeXt{size}", 224, "none") for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *((f"MobileNetV3{size}", 224, "none") for size in ("Small", "Large")),
    *((name, 224, "±1") for name in ("MobileNet", "MobileNetV2", "NASNetMobile")),
    *((f"ResNet{depth}", 224, "caffe") for depth in (50, 101, 152)),
    *((f"ResNet{depth}V2", 224, "±1") for depth in (50, 101, 152)),
    *((f"DenseNet{depth}", 224, "torch") for depth in (121, 169, 201)),
    *((f"VGG{depth}", 224, "caffe") for depth in (16, 19)),
    *((name, 299, "±1") for name in ("Xception", "InceptionV3", "InceptionResNetV2")),
    ("NASNetLarge", 331, "±1"),
)


@dataclass(frozen=True)
class Architecture:
    """A kind of model: its name, the size of its input in pixels, and the preprocessing that it expects."""

    name: str
    size_px: int
    preprocessing: str

    @property
    def imagenet_spec(self) -> ImageSpec:
        """How photos become pixels for ImageNet weights as they are: the centre 87.5 % of the shorter side."""
        return ImageSpec(self.size_px, self.size_px, filter="bicubic", aspect="crop", crop=0.875)

    @property
    def photo_spec(self) -> ImageSpec:
        """How photos become pixels in training.

        A linear head on frozen features of clothing photos, accuracy in 5-fold cross-validation on the training split:
        crop 0.878, pad 0.866, stretch 0.854 (standard errors 0.004). plain-cnn, ten epochs and one fold: crop 0.645,
        stretch 0.635.
        """
        return ImageSpec(self.size_px, self.size_px, filter="bicubic", aspect="crop")

    def origin(self, weights: str) -> dict[str, str]:
        """Return what a contract says of the network and its weights."""
        return {"architecture": self.name, "weights": weights}

    def made_of(self, weights: str) -> tuple[dict[str, Any], str]:
        """Return what tells the network and its weights from others, as JSON values."""
        return asdict(self), weights

    def backbone(self, weights: str) -> keras.Model:
        """Build the model for preprocessed input up to its pooled features (n, c); see `with_top` for the weights."""
        return self._build(weights, include_top=False)

    def with_top(self, weights: str, classes: int = 1000) -> keras.Model:
        """Build the model for preprocessed input with its classes on top.

        Args:
            weights: `imagenet`, or `none` for random ones.
            classes: How many there are.
        """
        return self._build(weights, include_top=True, classes=classes)

    def _build(self, weights: str, include_top: bool, classes: int = 1000) -> keras.Model:
        if self.name in efficientnet_lite.VARIANTS:
            return efficientnet_lite.build(self.name, weights, include_top, classes, self.size_px)
        if self.name == plain_cnn.NAME:
            return plain_cnn.build(self.size_px, weights, include_top, classes)
        options: dict[str, Any] = {"include_top": include_top, "input_shape": (self.size_px, self.size_px, 3)}
        options |= {"classes": classes} if include_top else {"pooling": "avg"}
        build = getattr(keras.applications, self.name)
        try:
            return build(weights=None if weights == "none" else weights, **options)
        except Exception as exc:
            if "nput size" in str(exc):
                raise WeightsError(f"Expected an input size that {self.name} takes. Received: {exc}") from exc
            if weights != "imagenet":
                raise
            raise WeightsError(
                f"Expected to download the ImageNet weights of {self.name}. Received: {exc}. Without a network, use"
                " efficientnet-lite0, whose weights are installed, or --weights FILE."
            ) from exc

    def classifier(self, weights: str, classes: int = 1000) -> keras.Model:
        """Build the whole model for pixels 0-255, float32 (n, h, w, 3), to class outputs (n, classes)."""
        return with_preprocessing(self.with_top(weights, classes), self.preprocessing)


ARCHITECTURES = {
    **{
        name: Architecture(name, variant.size_px, "efficientnet-lite")
        for name, variant in efficientnet_lite.VARIANTS.items()
    },
    plain_cnn.NAME: Architecture(plain_cnn.NAME, plain_cnn.SIZE_PX, "0-1"),
    **{name.lower(): Architecture(name, size_px, mode) for name, size_px, mode in _APPLICATIONS},
}


def find_architecture(name: str, size_px: int | None = None) -> Architecture:
    """Return an architecture by its name, in any case, with its default input size or another.

    Raises:
        WeightsError: No such architecture; the message lists those there are.
    """
    if name.lower() not in ARCHITECTURES:
        names = ", ".join(architecture.name for architecture in ARCHITECTURES.values())
        raise WeightsError(f"Expected an architecture of: {names}. Received: {name!r}")
    architecture = ARCHITECTURES[name.lower()]
    return replace(architecture, size_px=size_px) if size_px else architecture


def imagenet_classes() -> tuple[str, ...]:
    """Return ImageNet's 1,000 class names in Keras' order, by WordNet id; two names appear twice."""
    return tuple((Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())


def check_preprocessing(mode: str) -> None:
    """Refuse what is none of `PREPROCESSING`.

    Raises:
        WeightsError: It is not; the message lists those there are.
    """
    if mode not in PREPROCESSING:
        raise WeightsError(f"Expected a preprocessing of: {', '.join(PREPROCESSING)}. Received: {mode!r}")


def preprocess(x: Any, mode: str) -> Any:
    """Scale pixels 0-255, float32 (n, h, w, 3), RGB, in the graph and with Keras' own layers.

    Source: keras.applications.imagenet_utils for `±1`, `caffe` (BGR less the mean) and `torch` (mean and deviation).
    """
    check_preprocessing(mode)
    if mode == "none":
        return x
    if mode == "0-1":
        return layers.Rescaling(1 / 255, name="rescale")(x)
    if mode == "±1":
        return layers.Rescaling(1 / 127.5, -1.0, name="rescale")(x)
    if mode == "efficientnet-lite":
        return layers.Rescaling(1 / 128, -127 / 128, name="rescale")(x)
    if mode == "caffe":
        return layers.Rescaling(1.0, [-103.939, -116.779, -123.68], name="rescale")(keras.ops.flip(x, axis=-1))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of torch
    return layers.Rescaling((1 / (255 * deviation)).tolist(), (-mean / deviation).tolist(), name="rescale")(x)


def with_preprocessing(model: keras.Model, mode: str) -> keras.Model:
    """Put the preprocessing in front of a model, so that it takes pixels 0-255."""
    inputs = keras.Input(model.input_shape[1:], name="pixels")
    network = keras.Model(model.inputs[0], model.outputs[0], name="network")  # its own name may be one of ours
    return keras.Model(inputs, network(preprocess(inputs, mode)), name=model.name)
