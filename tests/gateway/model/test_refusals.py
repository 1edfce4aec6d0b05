"""gateway/model/exports.py and gate.py: what is refused, tried again, unloaded or away, and what is said of it."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from contract import messages_pb2 as messages
from contract.document import Novelty
from contract.outputs import Outputs
from gateway.errors import ModelTimeout, ModelUnavailable, VersionGone
from gateway.model.client import SEARCH_S
from gateway.model.protocol import Export
from gateway.model.unloaded import END, LOADING
from gateway.model.versions import Versions
from tests.gateway.model.conftest import PIXELS, Connect, Serve, ask, both, constant, without_identity
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode
from tests.programs.stack import free_port, wait_until


def of_another_filter(golden: list[bytes]) -> FakeVersion:
    """Return a version with another filter in its contract than the one that its examples were made with."""
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    version = FakeVersion.of([encode(Image.fromarray(texture), "PNG")], predict=first_pixel)
    document = json.loads(version.description)
    document["image"]["filter"] = "nearest"
    version.description = json.dumps(document).encode()
    return version


def first_pixel(pixels: np.ndarray) -> np.ndarray:
    """Return the colour of the first pixel as probabilities, which averages nothing away."""
    values = pixels[:, 0, 0].astype(np.float32) + 1
    return values / values.sum(axis=1, keepdims=True)


def of_other_weights(golden: list[bytes]) -> FakeVersion:
    """Return a version with other weights than at export."""
    version = FakeVersion.of(golden)
    version.predict = constant(0.2, 0.3, 0.5)
    return version


def test_replicas_that_run_different_files_of_an_export_are_accepted(
    golden: list[bytes], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 on one and int8 on another, each with its own golden answers; an answer that is neither's is refused.

    One that hangs when it is asked for its file refuses nothing: the next look asks again.
    """
    fp32, int8 = constant(0.1, 0.2, 0.7), constant(0.2, 0.3, 0.5)
    files = [
        FakeModelServer({1: FakeVersion.of(golden, predict=predict, identity="f" * 16, tolerance=tolerance)})
        for predict, tolerance in ((fp32, 0.001), (int8, 0.05))
    ]
    try:
        client = connect(both(*files))
        assert ask(client)[0] == 1 and not client.health.refused
        client = connect(both(*files))
        describe, calls = client._replicas.describe, itertools.count()

        def hang_twice(number: int) -> bytes:
            if next(calls) in (1, 2):
                raise ModelTimeout("The prediction did not arrive in time.")
            return describe(number)

        monkeypatch.setattr(client._replicas, "describe", hang_twice)
        wait_until(lambda: client._look_again() and client.health.versions)
        assert next(calls) > 3 and client.health.versions == [1]
        files[1].versions[1].predict = constant(0.4, 0.3, 0.3)
        client = connect(both(*files))
        wait_until(lambda: client._look_again() and client.health.refused)
        assert client.health.versions == []
    finally:
        for each in files:
            each.stop()


def test_each_golden_example_has_its_own_time_to_reach_a_replica_with_the_version(
    client: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one that took long, the next may meet a replica without the version first, as in a roll-out."""
    predict, calls = client._replicas.predict, itertools.count()

    def meet(*asked: Any) -> Outputs:
        call = next(calls)
        if call == 0:
            time.sleep(SEARCH_S)
        if call == 1:
            raise VersionGone("No version of the model is loaded at the moment.")
        return predict(*asked)

    monkeypatch.setattr(client._replicas, "predict", meet)
    client._look_again()
    assert (client.health.versions, next(calls)) == ([1], 3)


def of_another_score(golden: list[bytes]) -> FakeVersion:
    """Return a version whose score is not that of its examples."""
    version = FakeVersion.of(golden, score=lambda pixels: np.full(len(pixels), 0.2, np.float32), novelty=Novelty(0.5))
    version.score = lambda pixels: np.full(len(pixels), 0.3, np.float32)
    return version


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (of_other_weights, "Golden example '0'"),
        (of_another_score, "Golden example '0'"),
        (of_another_filter, "The gateway decodes images otherwise"),
        (lambda _: FakeVersion.of([]), "Expected golden examples"),
        (lambda _: FakeVersion(b"not json"), "Expected a contract in JSON"),
        (lambda _: FakeVersion(b"[" * 100_000), "Expected a contract in JSON"),
        (lambda _: FakeVersion(b'{"contract_version": 99}'), "Expected contract_version 1. Received: 99"),
        (lambda _: FakeVersion(b"", describes=False), "save the model as .keras where it was trained"),
    ],
    ids=["weights", "score", "pixels", "no examples", "no JSON", "deep JSON", "another contract", "no contract"],
)
def test_a_bad_version_is_refused_and_the_old_one_answers(
    model_server: FakeModelServer,
    client: Versions,
    golden: list[bytes],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[list[bytes]], FakeVersion],
    reason: str,
) -> None:
    """What would be a loss of accuracy becomes a refused release; health and the log say why."""
    version = model_server.versions[2] = make(golden)
    assert ask(client)[0] == 1
    assert client.health.ready
    assert reason in client.health.reason(2)
    assert f"version {Export(2, version.identity)} of tiny is refused" in caplog.text
    assert ("describe 2" in model_server.calls) == version.describes
    runs = sum(call.endswith(" 2") and not call.startswith("describe") for call in model_server.calls)
    client._look_again()
    again = sum(call.endswith(" 2") and not call.startswith("describe") for call in model_server.calls)
    assert runs == again, "a refused version is not tried again"


def test_a_version_that_fails_in_the_gate_again_and_again_is_refused(
    model_server: FakeModelServer, client: Versions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once could be a broken connection; the refusal contains the model server's words.

    After a while it is tried again, and logged no more: the model server may be well again.
    """
    model_server.versions[1].fails = grpc.StatusCode.INTERNAL
    for _ in range(2):
        client._look_again()
        assert "could not try it" in client.health.reason(1)
    client._look_again()
    assert "as the test wants it" in client.health.reason(1) and "could not try it" not in client.health.reason(1)
    calls = len(model_server.calls)
    client._look_again()
    assert len(model_server.calls) == calls, "a refused version is not tried again"
    assert not client.health.ready
    logged = caplog.text.count("is refused")
    monkeypatch.setattr("gateway.model.exports.FORGET_AFTER_S", 0.0)
    client._look_again()
    assert len(model_server.calls) > calls and caplog.text.count("is refused") == logged
    model_server.versions[1].fails = None
    client._look_again()
    assert client.health.ready and not client.health.refused


@pytest.mark.parametrize("identity", [None, ""])
@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_model_server_that_cannot_say_what_it_has_changes_nothing(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], code: grpc.StatusCode, identity: str | None
) -> None:
    """An accepted version answers on while it cannot be asked, and one that was not asked yet is asked again."""
    if identity is not None:
        model_server.versions[1] = without_identity(golden)
    client, fresh = connect(model_server.address), connect(model_server.address)
    assert ask(client)[0] == 1
    model_server.metadata_failure = code
    for _ in range(5):
        client._look_again()
        fresh._look_again()
        assert client.health.ready and not client.health.refused
        assert "could not try it" in fresh.health.reason(1) and "could not try it" in str(fresh.health.error)
    model_server.metadata_failure = None
    assert [ask(each)[0] for each in (client, fresh)] == [1, 1]


def test_a_replica_that_hangs_does_not_end_readiness(
    model_server: FakeModelServer, connect: Connect, serve: Serve
) -> None:
    """Looks reach it again and again, as their first call or their second; without requests too.

    Neither does it keep a gateway that starts from being ready, nor a new version from being accepted.
    """
    other = serve()
    other.versions = model_server.versions
    client = connect(both(model_server, other))
    client.newest()
    other.status_failure = other.metadata_failure = other.failure = grpc.StatusCode.DEADLINE_EXCEEDED
    for _ in range(50):
        client._look_again()
        assert client.health.ready and client.newest().number == 1
    model_server.versions[2] = model_server.versions[1]
    fresh = connect(both(model_server, other))
    for each in (client, fresh):
        for _ in range(8):
            each._look_again()
        assert each.health.versions == [2, 1] and each.health.ready


def test_a_model_server_that_never_says_what_it_has_is_logged(
    model_server: FakeModelServer, client: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    """While requests are answered, nothing else shows it, and a new version would never be noticed."""
    client.newest()
    model_server.status_failure = grpc.StatusCode.INTERNAL
    for _ in range(40):
        client._look_again()
        assert ask(client)[0] == 1 and client.health.ready
    assert caplog.text.count("the model server did not say 20 times in a row which versions it has") == 1


def test_looks_that_are_not_answered_change_nothing_while_requests_are(
    model_server: FakeModelServer, client: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica may hang for many looks, and what they should have met is not forgotten; if none answers, it shows."""
    monkeypatch.setattr("gateway.model.client.STATUS_TIMEOUT_S", 0.2)
    client.newest()
    model_server.may_tell_status.clear()
    for _ in range(6):
        look = threading.Thread(target=client._look_again)
        assert ask(client)[0] == 1
        look.start()
        while look.is_alive():
            assert ask(client)[0] == 1
        assert client.health.ready and client.newest().number == 1
    model_server.may_tell_status.set()
    model_server.metadata_failure = grpc.StatusCode.DEADLINE_EXCEEDED
    client._look_again()
    assert client.health.versions == [1]
    assert ask(client)[0] == 1
    model_server.may_tell_status.clear()
    for is_ready in (True, False):
        client._look_again()
        assert client.health.ready == is_ready
    with pytest.raises(ModelUnavailable):
        client.newest()


@pytest.mark.parametrize("field", ["tensor_shape", "dtype"])
def test_a_contract_that_cannot_be_read_holds_up_no_other_version(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], field: str
) -> None:
    """A version that others exported may describe itself by a scalar, or by nothing; health says so."""
    model_server.spoil = lambda number, output: number == 2 and output.ClearField(field)
    model_server.versions |= {number: FakeVersion.of(golden) for number in (2, 3)}
    client._look_again()
    assert client.health.versions == [3, 1]
    assert "The model server's answer cannot be read" in client.health.reason(2)


def test_a_version_that_cannot_be_tried_shows_while_another_answers(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A new version that takes longer than a call may is reported; once it is quick it answers."""
    assert ask(client)[0] == 1
    version = model_server.versions[2] = FakeVersion.of(golden)
    version.fails = grpc.StatusCode.DEADLINE_EXCEEDED
    for _ in range(4):
        client._look_again()
    assert client.health.ready and client.health.versions == [1]
    assert "could not try it" in client.health.reason(2)
    assert caplog.text.count("of tiny is refused: The golden gate could not try it") == 1
    version.fails = None
    client._look_again()
    assert (client.health.versions, dict(client.health.refused)) == ([2, 1], {})


def test_a_request_without_pixels_shows_nothing_of_the_model_server(
    model_server: FakeModelServer, client: Versions
) -> None:
    """While it is away, images that failed do not open the gateway again."""
    version = client.newest()
    model_server.stop()
    for _ in range(2):
        client._look_again()
    client.predict(version, np.zeros((0, 8, 8, 3), np.uint8), time.monotonic() + 1)
    with pytest.raises(ModelUnavailable):
        client.newest()


def test_an_emptied_store_is_a_clear_503_and_recovers(
    model_server: FakeModelServer, client: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a loaded version requests fail at once, and a version that returns answers again (F5)."""
    monkeypatch.setattr("gateway.model.versions.SEARCH_S", 30.0)
    ask(client)
    version = model_server.versions.pop(1)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="usable version"):
        ask(client)
    assert time.monotonic() - started < 5
    assert "No usable version" in (client.health.error or "")
    model_server.versions[1] = version
    assert ask(client)[0] == 1


def test_a_version_that_stays_away_is_forgotten(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its number returns, it passes the gate anew."""
    monkeypatch.setattr("gateway.model.exports.FORGET_AFTER_S", 0.2)
    client.start()
    ask(client)
    model_server.versions[2] = FakeVersion(b"bad")
    wait_until(lambda: client.health.reason(2) is not None)
    del model_server.versions[2]
    wait_until(lambda: client.health.reason(2) is None)
    model_server.versions[2] = FakeVersion.of(golden)
    wait_until(lambda: client.health.versions == [2, 1])


def test_no_model_server_is_unavailable_at_once_and_its_return_is_noticed(connect: Connect, serve: Serve) -> None:
    """Requests fail fast while it is away, and succeed within two seconds of its port opening (F1)."""
    address = f"127.0.0.1:{free_port()}"
    client = connect(address)
    client.start()
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(ModelUnavailable):
            ask(client)
        assert time.monotonic() - started < 0.5
    serve(address=address)
    wait_until(lambda: client.health.ready, timeout_s=2)
    assert ask(client)[0] == 1


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *(((8, 8, 3), "uint8"), ((1, 9, 8, 3), "uint8"), ((1, 8, 8, 1), "uint8")),
        *(((1, 8, 8), "uint8"), ((1, 1, 8, 8, 3), "uint8"), ((1, 8, 8, 3), "float32")),
    ],
)
def test_a_tensor_that_would_kill_tensorflow_serving_is_never_sent(
    model_server: FakeModelServer, client: Versions, shape: tuple[int, ...], kind: str
) -> None:
    """Rank, size, channels and type are checked before the call; an empty batch needs none."""
    version = client.newest()
    calls = len(model_server.calls)
    with pytest.raises(ValueError, match="Expected uint8"):
        client.predict(version, np.zeros(shape, kind), time.monotonic() + 1)
    nothing = client.predict(version, np.zeros((0, 8, 8, 3), np.uint8), time.monotonic() + 1)
    assert (nothing.probabilities.shape, len(model_server.calls)) == ((0, 3), calls)


def test_a_call_ends_with_its_limit(model_server: FakeModelServer, client: Versions) -> None:
    """However much time its request has left."""
    version = client.newest()
    client._replicas._timeout_s = 0.2
    model_server.gate.clear()
    with pytest.raises(ModelTimeout):
        client.predict(version, PIXELS, time.monotonic() + 60)
    model_server.gate.set()


def test_a_refused_export_beside_a_good_one_does_not_end_readiness(
    model_server: FakeModelServer, connect: Connect, serve: Serve
) -> None:
    """Each replica has one of them under the same number, and a look asks both."""
    bad = serve()
    bad.versions[1].predict = constant(0.7, 0.2, 0.1)
    client = connect(both(model_server, bad))

    def is_ready() -> bool:
        client._look_again()
        return client.health.ready

    wait_until(is_ready)  # the first looks may meet the refused one alone
    assert ask(client) == (1, "blue")
    assert all(is_ready() for _ in range(100))
    assert list(client.health.refused) == [Export(1, bad.versions[1].identity)]


def status(number: int, state: messages.ModelVersionStatus.State, error: str = "") -> messages.ModelVersionStatus:
    """Return what TensorFlow Serving says of a version that is not loaded."""
    failure = messages.StatusProto(error_code=5 if error else 0, error_message=error)
    return messages.ModelVersionStatus(version=number, state=state, status=failure)


def test_a_version_that_is_tried_again_is_named_meanwhile(
    model_server: FakeModelServer, client: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow Serving says LOADING for the five minutes in which it tries; its error comes only after the last."""
    monkeypatch.setattr("gateway.model.unloaded.LOADING_S", 0.1)
    for state, wait_s, reason in ((LOADING, 0.0, None), (LOADING, 0.2, "not loaded it after"), (END, 0.0, "no file")):
        model_server.unloaded = [status(2, state, "no file" if state == END else "")]
        time.sleep(wait_s)
        client._look_again()
        assert client.health.ready
        assert reason in str(client.health.reason(2)) if reason else not client.health.refused
    model_server.unloaded = [status(2, END)]
    client._look_again()
    assert not client.health.refused


@pytest.mark.parametrize("old_because", ["a newer one", "one more older one", "time"])
def test_a_version_that_failed_is_named_until_that_is_old_news(
    model_server: FakeModelServer,
    client: Versions,
    golden: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    old_because: str,
) -> None:
    """TensorFlow Serving lists it until it restarts, whether its directory is still there or not."""
    version = model_server.versions.pop(1)
    model_server.versions[2] = version
    model_server.unloaded = [status(3, END, "no file"), status(1, END)]
    for _ in range(2):
        client._look_again()
        assert "no file" in str(client.health.reason(3)) and client.health.versions == [2]
    if old_because == "time":
        monkeypatch.setattr("gateway.model.unloaded.FAILURE_NAMED_S", 0.0)
    else:
        model_server.versions[{"a newer one": 4, "one more older one": 1}[old_because]] = version
    client._look_again()
    assert not client.health.refused
    model_server.versions = {}  # the reason why nothing answers is never old
    client._look_again()
    assert "no file" in str(client.health.error)
