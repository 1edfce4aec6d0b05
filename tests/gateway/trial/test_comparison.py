"""Both versions are asked about users' photos off their path; counts of how they differ are all that is left."""

from __future__ import annotations

import base64
import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract.document import ImageSpec
from contract.outputs import Outputs
from contract.release import Trial
from gateway.memory import Room
from gateway.model.protocol import Version
from gateway.settings import Settings
from gateway.stages import Stages
from gateway.trial.comparison import Comparisons
from gateway.trial.trials import Trials
from tests.gateway.trial.conftest import IMAGE, Tried
from tests.programs.model_server import FakeVersion, mean_colour
from tests.programs.photos import encode, photo
from tests.programs.stack import wait_until

SHADOW = Trial(2, "shadow")


@pytest.fixture(autouse=True)
def every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare all photos that come one after another."""
    monkeypatch.setattr("gateway.trial.comparison.EVERY", {"shadow": 1, "share": 1})
    monkeypatch.setattr("gateway.trial.comparison.ANSWER_S", 0.0)
    monkeypatch.setattr("gateway.trial.comparison.MOST_REPEATS", 1000)


def compare(tried: Tried, count: int = 4) -> None:
    """Ask so often that so many photos are compared; version 1 answers."""
    for _ in range(count):
        before = tried.count("gateway_comparisons_total")
        assert tried.ask()["model"]["version"] == 1
        wait_until(lambda: not tried.is_comparing)
        assert tried.count("gateway_comparisons_total") == before + 1


def signs(tried: Tried) -> dict[str, float]:
    kinds = ("failed", "disagrees", "slower", "surer", "less_sure")
    counts = {kind: tried.count(f'gateway_comparison_signs_total{{sign="{kind}"') for kind in kinds}
    return {kind: count for kind, count in counts.items() if count and kind != "slower"}


def powers(power: float) -> Callable[[np.ndarray], np.ndarray]:
    def predict(pixels: np.ndarray) -> np.ndarray:
        probabilities = mean_colour(pixels) ** power
        return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)

    return predict


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, {}),
        ({"classes": ("blue", "red", "green")}, {"disagrees": 4}),
        ({"predict": powers(9)}, {"surer": 4}),
        ({"spec": ImageSpec(4, 4)}, {}),
    ],
)
def test_signs_say_how_the_versions_differ(tried: Tried, facts: dict[str, object], expected: dict[str, int]) -> None:
    """The same model differs in nothing, also at another size; other names disagree; a sharper one is surer."""
    tried.start(SHADOW)
    tried.replace(**facts)
    compare(tried)
    assert signs(tried) == expected


@pytest.mark.parametrize(("most", "of_whom"), [(20_000, 2), (0, 1)])
def test_classes_that_gain_and_lose_are_counted(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, most: int, of_whom: int
) -> None:
    """By their names, unless they are too many: the tried version says the one, the stable version the other."""
    monkeypatch.setattr("gateway.telemetry.metrics.MOST_CLASSES", most)
    tried.start(SHADOW)
    tried.replace(classes=("blue", "red", "green"))
    compare(tried, 3)
    changes = [line for line in tried.metrics.render().decode().splitlines() if "comparison_classes_total{" in line]
    assert sorted(line.split('change="')[1].split('"')[0] for line in changes) == ["gained", "lost"]
    assert all(line.endswith(" 3.0") for line in changes)
    assert len({line.split('class="')[1].split('"')[0] for line in changes}) == of_whom


def test_a_class_that_gains_and_loses_is_two_series(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both count for the bound."""
    monkeypatch.setattr("gateway.telemetry.metrics.MOST_CLASSES", 2)
    tried.start(SHADOW)
    first, second = tried.server.versions[1], tried.server.versions[2]
    second.predict = lambda pixels: mean_colour(pixels)[:, ::-1]
    compare(tried, 1)
    first.predict, second.predict = second.predict, first.predict
    compare(tried, 2)
    lines = [line for line in tried.metrics.render().decode().splitlines() if "comparison_classes_total{" in line]
    assert len(lines) == 4 and sum('class="(others)"' in line for line in lines) == 2


def test_less_sure_than_the_stable_version(tried: Tried) -> None:
    """In right order, with less confidence."""
    tried.start(SHADOW)
    tried.server.versions[1].predict = powers(9)
    compare(tried)
    assert signs(tried) == {"less_sure": 4}


@pytest.mark.parametrize(("times", "slower"), [(1.4, 0), (1.6, 4)])
def test_slow_version_is_slower(tried: Tried, monkeypatch: pytest.MonkeyPatch, times: float, slower: int) -> None:
    """Whichever of the two is asked first; only the model servers' work passes on this test's clock."""
    passed = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    tried.start(SHADOW)
    tried.server.versions[1].predict = lambda pixels: (passed.append(1.0), mean_colour(pixels))[1]
    tried.server.versions[2].predict = lambda pixels: (passed.append(times), mean_colour(pixels))[1]
    compare(tried)
    assert tried.count('gateway_comparison_signs_total{sign="slower"') == slower


@pytest.mark.parametrize(("wait_s", "run_s", "slower"), [(0.2, 0.5, 0), (0.0, 1.5, 2)])
def test_time_in_the_model_servers_line_is_no_slowness(tried: Tried, wait_s: float, run_s: float, slower: int) -> None:
    """If it says how long each version ran, that alone counts: a line of requests may hide what is slow, or make it."""
    tried.start(SHADOW)
    tried.server.versions[2].predict = lambda pixels: (time.sleep(wait_s), mean_colour(pixels))[1]
    tried.server.seconds = {1: 0.5, 2: run_s}
    compare(tried, 2)
    assert tried.count('gateway_comparison_signs_total{sign="slower"') == slower


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE])
def test_failures_in_the_shadow_stop_the_trial(tried: Tried, status: grpc.StatusCode) -> None:
    """They are counted as others are; failures of the stable version, or of the photo, are none of the tried one."""
    tried.start(SHADOW)
    tried.server.versions[2].fails = status
    compare(tried, 5)
    assert signs(tried) == {"failed": 5}
    assert tried.count("gateway_trial_stopped") == 1
    tried.ask()
    wait_until(lambda: not tried.is_comparing)
    assert tried.count("gateway_comparisons_total") == 5


def test_only_the_stable_version_is_compared_with(
    tried: Tried, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stands in for it where it is gone; the export's limits are not for that."""
    tried.start(SHADOW)
    active = tried.model.trial()
    assert active
    settings = Settings()
    comparisons = Comparisons(
        tried.model,
        Trials(tried.model, tried.metrics),
        Stages(settings),
        metrics=tried.metrics,
        room=Room(1),
        settings=settings,
    )
    comparisons._compare(active, IMAGE)
    assert tried.count("gateway_comparisons_total") == 1
    monkeypatch.setattr("gateway.model.exports.RECENT_S", 0.0)
    tried.server.versions[0] = FakeVersion.of(golden)
    del tried.server.versions[1]
    wait_until(lambda: tried.model._look_again() and tried.model.newest().number == 0)
    comparisons._compare(active, IMAGE)
    assert tried.count("gateway_comparisons_total") == 1


def test_waiting_for_a_place_to_decode_is_no_failure(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tried version has its whole time to answer, however long that took."""
    decode, predict, limits = Stages.decode, tried.model.predict, []

    def note_and_decode(self: Stages, images: Any, spec: ImageSpec, deadline: float) -> Any:
        limits.append(deadline)
        return decode(self, images, spec, deadline)

    def note_and_predict(version: Version, pixels: Any, deadline: float) -> Outputs:
        limits.append(deadline)
        return predict(version, pixels, deadline)

    tried.start(SHADOW)
    monkeypatch.setattr(Stages, "decode", note_and_decode)
    monkeypatch.setattr(tried.model, "predict", note_and_predict)
    compare(tried, 1)
    assert limits[0] == limits[1], "those of the request are one"
    assert len(limits) == 6 and limits[2] < limits[3] and limits[4] < limits[5]


def test_answers_of_the_trial_are_compared_too(tried: Tried) -> None:
    """With a share, what the tried version answered is also asked of the stable one."""
    tried.start(Trial(2, "share"))
    assert tried.ask()["model"]["version"] == 2
    wait_until(lambda: tried.count("gateway_comparisons_total") == 1)


def test_one_photo_is_kept_at_most(tried: Tried) -> None:
    """While one is compared, others are let go, and nothing waits for it."""
    tried.start(SHADOW)
    may_answer = threading.Event()
    tried.server.versions[2].predict = lambda pixels: (may_answer.wait(10), mean_colour(pixels))[1]
    for _ in range(10):
        tried.ask()
    assert tried.count("gateway_comparisons_total") == 0
    may_answer.set()
    wait_until(lambda: tried.count("gateway_comparisons_total") == 1)
    time.sleep(0.2)
    assert tried.count("gateway_comparisons_total") == 1


def test_one_of_many_requests_is_compared(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share, the requests of other versions count too."""
    monkeypatch.setattr("gateway.trial.comparison.EVERY", {"shadow": 10, "share": 20})
    monkeypatch.setattr("gateway.trial.comparison.LONGEST_WAIT_S", 1e9)
    tried.start(SHADOW)
    for _ in range(30):
        tried.ask()
        wait_until(lambda: not tried.is_comparing)
    assert tried.count("gateway_comparisons_total") == 3
    tried.follow(Trial(2, "share", 0.999, serial=2))
    for _ in range(25):
        tried.ask()
        wait_until(lambda: not tried.is_comparing)
    assert tried.count("gateway_comparisons_total") == 4


def test_each_photo_of_a_request_counts(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of many photos is as much work as many requests, so it is compared as often; one of its photos is."""
    monkeypatch.setattr("gateway.trial.comparison.EVERY", {"shadow": 10, "share": 20})
    monkeypatch.setattr("gateway.trial.comparison.LONGEST_WAIT_S", 1e9)
    tried.start(SHADOW)
    images = [base64.b64encode(encode(photo(64 + i))).decode() for i in range(5)]
    for done in (0, 1, 1, 2):
        assert tried.client.post("/predict", json={"images": images}).status_code == 200
        wait_until(lambda: not tried.is_comparing)
        assert tried.count("gateway_comparisons_total") == done


def test_photo_that_comes_again_is_no_new_evidence(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a health check sends it; another trial looks at it again."""
    monkeypatch.setattr("gateway.trial.comparison.MOST_REPEATS", 2)
    tried.start(SHADOW)
    for serial in (0, 1):
        tried.follow(Trial(2, "shadow", serial=serial))
        for _ in range(5):
            tried.ask()
            wait_until(lambda: not tried.is_comparing)
        assert tried.count("gateway_comparisons_total") == 2 * (serial + 1)


def test_photos_that_differ_are_kept_where_a_folder_is_named(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both answers, and no more than the limit, for each trial."""
    monkeypatch.setattr("gateway.trial.comparison.MOST_KEPT", 1)
    folder = tmp_path / "differ"
    folder.mkdir()
    tried.start(SHADOW, trial_folder=str(folder))
    compare(tried, 1)
    assert not list(folder.iterdir())
    tried.replace(classes=("blue", "red", "green"))
    compare(tried, 1)
    (answers,) = folder.glob("*.json")
    assert answers.with_suffix("").read_bytes() == IMAGE
    assert set(json.loads(answers.read_text())) == {"1", "2"}
    tried.client.post("/predict", data=encode(photo(seed=4)), content_type="image/jpeg")
    wait_until(lambda: not tried.is_comparing)
    assert tried.count("gateway_comparisons_total") == 3
    tried.follow(Trial(2, "shadow", serial=7))
    wait_until(lambda: tried.ask() and list(folder.glob("2-7-*.json")))
    assert len(list(folder.glob("*.json"))) == 2


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_photo_that_fills_the_disk_is_not_kept(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """Its image without the answers would not count, so more and more would come; what was kept before stays."""
    folder = tmp_path / "differ"
    folder.mkdir()
    tried.replace(classes=("blue", "red", "green"))
    tried.start(SHADOW, trial_folder=str(folder))
    if is_kept:
        compare(tried, 1)
    before, tries = {path: path.read_bytes() for path in folder.iterdir()}, []

    def fill(*_: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    wait_until(lambda: tried.ask() and tries)
    wait_until(lambda: {*folder.iterdir()} == before.keys())
    assert {path: path.read_bytes() for path in before} == before
