"""gateway/model/versions.py: which export answers while versions are swapped, and that each answers for itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
import pytest

from contract.document import ImageSpec
from gateway.errors import ModelUnavailable, VersionGone
from gateway.model.protocol import Export, Version
from gateway.model.versions import Versions
from tests.gateway.model.conftest import (
    FLIES,
    OTHERS,
    PIXELS,
    SMALL,
    Connect,
    Serve,
    ask,
    ask_many,
    both,
    constant,
    without_identity,
)
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.stack import wait_until


def test_no_proxy_stands_between(
    model_server: FakeModelServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy for hosts outside, where nobody listens, is not asked for the model server."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(connect(model_server.address))[0] == 1


def test_a_new_version_takes_over(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, and back when it is removed, with each version's own pixels and names."""
    client.start()
    assert ask(client)[0] == 1
    model_server.versions[2] = FakeVersion.of(golden, ("x", "y"), ImageSpec(4, 6), constant(0.2, 0.8))
    wait_until(lambda: client.health.versions == [2, 1])
    assert ask(client) == (2, "y")
    monkeypatch.setattr("gateway.model.exports.RECENT_S", 0.0)
    del model_server.versions[2]
    assert ask(client)[0] == 1
    wait_until(lambda: client.health.versions == [1])


def held(golden: list[bytes]) -> tuple[FakeVersion, threading.Event]:
    """Return a version that answers nothing, the golden gate neither, until an event is set."""
    version, may_answer = FakeVersion.of(golden), threading.Event()
    quick = version.predict
    version.predict = lambda pixels: (may_answer.wait(60), quick(pixels))[1]
    return version, may_answer


def is_tried(server: FakeModelServer, number: int) -> bool:
    """Tell whether a version was asked for an answer, as the gate does before anyone else."""
    return f"export_{server.versions[number].identity} {number}" in server.calls


def test_a_request_does_not_wait_for_the_golden_gate_beyond_its_deadline(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes]
) -> None:
    """Or the gateway would end its worker. The watch goes on with the gate; a client that closes leaves nobody waiting.

    The request tries the old version ever more seldom. The new one answers as soon as the gate is through with it.
    """
    client = connect(model_server.address, timeout_s=60.0)
    ask(client)
    tries: list[Version] = []
    (two, may_answer), (three, may_end) = held(golden), held(golden)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(may_answer.set)
        stack.callback(may_end.set)
        model_server.versions = {2: two}
        request = pool.submit(lambda: [tries.append(each) for each in client.candidates(time.monotonic() + 0.5)])
        assert isinstance(request.exception(timeout=10), ModelUnavailable)
        assert len(tries) <= 20  # 19 at most; with pauses that do not grow, it would be 70
        wait_until(lambda: is_tried(model_server, 2))
        may_answer.set()
        wait_until(lambda: client.health.versions[:1] == [2])
        assert ask(client)[0] == 2
        model_server.versions[3] = three
        look = pool.submit(client._look_again)
        wait_until(lambda: is_tried(model_server, 3))
        client.close()
        look.result(timeout=10)


def test_while_the_gate_tries_a_version_a_replica_with_the_old_one_answers(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], serve: Serve
) -> None:
    """However long the gate takes: a request that meets the other replica goes on to this one."""
    other = serve()
    other.versions = model_server.versions
    client = connect(both(model_server, other), timeout_s=60.0)
    client.start()
    ask(client)
    version, may_answer = held(golden)
    with ExitStack() as stack:
        stack.callback(may_answer.set)
        other.versions = {2: version}
        wait_until(lambda: is_tried(other, 2))
        assert {ask(client)[0] for _ in range(20)} == {1}
        may_answer.set()
        wait_until(lambda: 2 in client.health.versions)


def test_a_swap_under_load_loses_nothing(model_server: FakeModelServer, client: Versions, golden: list[bytes]) -> None:
    """While versions come and go, each answer is one version's, with its own names."""
    client.start()
    ask(client)
    answers: Counter[tuple[int, str]] = Counter()
    stop = threading.Event()
    names = ("zero", "one")

    def load() -> None:
        while not stop.is_set():
            answers[ask(client)] += 1

    with ThreadPoolExecutor(4) as pool, ExitStack() as load_stops:
        load_stops.callback(stop.set)
        runs = [pool.submit(load) for _ in range(4)]
        for number in range(2, 8):
            wait_until(lambda number=number: number - 1 in {each for each, _ in list(answers)})  # type: ignore[misc]
            wins = number % 2
            facts = tuple(f"{name}-{number}" for name in names), ImageSpec(4 + number, 4), constant(1 - wins, wins)
            model_server.versions[number] = FakeVersion.of(golden, *facts)
            wait_until(lambda number=number: number in client.health.versions)  # type: ignore[misc]
            wait_until(lambda number=number: number in {each for each, _ in list(answers)})  # type: ignore[misc]
            model_server.versions.pop(number - 1)
    assert [run.result() for run in runs] == [None] * 4
    assert {number for number, _ in answers} == {*range(1, 8)}
    for number, name in answers:
        assert number == 1 or name == f"{names[number % 2]}-{number}"


@pytest.mark.parametrize(("facts", "name"), OTHERS.values(), ids=OTHERS)
def test_another_export_under_the_number_answers_for_itself(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], facts: Any, name: str
) -> None:
    """It takes the other's place between two requests, without a gap; the next answer is its own, after the gate."""
    assert ask(client) == (1, "blue")
    other = model_server.versions[1] = FakeVersion.of(golden, *facts)
    assert ask_many(client) == {(other.identity, name): 500}


@pytest.mark.parametrize(("facts", "name"), OTHERS.values(), ids=OTHERS)
def test_two_exports_under_one_number_answer_each_for_itself(
    model_server: FakeModelServer, connect: Connect, serve: Serve, facts: Any, name: str
) -> None:
    """One behind each of two addresses, for five hundred requests and without end."""
    other = serve(*facts)
    client = connect(both(model_server, other))
    client.start()
    exports = {(model_server.versions[1].identity, "blue"), (other.versions[1].identity, name)}
    assert set(ask_many(client)) == exports


def test_many_images_find_one_of_two_exports(model_server: FakeModelServer, connect: Connect, serve: Serve) -> None:
    """Each part of a request goes to the export that the first one reached."""
    client = connect(both(model_server, serve(*SMALL)))
    client.start()
    for _ in range(5):
        deadline = time.monotonic() + 5
        for version in client.candidates(deadline):
            spec = version.contract.image
            with suppress(VersionGone):
                shape = (64, spec.height, spec.width, 3)
                assert client.predict(version, np.zeros(shape, np.uint8), deadline).probabilities.shape == (64, 3)
                break


def test_replicas_with_different_versions_lose_and_mix_nothing(connect: Connect, serve: Serve) -> None:
    """A call that reaches the replica without its version goes on to the other version; neither ends readiness."""
    old = serve(("old", "old"), ImageSpec(4, 4), constant(0.9, 0.1))
    new = serve(("new", "new"), ImageSpec(6, 6), constant(0.1, 0.9), number=2)
    client = connect(both(old, new))
    client.start()
    assert {ask(client) for _ in range(100)} == {(1, "old"), (2, "new")}
    wait_until(lambda: client.health.versions == [2, 1])
    for _ in range(200):
        client._look_again()  # as requests let it
        assert client.health.ready and client.health.versions == [2, 1] and not client.health.refused


def test_a_bad_export_under_an_accepted_number_is_refused(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was accepted under the number before, the bad one does not answer; health names the export."""
    monkeypatch.setattr("gateway.model.exports.RECENT_S", 0.0)
    ask(client)
    bad = model_server.versions[1] = FakeVersion.of(golden, predict=constant(0.1, 0.2, 0.7))
    bad.predict = constant(0.7, 0.2, 0.1)
    with pytest.raises(ModelUnavailable):
        ask(client)
    assert (client.health.ready, list(client.health.refused)) == (False, [Export(1, bad.identity)])


def test_an_answer_with_another_identity_is_not_used(model_server: FakeModelServer, client: Versions) -> None:
    """The answer says which export gave it, whatever was asked."""
    version = client.newest()
    model_server.answers_as = "0123456789abcdef"
    with pytest.raises(VersionGone):
        client.predict(version, PIXELS, time.monotonic() + 1)


def test_a_version_without_an_identity_is_described_and_gated_again(
    model_server: FakeModelServer, client: Versions, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came in its place answers only once the other has not been seen for a while; until then none does."""
    model_server.versions[1] = without_identity(golden)
    client.start()
    assert ask(client) == (1, "blue")
    model_server.versions[1] = without_identity(golden, *FLIES)
    wait_until(lambda: not client.health.ready)
    assert "no identity, and another export" in client.health.reason(1)
    with pytest.raises(ModelUnavailable):
        ask(client)
    monkeypatch.setattr("gateway.model.exports.FORGET_AFTER_S", 0.5)
    wait_until(lambda: client.health.ready)
    assert ask(client) == (1, "fly")


def test_a_version_without_an_identity_does_not_answer_beside_another_export(
    model_server: FakeModelServer, connect: Connect, golden: list[bytes], serve: Serve
) -> None:
    """Of two under one number, only the one with an identity can be told from the other."""
    model_server.versions[1] = without_identity(golden)
    client = connect(both(model_server, serve(*FLIES)))
    for _ in range(4):
        client._look_again()
    assert {name for _, name in ask_many(client)} == {"fly"}


@pytest.mark.parametrize("failure", [None, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_after_a_broken_connection_a_version_without_an_identity_is_described_again(
    model_server: FakeModelServer,
    client: Versions,
    golden: list[bytes],
    serve: Serve,
    failure: grpc.StatusCode | None,
) -> None:
    """Another server took the address: the first request finds that out, before the next look.

    While that server cannot say what it has, nothing answers.
    """
    model_server.versions[1] = without_identity(golden)
    assert ask(client) == (1, "blue")
    version = client.newest()
    model_server.stop()
    with pytest.raises(ModelUnavailable):
        client.predict(version, PIXELS, time.monotonic() + 1)
    other = serve(*FLIES, address=model_server.address)
    if failure:
        other.metadata_failure = failure
        wait_until(lambda: client._look_again() and "could not try it" in str(client.health.reason(1)))
        assert not client.health.ready
        with pytest.raises(ModelUnavailable):
            ask(client)
        other.metadata_failure = None
    answers: list[tuple[int, str]] = []

    def answered() -> bool:
        try:
            answers.append(ask(client))
        except ModelUnavailable:
            client._look_again()  # as the watch does
        return bool(answers)

    wait_until(answered)
    assert answers == [(1, "fly")]


def test_an_answer_is_not_used_if_another_export_without_an_identity_came_meanwhile(
    model_server: FakeModelServer, client: Versions, golden: list[bytes]
) -> None:
    """The call was under way when it took the other's place."""
    model_server.versions[1] = without_identity(golden)
    version = client.newest()
    slow, other = threading.Event(), without_identity(golden, *FLIES)
    quick, other.predict = other.predict, lambda pixels: (slow.wait(5), quick(pixels))[1]
    model_server.versions[1] = other
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, version, PIXELS, time.monotonic() + 5)
        wait_until(lambda: model_server.calls[-1] == "serving_default 1")
        client._look_again()
        slow.set()
        with pytest.raises(VersionGone):
            call.result()
