"""training/release/criteria.py and export.py: int8 only if good enough, and no version worse than the last."""

import re
from dataclasses import replace

import numpy as np
import pytest

from contract.document import CONTRACT, DESCRIBE_SIGNATURE, IMAGES, PREDICT_SIGNATURE, PROBABILITIES, QUERY, Contract
from contract.image import decode
from contract.store import versions_of
from serving.engines import open_engine
from tests.programs.photos import encode, photo
from training.data.folder import Photo
from training.errors import DataError, ExportError, TrainingError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global Criteria, Photos, Source, export, freeze, quantization, read_criteria, release, sources, tflite, tiny_model
    from tests.programs import tiny_model
    from training.data.pixels import Photos
    from training.models.frozen import freeze
    from training.release import export, quantization, sources, tflite
    from training.release.criteria import Criteria, read_criteria
    from training.release.sources import Source, release


@pytest.fixture(scope="module")
def models():
    """Two models that answer otherwise."""
    return [tiny_model.build_convolutions(seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def contract():
    """What is known of either before its export."""
    return Contract("tiny", tiny_model.CLASSES, tiny_model.SPEC, metrics={"test_accuracy": 0.5})


@pytest.fixture(scope="module")
def labelled(models, tmp_path_factory):
    """Photos with the labels that the first model gives them: it is always right, the second is not."""
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


@pytest.fixture
def chosen(labelled, tmp_path):
    """Return criteria with those photos."""

    def choose(int8_drop=0.005, margin=None):
        calibration = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
        return Criteria(Photos(tmp_path, tmp_path / "cache"), calibration, labelled, "test", int8_drop, margin)

    return choose


@pytest.fixture
def released(models, contract, tmp_path, lines):
    """Release one of the models, and return the version and what was said."""

    def released(index, criteria):
        lines.clear()
        version = release(Source(models[index], contract), tmp_path, criteria).directory
        return version, "\n".join(lines)

    return released


def describe(engine):
    text = engine.run(DESCRIBE_SIGNATURE, {QUERY: np.array([b""], dtype=object)})[CONTRACT][0]
    return Contract.from_json(text)


# int8


def test_int8_is_released_with_its_accuracy(released, chosen, contract):
    """A third file says how it does beside Keras; the others know nothing of it."""
    version, said = released(0, chosen(int8_drop=1.0))
    written = describe(open_engine(version, "int8", threads=1))
    figures = [written.metrics[name] for name in ("keras_accuracy", "int8_accuracy", "int8_accuracy_drop")]
    assert figures[0] == 1.0 and figures[2] == pytest.approx(figures[0] - figures[1], abs=1e-4)
    assert f"int8: accuracy {figures[1]:.4f}, Keras 1.0000" in said
    assert describe(open_engine(version, "tflite", threads=1)).metrics == contract.metrics


def test_int8_replays_its_own_golden_examples(released, chosen):
    """They are of this very file, and differ from those of fp32."""
    version, _ = released(0, chosen(int8_drop=1.0))
    engine = open_engine(version, "int8", threads=1)
    written = describe(engine)
    assert written.tolerance == export.INT8_TOLERANCE
    for example in written.golden:
        pixels = decode(example.image, written.image).pixels[np.newaxis]
        received = engine.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES][0]
        np.testing.assert_allclose(received, example.probabilities, atol=1e-5)
    other = describe(open_engine(version, "tflite", threads=1)).golden
    assert [each.probabilities for each in other] != [each.probabilities for each in written.golden]


def converted(model, contract, tmp_path, monkeypatch):
    """Return the TFLite file that the next export makes of another model."""
    contract = replace(contract, identity="0123456789abcdef")
    monkeypatch.setattr(sources, "new_identity", lambda: contract.identity)
    export._write_saved_model(freeze(model, 16, 16), contract, tmp_path / "other")
    return tflite.convert(tmp_path / "other", (contract.signature, DESCRIBE_SIGNATURE))


def test_int8_that_loses_too_much_is_left_out(released, chosen, models, contract, tmp_path, monkeypatch):
    """With more and more in fp32 it is tried again, then the version is released without; lines say the accuracies."""
    other = converted(models[1], contract, tmp_path, monkeypatch)
    monkeypatch.setattr(quantization, "quantize", lambda *_: other)
    version, said = released(0, chosen())
    assert not (version / "model.int8.tflite").exists() and (version / "model.tflite").is_file()
    assert len(re.findall(r"int8.*: accuracy 0\.0000, Keras 1\.0000", said)) == len(quantization.FLOAT_PARTS)
    assert "No int8 file: each lost more than 0.005 of accuracy" in said


def test_int8_keeps_in_fp32_what_it_must(released, chosen, models, contract, tmp_path, monkeypatch):
    """The first part that is good enough is taken, and the contract says which."""
    other, quantize = converted(models[1], contract, tmp_path, monkeypatch), quantization.quantize
    monkeypatch.setattr(quantization, "quantize", lambda *given: quantize(*given) if given[2] == 0.25 else other)
    version, said = released(0, chosen(int8_drop=0.9))
    written = describe(open_engine(version, "int8", threads=1))
    assert written.metrics["int8_float_part"] == 0.25
    assert "int8 with 25% of the operations in fp32: accuracy" in said and "50%" not in said


def test_a_model_that_cannot_be_quantized_is_released_without(released, chosen, monkeypatch):
    """The cause is told."""

    def fail(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantization, "quantize", fail)
    version, said = released(0, chosen())
    assert not (version / "model.int8.tflite").exists()
    assert "No int8 file: the model cannot be quantized (no kernel)" in said


def test_without_photos_there_is_no_int8(released):
    """Nothing says how good it would be."""
    version, said = released(0, None)
    assert not (version / "model.int8.tflite").exists() and "int8" not in said


# No version worse than the last


def test_a_worse_version_is_not_released(released, chosen, tmp_path):
    """The message says both accuracies and what to do; the store stays as it was."""
    released(0, None)
    message = (
        r"worse: accuracy 0\.0000 on \d+ photos of test, version 1 1\.0000, and may lose 0\. Nothing was released; wi"
    )
    with pytest.raises(ExportError, match=message):
        released(1, chosen(margin=0.0))
    assert list(versions_of(tmp_path, "tiny")) == [1]


@pytest.mark.parametrize(("first", "second", "margin"), [(0, 1, 1.0), (0, 0, 0.0), (1, 0, 0.0)])
def test_a_version_that_is_not_worse_is_released(released, chosen, tmp_path, first, second, margin):
    """As good, better, or worse by no more than the margin."""
    released(first, None)
    _, said = released(second, chosen(margin=margin))
    assert "Not worse than version 1: accuracy" in said and list(versions_of(tmp_path, "tiny")) == [1, 2]


def test_the_first_version_is_compared_with_nothing(released, chosen):
    """There is none, and a line says so."""
    assert "has no version of 'tiny' yet" in released(0, chosen(margin=0.0))[1]


def test_without_a_margin_nothing_is_compared(released, chosen):
    """A worse version is released where nobody asked."""
    released(0, None)
    assert released(1, chosen())[0].name == "2"


def test_other_classes_cannot_be_compared(chosen, released, tmp_path):
    """The two lists are told."""
    released(0, None)
    others = Contract("tiny", ("x", "y", "z"), tiny_model.SPEC)
    with pytest.raises(TrainingError, match="Expected the same classes of tiny 1, tflite and the new version"):
        chosen(margin=0.0).refuse_if_worse(1.0, others, tmp_path)


def test_a_version_that_may_have_seen_the_photos_is_told(chosen, released):
    """Whoever held out other photos may have been trained on these."""
    released(0, None)
    assert "Note: tiny 1, tflite held out other photos" in released(0, chosen(margin=0.0))[1]


# Which photos


def sorted_contract():
    return Contract("tiny", ("bird", "cat", "dog"), tiny_model.SPEC)


def folder_of(tmp_path, classes):
    for split in ("train", "test", "validation"):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for seed in range(2):
                (tmp_path / split / name / f"{seed}.jpg").write_bytes(encode(photo(seed=seed)))
    return tmp_path


def test_the_test_split_judges(tmp_path):
    """Calibration is on train; validation has chosen the weights, so test judges where there is one."""
    folder = folder_of(tmp_path / "photos", ("bird", "cat", "dog"))
    found = read_criteria(Photos(folder, tmp_path / "cache"), sorted_contract(), int8_drop=0.005, margin=None)
    assert found.description == "6 photos of test" and found.calibration.shape == (6, 16, 16, 3)
    assert {each.path.relative_to(folder).parts[0] for each in found.held_out} == {"test"}


def test_photos_of_other_classes_are_refused(tmp_path):
    """Both lists are told."""
    folder = folder_of(tmp_path / "photos", ("one", "two"))
    with pytest.raises(DataError, match="the classes of the model: bird, cat, dog … Received: one, two …"):
        read_criteria(Photos(folder, tmp_path / "cache"), sorted_contract(), int8_drop=0.005, margin=None)
