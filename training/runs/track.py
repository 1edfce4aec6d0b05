"""Sends a finished run to an experiment tracker: TensorBoard, MLflow, or Weights & Biases.

Everything is read from the run folder: a training that was interrupted is one run, and a tracker that fails loses
nothing. A tracker's package is imported only if it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from training.errors import TrainingError
from training.runs.folder import Run, flat

Tracker = Callable[[Run], None]


def _send_to_tensorboard(run: Run) -> None:
    """Write `RUN/tensorboard/`, which `tensorboard --logdir runs` finds."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
    with writer.as_default(step=0):
        for step, figures in _epochs(run):
            for name, value in figures.items():
                tf.summary.scalar(name, value, step)
        for name, value in run.contract.metrics.items():
            tf.summary.scalar(name, value)
        api.hparams(flat(run.contract.origin.to_dict()))
        for path in _files(run):
            if path.suffix == ".png":
                tf.summary.image(path.stem, tf.image.decode_png(path.read_bytes())[None])
    writer.close()


def _send_to_mlflow(run: Run) -> None:
    """Make a run of the model's experiment, in MLFLOW_TRACKING_URI or in MLflow's default place."""
    import mlflow

    mlflow.set_experiment(run.contract.model)
    with mlflow.start_run(run_name=run.path.name):
        mlflow.set_tag("mlflow.source.git.commit", run.contract.origin.source_revision)
        mlflow.log_params(flat(run.contract.origin.to_dict()))
        for step, figures in _epochs(run):
            mlflow.log_metrics(figures, step)
        mlflow.log_metrics(dict(run.contract.metrics))
        for path in _files(run):
            mlflow.log_artifact(str(path))


def _send_to_wandb(run: Run) -> None:
    """Make a run of the model's project; WANDB_MODE=offline writes `wandb/`, for `wandb sync` later."""
    import wandb

    with wandb.init(project=run.contract.model, name=run.path.name, config=flat(run.contract.origin.to_dict())) as sent:
        for step, figures in _epochs(run):
            sent.log(figures, step)
        sent.summary.update(dict(run.contract.metrics))
        for path in _files(run):
            sent.save(path, base_path=run.path, policy="now")


# By the name of the package that each needs.
TRACKERS: dict[str, Tracker] = {
    "tensorboard": _send_to_tensorboard,
    "mlflow": _send_to_mlflow,
    "wandb": _send_to_wandb,
}


def find_tracker(name: str) -> Tracker:
    """Return a tracker by its name.

    Raises:
        TrainingError: Its package is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder with that name, such as W&B leaves, is not the package
        raise TrainingError(f"Expected the package {name} with --track {name}. Received none: pip install {name}")
    return TRACKERS[name]


def log_run(run: Path, tracker: Tracker) -> None:
    """Send a finished run to a tracker.

    Raises:
        TrainingError: The tracker fails.
    """
    try:
        tracker(Run(run))
    except Exception as exc:
        raise TrainingError(f"The tracker did not take {run}: {exc}") from exc


def _epochs(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the figures of each epoch, by `PHASE/FIGURE`; the count of epochs goes on from phase to phase."""
    step = 0
    for phase, figures in json.loads((run.path / "history.json").read_text()).items():
        for values in zip(*figures.values(), strict=True):
            yield step, {f"{phase}/{name}": value for name, value in zip(figures, values, strict=True)}
            step += 1


def _files(run: Run) -> list[Path]:
    """Return the report, the plots and the documents, without the model; its releases are in the store."""
    return sorted(path for path in run.path.iterdir() if path.is_file() and path.suffix != ".keras")
