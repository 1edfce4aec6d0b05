"""gateway/model/: which versions answer, in a swap, with mixed replicas, and when one is bad."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

from contract.document import ImageSpec
from contract.image import decode
from gateway.errors import ModelUnavailable, VersionGone
from gateway.model.client import _FROM_GRPC, _MODEL_DETAILS
from gateway.model.protocol import Export, Version
from gateway.model.versions import Versions
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo

Connect = Callable[[str], Versions]
IMAGE = encode(photo(seed=3))


def constant(*probabilities: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model that answers the same for any pixels."""
    return lambda pixels: np.tile(np.array(probabilities, np.float32), (len(pixels), 1))


def ask(client: Versions, image: bytes = IMAGE) -> tuple[int, str]:
    """Answer as the gateway does: the version, and the name that it gives to its most probable class."""
    version, name = ask_version(client, image)
    return version.number, name


def ask_version(client: Versions, image: bytes = IMAGE) -> tuple[Version, str]:
    """Answer as the gateway does: the version as it was described, and the name of its most probable class."""
    deadline = time.monotonic() + 5
    for version in client.candidates(deadline):
        pixels = decode(image, version.contract.image).pixels
        try:
            probabilities = client.predict(version, pixels[np.newaxis], deadline)[0]
        except VersionGone:
            continue
        return version, version.contract.classes[int(probabilities.argmax())]
    raise AssertionError


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.01)


def test_no_proxy_stands_between(
    model_server: FakeModelServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy for the hosts out there, where nobody listens, is not asked for the model server."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    client = connect(model_server.address)
    client.start()
    assert ask(client)[0] == 1


def test_a_new_version_takes_over_and_a_removed_one_is_left(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Forward and back, with each version's own pixels and names."""
    client = connect(model_server.address)
    client.start()
    assert ask(client)[0] == 1
    model_server.versions[2] = FakeVersion.of(golden, ("x", "y"), ImageSpec(4, 6), constant(0.2, 0.8))
    eventually(lambda: client.health.versions == [2, 1])
    assert ask(client) == (2, "y")
    del model_server.versions[2]
    assert ask(client)[0] == 1
    eventually(lambda: client.health.versions == [1])


def test_a_swap_under_load_loses_nothing_and_mixes_nothing(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """While versions come and go, each answer is one version's, with its own names."""
    client = connect(model_server.address)
    client.start()
    ask(client)
    answers: Counter[tuple[int, str]] = Counter()
    stop = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            while not stop.is_set():
                answers[ask(client)] += 1
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    names = ("zero", "one")
    for number in range(2, 8):
        time.sleep(0.15)
        wins = number % 2
        spec = ImageSpec(4 + number, 4)
        model_server.versions[number] = FakeVersion.of(
            golden, tuple(f"{name}-{number}" for name in names), spec, constant(1 - wins, wins)
        )
        eventually(lambda number=number: number in client.health.versions)  # type: ignore[misc]
        time.sleep(0.05)
        model_server.versions.pop(number - 1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {number for number, _ in answers} >= {1, 2, 7}
    for number, name in answers:
        assert number == 1 or name == f"{names[number % 2]}-{number}"


KINDS = {
    "other weights": (("red", "green", "blue"), ImageSpec(8, 8), constant(0.1, 0.2, 0.7)),
    "other classes": (("ant", "bee", "fly"), ImageSpec(8, 8), constant(0.1, 0.2, 0.7)),
    "another count": (("a", "b"), ImageSpec(8, 8), constant(0.3, 0.7)),
    "another size": (("small", "large", "huge"), ImageSpec(5, 9), constant(0.7, 0.2, 0.1)),
}


def ask_many(client: Versions, count: int = 2_000) -> Counter[tuple[str, str]]:
    """Ask from four threads; return how often each export gave its image which name."""
    answers: Counter[tuple[str, str]] = Counter()

    def load() -> None:
        for _ in range(count // 4):
            version, name = ask_version(client)
            answers[version.contract.identity, name] += 1

    with ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(load) for _ in range(4)]:
            run.result()
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_another_export_under_the_same_number_answers_with_its_own_pixels_and_labels(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], kind: str
) -> None:
    """It takes the other's place between two requests, without a gap; the next answer is its own, after the gate."""
    client = connect(model_server.address)
    assert ask(client) == (1, "blue")
    other = FakeVersion.of(golden, *KINDS[kind])
    model_server.versions[1] = other
    answers = ask_many(client)
    name = KINDS[kind][0][int(KINDS[kind][2](np.zeros((1, 1, 1, 3), np.uint8)).argmax())]
    assert answers == {(other.identity, name): 2_000}


@pytest.mark.parametrize("kind", KINDS)
def test_two_exports_under_one_number_answer_each_for_itself(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], kind: str
) -> None:
    """One behind each of two addresses, for two thousand requests and without end."""
    other = FakeModelServer({1: FakeVersion.of(golden, *KINDS[kind])})
    try:
        client = connect(f"ipv4:{model_server.address},{other.address}")
        client.start()
        answers = ask_many(client)
    finally:
        other.stop()
    name = KINDS[kind][0][int(KINDS[kind][2](np.zeros((1, 1, 1, 3), np.uint8)).argmax())]
    assert set(answers) == {(model_server.versions[1].identity, "blue"), (other.versions[1].identity, name)}


def test_a_bad_export_under_an_accepted_number_is_refused(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Whatever was accepted under the number before, it does not answer; health names the export."""
    client = connect(model_server.address)
    ask(client)
    bad = FakeVersion.of(golden, predict=constant(0.1, 0.2, 0.7))
    bad.predict = constant(0.7, 0.2, 0.1)
    model_server.versions[1] = bad
    with pytest.raises(ModelUnavailable):
        ask(client)
    assert (client.health.ready, list(client.health.refused)) == (False, [Export(1, bad.identity)])


def test_an_answer_with_another_identity_is_not_used(model_server: FakeModelServer, connect: Connect) -> None:
    """The answer says whose it is, whatever was asked."""
    client = connect(model_server.address)
    version = client.newest()
    model_server.answers_as = "0123456789abcdef"
    with pytest.raises(VersionGone):
        client.predict(version, np.zeros((1, 8, 8, 3), np.uint8), time.monotonic() + 1)


def without_identity(golden: list[bytes], *facts: Any) -> FakeVersion:
    """Return a version as it was exported before there were identities."""
    return FakeVersion.of(golden, *facts, identity="")


def test_a_version_without_an_identity_is_described_again_and_gated_again(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came in its place answers only once the other has not been seen for a while; until then none does."""
    monkeypatch.setattr("gateway.model.versions.FORGET_AFTER_S", 0.5)
    model_server.versions[1] = without_identity(golden)
    client = connect(model_server.address)
    client.start()
    assert ask(client) == (1, "blue")
    model_server.versions[1] = without_identity(golden, *KINDS["other classes"])
    eventually(lambda: not client.health.ready)
    assert "no identity, and another export" in client.health.reason(1)
    with pytest.raises(ModelUnavailable):
        ask(client)
    eventually(lambda: client.health.ready)
    assert ask(client) == (1, "fly")


def test_a_version_without_an_identity_does_not_answer_beside_another_export(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Of two under one number, only the one that says who it is can be told from the other."""
    model_server.versions[1] = without_identity(golden)
    other = FakeModelServer({1: FakeVersion.of(golden, *KINDS["other classes"])})
    try:
        client = connect(f"ipv4:{model_server.address},{other.address}")
        for _ in range(4):
            client._look_again()
        assert {name for _, name in ask_many(client, 400)} == {"fly"}
    finally:
        other.stop()


def test_after_a_broken_connection_a_version_without_an_identity_is_described_before_it_answers(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Another server took the address: the first request finds that out, before the next look."""
    model_server.versions[1] = without_identity(golden)
    client = connect(model_server.address)
    assert ask(client) == (1, "blue")
    version = client.newest()
    model_server.stop()
    with pytest.raises(ModelUnavailable):
        client.predict(version, np.zeros((1, 8, 8, 3), np.uint8), time.monotonic() + 1)
    other = FakeModelServer({1: FakeVersion.of(golden, *KINDS["other classes"])}, model_server.address)
    try:
        answers: list[tuple[int, str]] = []

        def answered() -> bool:
            with suppress(ModelUnavailable):
                answers.append(ask(client))
            return bool(answers)

        eventually(answered)
        assert answers == [(1, "fly")]
    finally:
        other.stop()


def test_an_answer_is_not_used_if_another_export_without_an_identity_was_met_meanwhile(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """The call was under way when it took the other's place."""
    model_server.versions[1] = without_identity(golden)
    client = connect(model_server.address)
    version = client.newest()
    slow, other = threading.Event(), without_identity(golden, *KINDS["other classes"])
    quick, other.predict = other.predict, lambda pixels: (slow.wait(5), quick(pixels))[1]
    model_server.versions[1] = other
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, version, np.zeros((1, 8, 8, 3), np.uint8), time.monotonic() + 5)
        eventually(lambda: model_server.calls[-1] == "serving_default 1")
        client._look_again()
        slow.set()
        with pytest.raises(VersionGone):
            call.result()


def test_many_images_find_one_of_two_exports(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Each part of a request goes to the export that the first one reached."""
    other = FakeModelServer({1: FakeVersion.of(golden, *KINDS["another size"])})
    try:
        client = connect(f"ipv4:{model_server.address},{other.address}")
        client.start()
        for _ in range(5):
            deadline = time.monotonic() + 5
            for version in client.candidates(deadline):
                spec = version.contract.image
                with suppress(VersionGone):
                    shape = (64, spec.height, spec.width, 3)
                    assert client.predict(version, np.zeros(shape, np.uint8), deadline).shape == (64, 3)
                    break
    finally:
        other.stop()


def test_a_version_without_a_contract_is_refused_with_what_to_do(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """A plain Keras export that was put into the store by hand."""
    model_server.versions[2] = FakeVersion(b"", describes=False)
    client = connect(model_server.address)
    assert ask(client)[0] == 1
    assert "python -m training export" in client.health.reason(2)
    assert "describe 2" not in model_server.calls


@pytest.fixture
def mixed(golden: list[bytes]) -> Iterator[str]:
    """One address behind which two model servers take turns, connection by connection, with different versions."""
    servers = [
        FakeModelServer({1: FakeVersion.of(golden, ("old", "old"), ImageSpec(4, 4), constant(0.9, 0.1))}),
        FakeModelServer({2: FakeVersion.of(golden, ("new", "new"), ImageSpec(6, 6), constant(0.1, 0.9))}),
    ]
    yield "ipv4:" + ",".join(server.address for server in servers)
    for server in servers:
        server.stop()


def test_replicas_with_different_versions_behind_one_address_lose_and_mix_nothing(mixed: str, connect: Connect) -> None:
    """A call that reaches the replica without its version goes on to the other version."""
    client = connect(mixed)
    client.start()
    answers = Counter(ask(client) for _ in range(300))
    assert set(answers) == {(1, "old"), (2, "new")}


def test_a_version_whose_golden_examples_do_not_replay_is_refused_and_the_old_one_answers(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The skew between training and serving becomes a refused release; health and the log say why."""
    client = connect(model_server.address)
    version = FakeVersion.of(golden)
    version.predict = constant(0.2, 0.3, 0.5)
    model_server.versions[2] = version
    assert ask(client)[0] == 1
    assert client.health.ready
    assert "Golden example '0'" in client.health.reason(2)
    assert f"version 2 ({version.identity}) of tiny is refused" in caplog.text
    calls = len(model_server.calls)
    assert ask(client)[0] == 1
    assert len(model_server.calls) == calls + 1, "a refused version is not tried again"


def test_pixels_made_otherwise_are_noticed(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """A contract that states another filter than the one its examples were made with is refused."""
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    from PIL import Image

    version = FakeVersion.of([encode(Image.fromarray(texture), "PNG")], predict=first_pixel)
    document = json.loads(version.description)
    document["image"]["filter"] = "nearest"
    version.description = json.dumps(document).encode()
    model_server.versions[2] = version
    client = connect(model_server.address)
    assert ask(client)[0] == 1
    assert "The gateway decodes images otherwise" in client.health.reason(2)


def first_pixel(pixels: np.ndarray) -> np.ndarray:
    """Return the colour of the first pixel as probabilities, which averages nothing away."""
    values = pixels[:, 0, 0].astype(np.float32) + 1
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (b"not json", "Expected a contract in JSON"),
        (b'{"contract_version": 99}', "Expected contract_version 1. Received: 99"),
        (b"[" * 100_000, "Expected a contract in JSON"),
    ],
)
def test_a_version_whose_contract_cannot_be_read_is_refused(
    model_server: FakeModelServer, connect: Connect, description: bytes, reason: str
) -> None:
    """The reason is the contract's own message."""
    model_server.versions[2] = FakeVersion(description)
    client = connect(model_server.address)
    assert ask(client)[0] == 1
    assert reason in client.health.reason(2)


def test_a_version_without_golden_examples_is_refused(model_server: FakeModelServer, connect: Connect) -> None:
    """Nothing replayed is nothing checked."""
    model_server.versions[2] = FakeVersion.of([])
    client = connect(model_server.address)
    assert ask(client)[0] == 1
    assert "golden examples" in client.health.reason(2)


def test_a_version_that_fails_in_the_gate_again_and_again_is_refused(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Once could be a connection that broke; the refusal carries the model server's words."""
    version = FakeVersion.of(golden)
    version.fails = grpc.StatusCode.INTERNAL
    model_server.versions[1] = version
    client = connect(model_server.address)
    for _ in range(2):
        client._look_again()
        assert "could not try it" in client.health.reason(1)
    client._look_again()
    assert "as the test wants it" in client.health.reason(1) and "could not try it" not in client.health.reason(1)
    calls = len(model_server.calls)
    client._look_again()
    assert len(model_server.calls) == calls, "a refused version is not tried again"
    assert not client.health.ready


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
        assert "could not try it" in fresh.health.reason(1)
    model_server.metadata_failure = None
    for each in (client, fresh):
        assert ask(each)[0] == 1


def test_a_busy_model_server_does_not_refuse_a_version_for_good(
    model_server: FakeModelServer, connect: Connect
) -> None:
    """What could not be tried is tried again at the next look."""
    model_server.failure = grpc.StatusCode.RESOURCE_EXHAUSTED
    client = connect(model_server.address)
    with pytest.raises(ModelUnavailable):
        client.newest()
    assert "could not try it" in client.health.reason(1)
    assert "could not try it" in (client.health.error or "")
    model_server.failure = None
    assert ask(client)[0] == 1
    assert not client.health.refused


def test_a_version_that_cannot_be_tried_shows_while_another_answers(
    model_server: FakeModelServer, golden: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A new version that takes longer than a call may is no silence; once it is quick it answers."""
    client = Versions(model_server.address, "tiny", timeout_s=0.3)
    try:
        assert ask(client)[0] == 1
        may_answer = threading.Event()
        version = FakeVersion.of(golden)
        quick, version.predict = version.predict, lambda pixels: (may_answer.wait(1), quick(pixels))[1]
        model_server.versions[2] = version
        for _ in range(4):
            client._look_again()
        assert client.health.ready and client.health.versions == [1]
        assert "could not try it" in client.health.reason(2)
        assert caplog.text.count("of tiny is refused: The golden gate could not try it") == 1
        may_answer.set()
        client._look_again()
        assert (client.health.versions, dict(client.health.refused)) == ([2, 1], {})
    finally:
        client.close()


def test_a_request_without_pixels_says_nothing_of_the_model_server(
    model_server: FakeModelServer, connect: Connect
) -> None:
    """While it is away, images that failed do not open the gateway again."""
    client = connect(model_server.address)
    version = client.newest()
    model_server.stop()
    for _ in range(2):
        client._look_again()
    client.predict(version, np.zeros((0, 8, 8, 3), np.uint8), time.monotonic() + 1)
    with pytest.raises(ModelUnavailable):
        client.newest()


def test_an_emptied_store_is_a_clear_503_and_recovers(model_server: FakeModelServer, connect: Connect) -> None:
    """No version loaded is told at once, and a version that returns answers again (F5)."""
    client = connect(model_server.address)
    ask(client)
    version = model_server.versions.pop(1)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="usable version"):
        ask(client)
    assert time.monotonic() - started < 1
    assert "No usable version" in (client.health.error or "")
    model_server.versions[1] = version
    assert ask(client)[0] == 1


def test_a_version_that_stays_away_is_forgotten(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its number returns, it passes the gate anew."""
    monkeypatch.setattr("gateway.model.versions.FORGET_AFTER_S", 0.2)
    client = connect(model_server.address)
    client.start()
    ask(client)
    model_server.versions[2] = FakeVersion(b"bad")
    eventually(lambda: client.health.reason(2) is not None)
    del model_server.versions[2]
    eventually(lambda: client.health.reason(2) is None)
    model_server.versions[2] = FakeVersion.of(golden)
    eventually(lambda: client.health.versions == [2, 1])


def test_no_model_server_is_unavailable_at_once_and_its_return_is_noticed(
    golden: list[bytes], connect: Connect
) -> None:
    """Requests fail fast while it is away, and succeed within two seconds of its port opening (F1)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = connect(f"127.0.0.1:{port}")
    client.start()
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(ModelUnavailable):
            ask(client)
        assert time.monotonic() - started < 0.5
    server = FakeModelServer({1: FakeVersion.of(golden)}, f"127.0.0.1:{port}")
    try:
        eventually(lambda: client.health.ready, timeout_s=2)
        assert ask(client)[0] == 1
    finally:
        server.stop()


def test_a_tensor_that_would_kill_tensorflow_serving_is_never_sent(
    model_server: FakeModelServer, connect: Connect
) -> None:
    """Rank, size, channels, type and a batch that is not empty are checked before the call."""
    client = connect(model_server.address)
    version = client.newest()
    calls = len(model_server.calls)
    shapes = [(8, 8, 3), (1, 9, 8, 3), (1, 8, 8, 1), (1, 8, 8), (1, 1, 8, 8, 3)]
    for shape, dtype in itertools.chain(((shape, np.uint8) for shape in shapes), [((1, 8, 8, 3), np.float32)]):
        with pytest.raises(ValueError, match="Expected uint8"):
            client.predict(version, np.zeros(shape, dtype), time.monotonic() + 1)  # type: ignore[arg-type]
    nothing = client.predict(version, np.zeros((0, 8, 8, 3), np.uint8), time.monotonic() + 1)
    assert nothing.shape == (0, 3)
    assert len(model_server.calls) == calls


def test_every_grpc_status_has_a_failure_with_words() -> None:
    """The map stays total when gRPC adds a status."""
    assert set(_FROM_GRPC) == set(grpc.StatusCode)
    assert set(_FROM_GRPC.values()) == set(_MODEL_DETAILS)
