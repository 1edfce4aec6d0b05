"""Loads and unloads versions as they come and go on disk, without ever leaving a model unanswered in between.

One thread looks at the disk, one thread for each model loads and unloads, and requests only take a lock.

A version goes START -> LOADING -> AVAILABLE -> UNLOADING -> END. One that cannot be loaded goes from LOADING to END,
with its error.

Source: tensorflow/serving 2.20, core/availability_preserving_policy.cc and core/basic_manager.cc, for the transitions.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract import messages_pb2 as messages
from contract.messages_pb2 import Code
from contract.release import FILE_NAME, Release, ReleaseError, ReleaseFile
from contract.store import find_versions
from serving.engines import Engine
from serving.errors import NotFoundError, ServingError
from serving.settings import Settings
from serving.versions import choose_versions

START = messages.ModelVersionStatus.START
LOADING = messages.ModelVersionStatus.LOADING
AVAILABLE = messages.ModelVersionStatus.AVAILABLE
UNLOADING = messages.ModelVersionStatus.UNLOADING
END = messages.ModelVersionStatus.END

LET_GO_S = 0.1  # so that the request that used a version last lets go of it before garbage is collected

log = logging.getLogger(__name__)


@dataclass
class _Version:
    """One life of a version; if its directory comes back after the end, a new one takes its place."""

    number: int
    directory: Path
    state: messages.ModelVersionStatus.State = START
    wanted: bool = True
    engine: Engine | None = None
    users: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    # Not the exception: its traceback would keep alive what was loaded by then.
    error: messages.StatusProto | None = None

    def end(self, error: messages.StatusProto | None = None) -> None:
        self.state, self.error, self.engine = END, error, None


class Lifecycle:
    """The versions of every configured model, from the start of the process to its end.

    Args:
        settings: Which models to serve, how often to look at the disk, and how often to try a load again.
        load: Turns a version's directory into an engine; called outside of every lock.
    """

    def __init__(self, settings: Settings, load: Callable[[Path], Engine]) -> None:
        self._models, self._settings, self._load = settings.models, settings, load
        self._versions: dict[str, dict[int, _Version]] = {model.name: {} for model in settings.models}
        self._release_files = {model.name: ReleaseFile(Path(model.base_path, FILE_NAME)) for model in settings.models}
        self._releases: dict[str, Release | None] = {}
        self._release_problems: dict[str, ReleaseError] = {}
        self._changed = threading.Condition()  # guards everything in _versions, and _ended
        self._ended = False  # whether a version has ended since garbage was last collected
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start to look for versions and to load them."""
        threading.Thread(target=self._watch, name="versions", daemon=True).start()
        for model in self._models:
            threading.Thread(target=self._work, args=(model.name,), name=f"load-{model.name}", daemon=True).start()

    def stop(self) -> None:
        """Stop loading and unloading; what is loaded stays usable. A load under way is not waited for."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def wait_until_available(self, cancelled: threading.Event) -> bool:
        """Wait until every model has an available version, and return True; return False if cancelled before.

        A model without a version on disk is waited for, too.

        Raises:
            ServingError: Every version of a model has failed for good.
        """
        while not cancelled.is_set():
            with self._changed:
                waiting = [name for name, versions in self._versions.items() if not _available(versions)]
                if not waiting:
                    return True
                failed = {name: failure for name in waiting if (failure := _failure(self._versions[name]))}
                if len(failed) < len(waiting):
                    self._changed.wait(0.1)  # so that a signal, which sets `cancelled`, is seen soon
                    continue
            errors = "".join(
                f"{{{{name: {name} version: {number}}} due to error: {_text(error)}}}, "
                for name, (number, error) in failed.items()
            )
            raise ServingError(f"{len(failed)} servable(s) did not become available: {{{errors}}}")
        return False

    @contextmanager
    def use(self, name: str, number: int | None = None) -> Iterator[tuple[int, Engine]]:
        """Lend the given version, or else the newest available one, to one request: its number and its engine.

        Raises:
            NotFoundError: There is no such model, or it has no such version available.
        """
        with self._changed:
            available = _available(self._versions.get(name, {}))
            version = available.get(max(available, default=0) if number is None else number)
            if version is None or version.engine is None:  # an available one always has its engine
                wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise NotFoundError(f"Servable not found for request: {wanted}")
            version.users += 1
            engine = version.engine
        try:
            yield version.number, engine
        finally:
            with self._changed:
                version.users -= 1
                self._finish_unload(name, version)

    def status(self, name: str, number: int | None = None) -> list[messages.ModelVersionStatus]:
        """Return the state of one version, or of every version that this process has seen, highest first.

        Raises:
            NotFoundError: The process has never seen such a version.
        """
        with self._changed:
            versions = self._versions.get(name, {})
            if number is None and not versions:
                raise NotFoundError(f"Could not find any versions of model {name}")
            if number is not None and number not in versions:
                raise NotFoundError(f"Could not find version {number} of model {name}")
            numbers = sorted(versions, reverse=True) if number is None else [number]
            return [_status(versions[n]) for n in numbers]

    def poll(self) -> None:
        """Look at the disk once; as in the original, a base path that cannot be read skips the look for all models."""
        found: dict[str, dict[int, Path]] = {}
        for model in self._models:
            try:
                found[model.name] = find_versions(Path(model.base_path))
            except OSError as exc:
                log.error("Could not find base path %s for servable %s (%s)", model.base_path, model.name, exc.strerror)
                return
            self._follow_release(model, found[model.name])
            _warn_of_missing(model, found[model.name])
        with self._changed:
            for model in self._models:
                on_disk = found[model.name]
                release = self._releases.get(model.name)
                wanted = release.versions & set(on_disk) if release else choose_versions(on_disk, model)
                _want(self._versions[model.name], {number: on_disk[number] for number in wanted})
            self._changed.notify_all()

    def _follow_release(self, model: messages.ModelConfig, on_disk: Mapping[int, Path]) -> None:
        """Read the release document beside the versions; a bad one, or one without its stable version, changes nothing.

        Only the first since the start counts without it, if the previous one is there: a gateway may wait for that.

        TensorFlow Serving has no such file: it follows the `specific` policy of a configuration file. Once there was a
        document, such a policy says what an earlier one named, so it counts no more.
        """
        try:
            release = self._release_files[model.name].read()
            if release and release.stable not in on_disk:
                if release.previous in on_disk:
                    self._releases.setdefault(model.name, release)
                raise ReleaseError(f"Version {release.stable}, which it names as stable, is not there")
        except ReleaseError as exc:
            if str(exc) != str(self._release_problems.get(model.name)):
                log.error("The release document of servable %s is not followed: %s", model.name, exc)
            self._release_problems[model.name] = exc
            return
        problem = self._release_problems.pop(model.name, None)
        if problem or release != self._releases.get(model.name):
            log.info("Servable %s follows its release document: %s", model.name, release or "there is none any more")
        self._releases[model.name] = release
        was_there = release or (problem and not isinstance(problem.__cause__, OSError))  # a disk may fail without one
        if was_there and model.model_version_policy.HasField("specific"):
            model.ClearField("model_version_policy")

    def _watch(self) -> None:
        wait_s = self._settings.file_system_poll_wait_seconds
        if wait_s < 0:
            log.warning("No versions are loaded, because --file_system_poll_wait_seconds is below 0")
            return
        while not self._stopped.is_set():
            self.poll()
            if wait_s == 0:
                return
            self._stopped.wait(min(wait_s, threading.TIMEOUT_MAX))

    def _work(self, name: str) -> None:
        versions = self._versions[name]
        while not self._stopped.is_set():
            with self._changed:
                unloaded = self._unload_unwanted(name)
                version = _next_to_load(versions, self._releases.get(name))
                if version is None and not unloaded and not self._ended:
                    self._changed.wait(_until_retry_s(versions))
                    continue
                if version is not None:
                    version.state = LOADING
                ended, self._ended = self._ended, False
            if ended:
                # A TensorFlow model is full of reference cycles: eight swaps of MobileNetV2 left 740 MB behind, and
                # 120 MB with a collection. It takes 0.2 s, and 0.01 s in a process that only runs TFLite.
                self._stopped.wait(LET_GO_S)
                gc.collect()
            if version is not None:
                self._attempt(name, version)

    def _attempt(self, name: str, version: _Version) -> None:
        log.info("Loading servable version {name: %s version: %d}", name, version.number)
        engine, error = None, None
        try:
            engine = self._load(version.directory)
        except ServingError as exc:
            error = messages.StatusProto(error_code=exc.code, error_message=str(exc))
        except Exception as exc:  # whatever an engine raises, it must not end this thread
            log.exception("Unexpected error while loading {name: %s version: %d}", name, version.number)
            error = messages.StatusProto(error_code=Code.UNKNOWN, error_message=f"{type(exc).__name__}: {exc}")
        tries = self._settings.max_num_load_retries + 1
        with self._changed:
            version.attempts += 1
            if not version.wanted or (error and version.attempts >= tries):
                version.end(error)
            elif error:
                wait_s = min(self._settings.load_retry_interval_micros / 1e6, threading.TIMEOUT_MAX)
                version.error, version.retry_at = error, time.monotonic() + wait_s
            else:
                version.state, version.engine, version.error = AVAILABLE, engine, None
            self._changed.notify_all()
        if error:
            log.error(
                "Loading servable: {name: %s version: %d} failed: %s (attempt %d of %d)",
                name, version.number, _text(error), version.attempts, tries,
            )  # fmt: skip
        else:
            log.info("Successfully loaded servable version {name: %s version: %d}", name, version.number)

    def _unload_unwanted(self, name: str) -> bool:
        """Unload one version if that leaves the model with an answer, or if no version is wanted at all."""
        versions = self._versions[name].values()
        for version in versions:
            if version.state in (START, LOADING) and not version.wanted:
                version.end(version.error)
        available = _available(self._versions[name])
        unwanted = [number for number, version in available.items() if not version.wanted]
        if not unwanted or (len(available) == 1 and any(version.wanted for version in versions)):
            return False
        oldest = available[min(unwanted)]
        oldest.state = UNLOADING
        self._finish_unload(name, oldest)
        return True

    def _finish_unload(self, name: str, version: _Version) -> None:
        if version.state == UNLOADING and version.users == 0:
            version.end()
            self._ended = True
            self._changed.notify_all()
            log.info("Unloaded servable version {name: %s version: %d}", name, version.number)


def _warn_of_missing(model: messages.ModelConfig, on_disk: Mapping[int, Path]) -> None:
    if not on_disk:
        hint = "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        log.warning("No versions of servable %s found under base path %s. %s", model.name, model.base_path, hint)
    elif missing := set(model.model_version_policy.specific.versions) - set(on_disk):
        log.warning("Version(s) %s of servable %s not found under %s", sorted(missing), model.name, model.base_path)


def _want(versions: dict[int, _Version], directories: Mapping[int, Path]) -> None:
    for number, version in versions.items():
        version.wanted = version.wanted and number in directories
    for number, directory in directories.items():
        known = versions.get(number)
        if known is None or (known.state == END and not known.wanted):
            versions[number] = _Version(number, directory)
        elif known.wanted or known.state == AVAILABLE:
            known.wanted, known.directory = True, directory
        # Otherwise it is being unloaded; a later look finds it ended, and starts a new life.


def _next_to_load(versions: Mapping[int, _Version], release: Release | None) -> _Version | None:
    """Return the version that loads next: the stable one, or else the newest."""
    now = time.monotonic()
    due = [v for v in versions.values() if v.wanted and v.state in (START, LOADING) and v.retry_at <= now]
    stable = release.stable if release else None
    return max(due, key=lambda version: (version.number == stable, version.number), default=None)


def _until_retry_s(versions: Mapping[int, _Version]) -> float | None:
    waits = [version.retry_at - time.monotonic() for version in versions.values() if version.state == LOADING]
    return max(0.0, min(waits)) if waits else None


def _available(versions: Mapping[int, _Version]) -> dict[int, _Version]:
    return {number: version for number, version in versions.items() if version.state == AVAILABLE}


def _failure(versions: Mapping[int, _Version]) -> tuple[int, messages.StatusProto] | None:
    """Return the newest version and its error, if every wanted version has ended with one."""
    wanted = {number: version.error for number, version in versions.items() if version.wanted}
    ended = all(versions[number].state == END for number in wanted)
    error = wanted[max(wanted)] if wanted and ended else None
    return (max(wanted), error) if error else None


def _text(error: messages.StatusProto) -> str:
    return f"{Code.Name(error.error_code)}: {error.error_message}"


def _status(version: _Version) -> messages.ModelVersionStatus:
    # The error of a version that will be tried again is not the client's concern yet. That of a version whose directory
    # is gone is none any more; TensorFlow Serving shows it until it restarts.
    error = version.error if version.state == END and version.wanted and version.error else messages.StatusProto()
    engine = version.engine.choice or None if version.engine else None
    return messages.ModelVersionStatus(version=version.number, state=version.state, status=error, engine=engine)
