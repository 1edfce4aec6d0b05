"""A share of the requests is answered by the version that is tried; its failures cost nobody an answer."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from io import BytesIO

import grpc
import numpy as np
import pytest

from contract.release import Trial
from gateway.trial.trials import Trials
from tests.gateway.trial.conftest import IMAGE, Tried
from tests.programs.model_server import mean_colour


@pytest.fixture(autouse=True)
def without_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their failures would count, too."""
    monkeypatch.setattr("gateway.trial.comparison.Comparisons.offer", lambda *_: None)


def share(share: float = 1.0, serial: int = 1) -> Trial:
    return Trial(2, "share", share, serial=serial)


def versions(tried: Tried, keys: range) -> dict[str, int]:
    """Return which version answers each key."""
    return {f"user {key}": tried.ask(**{"X-Release-Key": f"user {key}"})["model"]["version"] for key in keys}


def test_share_of_the_keys_is_answered_by_the_tried_version(tried: Tried) -> None:
    """Each key by one and the same; a larger share moves nobody back; the end of the trial moves all."""
    tried.start(share(0.3))
    before = versions(tried, range(60))
    assert before == versions(tried, range(60))
    assert 5 < list(before.values()).count(2) < 32
    tried.follow(share(0.7))
    after = versions(tried, range(60))
    assert all(after[key] == 2 for key, version in before.items() if version == 2)
    assert list(after.values()).count(2) > list(before.values()).count(2)
    tried.follow(None)
    assert set(versions(tried, range(20)).values()) == {1}


def test_api_key_decides_where_no_release_key_comes(tried: Tried) -> None:
    """Then the client's requests are all alike; without either, each request is on its own."""
    digest = hashlib.sha256(b"secret").hexdigest()
    tried.start(share(0.5), api_keys=digest)
    seen = {tried.ask(Authorization="Bearer secret")["model"]["version"] for _ in range(20)}
    assert seen == {2 if share(0.5).includes(digest) else 1}
    tried.start(share(0.5))
    assert {tried.ask()["model"]["version"] for _ in range(40)} == {1, 2}


def test_request_of_many_images_uses_one_version(tried: Tried) -> None:
    """The answer names it once."""
    client = tried.start(share(0.5))
    for _ in range(10):
        before = len(tried.server.calls)
        files = {f"file{index}": (BytesIO(IMAGE), "a.jpg") for index in range(3)}
        answer = client.post("/predict", data=files, content_type="multipart/form-data").get_json()
        assert len(answer["results"]) == 3
        predictions = {call.rpartition(" ")[2] for call in tried.server.calls[before:] if "export_" in call}
        assert str(answer["model"]["version"]) in predictions


def test_failing_trial_costs_no_answer_and_stops(tried: Tried) -> None:
    """The stable version answers; after five failures, this process does not try the version any more."""
    tried.start(share())
    tried.server.versions[2].fails = grpc.StatusCode.INTERNAL
    assert {tried.ask()["model"]["version"] for _ in range(5)} == {1}
    assert tried.count('gateway_trial_requests_total{outcome="failed"') == 5
    assert tried.count("gateway_trial_stopped") == 1
    tried.server.versions[2].fails = None
    assert tried.ask()["model"]["version"] == 1
    tried.follow(share(0.9999))  # the same trial with another share goes on as it was
    assert tried.ask()["model"]["version"] == 1
    tried.follow(share(serial=2))
    assert tried.count("gateway_trial_stopped") == 0
    assert tried.ask()["model"]["version"] == 2


@pytest.mark.parametrize("status", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_busy_server_is_no_failure_of_the_tried_version(tried: Tried, status: grpc.StatusCode) -> None:
    """It would be as busy for the stable version, which is asked next. TensorFlow Serving's full queue says so too."""
    tried.start(share())
    tried.server.versions[2].fails = status
    tried.server.versions[2].why = "The batch scheduling queue to which this task was submitted is full"
    assert {tried.ask()["model"]["version"] for _ in range(6)} == {1}
    assert tried.count("gateway_trial_stopped") == 0
    assert b'gateway_trial_requests_total{identity="' not in tried.metrics.render()


def test_a_request_without_a_photo_is_no_success_of_the_tried_version(tried: Tried) -> None:
    """The version never ran, so junk must not dilute its failures."""
    client = tried.start(share())
    assert client.post("/predict", data=b"junk", content_type="image/jpeg").status_code == 415
    assert b'gateway_trial_requests_total{identity="' not in tried.metrics.render()
    assert tried.ask()["model"]["version"] == 2
    assert tried.count('gateway_trial_requests_total{outcome="answered"') == 1


def test_what_an_earlier_trial_still_finds_counts_no_more(tried: Tried) -> None:
    """A comparison takes seconds, and another trial may have begun, and stopped."""
    tried.start(share())
    trials = Trials(tried.model, tried.metrics)
    earlier = trials.choose("a")
    assert earlier
    tried.follow(share(serial=2))
    for _ in range(2):  # before the first request of the other trial, and after it
        for _ in range(5):
            trials.record(earlier, failed=True)
        assert tried.count("gateway_trial_stopped") == 0 and trials.choose("a")


def test_rare_failures_do_not_stop_a_trial(tried: Tried) -> None:
    """Fewer than one in twenty are for the watch to judge."""
    tried.start(share())
    for _ in range(5):
        for _ in range(25):
            assert tried.ask()["model"]["version"] == 2
        tried.server.versions[2].fails = grpc.StatusCode.INTERNAL
        assert tried.ask()["model"]["version"] == 1
        tried.server.versions[2].fails = None
    assert tried.count("gateway_trial_stopped") == 0


def test_what_the_stable_version_fails_as_often_does_not_stop_a_trial(tried: Tried) -> None:
    """A server that is busy now and then is not the tried version's fault; one that hangs is stopped all the same."""
    client = tried.start(share(0.5))
    keys = {share(0.5).includes(f"user {number}"): f"user {number}" for number in range(20)}

    def ask(version: int, *, fails: bool) -> None:
        tried.server.versions[version].fails = grpc.StatusCode.INTERNAL if fails else None
        headers = {"X-Release-Key": keys[version == 2]}
        assert (client.post("/predict", data=IMAGE, content_type="image/jpeg", headers=headers).status_code == 200) != (
            fails and version == 1
        )
        tried.server.versions[version].fails = None

    for number in range(30):
        ask(2, fails=number % 5 == 4)
        ask(1, fails=number % 5 == 4)
    assert tried.count("gateway_trial_stopped") == 0
    assert tried.count('gateway_trial_requests_total{outcome="stable_failed"') == 6
    assert tried.count('gateway_trial_requests_total{outcome="stable_answered"') == 24
    for _ in range(19):
        ask(2, fails=True)
    assert tried.count("gateway_trial_stopped") == 1


def test_a_stable_version_that_takes_too_long_for_a_trial_counts(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tried version gets half of the time, so that is what both are measured by."""
    now, later_s = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + later_s[-1])
    tried.start(Trial(2, "shadow", 1.0, serial=1), request_timeout_s=60.0)
    tried.server.versions[1].predict = lambda pixels: (later_s.append(40.0), mean_colour(pixels))[1]
    assert tried.ask()["model"]["version"] == 1
    assert tried.count('gateway_trial_requests_total{outcome="stable_failed"') == 1


def test_slow_trial_leaves_time_for_the_stable_version(tried: Tried) -> None:
    """A tried version that does not answer takes half of the time."""
    may_answer = threading.Event()
    tried.start(share(), request_timeout_s=3.0)
    tried.server.versions[2].predict = lambda pixels: (may_answer.wait(10), mean_colour(pixels))[1]
    assert tried.ask()["model"]["version"] == 1
    may_answer.set()


def test_an_answer_of_too_many_predictions_is_left_to_the_stable_version(tried: Tried) -> None:
    """Which has fewer classes; when the version with more answers everything, it refuses."""
    client = tried.start(share())
    even = lambda pixels: np.full((len(pixels), 10**5), 1e-5, np.float32)  # noqa: E731
    tried.replace(classes=tuple(map(str, range(10**5))), predict=even)
    many = {"images": [base64.b64encode(IMAGE).decode()] * 2, "top_k": 10**5}
    assert client.post("/predict", json=many).get_json()["model"]["version"] == 1
    assert b'gateway_trial_requests_total{identity="' not in tried.metrics.render()
    tried.follow(None, stable=2)
    assert client.post("/predict", json=many).get_json()["code"] == "too_large"


def test_tried_version_that_is_gone_is_no_failure(tried: Tried) -> None:
    """A replica may not have it yet."""
    tried.start(share())
    del tried.server.versions[2]
    assert tried.ask()["model"]["version"] == 1
    assert b'gateway_trial_requests_total{identity="' not in tried.metrics.render()
