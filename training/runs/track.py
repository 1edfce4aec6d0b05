"""A finished run, told to the tracker that a team has: TensorBoard, MLflow, or Weights & Biases.

All is read from the run folder, which has it in any case: so a training that was interrupted is one run, and a tracker
that fails takes nothing away. Needs the tracker's own package, which is imported only when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from contract.document import Contract
from training.errors import TrainingError
from training.runs import compare


@dataclass(frozen=True)
class Record:
    """A run as trackers take it.

    Attributes:
        path: The run folder.
        model: The model's name.
        parameters: Architecture, weights, recipe, data digests, source revision and versions, by dotted names.
        metrics: Those on held-out photos.
        history: Each phase's figures by epoch.
    """

    path: Path
    model: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    history: Mapping[str, Mapping[str, list[float]]]

    @property
    def epochs(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Return the figures of each epoch, by `PHASE/FIGURE`; epochs are counted over all phases."""
        step = 0
        for phase, figures in self.history.items():
            for values in zip(*figures.values(), strict=True):
                yield step, {f"{phase}/{name}": value for name, value in zip(figures, values, strict=True)}
                step += 1

    @property
    def files(self) -> list[Path]:
        """The report, the plots and the documents; not the model, whose releases are in the store."""
        return sorted(path for path in self.path.iterdir() if path.is_file() and path.suffix != ".keras")


class Tracker(Protocol):
    """Takes runs."""

    def log(self, record: Record) -> None:
        """Take a run."""


class TensorBoard:
    """Writes `RUN/tensorboard/`, which `tensorboard --logdir runs` finds."""

    def log(self, record: Record) -> None:
        """Write figures by epoch, parameters and pictures."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api

        writer = tf.summary.create_file_writer(str(record.path / "tensorboard"))
        with writer.as_default(step=0):
            for step, figures in record.epochs:
                for name, value in figures.items():
                    tf.summary.scalar(name, value, step)
            for name, value in record.metrics.items():
                tf.summary.scalar(name, value)
            api.hparams(dict(record.parameters))
            for path in record.files:
                if path.suffix == ".png":
                    tf.summary.image(path.stem, tf.image.decode_png(path.read_bytes())[None])
        writer.close()


class MLflow:
    """Writes to where MLFLOW_TRACKING_URI says, or to what MLflow takes without."""

    def log(self, record: Record) -> None:
        """Make a run of the experiment that is named as the model."""
        import mlflow

        mlflow.set_experiment(record.model)
        with mlflow.start_run(run_name=record.path.name):
            mlflow.set_tag("mlflow.source.git.commit", record.parameters["source_revision"])
            mlflow.log_params(dict(record.parameters))
            for step, figures in record.epochs:
                mlflow.log_metrics(figures, step)
            mlflow.log_metrics(dict(record.metrics))
            for path in record.files:
                mlflow.log_artifact(str(path))


class WeightsAndBiases:
    """Sends to Weights & Biases; with WANDB_MODE=offline it writes `wandb/`, for `wandb sync` later."""

    def log(self, record: Record) -> None:
        """Make a run of the project that is named as the model."""
        import wandb

        with wandb.init(project=record.model, name=record.path.name, config=dict(record.parameters)) as run:
            for step, figures in record.epochs:
                run.log(figures, step)
            run.summary.update(dict(record.metrics))
            for path in record.files:
                run.save(path, base_path=record.path, policy="now")


# What is asked for by name, and the package that it needs.
TRACKERS: dict[str, tuple[str, type[Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "mlflow": ("mlflow", MLflow),
    "wandb": ("wandb", WeightsAndBiases),
}


def find_tracker(name: str) -> Tracker:
    """Return a tracker by its name.

    Raises:
        TrainingError: Its package is not installed.
    """
    package, kind = TRACKERS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name, such as W&B leaves, is no package
        raise TrainingError(f"Expected the package {package} with --track {name}. Received none: pip install {package}")
    return kind()


def log_run(run: Path, tracker: Tracker) -> None:
    """Tell a finished run to a tracker.

    Raises:
        TrainingError: The tracker fails.
    """
    contract = Contract.from_json((run / "contract.json").read_bytes())
    history = json.loads((run / "history.json").read_text())
    record = Record(run, contract.model, compare.flat(contract.origin.to_dict()), contract.metrics, history)
    try:
        tracker.log(record)
    except Exception as exc:
        raise TrainingError(f"Expected {type(tracker).__name__} to take {run}. Received: {exc}") from exc
