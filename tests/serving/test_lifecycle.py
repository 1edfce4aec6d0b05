"""serving/lifecycle.py: what is loaded while directories come and go, with a fake load at the engine seam."""

import gc
import logging
import math
import shutil
import threading
import time
import weakref
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from contract.release import Release, Trial
from serving.errors import NotFoundError
from serving.lifecycle import AVAILABLE, END, LOADING, UNLOADING, Lifecycle
from serving.settings import Settings
from tests.programs.stack import wait_until


class Loader:
    """A load that reads `broken` from the directory, and counts."""

    def __init__(self):
        self.attempts = []

    def __call__(self, directory):
        self.attempts.append(directory.name)
        if (directory / "broken").exists():
            raise NotFoundError(f"no model in {directory.name}")
        return SimpleNamespace(choice=f"{directory.name} by choice")


@pytest.fixture
def store(tmp_path):
    """A base path, and a function that puts a version into it."""

    def put(name, broken=False, model="m"):
        staging = tmp_path / "staging"
        staging.mkdir(parents=True)
        if broken:
            (staging / "broken").touch()
        (tmp_path / model).mkdir(exist_ok=True)
        staging.rename(tmp_path / model / str(name))

    put.path = tmp_path / "m"
    put.path.mkdir()
    return put


@pytest.fixture
def start(store):
    """A function that starts a lifecycle over the store; stopped at the end."""
    started = []

    def start_(load, policy="latest { num_versions: 1 }", models=("m",), **options):
        policy = text_format.Parse(policy, messages.VersionPolicy())
        home = store.path.parent
        configs = tuple(
            messages.ModelConfig(name=name, base_path=str(home / name), model_version_policy=policy) for name in models
        )
        often = Settings(
            models=configs,
            file_system_poll_wait_seconds=0.01,
            max_num_load_retries=1,
            load_retry_interval_micros=20_000,
        )
        lifecycle = Lifecycle(replace(often, **options), load)
        lifecycle.poll()  # what lies there now is seen, whatever a test puts beside it next
        lifecycle.start()
        started.append(lifecycle)
        return lifecycle

    yield start_
    for lifecycle in started:
        lifecycle.stop()


def states(lifecycle, name="m"):
    try:
        return [(version.version, version.state) for version in lifecycle.status(name)]
    except NotFoundError:
        return []


def newest(lifecycle, name="m"):
    with lifecycle.use(name) as (number, _):
        return number


def test_a_negative_wait_never_looks(store, caplog):
    """As in TensorFlow Serving; the log says why nothing is loaded."""
    store(1)
    model = messages.ModelConfig(name="m", base_path=str(store.path))
    lifecycle = Lifecycle(Settings(models=(model,), file_system_poll_wait_seconds=-1.0), Loader())
    lifecycle.start()
    wait_until(lambda: not any(thread.name == "versions" for thread in threading.enumerate()))
    lifecycle.stop()
    assert "No versions are loaded, because" in caplog.text and states(lifecycle) == []


def test_a_wait_may_be_longer_than_a_thread_can_wait(store, start):
    """The thread that looks waits for as long as it can, and still ends with the lifecycle."""
    store(1)
    lifecycle = start(Loader(), file_system_poll_wait_seconds=1e10)
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    lifecycle.stop()
    wait_until(lambda: not any(thread.name == "versions" for thread in threading.enumerate()))


@pytest.mark.parametrize("in_use", [False, True])
def test_an_engine_made_of_cycles_is_gone_after_a_swap(store, start, in_use):
    """Also one that a request still used when it was to be unloaded, which waits for the request."""

    class Cyclic:
        choice = ""

        def __init__(self, directory):
            self.self = self

    store(1)
    lifecycle = start(Cyclic)
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    with ExitStack() as request:
        _, engine = request.enter_context(lifecycle.use("m"))
        old = weakref.ref(engine)
        if not in_use:
            request.close()
        gc.collect()  # so that no other collection is due soon
        del engine
        store(2)
        wait_until(lambda: states(lifecycle) == [(2, AVAILABLE), (1, UNLOADING if in_use else END)])
    assert states(lifecycle) == [(2, AVAILABLE), (1, END)]
    wait_until(lambda: old() is None)


def test_a_rollback_loads_before_it_unloads(store, start):
    """Under `latest 1`, the older version is loaded again before the newer one goes; without any, nothing answers."""
    store(1)
    store(2)
    loader = Loader()
    lifecycle = start(loader)
    wait_until(lambda: states(lifecycle) == [(2, AVAILABLE)])
    shutil.rmtree(store.path / "2")
    wait_until(lambda: states(lifecycle) == [(2, END), (1, AVAILABLE)])
    assert loader.attempts == ["2", "1"]
    shutil.rmtree(store.path / "1")
    wait_until(lambda: states(lifecycle) == [(2, END), (1, END)])
    with pytest.raises(NotFoundError, match=r"Servable not found for request: Latest\(m\)"):
        newest(lifecycle)
    store(2)
    wait_until(lambda: states(lifecycle) == [(2, AVAILABLE), (1, END)])


def test_a_missing_base_path_skips_the_poll_for_all_models(store, start, caplog):
    """As in the original, nobody gets or loses a version: an empty one wants none, but a missing one is an accident."""
    store(1)
    store(1, model="other")
    lifecycle = start(Loader(), models=("m", "other"))
    wait_until(lambda: states(lifecycle) == states(lifecycle, "other") == [(1, AVAILABLE)])
    with caplog.at_level(logging.ERROR):
        (store.path.parent / "other").rename(store.path.parent / "away")
        store(2)
        lifecycle.poll()
    assert "Could not find base path" in caplog.text and "for servable other" in caplog.text
    assert states(lifecycle) == states(lifecycle, "other") == [(1, AVAILABLE)]


def test_a_broken_version_is_retried_and_then_given_up(store, start):
    """After its retries a version is END with the error of the load, and the old version still answers."""
    store(1)
    loader = Loader()
    lifecycle = start(loader, max_num_load_retries=2)
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    store(2, broken=True)
    wait_until(lambda: states(lifecycle) == [(2, END), (1, AVAILABLE)])
    time.sleep(0.05)
    assert loader.attempts == ["1", "2", "2", "2"]
    (status,) = lifecycle.status("m", 2)
    assert (status.status.error_code, status.status.error_message) == (5, "no model in 2")
    assert newest(lifecycle) == 1


def test_a_failed_version_is_tried_again_after_it_was_away(store, start):
    """Mending a failed version in place changes nothing; taking it out for a poll and putting it back does."""
    store(1)
    loader = Loader()
    lifecycle = start(loader)
    store(2, broken=True)
    wait_until(lambda: states(lifecycle)[0] == (2, END))
    (store.path / "2" / "broken").unlink()
    lifecycle.poll()
    assert states(lifecycle)[0] == (2, END)
    (store.path / "2").rename(store.path / "mending")
    lifecycle.poll()
    assert not lifecycle.status("m", 2)[0].status.error_code
    (store.path / "mending").rename(store.path / "2")
    wait_until(lambda: states(lifecycle) == [(2, AVAILABLE), (1, END)])


@pytest.mark.parametrize("micros", [60_000_000, 2**63 - 1])
def test_a_waiting_retry_holds_up_nothing(store, start, micros):
    """While version 2 waits a minute or for ever for its retry, version 3 and another model load at once."""
    store(1)
    store(1, model="other")
    lifecycle = start(Loader(), models=("m", "other"), load_retry_interval_micros=micros)
    store(2, broken=True)
    wait_until(lambda: (2, LOADING) in states(lifecycle))
    store(3)
    store(2, model="other")
    wait_until(lambda: (3, AVAILABLE) in states(lifecycle))
    wait_until(lambda: (2, AVAILABLE) in states(lifecycle, "other"))
    wait_until(lambda: states(lifecycle) == [(3, AVAILABLE), (2, END), (1, END)], show=lambda: states(lifecycle))


def test_an_unexpected_error_is_a_failed_load(store, start, caplog):
    """An exception that no engine should raise becomes an error in the status, and later versions still load."""
    caplog.set_level(logging.CRITICAL)

    def load(directory):
        if directory.name == "1":
            raise ZeroDivisionError("oops")
        return SimpleNamespace(choice="")

    store(1)
    lifecycle = start(load, max_num_load_retries=0)
    wait_until(lambda: states(lifecycle) == [(1, END)])
    assert lifecycle.status("m")[0].status.error_message == "ZeroDivisionError: oops"
    store(2)
    wait_until(lambda: (2, AVAILABLE) in states(lifecycle))


def test_waiting_ends_when_every_model_has_a_version(store, start):
    """The start waits for a model without versions, and ends with its first one."""
    store(1)
    (store.path.parent / "late").mkdir()
    lifecycle = start(Loader(), models=("m", "late"))
    result = []
    thread = threading.Thread(target=lambda: result.append(lifecycle.wait_until_available(threading.Event())))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    store(1, model="late")
    thread.join(5)
    assert result == [True]


def test_release_document_decides_what_stays_loaded(store, start, caplog, monkeypatch):
    """Stable, trial and previous, whatever the policy says; a bad document changes nothing; without one, the policy."""
    monkeypatch.setattr("contract.release.REMOVED_S", math.inf)
    for number in (1, 2, 3, 4, 5):
        store(number)
    file = store.path / "release.json"
    file.write_text(Release(2, trial=Trial(4, "shadow"), previous=1).to_json())
    loader = Loader()
    lifecycle = start(loader)

    def available():
        return {number for number, state in states(lifecycle) if state == AVAILABLE}

    wait_until(lambda: available() == {1, 2, 4})
    assert loader.attempts[0] == "2"  # so that it answers first
    for text in ("{", '{"stable": 9}'):
        file.write_text(text)
        wait_until(lambda: "is not followed" in caplog.text)
        assert available() == {1, 2, 4}
        caplog.clear()
    file.write_text(Release(3, previous=2).to_json())
    wait_until(lambda: available() == {2, 3})
    file.unlink()
    wait_until(lambda: "is not there, which counts after" in caplog.text)
    assert available() == {2, 3}
    monkeypatch.setattr("contract.release.REMOVED_S", 0.0)
    wait_until(lambda: available() == {5})


def test_a_document_without_its_stable_version_counts_after_a_start(store, start, caplog):
    """A gateway waits for the version that was stable before, which is loaded; one that came later is not."""
    caplog.set_level(logging.INFO)
    for number in (1, 5, 6):
        store(number)
    (store.path / "release.json").write_text(Release(7, previous=1).to_json())
    lifecycle = start(Loader())
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    assert "is not followed: Version 7, which it names as stable, is not there" in caplog.text
    store(7)
    wait_until(lambda: "Servable m follows its release document: Release(stable=7" in caplog.text)


@pytest.mark.parametrize("is_running", [True, False])
def test_a_document_without_its_stable_version_takes_no_answer_away(store, start, is_running):
    """Neither from a server that runs without a document, nor for a version that is only tried."""
    for number in (1, 5, 6):
        store(number)
    file = store.path / "release.json"
    document = Release(7, trial=Trial(5, "shadow"), previous=1 if is_running else None).to_json()
    if not is_running:
        file.write_text(document)
    lifecycle = start(Loader(), file_system_poll_wait_seconds=-1)
    wait_until(lambda: states(lifecycle) == [(6, AVAILABLE)])
    file.write_text(document)
    lifecycle.poll()
    assert states(lifecycle) == [(6, AVAILABLE)]


@pytest.mark.parametrize("document", [Release(1).to_json(), "{"])
def test_what_an_earlier_document_named_counts_no_more(store, start, caplog, monkeypatch, document):
    """The specific policy is as old as the start: without the document the newest two stay, and none is missed."""
    monkeypatch.setattr("contract.release.REMOVED_S", 0.0)
    for number in (1, 2, 3):
        store(number)
    file = store.path / "release.json"
    file.write_text(document)
    lifecycle = start(Loader(), policy="specific { versions: 1 versions: 9 }", file_system_poll_wait_seconds=-1)
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    caplog.clear()
    file.unlink()
    lifecycle.poll()
    wait_until(lambda: {number for number, state in states(lifecycle) if state == AVAILABLE} == {2, 3})
    assert "not found" not in caplog.text


def test_a_document_that_could_not_be_read_leaves_the_policy(store, start):
    """Perhaps there was none: a disk may fail for a moment."""
    for number in (1, 2):
        store(number)
    file = store.path / "release.json"
    file.mkdir()
    lifecycle = start(Loader(), policy="specific { versions: 1 }", file_system_poll_wait_seconds=-1)
    wait_until(lambda: states(lifecycle) == [(1, AVAILABLE)])
    file.rmdir()
    lifecycle.poll()
    assert states(lifecycle) == [(1, AVAILABLE)]
