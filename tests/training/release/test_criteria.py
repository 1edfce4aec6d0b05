"""training/release/criteria.py and quantization.search: int8 if good enough, and no version worse than the last."""

import re
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest

from contract.document import IMAGES, PREDICT_SIGNATURE, PROBABILITIES, Contract, Origin
from contract.image import decode
from contract.release import Release
from contract.store import versions_of
from serving.engines import open_engine
from tests.programs.photos import encode, photo
from tests.training.conftest import contract_of
from training.data.folder import Photo
from training.data.splits import class_name
from training.errors import DataError, ExportError, TrainingError
from training.release.golden import INT8_TOLERANCE

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global Criteria, Limit, Photos, Source, quantization, read_criteria, release, tiny_model
    from tests.programs import tiny_model
    from training.data.pixels import Photos
    from training.release import quantization
    from training.release.criteria import Criteria, read_criteria
    from training.release.quantization import Limit
    from training.release.sources import Source, release


@pytest.fixture(scope="module")
def models():
    """Two models with different answers."""
    return [tiny_model.build_convolutions(seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def contract():
    """The contract of either before its export."""
    return Contract("tiny", tiny_model.CLASSES, tiny_model.SPEC, metrics={"test_accuracy": 0.5})


@pytest.fixture(scope="module")
def labelled(models, tmp_path_factory):
    """Photos with the labels that the first model gives them: it is always right, the second never."""
    folder = tmp_path_factory.mktemp("photos")
    photos = []
    for seed in range(12):
        path = folder / f"{seed}.jpg"
        path.write_bytes(encode(photo(seed=seed)))
        pixels = decode(path.read_bytes(), tiny_model.SPEC).pixels[np.newaxis].astype(np.float32)
        answers = [int(np.argmax(model(pixels, training=False))) for model in models]
        if answers[0] != answers[1]:
            photos.append(Photo(path, answers[0]))
    assert photos
    return photos


@pytest.fixture(scope="module")
def chosen(labelled, tmp_path_factory):
    """A function that returns criteria with those photos."""
    photos = Photos(tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("cache"))
    calibration = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
    return lambda int8_drop=0.005, margin=None: Criteria(photos, calibration, labelled, "test", int8_drop, margin)


@pytest.fixture(scope="module")
def store(models, contract, chosen, tmp_path_factory):
    """A store with a version of the first model, int8 among its files."""
    store = tmp_path_factory.mktemp("store")
    release(Source(models[0], contract), store, chosen(int8_drop=1.0))
    return store


# int8


def test_int8_is_released_with_its_accuracy(store, contract):
    """A third file has its accuracy beside Keras' in its contract; the others do not."""
    written, other = (
        contract_of(open_engine(store / "tiny" / "1", engine, threads=1)) for engine in ("int8", "tflite")
    )
    figures = [written.metrics[name] for name in ("keras_accuracy", "int8_accuracy", "int8_accuracy_drop")]
    assert figures[0] == 1.0 and figures[2] == pytest.approx(figures[0] - figures[1], abs=1e-4)
    assert other.metrics == contract.metrics


def test_int8_replays_its_own_golden_examples(store):
    """They are this file's answers, and differ from those of fp32."""
    engine, fp32 = (open_engine(store / "tiny" / "1", name, threads=1) for name in ("int8", "tflite"))
    written = contract_of(engine)
    assert written.tolerance == INT8_TOLERANCE
    for example in written.golden:
        pixels = decode(example.image, written.image).pixels[np.newaxis]
        received = engine.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES][0]
        np.testing.assert_allclose(received, example.probabilities, atol=1e-5)
    golden = contract_of(fp32).golden
    assert [each.probabilities for each in golden] != [each.probabilities for each in written.golden]


@pytest.fixture
def search(store, monkeypatch, lines):
    """A function that searches for int8 with given accuracies by the part in fp32, and returns it with the lines."""
    content = (store / "tiny" / "1" / "model.tflite").read_bytes()
    monkeypatch.setattr(quantization, "calibrate", lambda *_: None)
    monkeypatch.setattr(quantization, "quantize", lambda content, calibration, part: part)
    monkeypatch.setattr(quantization.tflite, "predictor", lambda part: part)

    def search(accuracies):
        limit = Limit(np.zeros((1, 16, 16, 3), np.uint8), accuracies.__getitem__, "9 photos", 1.0, largest_drop=0.005)
        found = quantization.search(content, limit)
        return found, "\n".join(lines)

    return search


def test_int8_that_loses_too_much_is_left_out(search):
    """It is tried with more and more in fp32; lines say each accuracy, and that there is no file."""
    found, said = search({0: 0.1, 1 / 4: 0.2, 1 / 2: 0.99})
    assert found is None and re.findall(r"accuracy (\S+) on 9 photos, Keras 1\.0000", said) == [
        "0.1000",
        "0.2000",
        "0.9900",
    ]
    assert "No int8 file: each lost more than 0.005 of accuracy" in said


def test_int8_keeps_in_fp32_what_it_must(search):
    """The first part that is good enough is taken, and the metrics say which."""
    found, said = search({0: 0.9, 1 / 4: 0.995, 1 / 2: 1.0})
    assert found.content == 0.25 and found.metrics["int8_float_part"] == 0.25
    assert "int8 with 25% of the operations in fp32: accuracy 0.9950" in said and "50%" not in said


def test_a_model_that_cannot_be_quantized_has_no_int8(search, monkeypatch):
    """A line says why."""

    def fail(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantization, "quantize", fail)
    found, said = search({})
    assert found is None and "No int8 file: the model cannot be quantized (no kernel)" in said


def test_without_photos_there_is_no_int8(models, contract, tmp_path, lines):
    """Its accuracy could not be measured."""
    version = release(Source(models[0], contract), tmp_path)
    assert not (version / "model.int8.tflite").exists() and "int8" not in "\n".join(lines)


# No version worse than the last


def test_a_worse_version_is_not_released(models, contract, chosen, store):
    """The message says both accuracies and what to do; the store stays as it was."""
    message = (
        r"worse: accuracy 0\.0000 on \d+ photos of test, version 1 1\.0000, and may lose 0\. .*Nothing was released; wi"
    )
    with pytest.raises(ExportError, match=message):
        release(Source(models[1], contract), store, chosen(margin=0.0))
    assert list(versions_of(store, "tiny")) == [1]


def answers(criteria, *, wrong=0):
    """Return certain probabilities of the held-out photos, of which the first ones are wrong."""
    classes = criteria.labels + (np.arange(len(criteria.labels)) < wrong)
    return np.eye(3, dtype=np.float32)[classes % 3]


@pytest.mark.parametrize(("wrong", "margin"), [(99, 1.0), (1, 0.5), (0, 0.0)])
def test_a_version_that_is_not_worse_is_accepted(contract, chosen, store, lines, wrong, margin):
    """As good, or worse by no more than the margin; a line says both accuracies."""
    criteria = chosen(margin=margin)
    probabilities = answers(criteria, wrong=wrong)
    criteria.compare(probabilities, contract, store)
    accuracy = criteria.accuracy_of(probabilities)
    assert f"Not worse than version 1: accuracy {accuracy:.4f}, before 1.0000" in "\n".join(lines)


@pytest.mark.parametrize(("wrong", "may_guess"), [(0, False), (4, False), (8, True), (99, True)])
def test_a_model_that_may_guess_is_noted(models, contract, chosen, tmp_path, monkeypatch, lines, wrong, may_guess):
    """Of twelve photos, four of each class, four are right by chance; the version is released all the same."""
    held_out = [replace(photo, label=k % 3) for k, photo in enumerate(3 * chosen().held_out)][:12]
    criteria = replace(chosen(), held_out=held_out)
    monkeypatch.setattr(Criteria, "probabilities", lambda self, *_: answers(self, wrong=wrong))
    monkeypatch.setattr(quantization, "search", lambda *_: None)
    release(Source(models[0], contract), tmp_path, criteria)
    noted = [line for line in lines if " may be chance: one class, each time, gives 0.3333. " in line]
    assert len(noted) == may_guess and list(versions_of(tmp_path, "tiny")) == [1]


def test_a_better_version_is_released(models, contract, chosen, tmp_path, monkeypatch, lines):
    """The second model first, then the first, which is right where that one is wrong."""
    monkeypatch.setattr(quantization, "search", lambda *_: None)
    release(Source(models[1], contract), tmp_path)
    release(Source(models[0], contract), tmp_path, chosen(margin=0.0))
    assert "Not worse than version 1: accuracy 1.0000, before 0.0000" in "\n".join(lines)
    assert list(versions_of(tmp_path, "tiny")) == [1, 2]


def test_the_first_version_is_compared_with_nothing(contract, chosen, tmp_path, lines):
    """There is none, and a line says so."""
    criteria = chosen(margin=0.0)
    assert criteria.compare(answers(criteria, wrong=99), contract, tmp_path) == {}
    assert "has no version of 'tiny' yet" in "\n".join(lines)


def test_a_release_says_which_version_is_compared(contract, chosen, store, tmp_path):
    """Its stable one answers, though newer ones may wait; without one that is there, the newest does."""
    copytree(store / "tiny" / "1", tmp_path / "tiny" / "1")
    copytree(store / "tiny" / "1", tmp_path / "tiny" / "2")
    criteria = chosen()
    for text, number in ((Release(1).to_json(), 1), (Release(7).to_json(), 2), ("{", 2)):
        (tmp_path / "tiny" / "release.json").write_text(text)
        assert criteria.compare(answers(criteria), contract, tmp_path)["compared_version"] == number


def test_without_a_margin_nothing_is_refused(contract, chosen, store):
    """A worse version is accepted if nobody asked."""
    criteria = chosen()
    assert criteria.compare(answers(criteria, wrong=99), contract, store)["disagreement"] == 1.0


def test_other_classes_cannot_be_compared(chosen, store, lines):
    """With a margin the message says how they differ; without, a line does, and the version is released."""
    others, criteria = Contract("tiny", ("x", "y", "z"), tiny_model.SPEC), chosen(margin=0.0)
    message = "Expected the same classes of tiny 1, tflite and the new version. Received of the latter: 3 new (x, y, z)"
    with pytest.raises(TrainingError, match=re.escape(message)):
        criteria.compare(answers(criteria), others, store)
    assert chosen().compare(answers(criteria), others, store) == {}
    assert f"Not compared with the version that answers: {message}" in "\n".join(lines)


def test_a_version_that_may_have_seen_the_photos_is_named(contract, chosen, store, lines):
    """A line says what that does to the figures, and what helps; a refusal says whom it favours."""
    criteria = chosen(margin=0.0)
    why = "version 1 does not say which photos it held out. It may have been trained on some of these, so its accuracy"
    with pytest.raises(ExportError, match=f"This favours version 1: {why} here may be too high. Nothing was released"):
        criteria.compare(answers(criteria, wrong=99), contract, store)
    assert f"Note: {why} here may be too high. A test/ beside train/, whose photos stay, prevents this" in lines


def test_a_version_says_how_it_differs_from_the_one_before(models, contract, chosen, store, tmp_path, monkeypatch):
    """A trial compares what it sees with these figures, which stand in the contract."""
    monkeypatch.setattr(quantization, "search", lambda *_: None)
    for model in reversed(models):
        version = release(Source(model, contract), tmp_path, chosen())
    metrics = contract_of(open_engine(version, "tflite", threads=1)).metrics
    photos = len(chosen().held_out)
    assert (metrics["disagreement"], metrics["compared_photos"], metrics["compared_version"]) == (1.0, photos, 1)
    assert {"surer", "less_sure", "class_change", "test_accuracy"} <= metrics.keys()


# Which photos


def sorted_contract():
    return Contract("tiny", ("bird", "cat", "dog"), tiny_model.SPEC)


def folder_of(tmp_path, classes):
    for name in classes:
        for split in ("train", "test", "validation"):
            (tmp_path / split / name).mkdir(parents=True)
            for seed in range(2):
                (tmp_path / split / name / f"{seed}.jpg").write_bytes(encode(photo(seed=seed)))
    return tmp_path


def test_the_test_split_judges(tmp_path):
    """Calibration is on train; validation has chosen the weights, so test judges where there is one."""
    folder = folder_of(tmp_path / "photos", ("bird", "cat", "dog"))
    found = read_criteria(Photos(folder, tmp_path / "cache"), sorted_contract(), int8_drop=None, margin=None)
    assert found.int8_drop == 0.005  # as the command's help says
    assert found.description == "6 photos of test" and found.calibration.shape == (6, 16, 16, 3)
    assert {each.path.relative_to(folder).parts[0] for each in found.held_out} == {"test"}


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_held_out_other_photos_is_named(tmp_path, lines, same):
    """As one that was split by its seed, or one whose folder has more photos now."""
    photos = Photos(folder_of(tmp_path / "photos", ("bird", "cat", "dog")), tmp_path / "cache")
    digest = photos.pixels(photos.splits().splits["test"], tiny_model.SPEC).digest if same else "another"
    trained = replace(sorted_contract(), origin=Origin(data_digest={"test": digest}))
    read_criteria(photos, trained, int8_drop=None, margin=None)
    assert any("the model held out other photos. It may have been trained on" in line for line in lines) is not same


@pytest.mark.parametrize("classes", [("dog", "bird", "cat"), ("bird", "cafe\u0301", "dog")])
def test_photos_have_the_labels_of_the_model(tmp_path, classes):
    """In its own order of the classes, not the folders', and however its file writes an accent."""
    photos = Photos(folder_of(tmp_path / "photos", map(class_name, classes)), tmp_path / "cache")
    found = read_criteria(photos, Contract("tiny", classes, tiny_model.SPEC), int8_drop=None, margin=None)
    assert [each.path.parent.name for each in found.held_out] == [class_name(classes[p.label]) for p in found.held_out]


def test_photos_of_other_classes_are_refused(tmp_path):
    """The message says how they differ."""
    folder = folder_of(tmp_path / "photos", ("one", "two"))
    with pytest.raises(DataError, match=r"the 3 classes of the model. Received: 2, 2 new \(one, two\) and 3 missing"):
        read_criteria(Photos(folder, tmp_path / "cache"), sorted_contract(), int8_drop=0.005, margin=None)
