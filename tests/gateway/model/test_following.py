"""gateway/model/following.py: which version answers first, by the release document."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract import messages_pb2 as messages
from contract.outputs import Outputs
from contract.release import Release, Trial
from gateway.app import create_app
from gateway.errors import ModelTimeout, ModelUnavailable
from gateway.model.following import Following
from gateway.model.versions import Versions
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.gateway.model.conftest import ask, both
from tests.programs.model_server import FakeModelServer, FakeVersion

LOADING = messages.ModelVersionStatus(version=3, state=messages.ModelVersionStatus.LOADING)


@pytest.fixture
def server(golden: list[bytes]) -> Iterator[FakeModelServer]:
    """A model server with versions 1 to 4."""
    server = FakeModelServer({number: FakeVersion.of(golden) for number in (1, 2, 3, 4)})
    yield server
    server.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "release.json"


@pytest.fixture
def client(server: FakeModelServer, file: Path) -> Iterator[Versions]:
    """A client that looks only when asked."""
    client = Versions(
        Settings(model_address=server.address, model_name="tiny", model_timeout_s=2.0, release_file=str(file))
    )
    yield client
    client.close()


def order(client: Versions) -> list[int]:
    """Look, and return the accepted numbers in the order in which they are asked."""
    client._look_again()
    return client.health.versions


def test_stable_version_answers_first(client: Versions, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then comes the one before it, then the older ones; what is newer comes last. No document: newest."""
    monkeypatch.setattr("contract.release.REMOVED_S", 0.0)
    assert order(client) == [4, 3, 2, 1]
    file.write_text(Release(3, previous=1).to_json())
    assert order(client) == [3, 1, 2, 4]
    deadline = time.monotonic() + 5
    assert client.newest().number == next(client.candidates(deadline)).number == 3
    file.unlink()
    assert order(client) == [4, 3, 2, 1]


def test_a_busy_model_server_holds_up_no_rollback(server: FakeModelServer, client: Versions, file: Path) -> None:
    """It refuses to say what it has, but what was promoted needs no answer of it."""
    file.write_text(Release(4, 1, previous=3).to_json())
    assert order(client)[0] == 4
    server.status_failure = grpc.StatusCode.RESOURCE_EXHAUSTED
    file.write_text(Release(3, 2, previous=4).to_json())
    client._look_again()
    assert client.newest().number == 3 and client.health.release == Release(3, 2, previous=4)
    assert client.health.versions == [3, 2, 1, 4]
    file.write_text("{")
    client._look_again()
    assert client.newest().number == 3 and str(file) in (client.health.release_error or "")


@pytest.mark.parametrize("failure", [None, grpc.StatusCode.UNAVAILABLE])
def test_a_rollback_is_followed_while_the_gate_tries_a_version(
    client: Versions,
    server: FakeModelServer,
    golden: list[bytes],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: grpc.StatusCode | None,
) -> None:
    """Before each call of the gate, which may have many that take long; also after one that a replica left hanging.

    And where the look before it found no model server: requests are answered by what was loaded then.
    """
    file.write_text(Release(4).to_json())
    order(client)
    server.status_failure = failure
    client._look_again()
    server.status_failure = None
    predict, answers = client._replicas.predict, []

    def hang_once(*asked: Any) -> Outputs:
        answers.append(client.newest().number)
        file.write_text(Release(answers[-1] - 1).to_json())
        if len(answers) == 1:
            raise ModelTimeout("The prediction did not arrive in time.")
        return predict(*asked)

    monkeypatch.setattr(client._replicas, "predict", hang_once)
    server.versions[5] = FakeVersion.of(golden)
    assert (order(client)[0], answers) == (1, [4, 3, 2])


@pytest.mark.parametrize("identity", [{}, {"identity": ""}], ids=["identity", "none"])
@pytest.mark.parametrize(
    ("release", "first", "rest"), [(None, 4, [3, 2, 1]), (Release(2, trial=Trial(3, "shadow")), 2, [4, 3, 1])]
)
def test_what_answers_first_does_not_wait_until_the_gate_has_tried_others(
    client: Versions,
    server: FakeModelServer,
    golden: list[bytes],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    identity: dict[str, str],
    release: Release | None,
    first: int,
    rest: list[int],
) -> None:
    """At a start, and when a model server that was away comes back with one more."""
    predict, answers = client._replicas.predict, {}

    def note(number: int, *asked: Any) -> Outputs:
        answers.setdefault(number, client.newest().number if client.health.ready else None)
        return predict(number, *asked)

    monkeypatch.setattr(client._replicas, "predict", note)
    server.versions = {number: FakeVersion.of(golden, **identity) for number in server.versions}
    if release:
        file.write_text(release.to_json())
    client._look_again()
    assert list(answers.items()) == [(first, None), *((number, first) for number in rest)]
    server.status_failure = grpc.StatusCode.UNAVAILABLE
    client._look_again()
    assert not client.health.ready
    server.status_failure = None
    server.versions[5] = FakeVersion.of(golden, **identity)
    caplog.clear()
    client._look_again()
    assert answers[5] == first
    assert identity or "release.json" not in caplog.text  # what has no identity must be described first


@pytest.mark.parametrize("text", ["{", "", '{"stable": 9}', '{"stable": 4, "trail": 1}'])
def test_bad_document_changes_nothing_and_is_named(client: Versions, file: Path, text: str) -> None:
    """One that does not parse, and one whose stable version is not there."""
    file.write_text(Release(3).to_json())
    order(client)
    file.write_text(text)
    assert order(client)[0] == 3
    assert client.health.release == Release(3)
    assert str(file) in (client.health.release_error or "")
    assert client.health.ready
    file.write_text(Release(2).to_json())
    assert order(client)[0] == 2
    assert client.health.release_error is None


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_a_document_that_is_away_releases_nothing(
    client: Versions, file: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """For a moment, as it is replaced or its volume unmounted: what was rolled back does not answer meanwhile."""
    monkeypatch.setattr("contract.release.REMOVED_S", math.inf)
    file.write_text(Release(3, previous=4).to_json())
    assert order(client)[0] == 3
    path = file if missing == "file" else file.parent
    away = path.rename(path.with_name("away"))
    assert order(client)[0] == client.newest().number == 3
    assert f"{path} is not there" in (client.health.release_error or "")
    away.rename(path)
    assert order(client)[0] == 3 and client.health.release_error is None
    file.unlink()
    monkeypatch.setattr("contract.release.REMOVED_S", 0.0)
    assert order(client)[0] == 4 and client.health.release_error is None


def test_stable_version_that_the_gate_refused_is_not_followed(
    client: Versions, server: FakeModelServer, golden: list[bytes], file: Path
) -> None:
    """The gate has the last word. What answered before goes on, but a gateway that starts has nothing to go on with."""
    assert order(client) == [4, 3, 2, 1]
    server.versions[5] = FakeVersion.of(golden, predict=lambda pixels: 1 / (3 + 0 * pixels[:, 0, 0]))
    server.versions[5].predict = server.versions[4].predict
    file.write_text(Release(5).to_json())
    assert order(client) == [4, 3, 2, 1]
    assert "version 5 as stable" in (client.health.release_error or "")
    client._following = Following(str(file))
    assert order(client) == []


def test_trial_begins_once_its_version_is_accepted(
    client: Versions, server: FakeModelServer, golden: list[bytes], file: Path
) -> None:
    """Until then the document is followed, and the missing version is named."""
    file.write_text(Release(4, trial=Trial(5, "shadow")).to_json())
    assert order(client)[0] == 4
    assert client.trial() is None
    assert "tries version 5" in (client.health.release_error or "")
    server.versions[5] = FakeVersion.of(golden)
    assert order(client)[0] == 4
    active = client.trial()
    assert active
    assert (active.version.number, active.trial.mode) == (5, "shadow")
    assert client.health.release_error is None


@pytest.mark.parametrize(("recent_s", "looks"), [(60.0, 20), (0.0, 1)], ids=["often", "seldom"])
def test_a_replica_without_the_stable_version_changes_nothing(
    client: Versions, server: FakeModelServer, file: Path, monkeypatch: pytest.MonkeyPatch, recent_s: float, looks: int
) -> None:
    """Looks in a row may reach it: the trial goes on, and nothing alerts. After a while, the version is gone.

    However seldom looks are, one that does not meet it is not enough.
    """
    for limit in ("RECENT_S", "FORGET_AFTER_S"):
        monkeypatch.setattr(f"gateway.model.exports.{limit}", recent_s)
    file.write_text(Release(3, trial=Trial(4, "shadow"), previous=2).to_json())
    assert order(client)[0] == 3
    del server.versions[3]
    for _ in range(looks):
        assert order(client)[0] == client.newest().number == 3
        assert client.trial() and client.health.release_error is None
    monkeypatch.setattr("gateway.model.exports.RECENT_S", 0.0)
    assert order(client)[0] == client.newest().number == 2
    assert "version 3 as stable" in (client.health.release_error or "")


HELD_BACK = {"in shadow": Release(3, 7, trial=Trial(4, "shadow")), "rolled back": Release(3, 7, previous=4)}


@pytest.mark.parametrize("release", HELD_BACK.values(), ids=HELD_BACK)
def test_what_is_held_back_does_not_answer_where_a_replica_lacks_the_stable_version(
    server: FakeModelServer, file: Path, golden: list[bytes], release: Release
) -> None:
    """The other replica answers all requests; they take turns."""
    versions = {number: FakeVersion.of(golden) for number in (3, 4)}
    server.versions, other = dict(versions), FakeModelServer(dict(versions))
    file.write_text(release.to_json())
    client = Versions(Settings(model_address=both(server, other), model_name="tiny", release_file=str(file)))
    try:
        assert order(client) == [3, 4]
        del other.versions[3]
        assert {ask(client)[0] for _ in range(20)} == {3}
        assert client.health.ready
    finally:
        client.close()
        other.stop()


@pytest.mark.parametrize(
    ("release", "then"),
    [
        (Release(3, 7), Release(3, 7)),
        (Release(3, 7, trial=Trial(4, "share", 1e-9)), Release(3, 7, trial=Trial(4, "share", 1e-9))),
        (Release(3, 7), Release(9, 9, previous=4)),
    ],
    ids=["by image", "beyond its share", "promoted, and another before it was loaded"],
)
def test_another_newer_version_answers_at_once(
    client: Versions,
    server: FakeModelServer,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: Release,
    then: Release,
) -> None:
    """While nothing else is loaded, also before a look has noticed."""
    file.write_text(release.to_json())
    assert order(client)[0] == 3
    file.write_text(then.to_json())
    server.versions = {4: server.versions[4]}
    assert ask(client)[0] == 4
    for limit in ("RECENT_S", "FORGET_AFTER_S"):
        monkeypatch.setattr(f"gateway.model.exports.{limit}", 0.0)
    client._look_again()
    assert order(client) == [4] and client.health.ready and bool(client.trial()) == bool(release.trial)
    assert ask(client)[0] == client.newest().number == 4


@pytest.mark.parametrize("release", HELD_BACK.values(), ids=HELD_BACK)
def test_what_is_held_back_answers_once_the_stable_version_was_missed_for_long(
    client: Versions, server: FakeModelServer, file: Path, monkeypatch: pytest.MonkeyPatch, release: Release
) -> None:
    """A model server that restarts may load it first. What is older answers at once."""
    for limit in ("RECENT_S", "FORGET_AFTER_S"):
        monkeypatch.setattr(f"gateway.model.exports.{limit}", 0.0)
    all_versions = server.versions
    file.write_text(release.to_json())
    for wait_s, loaded, answers in ((math.inf, (2, 4), 2), (math.inf, (4,), None), (0.0, (2, 4), 2), (0.0, (4,), 4)):
        monkeypatch.setattr("gateway.model.following.LOADING_S", wait_s)
        server.versions = all_versions
        assert order(client)[0] == client.newest().number == 3 and client.health.ready
        server.versions = {number: all_versions[number] for number in loaded}
        client._look_again()  # and again, as one look that does not meet a version is not enough
        assert set(order(client)) == set(loaded) and bool(client.trial()) == bool(release.trial)
        assert "version 3 as stable" in (client.health.release_error or "")
        assert client.health.ready == bool(answers)
        if answers:
            assert ask(client)[0] == client.newest().number == answers
            continue
        assert "version 3 as stable" in (client.health.error or "")
        with pytest.raises(ModelUnavailable):
            ask(client)


def test_at_a_start_nothing_answers_before_the_stable_version(
    client: Versions, server: FakeModelServer, file: Path, golden: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a version that is only tried would answer all requests. After a while, the one that answered before does."""
    del server.versions[3]
    server.unloaded = [LOADING]
    file.write_text(Release(3, serial=7, trial=Trial(4, "shadow"), previous=2).to_json())
    assert order(client) == []
    assert "version 3 as stable" in (client.health.error or "")
    monkeypatch.setattr("gateway.model.following.LOADING_S", 0.2)
    client._following = Following(str(file))
    client._following.look([])
    time.sleep(0.3)  # a model server that comes late, or has loaded nothing yet, has as much time as one that was there
    assert order(client) == []
    time.sleep(0.3)
    assert order(client)[0] == 2 and client.trial() is None
    assert not client._following.lets_answer(4)
    assert "version 3 as stable" in (client.health.release_error or "")
    server.versions[3] = FakeVersion.of(golden)
    server.unloaded = []
    assert order(client)[0] == 3


def test_what_was_rolled_back_does_not_stand_in(
    client: Versions, server: FakeModelServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the one that was stable before, and nobody wants it back."""
    monkeypatch.setattr("gateway.model.following.LOADING_S", 0.0)
    del server.versions[3]
    for previous, answers in ((4, []), (2, [2, 1, 4])):
        file.write_text(Release(3, previous=previous).to_json())
        assert order(client) == answers


@pytest.mark.parametrize("text", ['{"stable": 2, "ser', '{"stable": 9}'])
def test_at_a_start_a_document_that_cannot_be_used_lets_nothing_answer(
    client: Versions, file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody promoted the newest version. `/readyz` says why, until the document is mended or removed."""
    file.write_text(text)
    assert order(client) == []
    app = create_app(Settings(model_name="tiny"), client, Metrics()).test_client()
    ready = app.get("/readyz")
    assert ready.status_code == app.post("/predict", json={"url": "http://none"}).status_code == 503
    assert str(file) in ready.get_json()["model"]["error"] and "nothing answers yet" in caplog.text
    file.write_text(Release(2).to_json())
    assert order(client)[0] == 2
    client._following = Following(str(file))
    file.unlink()
    assert order(client)[0] == 4


def test_gateway_shows_stable_and_trial(client: Versions, file: Path) -> None:
    """In `/model`, `/readyz` and the metrics; the answer names the version as before."""
    file.write_text(Release(3, serial=7, trial=Trial(4, "share", 0.25)).to_json())
    metrics = Metrics()
    client._on_health = metrics.show
    order(client)
    app = create_app(Settings(model_name="tiny"), client, metrics).test_client()
    model, ready = app.get("/model").get_json(), app.get("/readyz").get_json()
    assert (model["version"], model["trial"]["version"], model["trial"]["share"]) == (3, 4, 0.25)
    assert "golden" not in model["trial"]["contract"]
    assert ready["release"]["serial"] == 7
    assert ready["release_error"] is None
    assert b"gateway_release_serial 7.0" in metrics.render()
    file.write_text("{")
    order(client)
    assert b"gateway_release_refused 1.0" in metrics.render()
    assert str(file) in app.get("/readyz").get_json()["release_error"]
