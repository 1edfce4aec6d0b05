"""The same training again: after a kill, and on two devices."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.document import Contract
from tests.conftest import ROOT
from tests.training.conftest import places

pytestmark = pytest.mark.tensorflow

# Long enough that the best epoch may lie before or after a kill, and patience may end it.
RECIPE = ["--epochs", "6", "--patience", "3", "--batch-size", "8", "--learning-rate", "0.02"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes that are told apart only after some epochs."""
    from tests.programs.small_training import draw

    return draw(tmp_path_factory.mktemp("photos") / "colours", photos=20, noise=250)


@pytest.fixture(scope="module", autouse=True)
def quick(small: str) -> Iterator[None]:
    """The small architecture is known, and what is trained is not released."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.release.sources.release", lambda *_, **__: None)
        patch.setattr("training.fit.phases.SHARES", (1.0,))  # so that the best epoch is the model
        yield


def command(photos: Path, work: Path) -> list[str]:
    """Return the arguments of a training below a folder."""
    return ["train", str(photos), "--name", "colours", "--architecture", "small", *RECIPE, *places(work)]


def train(arguments: list[str]) -> None:
    """Train in this process."""
    from training.__main__ import main

    assert main(arguments) == 0


def die(moment: str, arguments: list[str]) -> None:
    """Train in a process that dies by SIGKILL."""
    done = subprocess.run([sys.executable, "-m", "tests.programs.small_training", moment, *arguments], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def outcome(work: Path) -> tuple[dict[str, Any], dict[str, float], list[np.ndarray]]:
    """Return the history, the figures and the weights of the only run below a folder."""
    import keras

    (run,) = (work / "runs" / "colours").glob("*[!t]")
    contract = Contract.from_json((run / "contract.json").read_bytes())
    weights = keras.models.load_model(run / "model.keras", compile=False).get_weights()
    return json.loads((run / "history.json").read_text()), dict(contract.metrics), weights


def assert_same(one: Path, other: Path) -> None:
    """Compare two runs' histories, figures and weights."""
    (history, figures, weights), (history_2, figures_2, weights_2) = outcome(one), outcome(other)
    assert figures == figures_2
    assert history["network"].keys() == history_2["network"].keys()
    for name, values in history["network"].items():
        if name != "minutes":
            np.testing.assert_allclose(values, history_2["network"][name], atol=1e-5)
    for array, array_2 in zip(weights, weights_2, strict=True):
        np.testing.assert_allclose(array, array_2, atol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing happened to."""
    work = tmp_path_factory.mktemp("undisturbed")
    train(command(photos, work))
    return work


def test_a_killed_training_ends_as_an_undisturbed_one(
    photos: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed inside an epoch, then between weights and state, the same command and seed end with the same model.

    A tracker has the epochs before the first kill, and each epoch once in the end.
    """
    killed = [*command(photos, tmp_path), "--track", "tensorboard"]
    die("inside an epoch", killed)
    (live,) = (tmp_path / "runs" / ".unfinished").glob("*.tensorboard")
    assert tracked_epochs(live) == [0, 1]
    die("before the state", killed)
    train(killed)
    assert "Resuming at epoch 4 of 6 from" in capsys.readouterr().out
    assert_same(tmp_path, undisturbed)
    assert list((tmp_path / "runs" / ".unfinished").iterdir()) == []
    history, *_ = outcome(tmp_path)
    (run,) = (tmp_path / "runs" / "colours").glob("*[!t]")
    assert tracked_epochs(run / "tensorboard") == list(range(len(history["network"]["loss"])))


def test_a_training_that_was_killed_in_its_release_goes_on_there(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained again, neither the first version nor the network."""
    die("in the release", command(photos, tmp_path))
    train(command(photos, tmp_path))
    said = capsys.readouterr().out
    assert "Epoch" not in said and "The first version is there already: " in said
    assert len(list((tmp_path / "runs" / "colours").iterdir())) == 2
    assert list((tmp_path / "runs" / ".unfinished").iterdir()) == []


def tracked_epochs(folder: Path) -> list[int]:
    """Return the steps that TensorBoard's reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Tensors("network/loss")]


def test_what_is_kept_is_what_was_validated(undisturbed: Path) -> None:
    """The run's model has the weights, averaged as they are, of the epoch that did best on validation."""
    history, figures, _ = outcome(undisturbed)
    assert figures["validation_accuracy"] == pytest.approx(max(history["network"]["val_accuracy"]), abs=1e-4)


def test_two_devices_train_as_one_does(photos: Path, tmp_path: Path) -> None:
    """Without dropout and batch norm, which each device has for its part, all curves are the same."""
    curves = []
    options = ["--architecture", "without-norm", "--weights", "none", "--dropout", "0", "--epochs", "2"]
    for name in ("none", "mirrored"):
        arguments = [*command(photos, tmp_path / name), *options, "--distribute", name]
        program = [sys.executable, "-m", "tests.programs.small_training", "two devices", *arguments]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("Sharing each batch of 8 among 2 devices" in done.stdout) == (name == "mirrored")
        curves.append(outcome(tmp_path / name)[0]["network"])
    assert curves[0].keys() == curves[1].keys()
    for name, values in curves[0].items():
        if name != "minutes":
            np.testing.assert_allclose(values, curves[1][name], atol=2e-3, err_msg=name)


def fit(folder: Path, accuracies: list[float]) -> tuple[float, range, dict[str, list[float]]]:
    """Continue nine epochs until the accuracies or the patience, 3, are used up; a model's one weight is its epoch.

    Returns the weight, the epochs that were left, and the history.
    """
    import keras

    from training.runs.unfinished import Progress, open_unfinished

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("adam", "mse")

    class Script(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            model.set_weights([np.array([[epoch]], np.float32)])
            logs["val_accuracy"] = accuracies.pop(0)
            model.stop_training = not accuracies

    stopping = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=3, restore_best_weights=True)
    with suppress(KeyboardInterrupt), open_unfinished(folder, "m", [], fresh=False) as run:
        progress = Progress(run, "phase", stopping)
        left = progress.restore(model, 9)
        if left:
            x, callbacks = np.ones((1, 1), np.float32), [Script(), stopping, progress]
            model.fit(x, x, initial_epoch=left.start, epochs=9, callbacks=callbacks, verbose=0)
        raise KeyboardInterrupt
    return float(model.get_weights()[0][0, 0]), left, progress.history


def test_early_stopping_remembers_epochs_before_a_kill(tmp_path: Path) -> None:
    """The best epoch of an earlier process counts and gives the weights, and patience goes on."""
    fit(tmp_path, [0.5, 0.9, 0.6])
    weight, left, history = fit(tmp_path, [0.7, 0.8, 1.0])
    assert left == range(3, 9) and history["val_accuracy"] == [0.5, 0.9, 0.6, 0.7, 0.8]
    assert weight == 1
    weight, left, _ = fit(tmp_path, [1.0])
    assert weight == 1 and not left


def test_a_disk_without_room_for_weights_ends_a_training_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 would end the process by a fault; with room again, the epochs before count."""
    from training.errors import TrainingError
    from training.runs import unfinished

    fit(tmp_path, [0.5])
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"nearly full: .* with epoch 2$"):
        patch.setattr(unfinished.shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
        fit(tmp_path, [0.9])
    assert fit(tmp_path, [0.7])[1] == range(1, 9)


def test_what_a_power_loss_left_is_told(tmp_path: Path) -> None:
    """An empty state or weights are named with a way to go on, at each try; with `fresh` it starts again."""
    from training.errors import TrainingError
    from training.runs.unfinished import open_unfinished

    fit(tmp_path, [0.5, 0.9])
    for name, whole in (("epoch-2.weights.h5", 1024), ("epoch-2.weights.h5", 0), ("state.json", 0)):
        (file,) = tmp_path.glob(f".unfinished/*/phase/{name}")
        file.write_bytes(file.read_bytes()[:whole].ljust(whole and file.stat().st_size, b"\0"))
        for _ in range(2):
            with pytest.raises(TrainingError, match=rf"{file} cannot be read, as after a power loss: .* --fresh "):
                fit(tmp_path, [0.7])
    with open_unfinished(tmp_path, "m", [], fresh=True) as run:
        assert list(run.path.glob("[!.]*")) == []


def test_a_plan_that_a_power_loss_emptied_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named in one line, and `--fresh` begins anew."""
    from training.__main__ import main
    from training.fit import phases

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phases.Phases, "fit", stop)
    assert main(command(photos, tmp_path)) == 130
    (plan,) = (tmp_path / "runs" / ".unfinished").glob("*/plan.json")
    plan.write_bytes(b"")
    assert main(command(photos, tmp_path)) == 1
    said = capsys.readouterr().err
    assert f"{plan} cannot be read" in said and "train --fresh starts again" in said
    assert main([*command(photos, tmp_path), "--fresh"]) == 130 and plan.read_bytes()


def test_weights_and_state_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is renamed before its bytes are there is empty after a power loss."""
    from training.runs import unfinished

    synced = list[tuple[str, bool]]()
    monkeypatch.setattr(
        unfinished, "sync", lambda path: synced.append((path.name.partition("-")[0], ".draft" in path.name))
    )
    fit(tmp_path, [0.5])
    assert synced == [("epoch", False), ("state.json.draft", True), ("phase", False)]


def test_fresh_forgets_what_was_interrupted(tmp_path: Path) -> None:
    """With `fresh` nothing is left of the state; without, and with another recipe, it is as it was."""
    from training.runs.unfinished import open_unfinished

    def kept(fresh: bool, seed: int) -> bool:
        with suppress(KeyboardInterrupt), open_unfinished(tmp_path, "m", [seed], fresh) as run:
            found = list(run.path.glob("[!.]*"))
            (run.path / "phase").mkdir(exist_ok=True)
            raise KeyboardInterrupt
        return found != []

    assert not kept(False, seed=1) and kept(False, seed=1)
    assert not kept(False, seed=2) and not kept(True, seed=1)


def test_one_training_of_a_kind_at_a_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command is refused while the first one runs, and its unfinished run is not listed."""
    from training.__main__ import main
    from training.fit import phases

    def again(*_: Any) -> None:
        assert main(command(photos, tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(phases.Phases, "fit", again)
    assert main(command(photos, tmp_path)) == 130
    assert "The same training is already running" in capsys.readouterr().err
    assert main(["runs", "--runs", str(tmp_path / "runs")]) == 1
    assert "Expected runs in" in capsys.readouterr().err
