"""serving/choice.py: which engine serves, with fake engines on a fake clock, and with a real model."""

import json
import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from contract.document import Contract, GoldenExample, ImageSpec
from contract.messages_pb2 import Code
from serving import choice
from serving.choice import LIMIT_S, choose, open_chosen
from serving.errors import GraphError
from tests.programs.photos import encode, photo

RIGHT = (0.25, 0.75)
EXAMPLES = tuple(GoldenExample(str(i), encode(photo(seed=i)), RIGHT) for i in range(3))
CONTRACT = Contract("m", ("a", "b"), ImageSpec(8, 8), golden=EXAMPLES, tolerance=0.05, identity="0" * 16)


class Engine:
    """An engine whose images take so many seconds of a fake clock, and get this answer."""

    choice = ""

    def __init__(self, now, image_s, answer=RIGHT, contract=CONTRACT):
        self.now, self.image_s, self.answer, self.contract, self.images = now, image_s, answer, contract, 0

    def run(self, signature, inputs, timeout_s=None):
        if signature == "describe":
            return {"contract": np.array([self.contract.to_json()], object)}
        assert signature == self.contract.signature and inputs["images"].shape == (1, 8, 8, 3)
        if self.answer is None:
            raise GraphError(Code.INTERNAL, "it broke")
        self.images += 1
        self.now[0] += self.image_s
        return {"probabilities": np.array([self.answer], np.float32)}


@pytest.fixture
def now(monkeypatch):
    """The fake clock's time, in a list."""
    now = [0.0]
    read = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(choice, "time", SimpleNamespace(monotonic=read, thread_time=read, perf_counter=read))
    return now


@pytest.fixture
def version(tmp_path, monkeypatch):
    """A directory with both files, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "1").mkdir()
    for name in ("model.tflite", "model.int8.tflite"):
        (tmp_path / "1" / name).write_bytes(name.encode())
    return tmp_path / "1"


@pytest.fixture
def load(monkeypatch):
    """A function that makes choices run these engines; it returns the list of those that are loaded."""

    def load(**engines):
        loaded = []

        def open_engine(directory, engine, threads, runs):
            loaded.append(engine)
            return engines[engine]

        monkeypatch.setattr(choice, "open_engine", open_engine)
        return loaded

    return load


@pytest.mark.parametrize(
    ("int8_s", "name", "why"),
    [
        (0.005, "int8", "2.00 times the images/s of fp32, measured at load"),
        (0.0096, "int8", "1.04 times the images/s of fp32, measured at load"),
        (0.0099, "tflite", "int8 has 1.01 times the images/s of fp32, measured at load; it serves from 1.03 on"),
        (0.02, "tflite", "int8 has 0.50 times the images/s of fp32, measured at load; it serves from 1.03 on"),
    ],
)
def test_the_faster_file_serves(now, version, load, int8_s, name, why):
    """int8 only where it is faster; a few percent are not worth its error."""
    load(tflite=Engine(now, 0.01), int8=Engine(now, int8_s))
    assert choose(version, threads=1, runs=1) == (name, why)
    assert now[0] < LIMIT_S


@pytest.mark.parametrize("threads", [1, 4])
def test_a_slow_stretch_does_not_decide(now, version, load, threads):
    """The machine is ten times as slow for a while, in which it is the turn of fp32, and then of int8."""

    class Stretched(Engine):
        def run(self, signature, inputs, timeout_s=None):
            self.image_s = self.usual_s * (10 if 0.3 < self.now[0] < 0.6 else 1)
            return super().run(signature, inputs)

    fp32, int8 = Stretched(now, 0), Stretched(now, 0)
    fp32.usual_s, int8.usual_s = 0.006, 0.005
    load(tflite=fp32, int8=int8)
    name, why = choose(version, threads, runs=1)
    assert name == "int8" and 1.1 < float(why.split()[0]) < 1.3


def test_a_slow_model_gets_an_image_for_each_run_and_no_more(now, version, load):
    """Its images take longer than the whole measurement may."""
    fp32, int8 = Engine(now, 4.0), Engine(now, 3.0)
    load(tflite=fp32, int8=int8)
    assert choose(version, threads=1, runs=1)[0] == "int8"
    assert (fp32.images, int8.images) == (1, 1)


@pytest.mark.parametrize(
    ("fp32", "int8", "expected"),
    [
        ({}, {"answer": (0.35, 0.65)}, ("tflite", "int8 misses its golden examples by 0.1, and may by 0.05")),
        ({}, {"answer": (np.nan, 0.7)}, ("tflite", "int8 misses its golden examples by nan, and may by 0.05")),
        ({}, {"answer": (0.2, 0.7, 0.1)}, ("tflite", "int8 misses its golden examples by nan")),
        ({}, {"answer": None}, ("tflite", "int8 cannot run its golden examples (it broke)")),
        ({}, {"contract": replace(CONTRACT, golden=())}, ("tflite", "int8 has no golden examples")),
        ({"answer": (0.35, 0.65)}, {}, ("int8", "tflite misses its golden examples by 0.1, and may by 0.05")),
        ({"answer": (0.5, 0.5)}, {"answer": (0.5, 0.5)}, ("tflite", "int8 misses")),
    ],
)
def test_a_file_that_misses_its_examples_does_not_serve(now, version, load, fp32, int8, expected):
    """Though it were the faster one; and the other is tried again at the next load."""
    load(tflite=Engine(now, 0.01, **fp32), int8=Engine(now, 0.005 if int8 else 0.05, **int8))
    name, why = choose(version, threads=1, runs=1)
    assert name == expected[0] and why.startswith(expected[1])
    load(tflite=Engine(now, 0.01), int8=Engine(now, 0.005))
    assert "measured at load" in choose(version, threads=1, runs=1)[1]


def test_files_without_a_contract_are_not_measured(now, version, load):
    """Nothing says whether int8 is right there, so fp32 serves."""
    foreign = Engine(now, 0.01)
    foreign.run = lambda *_: {}["describe"]
    load(tflite=foreign, int8=foreign)
    assert choose(version, threads=1, runs=1) == ("tflite", "int8 has no golden examples that can be read ('describe')")


def test_what_was_measured_is_not_measured_again(now, version, load, monkeypatch):
    """Until a file, the use or the processor is another: then it is. Several machines may share a home with a cache."""
    loaded = load(tflite=Engine(now, 0.01), int8=Engine(now, 0.005))
    assert choose(version, threads=1, runs=1)[0] == "int8" and loaded
    loaded.clear()
    again = "2.00 times the images/s of fp32, measured at an earlier load"
    assert choose(version, threads=1, runs=1) == ("int8", again) and not loaded
    assert "measured at load" in choose(version, threads=1, runs=2)[1]
    (version / "model.int8.tflite").write_bytes(b"another")
    assert "measured at load" in choose(version, threads=1, runs=1)[1]
    monkeypatch.setattr(choice, "_TELLING", ("vendor_id", "CPU architecture"))
    assert "measured at load" in choose(version, threads=1, runs=1)[1]


@pytest.mark.parametrize("content", [b"", b"fast", b"\xff", None])
def test_a_corrupt_record_is_measured_again(now, version, load, content):
    """And replaced, unless a folder is in its place."""
    loaded = load(tflite=Engine(now, 0.01), int8=Engine(now, 0.005))
    choose(version, threads=1, runs=1)
    (kept,) = (version.parent / "cache" / "image-classifier").iterdir()
    kept.unlink()
    kept.mkdir() if content is None else kept.write_bytes(content)
    loaded.clear()
    assert "measured at load" in choose(version, threads=1, runs=1)[1] and loaded
    assert ("earlier load" in choose(version, threads=1, runs=1)[1]) == (content is not None)


def test_without_a_place_each_load_measures_and_says_so(now, version, load, monkeypatch, caplog):
    """As in a container whose root is read-only."""
    load(tflite=Engine(now, 0.01), int8=Engine(now, 0.005))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert "measured at load" in choose(version, threads=1, runs=1)[1]
    assert "each load measures again" in caplog.text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.tflite"], ("tflite", "there is no other TFLite file")),
        (["model.int8.tflite", "saved_model.pb"], ("int8", "there is no other TFLite file")),
        (["saved_model.pb"], ("tensorflow", "there is no TFLite file")),
        ([], ("tensorflow", "there is no TFLite file")),
    ],
)
def test_a_version_with_one_file_needs_no_measurement(version, load, files, expected):
    """Nothing is loaded for it."""
    for path in version.iterdir():
        path.unlink()
    for name in files:
        (version / name).touch()
    loaded = load()
    assert choose(version, threads=1, runs=1) == expected and not loaded


@pytest.mark.tensorflow
@pytest.mark.parametrize("engine", ["auto", "int8", "tflite", "tensorflow"])
def test_a_real_version_says_what_runs_it(tiny_store, version, engine):
    """Both of its files are the same here, so they are about as fast, and fp32 serves; by flag, any does."""
    shutil.copytree(tiny_store / "tiny" / "1", version, dirs_exist_ok=True)
    shutil.copy(version / "model.tflite", version / "model.int8.tflite")
    opened = open_chosen(version, engine, threads=1, runs=3)
    assert json.loads(opened.run("describe", {"query": np.array([b""], object)})["contract"][0])["model"] == "tiny"
    expected = " times the images/s of fp32, measured at load" if engine == "auto" else f"{engine}: chosen by --engine"
    assert expected in opened.choice
