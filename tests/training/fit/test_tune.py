"""`python -m training tune`: what it looks at, what it hands out, and its time. A training takes a minute here."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from training.__main__ import main
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
def clock() -> Iterator[Clock]:
    """Each training takes a minute, however long it takes; the small architecture is known."""
    from tests.programs.small_training import SMALL
    from training.fit import tune
    from training.fit.folds import Folds
    from training.models.catalogue import ARCHITECTURES

    clock, accuracy = Clock(), Folds.accuracy

    def timed(*arguments: Any) -> float:
        clock.now += 60
        return accuracy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", SMALL)
        patch.setattr(tune, "time", clock)
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


def command(photos: Path, work: Path, minutes: float, recipe: str, *model: str) -> list[str]:
    """Return the arguments of a search below a folder, from a preset with a recipe."""
    (work / "start.toml").write_text(PRESET.format(*(model or ("small", "imagenet")), recipe))
    places = ["--out", str(work / "tuned.toml"), "--runs", str(work / "runs"), "--cache", str(work / "cache")]
    return ["tune", str(photos), "--preset", str(work / "start.toml"), "--minutes", str(minutes), *places]


@pytest.fixture(scope="module")
def tuned(clock: Clock, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole search from a head that cannot learn: the folder that it worked in, and what it said."""
    work = tmp_path_factory.mktemp("work")
    with redirect_stdout(StringIO()) as said:
        assert (
            main(command(photos, work, 6, "epochs = 0\nhead_epochs = 6\nbatch_size = 4\nhead_learning_rate = 0.0")) == 0
        )
    return work, said.getvalue()


def test_a_bad_start_is_improved_on(tuned: tuple[Path, str]) -> None:
    """The head learns with the values that are found, and the gain is told with its error."""
    work, said = tuned
    found = find_preset(str(work / "tuned.toml"))
    assert found.recipe.head_learning_rate > 0
    gain = re.search(
        r"Accuracy [01]\.\d{4} .*\(2 folds, standard error\), (0\.\d{4}) ± 0\.\d{4} above ", found.expected
    )
    assert gain and float(gain[1]) > 0.2 and found.expected in said


def test_each_trial_has_a_line(tuned: tuple[Path, str]) -> None:
    """A trial's number, values, accuracy and time can be read in a log, and how the time is shared."""
    lines = re.findall(
        r"Trial (\d): head learning rate \S+, weight decay \S+, dropout \S+, label smoothing \S+:"
        r" accuracy \d\.\d+, best \d\.\d+, (\d)\.0 of 6 min",
        tuned[1],
    )
    assert lines == [(str(number), str(number + 1)) for number in range(2)]
    assert "A training takes about 60 s: 1.0 min for the search, 4.0 to compare on 2 other folds" in tuned[1]


def test_only_photos_to_train_on_are_read(tuned: tuple[Path, str]) -> None:
    """Of validation and test, nothing was decoded."""
    assert "Read 36 photos for train" in tuned[1] and "Skipped" not in tuned[1]
    assert len(list((tuned[0] / "cache").glob("*.pixels"))) == 1


def test_the_result_is_a_preset_of_train(tuned: tuple[Path, str], photos: Path, tmp_path: Path) -> None:
    """`train` takes it, and trains with its values."""
    from training.runs.folder import find_runs

    preset = tuned[0] / "tuned.toml"
    places = [part for name in ("runs", "cache", "store") for part in (f"--{name}", str(tmp_path / name))]
    assert main(["train", str(photos / "train"), "--name", "colours", "--preset", str(preset), *places]) == 0
    (run,) = find_runs(tmp_path / "runs")
    assert run.contract.origin.recipe == asdict(find_preset(str(preset)).recipe)


def test_upper_layers_are_trained_on_the_photos_of_other_folds(
    clock: Clock, photos: Path, tmp_path: Path, lines: list[str]
) -> None:
    """With the head on features that are computed once, what is not in a fold teaches to tell what is."""
    from tests.programs.small_training import SMALL
    from training.data.folder import read_folder
    from training.data.pixels import load_pixels
    from training.fit.folds import Folds

    pixels = load_pixels(read_folder(photos).splits["train"], SMALL.photo_spec, tmp_path)
    recipe = Recipe(epochs=4, head_epochs=2, head_learning_rate=0.02, learning_rate=0.02, batch_size=8, unfreeze=1.0)
    epochs: list[int] = []

    import keras

    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    preset = Preset("a", "c", "e", "small", "imagenet", recipe=recipe)
    Folds(pixels, preset, classes=3, path=tmp_path)
    folds = Folds(pixels, preset, classes=3, path=tmp_path)
    assert folds.accuracy(recipe, 1, [watch]) > 0.6
    assert lines == ["Computing the features of 36 photos"]
    assert epochs == list(range(len(epochs))) and 2 <= len(epochs) <= 4


def test_each_photo_is_held_out_once(photos: Path, tmp_path: Path) -> None:
    """Folds share no photo, have all of them together, and each has its part of every class."""
    from tests.programs.small_training import SMALL
    from training.data.folder import read_folder
    from training.data.pixels import load_pixels
    from training.fit.folds import FOLDS, Folds

    pixels = load_pixels(read_folder(photos).splits["train"], SMALL.photo_spec, tmp_path)
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
    from training.fit.folds import Folds

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


def test_half_a_line_is_passed_over(search: Callable[[Judge, float], str], tmp_path: Path) -> None:
    """What a process was writing when it was killed, and its lock, are not in the way."""
    search(lambda recipe, fold: [0.5], 9)
    (journal,) = (tmp_path / "runs" / ".tune").glob("*/trials.journal")
    with journal.open("a") as file:
        file.write('{"op_code":')
    Path(f"{journal}.lock").symlink_to(journal)
    assert "Trial 5:" in search(lambda recipe, fold: [0.5], 9)


@pytest.mark.processes
def test_a_killed_search_loses_one_trial(search: Callable[[Judge, float], str], photos: Path, tmp_path: Path) -> None:
    """Killed in its third trial, the same command goes on with the two before."""
    arguments = command(photos, tmp_path, 9, *PLAIN)
    program = [sys.executable, "-m", "tests.programs.small_training", "in the third trial", *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and re.findall(r"Trial (\d+):", done.stdout) == ["0", "1"]
    assert re.findall(r"Trial (\d+):", search(lambda recipe, fold: [0.5], 9))[0] == "3"


@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        (0.5, "Expected more time. Received: 0.5 min, over in the first trial"),
        (5, "Expected 6 min or more. Received: 5. A training takes 60 s, and after the first trial, which is kept"),
    ],
)
def test_too_little_time_is_told(search: Callable[[Judge, float], str], minutes: float, message: str) -> None:
    """The message says what is needed, as far as that is known."""
    assert message in search(lambda recipe, fold: [0.5], minutes)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("epochs = 0", {"--out": "tuned.json"}, "Expected --out to be a .toml file in a folder that is there"),
        ("epochs = 0", {"--out": "nowhere/tuned.toml"}, "Received: nowhere/tuned.toml"),
        ("epochs = 0\nhead_epochs = 0", {}, "Expected epochs or head_epochs of at least 1"),
        ("epochs = 0", {"--preset": "quik"}, "Expected a preset of"),
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
    assert main(command(tmp_path / "photos", tmp_path, 9, "epochs = 0")) == 1
    assert "Expected at least 5 photos of each class to train on. Received 4 of one" in capsys.readouterr().err
