"""`python -m training`: a folder of photos to a run folder and a version, and what it says when that cannot be."""

import json
import os
import re
import shutil
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contract.document import find_identity
from contract.release import Release
from serving.engines import open_engine
from tests.training.conftest import contract_of, places
from training.__main__ import main
from training.errors import TrainingError

tensorflow = pytest.mark.tensorflow

ROOT = Path(__file__).parents[3]


def describe(version, engine="tflite"):
    """Return the contract inside a version."""
    return contract_of(open_engine(version, engine, threads=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 3 easy classes with 12 photos each, and one file that is none."""
    from tests.programs.small_training import draw

    folder = draw(tmp_path_factory.mktemp("photos") / "colours")
    (folder / "red" / "broken.jpg").write_bytes(b"not a photo")
    return folder


@pytest.fixture(scope="module")
def small(small):
    """The name of a small architecture, whose scores need few photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.models.novelty.FEWEST_PHOTOS", 2)
        yield small


@pytest.fixture(scope="module")
def trained(folder, small, tmp_path_factory):
    """A whole `python -m training train`: its exit status, what it said, and the folder that it worked in."""
    work = tmp_path_factory.mktemp("work")
    options = ["--architecture", small, "--epochs", "2", "--learning-rate", "0.02"]
    with redirect_stdout(StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.commands._better", lambda run, *_: run)  # three photos cannot decide that for sure
        status = main(["train", str(folder), "--name", "colours", *options, *places(work)])
    return status, said.getvalue(), work


@pytest.fixture(scope="module")
def run(trained):
    """The run folder of the whole training."""
    return max((trained[2] / "runs" / "colours").glob("*[!t]"))


@tensorflow
def test_train_ends_with_a_release(trained):
    """The exit status is 0, the steps are lines, and the store has a first version and a better one."""
    assert trained[0] == 0
    for line in ("Fitted the head: accuracy ", "Accuracy on test: ", "Saved the run in"):
        assert line in trained[1]
    for version in ("1", "2"):
        assert (trained[2] / "store" / "colours" / version / "saved_model.pb").is_file()
    first = describe(trained[2] / "store" / "colours" / "1")
    assert first.origin.recipe["epochs"] == 0 and first.metrics["validation_accuracy"] > 0.6


@tensorflow
def test_train_learns(trained):
    """Colours can be told apart."""
    metrics = describe(trained[2] / "store" / "colours" / "2").metrics
    assert metrics["validation_photos"] == metrics["test_photos"] == 3
    assert metrics["validation_accuracy"] > 0.6


@tensorflow
def test_contract_says_how_the_model_was_made(trained):
    """Classes, size, architecture, data digest, recipe and held-out photos travel with the version."""
    contract = describe(trained[2] / "store" / "colours" / "2")
    assert contract.model == "colours" and contract.classes == ("blue", "green", "red")
    assert (contract.image.height, contract.image.width) == (16, 16)
    assert contract.origin.architecture == "small" and contract.origin.weights == "imagenet"
    assert sorted(contract.origin.data_digest) == ["test", "train", "validation"]
    assert contract.origin.recipe["epochs"] == 2 and contract.origin.created_at
    assert [each.name for each in contract.golden][3:] == ["photo-0", "photo-1", "photo-2"]


@tensorflow
def test_run_folder_is_complete(run):
    """A run keeps the Keras model, the contract, the history and the golden photos."""
    needed = {"contract.json", "golden", "history.json", "model.keras", "novelty.npy"}
    plots = {f"{name}.png" for name in ("confusion", "curves", "reliability")}
    others = {"evaluation.json", "made-of.txt", "model.txt", "releases.jsonl", "report.html"}
    assert {path.name for path in run.iterdir()} == needed | plots | others
    history = json.loads((run / "history.json").read_text())
    assert len(history["network"]["val_accuracy"]) == 2


@tensorflow
def test_run_report_shows_training_and_model(run):
    """One page shows the figures on test, the curves, augmented photos, the recipe and the layers."""
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") == 2 and page.count(", as it was trained on") == 3 * 4
    assert page.count(", the photo") == 3 and "A photo of each class" in page
    for told in (
        "3 photos of test",
        "Accuracy and loss by epoch",
        "<th>recipe.epochs</th><td>2</td>",
        "head_probabilities",
    ):
        assert told in page


@tensorflow
def test_train_fits_a_score_for_unknown_images(trained, run):
    """The version has a threshold and gives scores, and the report says how many good photos it would turn away."""
    version = trained[2] / "store" / "colours" / "1"
    contract, engine = describe(version), open_engine(version, "tflite", threads=1)
    scores = engine.run(contract.signature, {"images": np.zeros((2, 16, 16, 3), np.uint8)})["novelty"]
    assert contract.novelty.photos == 3 and scores.shape == (2,)
    assert "Photos of the classes that are called unknown" in (run / "report.html").read_text()
    (result,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert 0 <= result["unknown"] <= 3


@tensorflow
def test_train_releases_int8_where_it_is_as_good(trained):
    """The held-out photos of training judge it, and the file that is served by default carries its accuracy."""
    metrics = describe(trained[2] / "store" / "colours" / "2", "auto").metrics
    assert metrics["int8_accuracy_drop"] <= 0.005 and metrics["keras_accuracy"] == metrics["test_accuracy"]
    assert "int8: accuracy" in trained[1]


@tensorflow
def test_run_is_judged_by_its_photos(run, folder, tmp_path, capsys):
    """`export --run --photos` finds the photos that training held out, and compares with the version before."""
    options = ["--photos", str(folder), "--cache", str(tmp_path / "cache"), "--store", str(tmp_path)]
    assert main(["export", "--run", str(run), "--name", "again", *options, "--refuse-if-worse"]) == 0
    assert main(["export", "--run", str(run), "--name", "again", *options, "--refuse-if-worse"]) == 0
    said = capsys.readouterr().out
    assert "Not worse than version 1" in said and "3 photos of test" in said and "Note:" not in said
    assert "no int8 file" not in said


@tensorflow
def test_run_exports_under_another_name(run, tmp_path, capsys):
    """`export --run` releases the same function with the same classes as a version of the model that is named."""
    assert main(["export", "--run", str(run), "--name", "imagenet", "--store", str(tmp_path)]) == 0
    contract = describe(tmp_path / "imagenet" / "1")
    assert contract.model == "imagenet" and contract.classes == ("blue", "green", "red")
    said = capsys.readouterr().out
    assert f"Released {tmp_path / 'imagenet' / '1'}" in said
    assert "\nMade no int8 file, which photos decide on. Add --photos FOLDER, those that the model was" in said
    *_, release = map(json.loads, (run / "releases.jsonl").read_text().splitlines())
    engine = open_engine(tmp_path / "imagenet" / "1", "tflite", threads=1)
    assert (release["model"], release["version"]) == ("imagenet", 1)
    assert release["identity"] == find_identity(engine.signatures)


@tensorflow
def test_file_exports(tmp_path, capsys):
    """`export --weights FILE` releases a Keras file of any name with the classes and preprocessing that are given."""
    from tests.programs.tiny_model import build

    build(0).save(tmp_path / "mine.keras")
    weights = (tmp_path / "mine.keras").rename(tmp_path / os.fsdecode(b"mod\xe8le.keras"))
    (tmp_path / "classes.txt").write_text("\ufeffcat\r\ndog\r\n\r\nbird\r\n", encoding="utf-8")
    options = ["--classes", str(tmp_path / "classes.txt"), "--preprocessing", "+-1", "--name", "mine"]
    assert main(["export", "--weights", str(weights), *options, "--store", str(tmp_path)]) == 0
    contract = describe(tmp_path / "mine" / "1")
    assert contract.classes == ("cat", "dog", "bird") and contract.origin.weights == "mod\ufffdle.keras"
    assert contract.image.aspect == "stretch" and len(contract.origin.weights_sha256) == 64


@tensorflow
def test_a_first_version_can_be_all(folder, small, tmp_path, capsys):
    """With `--first-only` nothing else is trained, and nothing waits for int8; random weights have no features."""
    command = ["train", str(folder), "--name", "colours", "--architecture", small, "--first-only", *places(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Released" in said and "Epoch 1" not in said and "int8:" not in said
    (run,) = (tmp_path / "runs" / "colours").iterdir()
    assert "Accuracy and loss by epoch" not in (run / "report.html").read_text()
    assert main([*command, "--track", "tensorboard"]) == 0
    said = capsys.readouterr().out
    assert f"The first version is there already: {run}\n" in said and "Nothing is sent to tensorboard, as" in said
    assert not (run / "tensorboard").exists()
    assert main([*command, "--track", "tensorboard", "--fresh"]) == 0
    assert "Sent the run to tensorboard" in capsys.readouterr().out
    assert not list((tmp_path / "runs" / ".unfinished").iterdir())
    assert main([*command, "--seed", "1"]) == 0 and "there already" not in capsys.readouterr().out
    (folder / "red").rename(folder / "rot")
    assert main([*command, "--replace-classes"]) == 0 and "there already" not in capsys.readouterr().out
    (folder / "rot").rename(folder / "red")
    assert "Expected weights to begin with" in refused(capsys, *command, "--weights", "none")


@tensorflow
def test_a_later_training_releases_only_what_it_ends_with(folder, small, tmp_path, monkeypatch, capsys):
    """People who have a version already get no first one; and of two runs, the better one, but no run twice."""
    monkeypatch.setattr("training.release.quantization.search", lambda *_: None)
    command = ["train", str(folder), "--name", "colours", "--architecture", small, *places(tmp_path)]
    too_fast = ["--epochs", "3", "--batch-size", "4", "--learning-rate", "10"]
    assert main([*command, "--first-only", "--seed", "1"]) == main([*command, *too_fast]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Not better than the first version: .*-first is taken in place of it\n", said)
    assert said.count("Released ") == 2
    assert describe(tmp_path / "store" / "colours" / "2").origin.recipe["epochs"] == 0
    (tmp_path / "store" / "colours" / "release.json").write_text(Release(stable=1).to_json())
    assert main([*command, *too_fast]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Not better than the first version: .*-first is taken in place of it\n", said)
    assert re.search(r"Nothing is released, as \S+-first is version 2 already\. Version 1 answers\. ", said)
    assert f"promote version 2: python -m gateway.release colours status --store {tmp_path / 'store'}\n" in said
    assert "Released " not in said


@tensorflow
def test_a_training_that_is_there_already_is_not_done_again(folder, small, tmp_path, monkeypatch, capsys):
    """Nor is it rehearsed or released again, unless `--fresh` or other minutes ask for that.

    What `--fresh` began goes on without it, though an earlier training has ended, and one with other minutes is found.
    """
    from training.fit import train

    monkeypatch.setattr("training.release.quantization.search", lambda *_: None)
    monkeypatch.setattr("training.fit.commands._better", lambda run, *_: run)
    monkeypatch.setattr("training.fit.plan.AFTER_S", 0)
    command = ["train", str(folder), "--name", "colours", "--architecture", small, *places(tmp_path)]
    fast = ["--epochs", "1", "--batch-size", "8", "--minutes"]
    for options, trained in ((["5"], True), (["5"], False), (["4"], True), (["4", "--fresh"], True)):
        assert main([*command, *fast, *options]) == 0
        said = capsys.readouterr().out
        assert all((step in said) == trained for step in ("Plan for ", "1/1: training loss", "Released "))
        there = r"Nothing is trained, as (\S+) is made .*\nNothing is released, as \1 is version 2 already\n"
        assert trained or re.search(there, said)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_compute_features", _stop_after_epochs(train._compute_features))
        assert main([*command, *fast, "4", "--fresh"]) == 130
    assert "If epochs were trained, the same command without --fresh continues them; " in capsys.readouterr().err
    assert main([*command, *fast, "5"]) == 0 and "Nothing is trained, as " in capsys.readouterr().out
    assert main([*command, *fast, "4"]) == 0
    said = capsys.readouterr().out
    assert "Going on by the plan that it began with. Plan for 4 " in said


def _stop_after_epochs(compute):
    """Return a function that does as another, but stops a training after its epochs, as Ctrl-C does."""

    def stop(network, splits, recipe):
        if recipe.epochs:
            raise KeyboardInterrupt
        return compute(network, splits, recipe)

    return stop


@tensorflow
def test_a_run_is_a_starting_point(run, folder, tmp_path, capsys):
    """Other classes train on its features, of which only the upper half changes, and the file travels as origin.

    Photos that are held out now may have trained it, which is said. A copy of it elsewhere is the same.
    """
    from training.models.starting_points import find_start
    from training.runs.folder import sha256

    for name in ("red", "blue"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(folder / name)
    options = ["--weights", str(run), "--epochs", "1", "--batch-size", "8", *places(tmp_path)]
    assert main(["train", str(tmp_path / "photos"), "--name", "two", *options]) == 0
    note = f"Note: colours/{run.name}/model.keras held out other photos. It may have been trained on some"
    assert note in capsys.readouterr().out
    contract = describe(tmp_path / "store" / "two" / "1")
    assert contract.classes == ("blue", "red")
    assert (contract.origin.architecture, contract.origin.weights) == ("small", f"colours/{run.name}/model.keras")
    assert contract.origin.weights_sha256 == sha256(run / "model.keras")
    (mine,) = (tmp_path / "runs" / "two").glob("*[!t]")
    before, after = (find_start("", str(each)).backbone("").get_weights() for each in (run, mine))
    same = [np.array_equal(*pair) for pair in zip(before, after, strict=True)]
    assert same[:2] == [True, True] and not all(same)
    options[1] = str(shutil.copytree(run, tmp_path / "copy") / "model.keras")
    assert main(["train", str(tmp_path / "photos"), "--name", "two", *options]) == 0
    assert f"Nothing is trained, as {mine} is made of the same" in capsys.readouterr().out


@tensorflow
@pytest.mark.parametrize(("held_out", "is_noted"), [({}, False), ({"test": None}, False), ({"test": "other"}, True)])
def test_only_photos_that_figures_come_from_are_compared_with_a_run(
    folder, tmp_path, lines, monkeypatch, held_out, is_noted
):
    """Those of test, if there is one; a run that does not say what it held out is not suspected."""
    from training.data.pixels import Photos
    from training.fit import train
    from training.fit.preset import find_preset

    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "photos" / split)
    photos, preset = Photos(tmp_path / "photos", tmp_path / "cache"), find_preset("default")
    test = train.read_data(photos, preset).splits["test"].digest
    digests = {split: digest or test for split, digest in held_out.items()}
    origin = SimpleNamespace(data_digest=digests and {"validation": "other", **digests})
    monkeypatch.setattr(train, "run_of", lambda _: SimpleNamespace(contract=SimpleNamespace(origin=origin)))
    lines.clear()
    train.read_data(photos, preset)
    assert any("held out other photos" in line for line in lines) == is_noted


@tensorflow
@pytest.mark.parametrize(("splits", "decided"), [("validation test", ""), ("validation", " and decide on int8")])
def test_few_validation_photos_are_noted(lines, splits, decided):
    """With what they decide: where there is a test split, its photos decide on int8."""
    from training.data.folder import Dataset
    from training.fit import train

    train.describe_data(Dataset(("a", "b"), {split: [] for split in ("train", *splits.split())}))
    note = f"Note: only 0 validation photos to choose the best epoch{decided}; they are too few to calibrate the"
    assert lines[-1].startswith(note)


# What cannot be


def refused(capsys, *arguments):
    """Run a command that fails with exit status 1, and return the line that it wrote."""
    assert main(list(arguments)) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--weights", "imagenet"], "Expected --architecture, --name with --weights imagenet. Missing: --ar"),
        (["export", "--weights", "none", "--architecture", "vgg16"], "Missing: --name"),
        (["export", "--weights", __file__, "--name", "m"], ". Missing: --classes and --preprocessing"),
        (["export", "--weights", "imagnet"], "Expected --weights imagenet, none, or a file. Received: imagnet"),
        (["export", "--weights", "none", "--architecture", "vgg16", "--name", "../m"], "Expected a model name"),
        (["export", "--run", "r", "--refuse-if-worse"], "Expected no --refuse-if-worse without --photos, on which"),
        (["train", "photos", "--name", "my model"], "Expected a model name of letters"),
    ],
)
def test_missing_and_bad_options_are_told(capsys, arguments, message):
    """One line says what was expected, before anything is loaded."""
    assert message in refused(capsys, *arguments)


@tensorflow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "p", "--name", "m", "--weights", "imagnet"], "none, a run folder or a file. Received: imagnet"),
        (["train", "p", "--name", "m", "--architecture", "plain-cnn"], "Expected --weights none with plain-cnn, which"),
        (["train", "p", "--name", "m", "--preprocessing", "+-1"], "no --preprocessing with weights imagenet, as"),
        (
            ["export", "--weights", __file__, "--name", "m", "--classes", "{tmp}/c", "--preprocessing", "none"],
            "Expected a file of class names. Received a path where there is none: {tmp}/c",
        ),
    ],
)
def test_what_is_not_there_is_told(capsys, tmp_path, arguments, message):
    """One line names what was expected, and the file."""
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message.format(tmp=tmp_path) in refused(capsys, *arguments)


@tensorflow
def test_a_batch_that_devices_cannot_share_evenly_is_told(capsys, monkeypatch):
    """Before a photo is read, the message says which size they can."""
    import tensorflow as tf

    devices = {"GPU": [SimpleNamespace(name=f"GPU:{number}") for number in range(3)]}
    monkeypatch.setattr(tf.config, "list_logical_devices", devices.get)
    message = refused(capsys, "train", "nowhere", "--name", "m", "--distribute", "mirrored")
    assert "Expected a --batch-size that 3 devices can share in equal parts, such as 33. Received: 32" in message


@tensorflow
def test_memory_that_does_not_suffice_is_told(folder, small, tmp_path, monkeypatch, capsys):
    """As of a GPU with large batches: the message names what to lower."""
    import tensorflow as tf

    from training.fit import phases

    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[512,600,600,3]")

    monkeypatch.setattr(phases.Phases, "fit", exhausted)
    command = ["train", str(folder), "--name", "colours", "--architecture", small, *places(tmp_path)]
    assert "Training ran out of memory. A smaller batch size or input size takes less" in refused(capsys, *command)


@tensorflow
@pytest.mark.parametrize("error", [TrainingError, KeyboardInterrupt, ZeroDivisionError])
def test_a_release_that_fails_says_how_to_make_it_later(tmp_path, monkeypatch, capsys, error):
    """Also where it ends in a defect of ours, as the training took long."""
    from training.fit import commands

    monkeypatch.setattr("training.release.sources.of_run", lambda *_: (_ for _ in ()).throw(error))
    given = {"name": "m", "folder": "p", "store": tmp_path, "replace_classes": True}
    others = dict.fromkeys(("cache", "int8_drop", "margin", "refuse_if_worse"))
    with suppress(KeyboardInterrupt, ZeroDivisionError):
        assert commands._release(tmp_path / "run", SimpleNamespace(**given, **others)) == 1
    later = f"export --run {tmp_path}/run --photos p --store {tmp_path} --replace-classes\n"
    assert f"The run is kept. To release it later: python -m training {later}" in capsys.readouterr().err


@tensorflow
def test_a_full_disk_is_an_exit_status(run, tmp_path, capsys):
    """A store that cannot be written ends the command with its cause."""
    (tmp_path / "store").write_text("in the way")
    message = refused(capsys, "export", "--run", str(run), "--store", str(tmp_path / "store"))
    assert message.startswith("Could not make a version below") and "Not a directory" in message
