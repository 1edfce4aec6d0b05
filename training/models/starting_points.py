"""What a training starts from: a named architecture, or the network in a file, up to its own classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from contract.document import ImageSpec
from training.errors import WeightsError
from training.models import plain_cnn
from training.models.backbones import before_classifier
from training.models.catalogue import PREPROCESSING, Architecture, check_preprocessing, find_architecture
from training.models.files import contains_only_weights, copy_weights, count_numbers, load_model, load_weights
from training.runs.folder import run_of, sha256
from training.words import as_utf8


@dataclass(frozen=True, kw_only=True)
class File(Architecture):
    """The network in a file.

    Attributes:
        path: Where it is.
        file: What the contract calls it.
        sha256: Of the file, in hex.
        image: How photos become pixels, if the file contains a whole model; weights alone leave it to the architecture.
    """

    path: str
    file: str
    sha256: str
    image: ImageSpec | None = None

    @property
    def photo_spec(self) -> ImageSpec:
        """As the model in the file has it."""
        return self.image or find_architecture(self.name, self.size_px).photo_spec

    def origin(self, weights: str) -> dict[str, str]:
        """Return what the contract says of the network and its weights."""
        return {"architecture": self.name, "weights": self.file, "weights_sha256": self.sha256}

    def made_of(self, weights: str) -> tuple[dict[str, Any], str]:
        """Leave out where the file is, and its name: its hash is enough."""
        return {name: value for name, value in asdict(self).items() if name not in ("path", "file")}, ""

    def backbone(self, weights: str) -> keras.Model:
        """Load the network up to its pooled features (n, c), with the weights of the file."""
        if self.image:
            return before_classifier(load_model(Path(self.path), size_px=self.size_px))
        return _filled(find_architecture(self.name, self.size_px), Path(self.path))


def find_start(
    name: str, weights: str, *, size_px: int | None = None, preprocessing: str | None = None
) -> Architecture:
    """Return a named architecture, or the network in a file.

    Args:
        name: The architecture; a run and a whole model have their own.
        weights: `imagenet`, `none`, a run folder, or a file.
        size_px: Height and width, if not the architecture's; a run and most whole models have their own.
        preprocessing: What the network in a file expects, one of `PREPROCESSING`. Weights alone have that of their
            architecture, if no other is given; a run contains it.

    Raises:
        WeightsError: There is no such architecture or file, or what is given does not fit it.
    """
    if weights in ("imagenet", "none"):
        _expect_no(preprocessing, f"weights {weights}, as the architecture has its own")
        found = find_architecture(name, size_px)
        if found.name == plain_cnn.NAME:
            plain_cnn.check_weights(weights)
        return found
    run = run_of(Path(weights))
    path = run.path / "model.keras" if run else Path(weights)
    if not path.exists():
        raise WeightsError(f"Expected --weights imagenet, none, a run folder or a file. Received: {weights}")
    if run:
        _expect_no(preprocessing, "a run, whose model contains it")
        preprocessing = "none"
    if preprocessing is not None:
        check_preprocessing(preprocessing)
    if contains_only_weights(path):
        named = find_architecture(name, size_px)
        kept = preprocessing or named.preprocessing
        return File(named.name, named.size_px, kept, path=str(path), file=as_utf8(path.name), sha256=sha256(path))
    if preprocessing is None:
        raise WeightsError(
            f"Expected --preprocessing with {path}: what its network was trained with, of: {', '.join(PREPROCESSING)}"
        )
    model = load_model(path, size_px=size_px)
    height, width = model.input_shape[1:3]
    if size_px and (height, width) != (size_px, size_px):
        raise WeightsError(f"Expected --size as {path} has it, {height} by {width} pixels. Received: {size_px}")
    image = run.contract.image if run else ImageSpec(height, width)
    own = (run.contract.origin.architecture if run else "") or model.name
    called = as_utf8(f"{run.name}/{path.name}" if run else path.name)
    return File(own, height, preprocessing, path=str(path), file=called, sha256=sha256(path), image=image)


def _expect_no(preprocessing: str | None, beside: str) -> None:
    if preprocessing is not None:
        raise WeightsError(f"Expected no --preprocessing with {beside}. Received: {preprocessing}")


def _filled(architecture: Architecture, path: Path) -> keras.Model:
    """Load the weights of an architecture into its backbone; a classifier of any number of classes may be on top.

    Keras would load the first layers of a larger network without a word, so the numbers in the file are counted.
    """
    backbone, received = architecture.backbone("none"), count_numbers(path)
    advice = f"It must contain all weights of {architecture.name}."
    if received == backbone.count_params():
        load_weights(backbone, path, advice)
        return backbone
    own_size = find_architecture(architecture.name)  # the numbers in VGG's top depend on the size
    whole = own_size.with_top("none")
    classes, a_class, rest = _top(whole)
    top_classes, left = divmod(received - rest, a_class)
    if left or top_classes < 1:
        raise WeightsError(
            f"Expected {path} to contain weights of {architecture.name}: {backbone.count_params():,} numbers, or with a"
            f" classifier on top {rest:,} and {a_class:,} for each class. Received: {received:,}. With another"
            " --architecture they may fit. What has other layers on top must be saved as a whole model, NAME.keras."
        )
    if top_classes != classes:
        whole = own_size.with_top("none", top_classes)
    load_weights(whole, path, advice)
    full = [layer for layer in whole.layers if layer.weights]
    for layer, filled in zip([layer for layer in backbone.layers if layer.weights], full, strict=False):
        copy_weights(filled, layer)
    return backbone


def _top(whole: keras.Model) -> tuple[int, int, int]:
    """Return a classifier's classes, and how many numbers each of them and all the rest of the model have."""
    classes = whole.output_shape[-1]
    last = next(layer for layer in reversed(whole.layers) if layer.weights)
    return classes, last.count_params() // classes, whole.count_params() - last.count_params()
