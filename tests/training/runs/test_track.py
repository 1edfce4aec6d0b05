"""training/runs/track.py: what trackers get of a run, read back by their own means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
from PIL import Image

from contract.document import Contract, ImageSpec, Origin
from tests.programs.stack import wait_until
from training.__main__ import main
from training.data.folder import Dataset
from training.errors import TrainingError
from training.runs import track as module
from training.runs.folder import Run
from training.runs.track import Tracking, find_tracker

ORIGIN = Origin(
    "small",
    recipe={"dropout": 0.3, "class_weights": "none"},
    data_digest={"train": "a" * 64},
    source_revision="abc123",
)
HISTORY = {"head": {"loss": [3.0, 2.0], "accuracy": [0.5, 0.6]}, "network": {"loss": [1.5], "accuracy": [0.75]}}
LOSSES = [("head/loss", 0, 3.0), ("head/loss", 1, 2.0), ("network/loss", 2, 1.5)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of two phases, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "clothing" / "20260101-000000"
    run.mkdir(parents=True)
    contract = Contract(
        "clothing", ("a", "b"), ImageSpec(8, 8), ORIGIN, {"validation_accuracy": 0.875, "validation_log_loss": 0.5}
    )
    (run / "contract.json").write_bytes(contract.to_json())
    (run / "history.json").write_text(json.dumps(HISTORY))
    (run / "report.html").write_text("<h1>A report</h1>")
    (run / "model.keras").write_bytes(b"large")
    Image.new("RGB", (4, 4), "red").save(run / "curves.png")
    return run


def wait_for(tracking: Tracking, steps: int) -> None:
    """Wait until so many epochs have arrived."""
    wait_until(lambda: getattr(tracking._tracker, "steps", None) == steps, 120)


def track(run: Path, name: str, interrupted: bool = True) -> None:
    """Send a training, and before it the first epoch from a process that ended there."""
    unfinished = run.parent.parent / ".unfinished" / "clothing-abc"
    unfinished.mkdir(parents=True)
    if interrupted:
        first = Tracking(find_tracker(name))
        first.start("clothing", unfinished)("head", {figure: values[:1] for figure, values in HISTORY["head"].items()})
        wait_for(first, 1)
    tracking = Tracking(find_tracker(name))
    follow = tracking.start("clothing", unfinished)
    follow("head", HISTORY["head"])
    wait_for(tracking, 2)
    follow("network", HISTORY["network"])
    tracking.finish(run)


@pytest.mark.tensorflow
def test_tensorboard(run: Path) -> None:
    """Its own reader finds each loss once, the figures, the parameters and the plot; curves of before are gone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util.tensor_util import make_ndarray

    track(run, "tensorboard")
    assert not list((run.parent.parent / ".unfinished").glob("*.tensorboard"))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()

    def values(name: str) -> list[tuple[str, int, float]]:
        return [(name, event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]

    assert values("head/loss") + values("network/loss") == LOSSES
    assert values("validation_accuracy") == [("validation_accuracy", 0, 0.875)]
    assert "curves" in events.Tags()["tensors"]
    (content,) = events.PluginTagToContent("hparams").values()
    parameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert parameters["recipe.dropout"].number_value == 0.3 and parameters["source_revision"].string_value == "abc123"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_mlflow(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client finds the experiment, one run, each loss once, parameters, and files without the model."""
    mlflow = pytest.importorskip("mlflow")

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    track(run, "mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("clothing").experiment_id])
    losses = [
        (name, metric.step, metric.value)
        for name in ("head/loss", "network/loss")
        for metric in client.get_metric_history(found.info.run_id, name)
    ]
    assert losses == LOSSES and found.data.metrics["validation_accuracy"] == 0.875
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert found.data.tags["mlflow.source.git.commit"] == "abc123"
    assert found.data.params["recipe.dropout"] == "0.3" and found.data.params["data_digest.train"] == "a" * 64
    files = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert files == {"contract.json", "history.json", "report.html", "curves.png"}


def test_wandb(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network there is a folder for `wandb sync`, with the files, the figures and the parameters."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(run, "wandb", interrupted=False)  # it names the folder by the second
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    files = {path.name for path in (folder / "files").iterdir()}
    assert {"contract.json", "history.json", "report.html", "curves.png"} <= files and "model.keras" not in files
    log = next(folder.glob("*.wandb"))
    wait_until(lambda: b"validation_accuracy" in log.read_bytes(), 60)  # a process of its own writes it
    for logged in ("head/loss", "network/loss", "validation_accuracy", "0.875", "recipe.dropout", "a" * 64):
        assert logged.encode() in log.read_bytes()


def test_a_missing_package_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to install, and nothing was read; a folder of that name, as W&B leaves, is no package."""
    (tmp_path / "mlflow_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainingError, match=r"with --track mlflow_folder\. Received none: pip install mlflow_folder"):
        find_tracker("mlflow_folder")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert main(["train", str(tmp_path / "none"), "--name", "m", "--track", "mlflow"]) == 1
    assert "pip install mlflow" in capsys.readouterr().err


class Broken:
    """A tracker that fails."""

    steps = tries = 0

    def __init__(self, *_: Any) -> None:
        Broken.tries += 1
        raise OSError("no route to host")

    log = finish = __init__


class Unreliable:
    """A tracker that hangs until it may go on, and then fails once, at the second epoch."""

    sent: ClassVar[list[int]] = []
    go, failed = Event(), Event()

    def __init__(self, *_: Any) -> None:
        self.go.wait()
        self.steps = len(self.sent)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step == 1 and not self.failed.is_set():
            self.failed.set()
            raise OSError("no route to host")
        self.sent.append(step)
        self.steps = step + 1

    def finish(self, run: Run) -> None:
        """Take nothing more."""


def test_a_tracker_that_hangs_or_fails_gets_the_curves_later(tmp_path: Path, lines: list[str]) -> None:
    """A training does not wait for it; what it lacks comes with the next epoch, nothing twice, and one line says it."""
    tracking = Tracking(Unreliable)
    follow = tracking.start("clothing", tmp_path)
    follow("head", {"loss": [3.0]})
    follow("head", {"loss": [3.0, 2.0]})
    assert not Unreliable.sent
    Unreliable.go.set()
    assert Unreliable.failed.wait(10)
    follow("head", {"loss": [3.0, 2.0, 1.0]})
    wait_for(tracking, 3)
    assert Unreliable.sent == [0, 1, 2]
    assert lines == ["The tracker did not take the curves, and training continues: no route to host"]


def test_a_tracker_that_fails_is_reported(
    run: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says it during training, whatever the number of epochs; at the end the message names the run."""
    monkeypatch.setattr(Broken, "tries", 0)
    tracking = Tracking(Broken)
    follow = tracking.start("clothing", tmp_path)
    for epochs in (1, 2, 3):
        follow("head", {"loss": [3.0] * epochs})
        wait_until(lambda tries=epochs: Broken.tries == tries, 60)  # by the third, the first two have been reported
    assert lines == ["The tracker did not take the curves, and training continues: no route to host"]
    with pytest.raises(TrainingError, match=r"The tracker did not take .*20260101-000000: no route to host"):
        tracking.finish(run)


@pytest.mark.tensorflow
def test_a_release_does_not_wait_for_a_tracker_or_a_second_training(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tracker that fails shows in a message and the exit status; stopping the release prints how to get it."""
    monkeypatch.setattr("training.data.pixels.read_folder", lambda *_: Dataset((), {"train": [], "validation": []}))

    @contextmanager
    def train(*_: object, tracking: Tracking | None, **__: object) -> Iterator[Path]:
        if tracking:
            tracking.start("clothing", run.parent)
        yield run

    monkeypatch.setattr("training.fit.train.read_data", lambda *_: None)
    monkeypatch.setattr("training.fit.train.train", train)
    monkeypatch.setattr("training.fit.commands.find_tracker", lambda _: Broken)
    released: list[object] = []
    finish = Tracking.finish
    monkeypatch.setattr(Tracking, "finish", lambda *given: (released.append("tracked"), finish(*given)))
    monkeypatch.setattr("training.release.sources.release", lambda source, *_, **__: released.append(source.run))
    monkeypatch.setattr("training.release.replacement.version_of", lambda run, *_: int(run in released))
    monkeypatch.setattr("training.release.sources.read_run", lambda run: (None, Run(run).contract, [], None))
    monkeypatch.setattr("training.fit.commands.read_chosen_criteria", lambda *_: None)
    assert main(["train", "photos", "--name", "clothing", "--epochs", "1", "--track", "mlflow"]) == 1
    assert released == [run, "tracked"]
    assert "The tracker did not take" in (said := capsys.readouterr().err) and "same command sends it again" in said

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracking, "finish", stop)
    assert main(["train", "photos", "--name", "clothing", "--epochs", "1", "--track", "mlflow"]) == 130
    assert "Stopped. The same command continues where it stopped.\n" in capsys.readouterr().err

    released.clear()
    monkeypatch.setattr("training.release.sources.release", stop)
    assert main(["train", "photos", "--name", "clothing", "--epochs=1", "--refuse-if-worse", "--margin", "0.01"]) == 130
    message = capsys.readouterr().err
    assert f"python -m training export --run {run} --photos photos --store model-store" in message
    assert message.endswith(" --margin 0.01 --refuse-if-worse\nStopped. The same command continues where it stopped.\n")
