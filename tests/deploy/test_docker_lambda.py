"""image-lambda.dockerfile, run by a Docker engine as Lambda runs it: `make test-docker`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Origin
from tests.programs.aws_lambda import EVENTS, REQUEST_ID, RuntimeApi, http_event
from tests.programs.containers import Container, bridge, container

pytestmark = [pytest.mark.docker, pytest.mark.tensorflow, pytest.mark.usefixtures("repository")]

# Lambda's user has no rights, and nothing is writable but /tmp, which this image does not need either.
AS_LAMBDA = ("--read-only", "--user", "993:990", "--cap-drop", "ALL", "--memory", "256m", "--memory-swap", "256m")
JSON = {"Content-Type": "application/json"}


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
def function(api: RuntimeApi, images: Origin) -> Iterator[Container]:
    """A function that may fetch from `images`."""
    with started(api, images.authority) as running:
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
    api: RuntimeApi, function: Container, images: Origin, event: Callable[..., dict[str, object]]
) -> None:
    """An image URL to the gateway's answer."""
    body = json.dumps({"url": f"http://{images.authority}/clock.jpg"}).encode()
    status, answer = ask(api, event("POST", "/predict", body, JSON))
    assert status == 200
    assert (answer["model"]["name"], answer["model"]["version"]) == ("imagenet", 0)
    assert answer["predictions"][0]["class"] == "analog_clock"


def test_it_stays_within_256_mb(api: RuntimeApi, function: Container, images: Origin) -> None:
    """Also with photos of 12 megapixels, alone and as many as a request may have."""
    large = f"http://{images.authority}/large.jpg"
    for body in ({"url": large}, {"urls": [large] * 8}):
        assert ask(api, http_event("POST", "/predict", json.dumps(body).encode(), JSON))[0] == 200
    (peak,) = (line for line in function.run("cat", "/proc/1/status", user="993").splitlines() if "VmHWM" in line)
    print(peak)
    assert int(peak.split()[1]) * 1024 < 256_000_000
    assert function.inspect("{{.State.OOMKilled}} {{.State.Running}}") == "false true"


def test_the_image_is_small_and_contains_no_more_than_it_runs(
    added_bytes: Callable[[str], int], ask_python: Callable[[str, str], list[str]]
) -> None:
    """Under 150 MB on top of its base, model included; no TensorFlow, no gRPC, no compiler."""
    print(f"{added_bytes('lambda') / 1e6:.0f} MB on top of its base")
    assert 50_000_000 < added_bytes("lambda") < 150_000_000
    script = """
import importlib.util, shutil
print(any(map(importlib.util.find_spec, ("tensorflow", "grpc"))), any(map(shutil.which, ("gcc", "cc", "clang"))))
"""
    assert ask_python("lambda", script) == ["False", "False"]
