"""training/release/export.py: what is released loads, answers as Keras does, and appears whole or not at all."""

import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract.document import (
    IDENTITY,
    IMAGES,
    NOVELTY,
    PREDICT_SIGNATURE,
    PROBABILITIES,
    Contract,
    Origin,
)
from contract.image import decode
from contract.outputs import Outputs
from contract.store import versions_of
from serving.engines import open_engine
from tests.programs.photos import encode, photo
from tests.training.conftest import contract_of
from training.errors import ExportError, WeightsError

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests" / "programs" / "exported_by_a47d7fa" / "tiny" / "1"

ENGINES = ("tensorflow", "tflite")
PHOTOS = [encode(photo(seed=1)), encode(photo(seed=2), "PNG")]

# Exports version after version in forks of one process, which has imported TensorFlow but not run it, and kills them:
# 10 at any instant of an export, 2 between its last check and its end. Prints how many left something behind.
KILLED_EXPORTS = """
import logging, os, random, signal, sys, time
from pathlib import Path
import ai_edge_litert.interpreter, tensorflow
from tests.programs.tiny_model import CLASSES, SPEC, build
from contract.document import Contract
from training.release.sources import Source, release

steps = logging.Handler()
logging.getLogger("training").addHandler(steps)
logging.getLogger("training").setLevel(logging.INFO)
tensorflow.lite.TFLiteConverter  # imports what each fork would import again
store = Path(sys.argv[1])
leftovers = 0
for lines, span_s in [(1, 1.3)] * 10 + [(5, 0.02)] * 2:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            steps.emit = lambda record: os.write(tell, b".")
            release(Source(build(0), Contract("tiny", CLASSES, SPEC)), store)
    os.close(tell)
    for _ in range(lines):
        assert os.read(told, 1), "The export ended by itself"
    time.sleep(random.uniform(0, span_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    leftovers += (store / "tiny" / ".staging").exists()
print(leftovers)
"""


@pytest.fixture(scope="module", autouse=True)
def tensorflow():
    """Import TensorFlow when a test of this file runs, so that collecting the others stays fast."""
    global Source, export, keras, release, tiny_model
    import keras

    from tests.programs import tiny_model
    from training.release import export
    from training.release.sources import Source, release


@pytest.fixture(scope="module")
def model():
    """The tiny Keras model."""
    return tiny_model.build(0)


@pytest.fixture(scope="module")
def contract():
    """What is known of the tiny model before its export."""
    return Contract("tiny", tiny_model.CLASSES, tiny_model.SPEC, Origin("tiny"), {"test_accuracy": 0.5})


@pytest.fixture(scope="module")
def version(model, contract, tmp_path_factory):
    """A released version, with photos among its golden examples."""
    store = tmp_path_factory.mktemp("store")
    return release(Source(model, contract, PHOTOS), store)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, version):
    """Each of the version's files, loaded as a server loads it."""
    return open_engine(version, request.param, threads=1)


def predict(engine, pixels):
    return engine.run(PREDICT_SIGNATURE, {IMAGES: pixels})[PROBABILITIES]


def assert_nothing_released(store, name="tiny"):
    assert list(versions_of(store, name)) == [] and not (store / name / ".staging").exists()


@contextmanager
def largest_file(size_bytes):
    """Let this process write no larger file, as on a disk that is full: the write fails half way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# What is released


def test_files_agree_with_keras(engine, model):
    """Each file gives the Keras model's probabilities for any batch of uint8 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    expected = np.asarray(model(pixels.astype(np.float32), training=False))
    np.testing.assert_allclose(predict(engine, pixels), expected, atol=1e-3)


def test_files_describe_themselves(engine, contract):
    """The contract that went in comes out of each file, with an identity."""
    assert replace(contract_of(engine), golden=(), identity="") == contract


def test_files_answer_by_their_identity(engine, model):
    """The signature that bears it gives the same probabilities, and its 64 bits for each image of any batch."""
    contract = contract_of(engine)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    answer = engine.run(contract.signature, {IMAGES: pixels})
    np.testing.assert_array_equal(answer[PROBABILITIES], predict(engine, pixels))
    assert answer[IDENTITY].dtype == np.int64
    assert [format(bits % 2**64, "016x") for bits in answer[IDENTITY].tolist()] == [contract.identity] * 5


def test_each_export_has_an_identity_of_its_own(model, contract, version, tmp_path):
    """All files of one have the same, another export of the same model has another."""
    identities = {contract_of(open_engine(version, name, threads=1)).identity for name in ENGINES}
    again = contract_of(open_engine(release(Source(model, contract), tmp_path), "tflite", threads=1)).identity
    assert len(identities) == 1 and again not in identities


def test_identities_take_less_than_a_kilobyte(tiny_store):
    """Of each file, beside what revision a47d7fa made of the same model."""
    files = [path for path in OLD.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        grown = (tiny_store / "tiny" / "1" / path.relative_to(OLD)).stat().st_size - path.stat().st_size
        print(f"{path.name}: {grown} bytes more")
        assert grown < 1024


def test_golden_examples_replay(engine):
    """Each file answers its own golden examples, photos among them, as it says."""
    written = contract_of(engine)
    assert [each.name for each in written.golden] == ["large-jpeg", "rotated-jpeg", "alpha-png", "photo-0", "photo-1"]
    assert [each.image for each in written.golden[3:]] == PHOTOS
    for example in written.golden:
        received = predict(engine, decode(example.image, written.image).pixels[np.newaxis])[0]
        np.testing.assert_allclose(received, example.probabilities, atol=1e-5)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A version with a score and an int8 file, the Keras model of both outputs, and pixels: noise, then flat."""
    from training.models.novelty import with_score
    from training.release.quantization import Limit

    source, random = tiny_model.scored(), np.random.default_rng(1)
    noise = random.integers(0, 256, (30, 16, 16, 3), np.uint8)
    flat = np.broadcast_to(random.integers(0, 256, (20, 1, 1, 3), np.uint8), (20, 16, 16, 3))
    model, path = with_score(source.model, source.directions), tmp_path_factory.mktemp("scored")
    contract = replace(source.contract, identity="0123456789abcdef")
    export.export(model, contract, path, photos=PHOTOS, int8=Limit(noise, lambda _: 1.0, "photos", 1.0, 1.0))
    return path, model, np.concatenate([noise, flat])


@pytest.mark.parametrize(("name", "tolerance"), [("tensorflow", 1e-4), ("tflite", 1e-4), ("int8", 0.02)])
def test_files_say_alike_what_is_unknown(scored, name, tolerance):
    """Each gives the Keras model's scores beside the probabilities, which are all that `serving_default` gives."""
    path, model, pixels = scored
    opened = open_engine(path, name, threads=1)
    contract, outputs = contract_of(opened), opened.run("export_0123456789abcdef", {IMAGES: pixels})
    expected = np.asarray(model(pixels.astype(np.float32), training=False)[NOVELTY])
    assert outputs[NOVELTY].shape == (50,) and np.abs(outputs[NOVELTY] - expected).max() < tolerance
    assert Outputs.of(outputs).unknown(contract).tolist() == [False] * 30 + [True] * 20
    assert list(opened.signatures[PREDICT_SIGNATURE].outputs) == [PROBABILITIES]
    for example in contract.golden:
        given = Outputs.of(opened.run(contract.signature, {IMAGES: decode(example.image, contract.image).pixels[None]}))
        assert given.difference(example) < 1e-5 and given.difference(replace(example, novelty=2.0)) > 1


def test_variables_are_frozen(version):
    """The SavedModel holds its weights in the graph, not in a file of variables."""
    assert sum(path.stat().st_size for path in (version / "variables").iterdir()) < 1000


# What is refused


def test_nan_weights_are_refused(contract, tmp_path):
    """A model that answers NaN is not released."""
    broken = tiny_model.build(0)
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    with pytest.raises(ExportError, match=r"Expected probabilities that sum to 1 .* Received a sum of nan"):
        release(Source(broken, contract), tmp_path)
    assert_nothing_released(tmp_path)


def test_other_number_of_classes_is_refused(model, tmp_path):
    """Class names that do not fit the outputs are told before anything is written."""
    with pytest.raises(WeightsError, match=r"as many classes as the model has outputs, 3\. Received: 2"):
        release(Source(model, Contract("tiny", ("cat", "dog"), tiny_model.SPEC)), tmp_path)
    assert_nothing_released(tmp_path)


def test_file_that_answers_otherwise_is_refused(model, contract, tmp_path, monkeypatch):
    """A conversion that changes the function is found by running what was written."""
    freeze, other = export.freeze, tiny_model.build(1)
    monkeypatch.setattr(export, "freeze", lambda model, *size: freeze(other, *size))
    message = r"The tensorflow file's probabilities differ from the Keras model's by 0\.\d+; at most 0\.001 may"
    with pytest.raises(ExportError, match=message):
        release(Source(model, contract), tmp_path)
    assert_nothing_released(tmp_path)


def test_model_that_does_not_convert_is_refused(contract, tmp_path, capfd):
    """An operation that TFLite lacks is named, and its converter's many lines are not shown."""
    inputs = keras.Input((16, 16, 3))
    channels = keras.ops.transpose(keras.ops.erfinv(inputs / 300), (0, 3, 1, 2))
    x = keras.layers.Flatten()(keras.ops.fft2((channels, channels))[0])
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ExportError, match=r"Received operations that TFLite lacks: Erfinv, .*, FFT2D$"):
        release(Source(model, contract), tmp_path)
    assert "'tf.Erfinv'" not in capfd.readouterr().err
    assert_nothing_released(tmp_path)


def test_a_tflite_file_that_does_not_load_is_named(model, contract, tmp_path, monkeypatch):
    """Its path would say nothing: it was tried in a temporary folder."""
    monkeypatch.setattr(export.tflite, "convert", lambda *_: b"none")
    with pytest.raises(ExportError, match=r"^The tflite file does not load: Expected a TFLite model in "):
        release(Source(model, contract), tmp_path)
    assert_nothing_released(tmp_path)


def test_full_disk_keeps_the_store_as_it_was(model, contract, tmp_path, version):
    """A write that fails is named with its cause; old versions stay and nothing half-written does."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "1").symlink_to(version)
    message = r"Could not make a version below .*tiny: .*File too large"
    with pytest.raises(ExportError, match=message), largest_file(4096):
        release(Source(model, contract), tmp_path)
    assert list(versions_of(tmp_path, "tiny")) == [1] and not (tmp_path / "tiny" / ".staging").exists()
    assert open_engine(tmp_path / "tiny" / "1", "tflite", threads=1)


def test_a_run_that_cannot_be_written_is_released_all_the_same(model, contract, tmp_path, lines):
    """Such as one on a volume that can only be read; the last line says what was not noted."""
    version = release(Source(model, contract, run=tmp_path / "gone"), tmp_path)
    assert list(versions_of(tmp_path, "tiny")) == [1] and lines[-2].startswith(f"Released {version} (")
    assert lines[-1].startswith(f"Could not note this in {tmp_path / 'gone'}, so `train` may release it again: [Err")


def test_killed_exports_leave_only_versions_that_load(model, contract, tmp_path):
    """After kill -9 at 12 random instants each numeric directory loads, and a rerun succeeds and clears leftovers."""
    script = subprocess.run(
        [sys.executable, "-c", KILLED_EXPORTS, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(script.stdout) > 0
    left = list(versions_of(tmp_path, "tiny"))
    for number in left:
        for engine in ENGINES:
            assert contract_of(open_engine(tmp_path / "tiny" / str(number), engine, threads=1)).model == "tiny"
    rerun = release(Source(model, contract), tmp_path)
    assert int(rerun.name) > max(left, default=0) and not (tmp_path / "tiny" / ".staging").exists()
