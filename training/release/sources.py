"""What can be released, and its release: a run, an architecture with ready weights, or a Keras file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract.document import Aspect, Contract, Filter, ImageSpec, new_identity
from serving.errors import ServingError
from training.errors import ExportError, WeightsError
from training.models.catalogue import find_architecture, imagenet_classes
from training.models.files import load_file
from training.models.novelty import with_score
from training.models.outputs import as_probabilities
from training.release.class_names import read_classes
from training.release.criteria import Criteria
from training.release.export import export
from training.release.replacement import refuse_other_classes
from training.release.store import publish, staged_version
from training.runs.folder import provenance, read_run, record_release, sha256
from training.words import as_utf8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model that can be released.

    Attributes:
        model: Pixels 0-255, float32 (n, h, w, 3), to class outputs.
        contract: All but its identity and its golden examples.
        photos: Encoded held-out photos for golden examples; without any, they are drawn.
        run: The run folder that it comes from.
        directions: Those of its score (c, d), see `training.models.novelty`; None without a score.
    """

    model: keras.Model
    contract: Contract
    photos: Sequence[bytes] = ()
    run: Path | None = None
    directions: NDArray[np.float32] | None = None


def of_run(run: Path, name: str | None) -> Source:
    """Return the model of a run folder, under its own name or another."""
    model, contract, photos, directions = read_run(run)
    return Source(model, replace(contract, model=name or contract.model), photos, run, directions)


def of_architecture(name: str, architecture: str, weights: str, classes: Path | None) -> Source:
    """Build an architecture with ImageNet weights, or with random ones (`none`) and a file of class names."""
    found = find_architecture(architecture)
    names = read_classes(classes) if classes else imagenet_classes()
    _log.info(f"Building {found.name} with weights: {weights}")
    origin = replace(provenance(), architecture=found.name, weights=weights)
    return Source(found.classifier(weights, len(names)), Contract(name, names, found.imagenet_spec, origin))


def of_file(
    path: Path,
    name: str,
    *,
    classes: Path,
    preprocessing: str,
    architecture: str | None = None,
    size_px: int | None = None,
    filter: Filter = "bicubic",
    aspect: Aspect = "stretch",
    crop: float = 1.0,
    output: str | None = None,
) -> Source:
    """Load a Keras model, or the weights of an architecture.

    Args:
        path: A whole model as `.keras` or `.h5`, or weights as `.h5`.
        name: The model's name.
        classes: A file of class names.
        preprocessing: What the model expects, one of `PREPROCESSING`.
        architecture: The network, for weights.
        size_px: Height and width, for a model that leaves them open.
        filter: Resampling filter.
        aspect: How a photo is fitted into the input.
        crop: Part that `aspect="crop"` keeps.
        output: Which output to take, of a model that has several.

    Raises:
        TrainingError: There is no such file, or it is not what the arguments say.
    """
    names = read_classes(classes)
    found = find_architecture(architecture, size_px) if architecture else None
    _log.info(f"Loading {path}")
    model = load_file(path, found, len(names), preprocessing, size_px=size_px, output=output)
    height, width = model.input_shape[1:3]
    if size_px and (height, width) != (size_px, size_px):
        raise WeightsError(f"Expected --size as the model has it, {height} by {width}. Received: {size_px}")
    origin = replace(
        provenance(),
        architecture=found.name if found else model.name,
        weights=as_utf8(path.name),
        weights_sha256=sha256(path),
    )
    return Source(model, Contract(name, names, ImageSpec(height, width, filter, aspect, crop), origin))


def release(
    source: Source, store: Path, criteria: Criteria | None = None, *, int8: bool = True, replace_classes: bool = False
) -> Path:
    """Release a model as the next version of its name in the store; return the version's folder.

    Args:
        source: What to release.
        store: The model-store.
        criteria: Labelled photos, without which there is no int8 file and no comparison with the version that answers.
        int8: Whether to make an int8 file; the search takes longer than all the rest.
        replace_classes: Whether it may have other classes than the version that answers.

    Raises:
        ExportError: It has other classes, or is worse than the version that answers allows. Its files answer
            differently than the model, or cannot be written. The store is as it was.
    """
    contract = replace(source.contract, identity=new_identity())
    model = as_probabilities(source.model, len(contract.classes))
    probabilities = criteria.probabilities(model.predict_on_batch, contract.image) if criteria else None
    if criteria and probabilities is not None:
        criteria.note_chance(criteria.accuracy_of(probabilities))
    limit = None
    try:
        with staged_version(store, contract.model) as staged:  # in here, nobody releases another one meanwhile
            if not replace_classes:
                refuse_other_classes(store, contract.model, contract.classes)
            if criteria and probabilities is not None:
                difference = criteria.compare(probabilities, contract, store)
                contract = replace(contract, metrics={**contract.metrics, **difference})
                limit = criteria.int8_limit(criteria.accuracy_of(probabilities), contract.image) if int8 else None
            model = with_score(model, source.directions)
            export(model, contract, staged, photos=source.photos, int8=limit)
            version = publish(staged)
    except (OSError, ServingError, tf.errors.OpError) as exc:
        raise ExportError(f"Could not make a version below {store / contract.model}: {exc}") from exc
    size_mb = sum(path.stat().st_size for path in version.rglob("*") if path.is_file()) / 1e6
    _log.info(f"Released {version} ({size_mb:.0f} MB), export {contract.identity}")
    if source.run:
        try:
            record_release(source.run, version, contract.identity)
        except OSError as exc:
            _log.info(f"Could not note this in {source.run}, so `train` may release it again: {exc}")
    return version
