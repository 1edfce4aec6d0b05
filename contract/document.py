"""The contract JSON that each model version carries: one dataclass that reads and writes it."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

CONTRACT_VERSION = 1
PREDICT_SIGNATURE = "serving_default"
DESCRIBE_SIGNATURE = "describe"
EXPORT_SIGNATURES = "export_"  # and the identity
IMAGES, PROBABILITIES, NOVELTY, IDENTITY = "images", "probabilities", "novelty", "identity"
QUERY, CONTRACT = "query", "contract"
MAX_SPEC_PX = 4096  # a side of the pixels

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Aspect = Literal["crop", "stretch", "pad"]
Orientation = Literal["exif", "ignore"]

_IDENTITY = re.compile("[0-9a-f]{16}")


class ContractError(ValueError):
    """A contract that this release cannot read; the message says which member and why."""


@dataclass(frozen=True)
class ImageSpec:
    """How an encoded image becomes pixels.

    Attributes:
        height: Rows of the pixels.
        width: Columns of the pixels.
        filter: Resampling filter, by Pillow's name.
        aspect: `crop` takes the largest centred box of the target's aspect, `stretch` ignores the aspect, `pad` fits
            the whole image and fills the rest with `background`.
        crop: Part of that centred box's sides that is kept, in (0, 1]; only for `crop`.
        background: RGB under transparent pixels and around padded images, each 0-255.
        orientation: `exif` turns the image the way its EXIF tag says, `ignore` does not.
    """

    height: int
    width: int
    filter: Filter = "bicubic"
    aspect: Aspect = "crop"
    crop: float = 1.0
    background: tuple[int, int, int] = (255, 255, 255)
    orientation: Orientation = "exif"

    def __post_init__(self) -> None:
        fits = 1 <= self.height <= MAX_SPEC_PX and 1 <= self.width <= MAX_SPEC_PX
        _expect(fits, f"height and width from 1 to {MAX_SPEC_PX}", self)
        _expect(self.filter in get_args(Filter), f"a filter of {get_args(Filter)}", self.filter)
        _expect(self.aspect in get_args(Aspect), f"an aspect of {get_args(Aspect)}", self.aspect)
        _expect(self.orientation in get_args(Orientation), f"an orientation of {get_args(Orientation)}", self)
        _expect(0 < self.crop <= 1, "a crop above 0 and up to 1", self.crop)
        is_colour = len(self.background) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in self.background)
        _expect(is_colour, "a background of three integers from 0 to 255", self.background)


@dataclass(frozen=True)
class GoldenExample:
    """An encoded image and the probabilities (k,) that the file carrying this contract gave for it at export.

    Attributes:
        novelty: The score that it gave; None for a model without one.
    """

    name: str
    image: bytes = field(repr=False)
    probabilities: tuple[float, ...] = field(repr=False)
    novelty: float | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """All that is compared: the probabilities, and the score if there is one."""
        return self.probabilities if self.novelty is None else (*self.probabilities, self.novelty)


@dataclass(frozen=True)
class Novelty:
    """When an image is unlike all that a model was trained on.

    The score is an output of the graph: the part of an image's pooled features that lies outside the directions which
    training photos use, from 0 to 1.

    Attributes:
        threshold: The score above which an image counts as unknown.
        turned_away: Part of the photos, held out to fit the threshold, that are above it.
        photos: How many those were.
    """

    threshold: float
    turned_away: float = 0.0
    photos: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Novelty:
        """Read what a contract says; members that this release does not know are left out."""
        turned_away, photos = float(values.get("turned_away", 0.0)), int(values.get("photos", 0))
        return cls(float(values["threshold"]), turned_away, photos)


@dataclass(frozen=True)
class Origin:
    """How a model was made; what is not known is empty or None.

    Attributes:
        architecture: Name of the network.
        weights: `imagenet`, `none`, or the name of a file.
        weights_sha256: SHA-256 of that file, in hex.
        data_digest: SHA-256 over the photos and labels of each split.
        recipe: Every hyperparameter of the training.
        temperature: What the logits were divided by, so that probabilities are calibrated.
        training_s: Seconds that the training took.
        created_at: When it was made, in UTC.
        source_revision: Revision of this project.
        keras: Version of Keras.
        tensorflow: Version of TensorFlow.
    """

    architecture: str = ""
    weights: str = ""
    weights_sha256: str = ""
    data_digest: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    training_s: float | None = None
    created_at: str = ""
    source_revision: str = ""
    keras: str = ""
    tensorflow: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what is known, as JSON values."""
        return {name: value for name, value in vars(self).items() if value not in ("", None, {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """Read an origin; members that this release does not know are left out."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})


@dataclass(frozen=True)
class Contract:
    """Every fact about one model version.

    Attributes:
        model: Name of the model.
        classes: Class names in output order.
        image: How an encoded image becomes pixels.
        origin: How the model was made.
        metrics: Figures on held-out data, by name, and how many photos trained it.
        golden: Examples that a gateway replays before it trusts the version.
        tolerance: Largest absolute difference in a probability, or in the score, that a replay may show.
        identity: 64 random bits in hex that each export makes once. Empty in exports before 28 November 2026.
        novelty: When an image is unlike all training photos. None if the graph gives no score, as in older exports.
    """

    model: str
    classes: tuple[str, ...]
    image: ImageSpec
    origin: Origin = Origin()
    metrics: Mapping[str, float] = field(default_factory=dict)
    golden: tuple[GoldenExample, ...] = ()
    tolerance: float = 1e-3
    identity: str = ""
    novelty: Novelty | None = None

    def __post_init__(self) -> None:
        _expect(not self.identity or _IDENTITY.fullmatch(self.identity), "an identity of 16 hex digits", self.identity)

    @property
    def outputs(self) -> list[str]:
        """What a prediction gives beside the identity."""
        return [PROBABILITIES, NOVELTY] if self.novelty else [PROBABILITIES]

    @property
    def signature(self) -> str:
        """The signature that only this export has, or the one that all have if it has no identity."""
        return EXPORT_SIGNATURES + self.identity if self.identity else PREDICT_SIGNATURE

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON values, golden images in base64."""
        return {
            "contract_version": CONTRACT_VERSION,
            **({"identity": self.identity} if self.identity else {}),
            "model": self.model,
            "classes": list(self.classes),
            "image": {**vars(self.image), "background": list(self.image.background)},
            "origin": self.origin.to_dict(),
            "metrics": dict(self.metrics),
            **({"novelty": vars(self.novelty)} if self.novelty else {}),
            "golden": {
                "tolerance": self.tolerance,
                "examples": [
                    {
                        "name": example.name,
                        "image": base64.b64encode(example.image).decode("ascii"),
                        "probabilities": list(example.probabilities),
                        **({} if example.novelty is None else {"novelty": example.novelty}),
                    }
                    for example in self.golden
                ],
            },
        }

    def to_json(self) -> bytes:
        """Return the contract as UTF-8 JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes | str) -> Contract:
        """Read a contract.

        Raises:
            ContractError: The text is no contract, or one of another contract version.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ContractError(f"Expected a contract in JSON. Received text that does not parse: {exc}") from exc
        _expect(isinstance(document, dict), "a JSON object", type(document).__name__)
        version = document.get("contract_version")
        _expect(version == CONTRACT_VERSION, f"contract_version {CONTRACT_VERSION}", version)
        try:
            return cls._from_document(document)
        except ContractError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as exc:
            raise ContractError(f"Expected a complete contract. Received one with: {exc!r}") from exc

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Contract:
        classes = tuple(document["classes"])
        _expect(bool(classes) and all(isinstance(name, str) for name in classes), "class names", classes[:3])
        gate = document.get("golden", {"tolerance": 0.0, "examples": ()})  # a gateway shows a contract without
        golden = tuple(
            GoldenExample(
                name=str(example["name"]),
                image=base64.b64decode(example["image"], validate=True),
                probabilities=tuple(float(p) for p in example["probabilities"]),
                novelty=None if example.get("novelty") is None else float(example["novelty"]),
            )
            for example in gate["examples"]
        )
        for example in golden:
            count = len(example.probabilities)
            _expect(count == len(classes), f"{len(classes)} probabilities in golden example {example.name!r}", count)
        image = dict(document["image"])
        return cls(
            model=str(document["model"]),
            classes=classes,
            image=ImageSpec(**{**image, "background": cast(Any, tuple(image["background"]))}),
            origin=Origin.from_dict(dict(document["origin"])),
            metrics=dict(document["metrics"]),
            golden=golden,
            tolerance=float(gate["tolerance"]),
            identity=str(document.get("identity", "")),
            novelty=Novelty.from_dict(document["novelty"]) if document.get("novelty") else None,
        )


def new_identity() -> str:
    """Return an identity for one export."""
    return secrets.token_hex(8)


def identity_bits(identity: str) -> int:
    """Return an identity as the signed 64-bit integer that comes with each answer."""
    return int.from_bytes(bytes.fromhex(identity), signed=True)


def find_identity(signatures: Iterable[str]) -> str:
    """Return the identity of a version by the names of its signatures; empty for one without."""
    named = (key.removeprefix(EXPORT_SIGNATURES) for key in signatures if key.startswith(EXPORT_SIGNATURES))
    return next(filter(_IDENTITY.fullmatch, named), "")


def _expect(condition: object, expected: str, received: object) -> None:
    if not condition:
        raise ContractError(f"Expected {expected}. Received: {received!r}")
