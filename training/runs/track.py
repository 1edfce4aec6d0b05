"""Sends a training to an experiment tracker: TensorBoard, MLflow, or Weights & Biases.

Each epoch's figures are sent as they happen, and the finished run at its end, read from its folder. A training that
was interrupted continues the same run of the tracker, and a tracker that fails or hangs neither stops nor delays it.
A tracker's package is imported only if it is asked for.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from training.errors import TrainingError
from training.runs.folder import Run, flat

_log = logging.getLogger(__name__)

Figures = Mapping[str, Sequence[float]]
KNOWN = "tracking"  # the file in the folder of an unfinished training with the id of its run in the tracker


class TensorBoard:
    """Writes to a folder beside the unfinished run, then `RUN/tensorboard/`; `tensorboard --logdir runs` finds both."""

    def __init__(self, model: str, training: str, live: Path) -> None:
        import tensorflow as tf

        self.steps, self._live = 0, live
        shutil.rmtree(live, ignore_errors=True)  # the epochs of an earlier process are sent again
        self._writer = tf.summary.create_file_writer(str(live))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        import tensorflow as tf

        with self._writer.as_default(step):
            for name, value in figures.items():
                tf.summary.scalar(name, value)
        self._writer.flush()
        self.steps = step + 1

    def finish(self, run: Run) -> None:
        import tensorflow as tf
        from tensorboard.plugins.hparams import api

        self._writer.close()
        self._writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        for step, figures in _epochs(_history(run)):
            self.log(step, figures)
        with self._writer.as_default(step=0):
            for name, value in run.contract.metrics.items():
                tf.summary.scalar(name, value)
            api.hparams(flat(run.contract.origin.to_dict()))
            for path in _files(run):
                if path.suffix == ".png":
                    tf.summary.image(path.stem, tf.image.decode_png(path.read_bytes())[None])
        self._writer.close()
        shutil.rmtree(self._live, ignore_errors=True)


class _MLflow:
    """A run of the model's experiment, in MLFLOW_TRACKING_URI or in MLflow's default place."""

    def __init__(self, model: str, training: str, live: Path) -> None:
        import mlflow
        from mlflow.tracking.context.registry import resolve_tags

        experiment = mlflow.set_experiment(model).experiment_id
        self._client = mlflow.MlflowClient()
        found = self._client.search_runs([experiment], f"tags.training = '{training}'")
        tags = {**resolve_tags(), "training": training}
        run = found[0] if found else self._client.create_run(experiment, tags=tags, run_name="training")
        self._id = run.info.run_id
        sent = [each for name in run.data.metrics for each in self._client.get_metric_history(self._id, name)]
        self.steps = max((each.step + 1 for each in sent), default=0)

    def _log(self, figures: Mapping[str, float], step: int = 0, parameters: Mapping[str, Any] | None = None) -> None:
        from mlflow.entities import Metric, Param

        time_ms = round(1000 * time.time())
        metrics = [Metric(name, value, time_ms, step) for name, value in figures.items()]
        params = [Param(name, str(value)) for name, value in (parameters or {}).items()]
        self._client.log_batch(self._id, metrics, params)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._log(figures, step)
        self.steps = step + 1

    def finish(self, run: Run) -> None:
        self._client.set_tag(self._id, "mlflow.runName", run.path.name)
        self._client.set_tag(self._id, "mlflow.source.git.commit", run.contract.origin.source_revision)
        self._log(run.contract.metrics, parameters=flat(run.contract.origin.to_dict()))
        for path in _files(run):
            self._client.log_artifact(self._id, str(path))
        self._client.set_terminated(self._id)


class _WandB:
    """A run of the model's project; WANDB_MODE=offline writes `wandb/`, for `wandb sync` later."""

    def __init__(self, model: str, training: str, live: Path) -> None:
        import wandb

        self._run = wandb.init(project=model, id=training, resume="allow")
        self.steps = self._run.step

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step, commit=True)
        self.steps = step + 1

    def finish(self, run: Run) -> None:
        self._run.name = run.path.name
        self._run.config.update(flat(run.contract.origin.to_dict()), allow_val_change=True)
        self._run.summary.update(dict(run.contract.metrics))
        for path in _files(run):
            self._run.save(path, base_path=run.path, policy="now")
        self._run.finish()


Tracker = TensorBoard | _MLflow | _WandB
"""A run in an experiment tracker, begun, or found by the training's id; `steps` epochs have been sent to it.

`log` sends an epoch's figures, and `finish` what there is of the finished run beside its epochs.
"""
# By the name of the package that each needs.
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": _MLflow, "wandb": _WandB}


def find_tracker(name: str) -> type[Tracker]:
    """Return a tracker by its name.

    Raises:
        TrainingError: Its package is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder with that name, such as W&B leaves, is not the package
        raise TrainingError(f"Expected the package {name} with --track {name}. Received none: pip install {name}")
    return TRACKERS[name]


class Tracking:
    """A training on its way to a tracker: its curves from a thread of their own, then the finished run."""

    def __init__(self, tracker: type[Tracker]) -> None:
        self._kind = tracker
        self._tracker: Tracker | None = None
        self._error: Exception | None = None  # of the last try to send curves
        self._history: dict[str, Figures] = {}
        self._news, self._finished = Event(), False
        self._thread = Thread(target=self._send_curves, daemon=True)  # Ctrl-C does not wait for a tracker that hangs
        self.is_begun = False

    def start(self, model: str, unfinished: Path) -> Callable[[str, Figures], None]:
        """Begin or continue the tracker's run of an unfinished training; return what takes a phase's figures."""
        known, self.is_begun = unfinished / KNOWN, True
        if not known.is_file():
            known.write_text(uuid4().hex)
        self._model, self._id = model, known.read_text()
        self._live = unfinished.with_name(f"{unfinished.name}.tensorboard")  # outlives the folder of the training
        self._thread.start()
        return self._follow

    def finish(self, run: Path) -> None:
        """Send the finished run.

        Raises:
            TrainingError: The tracker fails.
        """
        self._finished = True
        self._news.set()
        self._thread.join()
        try:
            if self._error:  # of just now: MLflow tries for minutes before it fails
                raise self._error
            finished, tracker = Run(run), self._open()
            _send_rest(tracker, _history(finished))
            tracker.finish(finished)
        except Exception as exc:
            raise TrainingError(f"The tracker did not take {run}: {exc}. The same command sends it again") from exc

    def _follow(self, phase: str, figures: Figures) -> None:
        self._history = {**self._history, phase: {name: list(values) for name, values in figures.items()}}
        self._news.set()

    def _open(self) -> Tracker:
        self._tracker = self._tracker or self._kind(self._model, self._id, self._live)
        return self._tracker

    def _send_curves(self) -> None:
        """Send what is new; after a failure, all that the tracker lacks is sent with the next epoch."""
        while not self._finished:
            self._news.wait()
            self._news.clear()
            try:
                tracker = self._open()
                _send_rest(tracker, self._history)
                self._error = None
            except Exception as exc:
                if not self._error:
                    _log.warning(f"The tracker did not take the curves, and training continues: {exc}")
                self._tracker, self._error = None, exc


def _send_rest(tracker: Tracker, history: Mapping[str, Figures]) -> None:
    """Send the epochs that a tracker lacks."""
    for step, figures in _epochs(history):
        if step >= tracker.steps:
            tracker.log(step, figures)


def _history(run: Run) -> dict[str, Figures]:
    return json.loads((run.path / "history.json").read_text())


def _epochs(history: Mapping[str, Figures]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the figures of each epoch, by `PHASE/FIGURE`; the count of epochs goes on from phase to phase."""
    step = 0
    for phase, figures in history.items():
        for values in zip(*figures.values(), strict=True):
            yield step, {f"{phase}/{name}": value for name, value in zip(figures, values, strict=True)}
            step += 1


def _files(run: Run) -> list[Path]:
    """Return the report, the plots and the documents, without the model; its releases are in the store."""
    return sorted(path for path in run.path.iterdir() if path.is_file() and path.suffix != ".keras")
