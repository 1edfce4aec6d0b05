"""serving/engines.py with real models: TFLite and TensorFlow give the same answers behind the same interface."""

import itertools
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from contract import messages_pb2 as messages
from serving.engines import open_engine
from serving.errors import DataLossError, DeadlineExceededError, InvalidArgumentError, NotFoundError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def version(tiny_store):
    """The directory of the tiny model's version."""
    return tiny_store / "tiny" / "1"


@pytest.fixture(scope="module", params=["tflite", "tensorflow"])
def engine(request, version):
    """The tiny model in each engine."""
    return open_engine(version, request.param, threads=2)


def images(count, seed=0):
    return {"images": np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)}


def test_signatures_are_the_contracts(engine):
    """Both engines report aliases, types and shapes alike; pseudo-signatures are not among them."""
    (own,) = engine.signatures.keys() - {"describe", "serving_default"}
    assert own.startswith("export_") and engine.signatures[own].inputs.keys() == {"images"}
    default, describe = engine.signatures["serving_default"], engine.signatures["describe"]
    tensors = {
        "identity": (engine.signatures[own].outputs["identity"], messages.DT_INT64, [-1]),
        "images": (default.inputs["images"], messages.DT_UINT8, [-1, 16, 16, 3]),
        "probabilities": (default.outputs["probabilities"], messages.DT_FLOAT, [-1, 3]),
        "query": (describe.inputs["query"], messages.DT_STRING, [-1]),
    }
    for info, dtype, sizes in tensors.values():
        assert (info.dtype, [dim.size for dim in info.tensor_shape.dim]) == (dtype, sizes)
    assert [*default.inputs, *default.outputs, *describe.inputs] == ["images", "probabilities", "query"]
    assert default.inputs["images"].name.endswith("_images:0")


def test_engines_agree(version):
    """The same images get the same probabilities from both engines, in any batch."""
    tflite, tensorflow = (open_engine(version, name, threads=2) for name in ("tflite", "tensorflow"))
    batch = images(5)
    first = tflite.run("serving_default", batch)["probabilities"]
    assert first.shape == (5, 3) and first.dtype == np.float32
    np.testing.assert_allclose(first, tensorflow.run("serving_default", batch)["probabilities"], atol=1e-5)
    one_by_one = [tflite.run("serving_default", {"images": batch["images"][i : i + 1]}) for i in range(5)]
    np.testing.assert_array_equal(first, np.concatenate([result["probabilities"] for result in one_by_one]))


def test_strings_come_back_once_a_row(engine):
    """The describe signature gives the same bytes in each row."""
    (contract,) = engine.run("describe", {"query": np.array([b"", b"\xff\x00"], object)}).values()
    assert contract.shape == (2,)
    assert contract[0] == contract[1] and contract[0].startswith(b"{")


def test_signatures_do_not_disturb_each_other(engine):
    """Runs of both signatures in turn and from many threads at once give what each gives alone."""
    expected = [engine.run("serving_default", images(2, seed))["probabilities"] for seed in range(4)]
    wrong = []

    def ask(seed):
        for _ in range(25):
            answer = engine.run("serving_default", images(2, seed))["probabilities"]
            engine.run("describe", {"query": np.array([b""], object)})
            if not np.allclose(answer, expected[seed], atol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_auto_takes_the_first_file_that_there_is(version, tmp_path):
    """That is int8, fp32 TFLite or the SavedModel, in this order; the others are not read."""
    files = {"model.int8.tflite": version / "model.tflite", "model.tflite": version / "model.tflite"}
    for name, content in files.items():
        directory = tmp_path / name
        shutil.copytree(version, directory)
        for other in ("model.tflite", "saved_model.pb"):
            (directory / other).write_bytes(b"not read")
        shutil.copy(content, directory / name)
        assert open_engine(directory, "auto", threads=1).signatures
    shutil.copytree(version, tmp_path / "one", ignore=shutil.ignore_patterns("*.tflite"))
    assert open_engine(tmp_path / "one", "auto", threads=1).signatures


@pytest.mark.parametrize(("name", "file"), [("int8", "model.int8.tflite"), ("tflite", "model.tflite")])
def test_an_engine_that_is_named_takes_its_own_file(version, tmp_path, name, file):
    """The other TFLite file is not read, and does not replace it."""
    for each in ("model.int8.tflite", "model.tflite"):
        (tmp_path / each).write_bytes((version / "model.tflite").read_bytes() if each == file else b"not read")
    assert open_engine(tmp_path, name, threads=1).signatures
    (tmp_path / file).unlink()
    with pytest.raises(NotFoundError, match=rf"Expected a file {file} for --engine={name}"):
        open_engine(tmp_path, name, threads=1)


@pytest.mark.parametrize("name", ["model.tflite", "saved_model.pb"])
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_broken_file_is_named(version, tmp_path, name, content):
    """An empty, a foreign and a truncated file fail to load, with their directory in the message."""
    half = (version / name).read_bytes()[:2000]
    (tmp_path / name).write_bytes(half if content is None else content)
    with pytest.raises(DataLossError, match=str(tmp_path)):
        open_engine(tmp_path, "auto", threads=1)


def test_a_half_copied_saved_model_does_not_load(tmp_path):
    """Without its variables a version fails to load; TensorFlow Serving makes it available, and fails every request."""
    import tensorflow as tf

    module = tf.Module()
    module.scale = tf.Variable(2.0)
    module.double = tf.function(lambda x: {"y": x * module.scale}, input_signature=[tf.TensorSpec((None,), tf.float32)])
    tf.saved_model.save(module, str(tmp_path), signatures=module.double)
    assert open_engine(tmp_path, "auto", threads=1).signatures
    shutil.rmtree(tmp_path / "variables")
    with pytest.raises(DataLossError, match="variables"):
        open_engine(tmp_path, "auto", threads=1)


def test_a_second_run_does_not_wait_for_the_first(version):
    """With two runs, a request gets the usual answer while another one has an interpreter."""
    engine = open_engine(version, "tflite", threads=1, runs=2)
    expected = engine.run("serving_default", images(1))["probabilities"]
    runners = engine._idle.get()
    np.testing.assert_array_equal(engine.run("serving_default", images(1), timeout_s=1)["probabilities"], expected)
    engine._idle.put(runners)
    np.testing.assert_array_equal(engine.run("serving_default", images(1), timeout_s=1)["probabilities"], expected)


def test_a_request_waits_for_the_interpreter_only_as_long_as_it_may(version):
    """A request of a busy TFLite engine ends with its timeout."""
    engine = open_engine(version, "tflite", threads=1)
    taken = engine._idle.get()
    with pytest.raises(DeadlineExceededError, match="waiting for the engine"):
        engine.run("serving_default", images(1), timeout_s=0.05)
    engine._idle.put(taken)
    assert engine.run("serving_default", images(1), timeout_s=5)


def test_a_batch_that_takes_too_long_ends_between_its_rows(version, monkeypatch):
    """Its time is over after a few of them."""
    engine, looks, now = open_engine(version, "tflite", threads=1), itertools.count(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 60 * (next(looks) > 5))
    with pytest.raises(DeadlineExceededError, match="between the rows"):
        engine.run("serving_default", images(20), timeout_s=30)
    assert engine.run("serving_default", images(1), timeout_s=5)


def test_its_clock_does_not_count_the_wait_for_an_interpreter(version):
    """So a version is not called slow because others had their turn before it."""
    engine = open_engine(version, "tflite", threads=1)
    taken = engine._idle.get()
    started, ran = time.monotonic(), engine.clock()
    threading.Timer(0.3, lambda: engine._idle.put(taken)).start()
    engine.run("serving_default", images(1))
    assert time.monotonic() - started > 0.25 and engine.clock() - ran < 0.1


def test_an_empty_batch_is_refused(version):
    """TFLite rows run one by one, so an empty batch has no answer."""
    with pytest.raises(InvalidArgumentError, match=r"\(n, 16, 16, 3\) with n >= 1\. Received: \(0, 16, 16, 3\)"):
        open_engine(version, "tflite", threads=1).run("serving_default", images(0))


def test_engines_need_no_grpc_and_tflite_no_tensorflow(version):
    """training imports the engines without gRPC, and a TFLite model runs where TensorFlow cannot be imported."""
    code = (
        "import sys; from pathlib import Path; sys.modules.update(grpc=None, tensorflow=None);"
        "from serving.engines import open_engine; open_engine(Path(sys.argv[1]), 'auto', 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(version)], check=True, timeout=20)
