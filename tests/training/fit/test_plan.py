"""training/fit/plan.py and `train --minutes`: what fits into the time, and that training ends with it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import places
from training.fit.preset import Preset, write_preset
from training.fit.recipe import Recipe
from training.runs.folder import Run

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def quick(small: str) -> Iterator[None]:
    """The small architecture is known, releases take no time, and nothing is kept for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.plan.AFTER_S", 0)
        patch.setattr("training.release.sources.release", lambda *_, **__: None)
        yield


def preset_of(**recipe: Any) -> Preset:
    """Return a preset of the small architecture."""
    return Preset("a", "c", "e", "small", "imagenet", recipe=Recipe(batch_size=8, **recipe))


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Any]:
    """32 photos of noise, of three classes, to train on and to validate on."""
    from training.data.pixels import Pixels

    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    return dict.fromkeys(("train", "validation"), Pixels(images, np.arange(32) % 3, [], "", {}, tmp_path / "pixels"))


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A training of the small architecture on three easy classes, without its minutes."""
    from tests.programs.small_training import draw

    return ["train", str(draw(tmp_path / "photos")), "--name", "colours", "--architecture", "small", *places(tmp_path)]


def test_training_ends_with_its_time(tmp_path: Path, splits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many epochs, those are trained that fit, the last one in part; the learning rate has fallen to zero with them.

    Each batch takes a second, and an epoch has four.
    """
    import keras

    from training.fit import phases
    from training.runs import unfinished

    rates: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            rates.append(float(self.model.optimizer.learning_rate))

    preset = preset_of(epochs=100_000, patience=100_000, learning_rate=0.01)
    monkeypatch.setattr(unfinished, "time", SimpleNamespace(monotonic=lambda: float(len(rates))))
    run = unfinished.Unfinished(tmp_path, 0)
    training = phases.Phases(phases.build(preset, 3), preset, run, [Watch()], limit_s=18)
    history = training.fit_network(splits).history
    assert len(rates) == 18 and len(history["minutes"]) == 5
    assert 0.003 < max(rates) <= 0.01 and rates[-1] < 1e-4


def test_a_training_that_is_resumed_after_its_time_trains_no_more(tmp_path: Path, splits: dict[str, Any]) -> None:
    """It has the weights of its best epoch, and no epoch more."""
    from training.fit import phases
    from training.runs.unfinished import Unfinished

    preset = preset_of(epochs=3, patience=3, learning_rate=0.01)
    run, networks, histories = Unfinished(tmp_path, time.monotonic()), [], []
    for training in (preset.changed({"epochs": 2}), preset):
        networks.append(phases.build(training, 3))
        phase = phases.Phases(networks[-1], training, run, limit_s=None if training != preset else 0.1)
        histories.append(phase.fit_network(splits).history)
    assert histories[0] == histories[1] and len(histories[1]["loss"]) == 2
    for one, other in zip(*(each.model.get_weights() for each in networks), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_epoch_is_averaged_with_the_last(
    tmp_path: Path, splits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If that has less loss on validation; both are found again where a training ends in another process."""
    from training.fit import phases
    from training.runs.unfinished import Unfinished

    monkeypatch.setattr(phases, "SHARES", (1.0,))
    preset = preset_of(epochs=6, patience=6, learning_rate=0.03)
    ends, kept = list[list[np.ndarray]](), list[list[np.ndarray]]()
    for folder, losses in (("a", [0.2, 0.1, 0.1]), ("a", [0.2, 0.1, 0.1]), ("b", [0.1, 0.2, 0.1])):
        network = phases.build(preset, 3)
        measured(network, losses, monkeypatch)
        (tmp_path / folder).mkdir(exist_ok=True)
        run = Unfinished(tmp_path / folder, time.monotonic())
        phases.Phases(network, preset, run).fit(splits)
        ends.append(network.model.get_weights())
    for file in ("a/network/epoch-1", "a/network/epoch-6", "b/network/epoch-1"):
        network.model.load_weights(tmp_path / f"{file}.weights.h5")
        kept.append(network.model.get_weights())
    for average, again, best, first, last, first_of_b in zip(*ends, *kept, strict=True):
        np.testing.assert_allclose(average, (first + last) / 2, atol=1e-6)
        np.testing.assert_array_equal(average, again)
        np.testing.assert_array_equal(best, first_of_b)
    assert any(not np.array_equal(*pair) for pair in zip(*kept[:2], strict=True))


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_a_network_that_answers_nan_is_told(
    command: list[str], capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    """As where the learning rate is much too high."""
    from training.__main__ import main

    options = ["--weights", weights, "--epochs", "1", "--batch-size", "8", "--learning-rate", "1e30"]
    assert main([*command, *options]) == 1
    said = capsys.readouterr()
    assert said.err.endswith("Received: nan. Lower --learning-rate\n") and "Time for all" not in said.out


def measured(network: Any, losses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a network have some losses on validation, one after another; each epoch is worse than the one before."""
    left, epochs = iter(losses), count(1)

    def evaluated(*_: Any, **how: Any) -> Any:
        if "callbacks" in how:  # of fit
            return {"loss": float(epoch := next(epochs)), "accuracy": 1 / epoch}
        return {"loss": next(left)}

    monkeypatch.setattr(network.model, "evaluate", evaluated)


def test_several_trainings_are_averaged(
    tmp_path: Path, splits: dict[str, Any], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins at the same head with a seed of its own, in its part of the time; one alone is taken if it is better.

    Then a part of the change is taken back, if that is better. Where all were trained before, as when their release was
    interrupted, the same weights are found again.
    """
    import keras

    from training.fit import batches, phases
    from training.runs.unfinished import Unfinished

    starts, seeds = list[list[np.ndarray]](), list[int]()
    shuffled = batches.shuffled
    preset = preset_of(epochs=2, patience=2, learning_rate=0.01, seed=5)

    def watched(images: object, targets: object, recipe: Recipe, *rest: object) -> object:
        starts.append(network.model.get_weights())
        seeds.append(recipe.seed)
        return shuffled(images, targets, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "shuffled", watched)
    run, ends = Unfinished(tmp_path, time.monotonic()), list[list[np.ndarray]]()
    for best in (3, 0, 1, 2, 6):
        keras.utils.set_random_seed(0)
        network = phases.build(preset, 3)
        of_epochs, of_choices = [0.1, 0.2] * 3, [0.3 - 0.2 * (number == best) for number in range(8)]
        measured(network, of_epochs + of_choices, monkeypatch)
        training = phases.Phases(network, preset, run, limit_s=600, trainings=3)
        histories = training.fit(splits)
        assert list(histories) == ["network", "network-2", "network-3"]
        ends.append(network.model.get_weights())
    assert seeds == [5, 6, 7]
    all_three = ", ".join(f"training {number} 0.300" for number in (1, 2, 3))
    assert [line for line in lines if line.startswith("Least loss")][3::21] == [
        f"Least loss on validation, 0.100: the average of all. Others: {all_three}",
        "Least loss on validation, 0.100: 80% of the change by training. Others: 100% of the change by training 0.300,"
        " 90% of the change by training 0.300, 70% of the change by training 0.300",
    ]
    for start in starts[1:]:
        for before, weights in zip(starts[0], start, strict=True):
            np.testing.assert_array_equal(before, weights)
    for start, average, *each, less in zip(starts[0], *ends, strict=True):
        np.testing.assert_allclose(average, np.mean(each, axis=0), atol=1e-6)
        np.testing.assert_allclose(less, 0.2 * start + 0.8 * each[0], atol=1e-6)
    assert np.ptp([end[-1] for end in ends[1:4]], axis=0).max() > 0


def test_a_resumed_training_keeps_to_its_plan(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take other times now; other minutes mean another plan, but for the network that has begun."""
    speed = Speeds(monkeypatch, large=1)
    before = speed.plan(tmp_path, minutes=30)
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "state.json").write_text('{"spent_s": 60}')
    speed.large = 1000
    assert speed.plan(tmp_path, minutes=30) == before and before.preset.architecture == "large"
    assert lines == [before.text, f"Going on by the plan that it began with. {before.text}"]
    other = speed.plan(tmp_path, minutes=90)
    assert other.preset == before.preset and "about 5 of at most 40 epochs of large" in other.text
    assert speed.plan(tmp_path, minutes=None).preset == before.preset
    (tmp_path / "network-2").mkdir()
    (tmp_path / "network-2" / "state.json").write_text('{"spent_s": 1500}')
    for minutes in (1, 10, 40):  # they are over, or end before another epoch
        over = speed.plan(tmp_path, minutes=minutes)
        assert (over.preset, over.limit_s, over.trainings, over.text) == (before.preset, 1500, 2, lines[-1])
        assert over.text.startswith(f"Plan for {minutes} minutes: no more epochs, as 25.0 minutes were spent on those")
    more, all_epochs = (speed.plan(tmp_path, minutes) for minutes in (90, None))
    assert more.trainings == all_epochs.trainings == 2  # none is thrown away
    assert "about 2 of at most 40 epochs of large" in more.text and "2 times" in more.text
    (tmp_path / "network-2" / "state.json").unlink()
    (tmp_path / "network" / "state.json").unlink()  # no epoch had ended
    assert speed.plan(tmp_path, minutes=60).preset.architecture == "small"


@pytest.mark.parametrize(
    ("large", "epochs", "said"),
    [
        (1, 40, "all 40 epochs of large at 24 px, 1 s each, 3 times, .*. For cheaper answers: --architecture small"),
        (140, 40, "about 12 of at most 40 epochs of large at 24 px, 140 s each. For cheaper answers: .*"),
        (155, 40, "all 40 epochs of small at 16 px, 10 s each, 3 times, and the average of the weights; about .*"),
        (150, 5, "all 5 epochs of large at 24 px, 150 s each, 2 times, .*"),
    ],
)
def test_a_plan_takes_the_larger_network_for_few_photos_where_enough_epochs_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: float, epochs: int, said: str
) -> None:
    """They are twelve, or all that there are; of 100 photos of each class, the smaller network learns as much."""
    speeds = Speeds(monkeypatch, large=large, epochs=epochs)
    plan = speeds.plan(tmp_path, minutes=30)
    assert re.fullmatch(f"Plan for 30 minutes: {said}", plan.text)
    many = speeds.plan(tmp_path / "many", minutes=30, photos=300)
    assert many.preset.architecture == "small"


def test_without_minutes_the_smaller_network_trains_and_the_plan_says_so(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, as one with minutes is; a first version has no epochs, and no plan."""
    speeds = Speeds(monkeypatch, large=1, epochs=5)
    plans = [speeds.plan(tmp_path / str(photos), minutes=None, photos=photos) for photos in (300, 32, 32)]
    assert [plan.preset.architecture for plan in plans] == ["small"] * 3
    said = "Plan: at most 5 epochs of small at 16 px, without a limit of time"
    few = f"{said}. For so few photos, large may be better: give --minutes or --architecture"
    assert [plan.text for plan in plans] == [said, few, few]
    assert lines == [said, few, f"Going on by the plan that it began with. {few}"]
    speeds.preset = speeds.preset.first
    assert [speeds.plan(tmp_path / "first", minutes=None).text for _ in range(2)] == ["", ""] and len(lines) == 3


def test_a_plan_leaves_time_for_the_photos_that_int8_is_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of test; without it, of validation."""
    monkeypatch.setattr("training.fit.plan.AFTER_S_A_PHOTO", 1)
    speeds = Speeds(monkeypatch, large=1)
    without, few, many = (speeds.plan(tmp_path / str(test), minutes=30, test=test) for test in (0, 10, 1000))
    assert [plan.limit_s for plan in (without, few, many)] == [1800 - 32, 1800 - 10, 1800 - 1000]


@pytest.mark.parametrize(
    ("weights", "photos", "test", "batches"),
    [
        ("imagenet", 32, 0, 10 + 1 + 3),  # of choices of weights, of features, and of int8
        ("imagenet", 2000, 320, 10 * 63 + 32 + 3 * 10),  # of a thousand features, at most
        ("none", 32, 0, 1 + 3),
    ],
)
def test_a_slower_network_has_more_time_after_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, photos: int, test: int, batches: int
) -> None:
    """Features and an int8 file take as long as some passes over photos; a network from scratch has no choices."""
    monkeypatch.setattr("training.fit.plan.AFTER_S_A_PHOTO", 0)
    speeds = Speeds(monkeypatch, large=1, validate=2)
    speeds.preset = replace(speeds.preset, weights=weights, larger="")
    plan = speeds.plan(tmp_path, minutes=60, photos=photos, test=test)
    assert plan.limit_s == 3600 - 2 * batches


class Speeds:
    """Plans for a small network and a large one, whose epochs take some seconds."""

    def __init__(self, patch: pytest.MonkeyPatch, *, large: float, epochs: int = 40, validate: float = 0) -> None:
        from tests.programs.small_training import Small
        from training.models.catalogue import ARCHITECTURES

        patch.setitem(ARCHITECTURES, "large", Small("large", 24, "±1"))
        patch.setattr("training.fit.plan.rehearse", lambda preset, _: self._speed(preset))
        patch.setattr("training.fit.plan.time", SimpleNamespace(monotonic=lambda: 0.0))
        self.large, self.validate = large, validate
        self.preset = Preset("a", "c", "e", "small", "imagenet", larger="large", recipe=Recipe(epochs=epochs))

    def _speed(self, preset: Preset) -> Any:
        from training.fit.rehearsal import Speed

        seconds = self.large if preset.architecture == "large" else 10
        return Speed(once_s=0, batch_size=32, train_s=seconds, validate_s=self.validate)

    def plan(self, folder: Path, minutes: float | None, photos: int = 32, test: int = 0) -> Any:
        """Return the plan for some photos, which are held out, too, and for some of test."""
        from training.data.pixels import Photos, Pixels
        from training.fit.plan import find_plan
        from training.fit.train import Data

        pixels, tested = (
            Pixels(np.zeros((count, 16, 16, 3), np.uint8), np.arange(count) % 3, [], "", {}, folder)
            for count in (photos, test)
        )
        folder.mkdir(exist_ok=True)
        splits = {"train": pixels, "validation": pixels} | ({"test": tested} if test else {})
        data = Data(Photos(folder, folder), ("a", "b", "c"), splits)
        return find_plan(folder / "plan.json", self.preset, data, minutes, passed_s=0)


def test_a_larger_network_reads_the_photos_at_its_size(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version has the smaller one. What was stopped goes on with the larger one, however slow it is then."""
    from training.__main__ import main
    from training.fit import train

    speeds = Speeds(monkeypatch, large=1, epochs=2)
    write_preset(tmp_path / "two.toml", speeds.preset)
    position = command.index("--architecture")
    command[position : position + 2] = ["--preset", str(tmp_path / "two.toml"), "--minutes", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "_compute_features", _stop_with(24, train._compute_features))
        assert main(command) == 130
    speeds.large = 1000
    assert main(command) == 0
    last, first = (Run(path).contract for path in sorted((tmp_path / "runs" / "colours").iterdir(), reverse=True))
    assert (first.image.height, first.origin.architecture) == (16, "small")
    assert (last.image.height, last.origin.architecture) == (24, "large")
    assert last.origin.recipe["epochs"] == 2


def _stop_with(size_px: int, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does as another does, but stops at photos of a size, as at Ctrl-C."""

    def stop(network: Any, *rest: Any) -> Any:
        if network.model.input_shape[1] == size_px:
            raise KeyboardInterrupt
        return compute(network, *rest)

    return stop


def test_a_plan_says_how_many_epochs_fit(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is logged, and stands in the report beside what the time bought."""
    from training.__main__ import main

    assert main([*command, "--minutes", "5", "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Time for all: 5 min (--minutes)\n")
    assert re.search(
        r"Plan for 5 minutes: all 2 epochs of small at 16 px, \d+ s each, 3 times, and the average of the weights;"
        r" about \d minutes? in all\n",
        said,
    )
    assert "Training 2/3, epoch 1/2: training loss" in said and "Least loss on validation, " in said
    (run,) = (tmp_path / "runs" / "colours").glob("*[!t]")
    report = (run / "report.html").read_text()
    assert "Plan for 5 minutes: all 2 epochs" in report
    told = [report.index(each) for each in ("The first version", "The best of training 2", "This run&#39;s model")]
    assert told == sorted(told)


def test_minutes_that_are_too_few_for_an_epoch(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are refused with a number that suffices, after the first version."""
    from training.__main__ import main

    assert main([*command, "--minutes", "0.01"]) == 1
    said = capsys.readouterr().err
    found = re.search(
        r"Expected --minutes (\d+) or more\. Received: 0\.01\. (\d+) s have passed, starting takes (\d+) s, an epoch"
        r" (\d+) s, and report and release up to (\d+) s\. What was released stays\. A first version is not made again,"
        r" so fewer may do",
        said,
    )
    assert found
    minutes, *seconds = map(int, found.groups())
    assert 60 * (minutes - 1) - 2 <= sum(seconds) <= 60 * minutes + 2  # as each of the four is rounded
    assert [run.name[-6:] for run in (tmp_path / "runs" / "colours").iterdir()] == ["-first"]
    assert main([*command, "--minutes", "0.01", "--weights", "none"]) == 1  # without a first version
    out, err = capsys.readouterr()
    assert out.startswith("Time for all: 0.01 min (--minutes)\n") and "released" not in err
    for option in ("--minutes", "--learning-rate"):
        assert main([*command, option, "1", "--first-only"]) == 1
        said = capsys.readouterr().err
        assert f"Expected with --first-only no options of the network's training. Received: {option}\n" in said


@pytest.mark.parametrize("minutes", ["0", "nan", "1e308"])
def test_minutes_that_cannot_be(command: list[str], capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    """They are refused before a photo is read."""
    from training.__main__ import main

    with pytest.raises(SystemExit):
        main([*command, f"--minutes={minutes}"])
    said = capsys.readouterr()
    assert "--minutes: Expected minutes from 0.01 to 525600, a year. Received: " in said.err and "Read " not in said.out
