"""`python -m training tune`: what it looks at, what it hands out, and its time. A training takes a minute here."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from training.__main__ import main
from training.data.folder import read_folder
from training.data.pixels import Pixels, load_pixels
from training.errors import TrainingError
from training.fit.preset import Preset, find_preset
from training.fit.recipe import Recipe

pytestmark = pytest.mark.tensorflow

PRESET = 'about = "a"\ncommand = "c"\nexpected = "e"\narchitecture = "{}"\nweights = "{}"\n[recipe]\n{}\n'
PLAIN = ("epochs = 8\ndropout = 0.3", "plain-cnn", "none")
Judge = Callable[[Recipe, int], list[float]]


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock(small: str) -> Iterator[Clock]:
    """Each training takes a minute, and a rehearsal finds half of that or all; the small architecture is known."""
    from training.tune import costs, search
    from training.tune.folds import Folds

    clock, accuracy = Clock(), Folds.accuracy

    def timed(*arguments: Any) -> float:
        clock.now += 60
        return accuracy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "time", clock)
        patch.setattr(costs, "time", clock)
        patch.setattr(costs.Costs, "_cost", lambda *_: costs.Cost(30, 60))
        patch.setattr(Folds, "accuracy", timed)
        yield clock


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Split folders of three easy classes; what is in validation and test is no photo."""
    from tests.programs.small_training import draw

    folder = tmp_path_factory.mktemp("photos")
    draw(folder / "train")
    for split in ("validation", "test"):
        for name in ("red", "green", "blue"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "1.jpg").write_bytes(b"not a photo")
    return folder


@pytest.fixture
def pixels(photos: Path, tmp_path: Path) -> Pixels:
    """The photos to train on, as the small architecture reads them."""
    from tests.programs.small_training import SMALL

    return load_pixels(read_folder(photos).splits["train"], SMALL.photo_spec, tmp_path)


# With a rate at which nothing is learned but how to forget.
START = "epochs = 4\nbatch_size = 4\nlearning_rate = 10.0"


def command(photos: Path, work: Path, minutes: float, recipe: str, *model: str) -> list[str]:
    """Return the arguments of a search below a folder, from a preset with a recipe."""
    (work / "start.toml").write_text(PRESET.format(*(model or ("small", "imagenet")), recipe))
    places = ["--out", str(work / "tuned.toml"), "--runs", str(work / "runs"), "--cache", str(work / "cache")]
    return ["tune", str(photos), "--preset", str(work / "start.toml"), "--minutes", str(minutes), *places]


@pytest.fixture(scope="module")
def tuned(clock: Clock, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole search from a rate that is too high: the folder that it worked in, and what it said."""
    work = tmp_path_factory.mktemp("work")
    with redirect_stdout(StringIO()) as said:
        assert main(command(photos, work, 6, START)) == 0
    return work, said.getvalue()


def test_a_bad_start_is_improved_on(tuned: tuple[Path, str]) -> None:
    """The network learns with the values that are found, and the gain is told with its error."""
    work, said = tuned
    found = find_preset(str(work / "tuned.toml"))
    assert found.recipe.learning_rate < 1
    gain = re.search(
        r"Accuracy [01]\.\d{4} .*\(2 folds, standard error\), (0\.\d{4}) ± 0\.\d{4} above ", found.expected
    )
    assert gain and float(gain[1]) > 0.2 and found.expected in said
    page = work / "tuned.html"
    assert f"Wrote {page}, which shows the trials" in said and found.command in page.read_text()


def test_each_trial_has_a_line(tuned: tuple[Path, str]) -> None:
    """A trial's number, values, accuracy and time can be read in a log, and how the time is shared."""
    lines = re.findall(
        r"Trial (\d): learning rate \S+, weight decay \S+, dropout \S+, label smoothing \S+, augmentation \S+,"
        r" unfreeze \S+: accuracy \d\.\d+, best \d\.\d+, (\d)\.0 of 6 min",
        tuned[1],
    )
    assert lines == [(str(number), str(number + 1)) for number in range(2)]
    assert "A training takes about 60 s: 1.0 min for the search, 4.0 to compare on 2 other folds" in tuned[1]


def test_only_photos_to_train_on_are_read(tuned: tuple[Path, str]) -> None:
    """Of validation and test, nothing was decoded."""
    assert "Read 36 photos for train" in tuned[1] and "Skipped" not in tuned[1]
    assert len(list((tuned[0] / "cache").glob("*.pixels"))) == 1


def test_upper_layers_are_trained_on_the_photos_of_other_folds(
    clock: Clock, pixels: Pixels, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the head on features that are computed once, what is not in a fold teaches to tell what is.

    A training that was interrupted goes on after its last epoch, and knows how long it has taken.
    """
    from training.tune.folds import Folds

    monkeypatch.setattr("training.progress.WAIT_S", math.inf)  # a slow machine would log how long it takes
    recipe = Recipe(epochs=4, learning_rate=0.02, batch_size=8, unfreeze=1.0)
    epochs: list[int] = []

    import keras

    def note(epoch: int, logs: object) -> None:
        epochs.append(epoch)
        if len(epochs) == 1:
            raise KeyboardInterrupt

    watch = keras.callbacks.LambdaCallback(on_epoch_end=note)
    preset = Preset("a", "c", "e", "small", "imagenet", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        Folds(pixels, preset, classes=3, path=tmp_path).accuracy(recipe, 1, [watch])
    folds = Folds(pixels, preset, classes=3, path=tmp_path)
    assert folds.spent_s(recipe, 1) > 0
    assert folds.accuracy(recipe, 1, [watch]) > 0.6
    assert [line.partition(" photos")[0] for line in lines] == ["Computed the features of 36"]
    assert epochs == list(range(len(epochs))) and 2 <= len(epochs) <= 4
    assert folds.spent_s(recipe, 1) == 0


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_a_rate_that_is_much_too_high_has_an_accuracy_too(
    clock: Clock, pixels: Pixels, tmp_path: Path, weights: str
) -> None:
    """A network that answers nan is a bad one, and does not end the search."""
    from training.tune.folds import Folds

    preset = Preset("a", "c", "e", "small", weights, recipe=Recipe(epochs=1, learning_rate=1e30, batch_size=8))
    assert Folds(pixels, preset, classes=3, path=tmp_path).accuracy(preset.recipe, 0) < 0.5


def test_each_photo_is_held_out_once(pixels: Pixels, tmp_path: Path) -> None:
    """Folds share no photo, have all of them together, and each has its part of every class."""
    from training.tune.folds import FOLDS, Folds

    rows = Folds(pixels, Preset("a", "c", "e", "small", "none"), classes=3, path=tmp_path)._rows
    held_out = np.concatenate([fold["validation"] for fold in rows])
    assert len(rows) == FOLDS and sorted(held_out) == list(range(36))
    for fold in rows:
        assert not set(fold["train"]) & set(fold["validation"]) and len(fold["train"]) + len(fold["validation"]) == 36
        assert np.bincount(pixels.labels[fold["validation"]], minlength=3).min() >= 2
        part = pixels.part(fold["validation"])
        np.testing.assert_array_equal(part.images[1:3], pixels.images[fold["validation"][1:3]])


# With accuracies that are given in place of trainings


@pytest.fixture
def search(
    clock: Clock, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Judge, float], str]:
    """A function that searches with the accuracy by epoch of a recipe on a fold, and returns what was said."""
    from training.tune.folds import Folds

    def search(judge: Judge, minutes: float) -> str:
        def accuracy(_: Folds, recipe: Recipe, fold: int, watch: Any = ()) -> float:
            clock.now += 60
            accuracies = judge(recipe, fold)
            for epoch, value in enumerate(accuracies):
                for callback in watch:
                    callback.on_epoch_end(epoch, {"val_accuracy": value})
            return max(accuracies)

        monkeypatch.setattr(Folds, "accuracy", accuracy)
        main(command(photos, tmp_path, minutes, *PLAIN))
        return "".join(capsys.readouterr())

    return search


def test_no_gain_is_told(search: Callable[[Judge, float], str], tmp_path: Path) -> None:
    """What did best on the first fold and is worse on the others is not handed out."""
    said = search(lambda recipe, fold: [0.5 + abs(recipe.dropout - 0.3) * (1 if fold == 0 else -1)], 20)
    found = find_preset(str(tmp_path / "tuned.toml"))
    assert found.recipe == Recipe(epochs=8, dropout=0.3)
    assert "nothing better was found" in found.expected and found.expected in said


def test_a_gain_within_its_error_is_told(search: Callable[[Judge, float], str], tmp_path: Path) -> None:
    """What is better on average and worse on some folds is handed out, with a word of warning."""

    def judge(recipe: Recipe, fold: int) -> list[float]:
        return [0.5 + (recipe.dropout != 0.3) * (0.1, 0.1, -0.09, 0.1, -0.09)[fold]]

    search(judge, 20)
    found = find_preset(str(tmp_path / "tuned.toml"))
    assert found.recipe.dropout != 0.3 and "0.0050 ± 0.0548 above" in found.expected
    assert "which may be chance" in found.expected


def test_the_hopeless_are_pruned(search: Callable[[Judge, float], str]) -> None:
    """After the first trials, one that is worse than most at the same epoch is ended there."""
    said = search(lambda recipe, fold: [recipe.weight_decay / 10 * epoch for epoch in range(8)], 20)
    assert re.search(r"Trial \d+: .*: pruned at 0\.\d+ after 3 epochs", said)
    assert len(re.findall(r"Trial [0-4]: .*: accuracy", said)) == 5


def test_the_same_command_goes_on(search: Callable[[Judge, float], str]) -> None:
    """A second search has the trials of the first, proposes others, and does not compare again what it has compared."""
    compared: list[tuple[Recipe, int]] = []

    def judge(recipe: Recipe, fold: int) -> list[float]:
        if fold:
            compared.append((recipe, fold))
        return [0.5 + recipe.dropout / 10]

    first, second = search(judge, 9), search(judge, 9)
    assert "Continuing" not in first and "Continuing after 5 trials" in second
    trials = re.findall(r"Trial (\d+): (.*?):", first + second)
    assert [int(number) for number, _ in trials] == list(range(len(trials)))
    assert len(trials) > 5 and len({values for _, values in trials}) == len(trials)
    assert len(compared) == len(set(compared))


def test_a_folder_of_any_name_costs_no_result(
    search: Callable[[Judge, float], str], photos: Path, tmp_path: Path
) -> None:
    """The preset is read again, though the name is no UTF-8 and has a control character."""
    search(lambda recipe, fold: [0.5], 9)
    folder = copytree(photos, tmp_path / os.fsdecode(b"fotos-\xe9\x7f"))
    assert main(command(folder, tmp_path, 9, *PLAIN)) == 0
    assert "fotos-\ufffd\x7f in " in find_preset(str(tmp_path / "tuned.toml")).about


def test_half_a_line_is_passed_over(search: Callable[[Judge, float], str], tmp_path: Path) -> None:
    """What a process was writing when it was killed, and its lock, are not in the way."""
    search(lambda recipe, fold: [0.5], 9)
    (journal,) = (tmp_path / "runs" / ".tune").glob("*/trials.journal")
    with journal.open("a") as file:
        file.write('{"op_code":')
    Path(f"{journal}.lock").symlink_to(journal)
    assert "Trial 5:" in search(lambda recipe, fold: [0.5], 9)


@pytest.mark.processes
def test_a_killed_search_loses_no_trial(search: Callable[[Judge, float], str], photos: Path, tmp_path: Path) -> None:
    """Killed in its third trial, the same command goes on with the two before, and first with the third's values."""
    arguments = command(photos, tmp_path, 9, *PLAIN)
    program = [sys.executable, "-m", "tests.programs.small_training", "in the third trial", *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and re.findall(r"Trial (\d+):", done.stdout) == ["0", "1"]
    assert re.findall(r"Trial (\d+):", search(lambda recipe, fold: [0.5], 9))[0] == "3"
    third, fourth = trials(tmp_path)[2:4]
    assert third.params == fourth.params != trials(tmp_path)[1].params


def trials(work: Path) -> list[Any]:
    """Return all trials of the only search below a folder."""
    from training.tune.space import find_space
    from training.tune.study import open_study

    (path,) = (work / "runs" / ".tune").iterdir()
    return list(open_study(path, find_space(find_preset(str(work / "start.toml")), "start", [], [])).trials)


def test_a_late_trial_is_continued(search: Callable[[Judge, float], str], clock: Clock, tmp_path: Path) -> None:
    """A trial that would take the comparison's time is ended, and the same command begins with its values."""

    def judge(recipe: Recipe, fold: int) -> list[float]:
        clock.now += 600 * (recipe.dropout != 0.3 and fold == 0)
        return [0.5]

    assert re.findall(r"Trial (\d+):", search(judge, 9)) == ["0"]
    assert re.findall(r"Trial (\d+):", search(lambda recipe, fold: [0.5], 9))[0] == "2"
    assert trials(tmp_path)[1].params == trials(tmp_path)[2].params


def test_memory_that_does_not_suffice_is_told(search: Callable[[Judge, float], str]) -> None:
    """As of a GPU with large batches, in one line."""
    import tensorflow as tf

    def exhausted(recipe: Recipe, fold: int) -> list[float]:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    assert "Training ran out of memory. A smaller batch size or input size takes less" in search(exhausted, 9)


@pytest.mark.parametrize(("least_s", "range"), [(30, "30 to 60 s"), (59.8, "60 s")])
def test_too_little_time_is_told_at_once(
    search: Callable[[Judge, float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_s: float, range: str
) -> None:
    """Before a photo is read, the message says how many minutes are enough."""
    from training.tune import costs

    monkeypatch.setattr(costs.Costs, "_cost", lambda *_: costs.Cost(least_s, 60))
    said = search(lambda recipe, fold: [0.5], 2.9)
    assert "Expected --minutes 6 or more. Received: 2.9. A training with plain-cnn at 96 px takes " in said
    assert f"px takes {range}, and a search needs 6 trainings\n" in said
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("minutes", "measured", "enough", "why"),
    [
        (5, 1, 6, "EfficientNetB0 at 160 px takes 60 s, and a search needs 6 trainings. Not measured yet: 3 more"),
        (
            10,
            2,
            18,
            "EfficientNetB0 at 192 px takes 300 s, and a search needs 6 trainings, half of them with EfficientNetB0 at"
            " 160 px. Not measured yet: 2 more",
        ),
        (20, 4, None, ""),
    ],
)
def test_backbones_are_measured_until_one_takes_too_long(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, minutes: int, measured: int, enough: int | None, why: str
) -> None:
    """A search that cannot be is refused before the others are measured, each of which may take a minute."""
    from training.tune import costs
    from training.tune.space import find_space

    space = find_space(find_preset("default"), "default", ["efficientnetb0", "efficientnet-lite2"], [160, 192])
    monkeypatch.setattr(costs.Costs, "_cost", lambda _, each: costs.Cost(*[300 if each.size == 192 else 60] * 2))
    of_search = costs.Costs(space, 100, 3)
    refusal = pytest.raises(TrainingError, match=f"Expected --minutes {enough} or more. .* {why}$")
    with refusal if enough else nullcontext():
        of_search.check(costs.Time(minutes, clock.now + 60 * minutes))
    assert len(of_search.known) == measured


def test_a_training_that_takes_longer_than_it_might_is_kept(search: Callable[[Judge, float], str]) -> None:
    """The message says what is enough, and the same command needs one training less."""
    said = search(lambda recipe, fold: [0.5], 5)
    assert "Expected --minutes 6 or more. Received: 5. A training takes 60 s, and after the trials so far" in said
    assert "Continuing after 1 trial" in (said := search(lambda recipe, fold: [0.5], 5)) and "Wrote" in said


def test_a_backbone_and_a_size_are_found(
    photos: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preset has those that did best, and train takes it."""
    from tests.programs.small_training import SMALL
    from training.models.catalogue import ARCHITECTURES
    from training.tune.folds import Folds

    def accuracy(self: Folds, recipe: Recipe, fold: int, watch: Any = ()) -> float:
        clock.now += 60
        return 0.5 + 0.2 * (self._preset.architecture == "tiny") + 0.1 * (self._preset.size == 20)

    monkeypatch.setitem(ARCHITECTURES, "tiny", replace(SMALL, name="tiny"))
    monkeypatch.setattr(Folds, "accuracy", accuracy)
    assert main([*command(photos, tmp_path, 20, START), "--architectures", "small,tiny", "--sizes", "16,20"]) == 0
    found = find_preset(str(tmp_path / "tuned.toml"))
    assert (found.architecture, found.size) == ("tiny", 20) and "architecture tiny, size 20" in capsys.readouterr().out


def test_a_larger_network_of_a_preset_is_kept(
    photos: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless a network or a size is chosen. A line says that trials train the smaller one, though photos are few."""
    from tests.programs.small_training import SMALL
    from training.models.catalogue import ARCHITECTURES
    from training.tune.folds import Folds

    def accuracy(self: Folds, recipe: Recipe, fold: int, watch: Any = ()) -> float:
        clock.now += 60
        return 0.5

    monkeypatch.setitem(ARCHITECTURES, "large", replace(SMALL, name="large"))
    monkeypatch.setattr(Folds, "accuracy", accuracy)
    arguments, start = command(photos, tmp_path, 20, START), tmp_path / "start.toml"
    start.write_text(start.read_text().replace("weights", 'larger = "large"\nweights'))
    for choices, kept in ([], "large"), (["--architectures", "small"], ""), (["--sizes", "16,20"], ""):
        assert main([*arguments, *choices]) == 0
        found = find_preset(str(tmp_path / "tuned.toml"))
        assert (found.architecture, found.larger) == ("small", kept)
        label = "start with small at 16 px" if choices else "start"
        assert f"these are the values of {label}, and nothing better was found" in found.expected
        note = "Note: trials train small. With so few photos, train takes large if its minutes suffice. To tune that: "
        assert (f"{note}--architectures large\n" in capsys.readouterr().out) != bool(choices)


def test_a_start_is_among_the_choices() -> None:
    """Where the preset's own backbone is none of them, the first is the start, and its name says so."""
    from training.tune.space import find_space

    preset = find_preset("default")
    space = find_space(preset, "default", ["efficientnetb0", "EfficientNet-Lite2"], [160, 192])
    assert (space.start.architecture, space.start.size) == ("EfficientNetB0", 160)
    assert space.label == "default with EfficientNetB0 at 160 px" and len(space.backbones) == 4
    for choices in (["efficientnet-lite2", "efficientnet-lite0"], []), ([], [160, 224]):  # which leave out the larger
        space = find_space(preset, "default", *choices)
        assert space.label == "default with efficientnet-lite0 at 224 px" and not space.start.larger


@pytest.mark.parametrize(
    "choices",
    [
        ([], [160, 192, 224]),
        ([f"efficientnet-lite{number}" for number in (2, 0, 1)], []),
        (["efficientnet-lite2", "efficientnet-lite0"], [160, 224]),
        (["efficientnet-lite2", "efficientnet-lite1"], [192, 160]),
    ],
)
def test_the_same_choices_in_another_order_are_one_search(choices: tuple[list[Any], list[Any]]) -> None:
    """It is found again by its backbones, and Optuna refuses to continue it with values in another order."""
    from training.tune.space import find_space

    names, sizes = choices
    preset = find_preset("default")
    space = find_space(preset, "default", names, sizes)
    assert space == find_space(preset, "default", names[::-1], sizes[::-1])


def test_a_file_is_the_only_network_of_its_search(tmp_path: Path) -> None:
    """Photos are read as it needs them, square or not, and no other network or size is tried with its weights.

    Under another name, it is the same search.
    """
    import keras

    from training.fit.phases import start_of
    from training.tune.space import find_space

    model = keras.Sequential([keras.Input((40, 48, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAvgPool2D()])
    model.save(tmp_path / "theirs.keras")
    preset = find_preset("default").changed({"weights": str(tmp_path / "theirs.keras"), "preprocessing": "±1"})
    space = find_space(preset, "theirs", [], [])
    (only,) = space.backbones
    assert (only.photo_spec.height, only.photo_spec.width) == (40, 48)
    assert start_of(space.start_with(only)) == only
    for choices in ([["efficientnet-lite1"], []], [[], [32]]):
        with pytest.raises(TrainingError, match="Expected no --architectures nor --sizes"):
            find_space(preset, "theirs", *choices)
    (tmp_path / "theirs.keras").rename(tmp_path / "moved.keras")
    moved = replace(preset, weights=str(tmp_path / "moved.keras"))
    assert find_space(moved, "theirs", [], []).made_of == space.made_of


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("epochs = 1", {"--out": "tuned.json"}, "Expected --out to be a .toml file in a folder that is there"),
        ("epochs = 1", {"--out": "nowhere/tuned.toml"}, "Received: nowhere/tuned.toml"),
        ("epochs = 0", {}, "Expected epochs of at least 1. Received: 0. For the head alone: train --first-only"),
        ("epochs = 1", {"--preset": "quik"}, "Expected a preset of"),
    ],
)
def test_what_cannot_be_is_told(
    photos: Path,
    tmp_path: Path,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    changes: dict[str, str],
    message: str,
) -> None:
    """One line says what was expected, before anything is trained."""
    options = [part for change in changes.items() for part in change]
    assert main([*command(photos, tmp_path, 9, recipe), *options]) == 1
    assert message in capsys.readouterr().err


def test_too_few_photos_are_told(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A class needs a photo for each fold."""
    from tests.programs.small_training import draw

    draw(tmp_path / "photos" / "train", photos=4)
    draw(tmp_path / "photos" / "validation", photos=1)
    assert main(command(tmp_path / "photos", tmp_path, 9, "epochs = 1")) == 1
    assert "Expected at least 5 photos of each class to train on. Received 4 of one" in capsys.readouterr().err
