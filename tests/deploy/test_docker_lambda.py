"""image-lambda.dockerfile, run by a Docker engine as Lambda runs it: `make test-docker`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Origin
from tests.programs.aws_lambda import EVENTS, REQUEST_ID, RuntimeApi, http_event
from tests.programs.containers import Container, bridge, clone, container, docker, has_engine, run
from tests.programs.photos import clock, encode, photo

pytestmark = [pytest.mark.docker, pytest.mark.tensorflow]

# Lambda's user has no rights, and nothing is writable but /tmp, which this image does not need either.
AS_LAMBDA = ("--read-only", "--user", "993:990", "--cap-drop", "ALL", "--memory", "256m", "--memory-swap", "256m")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The image, of a clean clone."""
    if not has_engine():
        pytest.skip("needs a Docker engine")
    run("make", "lambda-image", cwd=clone(tmp_path_factory.mktemp("clone")))


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """An image origin that containers reach; it has a drawing of a clock, and a photo of 12 megapixels."""
    with Origin(host=bridge()) as server:
        server.add("clock.jpg", encode(clock()))
        server.add("large.jpg", encode(photo(4000, 3000)))
        yield server


@pytest.fixture(scope="module")
def api() -> Iterator[RuntimeApi]:
    """Lambda's runtime API, where the container reaches it."""
    api = RuntimeApi(bridge())
    yield api
    api.close()


@contextmanager
def started(api: RuntimeApi, fetch_allow: str = "") -> Iterator[Container]:
    """Run a function of 256 MB; yield it when it waits for a first event."""
    variables = {"AWS_LAMBDA_RUNTIME_API": api.address, "GATEWAY_FETCH_ALLOW": fetch_allow}
    options = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    with container("lambda", *AS_LAMBDA, *options) as running:
        assert api.asked.wait(60), running.logs()
        yield running


@pytest.fixture(scope="module")
def function(api: RuntimeApi, origin: Origin) -> Iterator[Container]:
    """A function that may fetch from `origin`."""
    with started(api, origin.authority) as running:
        yield running


def ask(api: RuntimeApi, event: dict[str, object]) -> tuple[int, dict[str, object]]:
    """Return status and body of a function's answer."""
    path, answer = api.invoke(event)
    assert path == f"invocation/{REQUEST_ID}/response", answer
    return answer["statusCode"], json.loads(answer["body"])


def test_it_starts_in_under_two_seconds() -> None:
    """Of the processor's time, from nothing to the wait for a first event: the clock says little on a busy machine."""
    api = RuntimeApi(bridge())
    with started(api) as function:
        fields = function.run("cat", "/proc/1/stat", user="993").rpartition(")")[2].split()
    api.close()
    cpu_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    print(f"cold start: {cpu_s} s of the processor")
    assert 0 < cpu_s < 2


@pytest.mark.parametrize("event", EVENTS.values(), ids=list(EVENTS))
def test_each_front_door_gets_the_right_class(
    api: RuntimeApi, function: Container, origin: Origin, event: Callable[..., dict[str, object]]
) -> None:
    """An image URL to the gateway's answer."""
    body = json.dumps({"url": f"http://{origin.authority}/clock.jpg"}).encode()
    status, answer = ask(api, event("POST", "/predict", body, JSON))
    assert status == 200
    assert (answer["model"]["name"], answer["model"]["version"]) == ("imagenet", 0)
    assert answer["predictions"][0]["class"] == "analog_clock"


def test_it_stays_within_256_mb(api: RuntimeApi, function: Container, origin: Origin) -> None:
    """Also with photos of 12 megapixels, alone and as many as a request may have."""
    large = f"http://{origin.authority}/large.jpg"
    for body in ({"url": large}, {"urls": [large] * 8}):
        assert ask(api, http_event("POST", "/predict", json.dumps(body).encode(), JSON))[0] == 200
    (peak,) = (line for line in function.run("cat", "/proc/1/status", user="993").splitlines() if "VmHWM" in line)
    print(peak)
    assert int(peak.split()[1]) * 1024 < 256_000_000
    assert function.inspect("{{.State.OOMKilled}} {{.State.Running}}") == "false true"


def test_the_functions_own_surroundings_are_closed(api: RuntimeApi, function: Container) -> None:
    """Its runtime API has a private address, here as on Lambda."""
    url = f"http://{api.address}/2018-06-01/runtime/invocation/next"
    status, answer = ask(api, http_event("POST", "/predict", json.dumps({"url": url}).encode(), JSON))
    assert (status, answer["code"]) == (403, "url_not_allowed")


def test_the_image_is_small_and_holds_no_more_than_it_runs() -> None:
    """Under 150 MB on top of its base, model included; no TensorFlow, no gRPC, no compiler."""
    history = docker("history", "--human=false", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}",
                     "image-classifier-lambda:test").splitlines()  # fmt: skip
    (first,) = [i for i, line in enumerate(history) if "COPY /opt/venv" in line]
    added = sum(int(line.split()[0]) for line in history[: first + 1])
    print(f"{added / 1e6:.0f} MB on top of its base")
    assert 50_000_000 < added < 150_000_000
    script = """
import importlib.util, shutil
print(any(map(importlib.util.find_spec, ("tensorflow", "grpc"))), any(map(shutil.which, ("gcc", "cc", "clang"))))
"""
    options = ("--rm", "--entrypoint", "python", "image-classifier-lambda:test")
    assert docker("run", *options, "-c", script) == "False False"
