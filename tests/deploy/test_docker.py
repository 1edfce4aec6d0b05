"""The images and docker-compose.yaml, built from a clean clone and run by a Docker engine: `make test-docker`."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract.tensor import to_array, to_proto
from tests.conftest import ROOT, Origin, run_export
from tests.programs.containers import ENVIRON, Container, Stack, compose, container, docker, run, stack
from tests.programs.photos import clock, encode, photo
from tests.programs.stack import UNCONNECTED, Gateway, Load, free_port, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.tensorflow, pytest.mark.usefixtures("repository")]

LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")


@pytest.fixture(scope="module")
def running(repository: Path, images: Origin) -> Iterator[Stack]:
    """The stack of a clean clone, ready, allowed to fetch from `images`."""
    with stack(repository, GATEWAY_FETCH_ALLOW=images.authority) as running:
        running.gateway.wait_until_ready()
        yield running


@pytest.fixture
def clock_url(images: Origin) -> str:
    """Where the clock is."""
    return f"http://{images.authority}/clock.jpg"


def ask_clock(port: int) -> str:
    """Send the clock itself; return the most probable class."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", encode(clock()), {"Content-Type": "image/jpeg"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["predictions"][0]["class"])


def test_compose_builds_the_same_images(repository: Path) -> None:
    """`docker compose build` takes the same files and bases as `make images`."""
    names = ("image-classifier-model:test", "image-classifier-gateway:test")
    built = docker("inspect", "--format", "{{.Id}}", *names)
    run(*compose(), "build", cwd=repository)
    assert docker("inspect", "--format", "{{.Id}}", *names) == built


def test_a_clean_clone_answers_an_image_url_with_the_right_class(running: Stack, clock_url: str) -> None:
    """Its empty model-store was given the ImageNet model, which belongs to the owner of the store."""
    status, answer = running.gateway.predict(clock_url)
    assert status == 200
    assert (answer["model"]["name"], answer["model"]["version"]) == ("imagenet", 0)  # no release has that number
    assert answer["predictions"][0]["class"] == "analog_clock"
    version = running.store / "imagenet" / "0"
    assert {version.stat().st_uid, version.parent.stat().st_uid} == {running.store.stat().st_uid}
    assert [path.name for path in version.parent.iterdir()] == ["0"]


def test_rest_shows_the_status_and_the_contract(running: Stack) -> None:
    """The two commands of the README, at the port of this stack."""
    commands = re.findall(r"^curl .*8501.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    pasted = [command.replace("localhost:8501", f"127.0.0.1:{running.rest_port}") for command in commands]
    status, contract = (json.loads(run("bash", "-c", command)) for command in pasted)
    assert [(each["version"], each["state"]) for each in status["model_version_status"]] == [("0", "AVAILABLE")]
    assert json.loads(contract["predictions"][0])["classes"][409] == "analog_clock"


def test_neither_server_is_root(running: Stack) -> None:
    """Both run as 10001 without capabilities, on a read-only root."""
    for service, program in (("model", "model_config_file"), ("gateway", "gateway")):
        each = running.container(service)
        assert each.inspect("{{.HostConfig.ReadonlyRootfs}}") == "true"
        script = f"""
        for status in $(grep -l {program} /proc/[2-9]*/cmdline | sed s/cmdline/status/); do
            grep -E "^(Uid|CapEff)" $status 2>/dev/null || true  # one of those that search may have ended
        done"""
        lines = set(each.run("bash", "-c", script).splitlines())
        assert lines == {"Uid:\t10001\t10001\t10001\t10001", "CapEff:\t0000000000000000"}, service


def test_the_release_command_runs_under_compose(
    running: Stack, clock_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A second version is tried, promoted and rolled back; what the command writes belongs to the store's owner."""
    releases, home = tmp_path_factory.mktemp("releases"), running.store / "imagenet"
    run_export(releases, "imagenet")

    def release(*arguments: str) -> str:
        return run(*compose(), "run", "--rm", "-T", "release", *arguments, cwd=running.clone, USER="ann")

    def answering(times: int) -> set[int]:
        return {running.gateway.predict(clock_url)[1]["model"]["version"] for _ in range(times)}

    followed = ("--gateway", "http://gateway:9696")
    release("promote", "0", *followed)
    shutil.copytree(releases / "imagenet" / "1", home / "draft")
    (home / "draft").rename(home / "3")
    release("try", "3", "--share", "50%", *followed)
    running.gateway.wait(lambda: 3 in answering(1))
    assert answering(50) == {0, 3}
    release("promote", *followed)
    assert answering(20) == {3}
    release("rollback", "--reason", "too red", *followed)
    assert answering(20) == {0}
    assert "rollback by ann@" in release("history")
    files = [home / name for name in ("release.json", "history.jsonl", "models.config")]
    assert {path.stat().st_uid for path in files} == {running.store.stat().st_uid}
    for path in (*files, home / ".release-lock"):
        path.unlink()
    (home / "3").rename(home / "withdrawn-3")
    running.gateway.wait(lambda: running.gateway.get("/readyz")[1]["model"]["versions"] == [0])


def test_a_killed_model_server_gives_clean_503s_until_it_is_back(running: Stack, clock_url: str) -> None:
    """Its process dies under load; the engine starts it again, and the gateway finds it."""
    model = running.container("model")
    started = model.inspect("{{.State.StartedAt}}")
    with Load(running.gateway, [clock_url], threads=4) as load:
        load.wait_for(50)
        model.run("bash", "-c", "kill -KILL -1")
        running.gateway.wait(lambda: any(status == 503 for _, status, _ in load.answers))
        running.gateway.wait(lambda: running.gateway.predict(clock_url)[0] == 200, timeout_s=60)
        load.wait_for(len(load.answers) + 50)
    assert model.inspect("{{.State.StartedAt}}") != started
    assert load.lost == []
    assert {status for _, status, _ in load.answers} == {200, 503}
    assert {answer["code"] for _, status, answer in load.answers if status == 503} == {"model_unavailable"}


def test_a_stopped_gateway_answers_what_it_has_accepted(running: Stack, clock_url: str) -> None:
    """`docker stop` under load: nothing lost, exit status 0; started again, it answers within seconds."""
    container = running.container("gateway")
    running.gateway.wait_until_ready()
    with Load(Gateway(9696, 0, container.address), [clock_url], threads=4) as load:
        load.wait_for(100)
        docker("stop", container.name)
    exit_status = container.inspect("{{.State.ExitCode}}")
    docker("start", container.name)
    # What nobody accepted is the next gateway's business.
    lost = [each for each in load.lost if UNCONNECTED not in getattr(each, "__notes__", [])]
    assert lost == []
    assert {status for _, status, _ in load.answers} == {200}
    assert exit_status == "0"
    running.gateway.wait_until_ready()
    assert running.gateway.predict(clock_url)[0] == 200


def test_a_stopped_model_server_answers_what_it_has_begun(running: Stack) -> None:
    """`docker stop` reaches it behind the init process, and the exit status is 0; TensorFlow Serving just ends."""
    container = running.container("model")
    requests = [messages.PredictRequest(model_spec=messages.ModelSpec(name="imagenet")) for _ in range(2)]
    for request, count in zip(requests, (1, 50), strict=True):
        request.inputs["images"].CopyFrom(to_proto(np.zeros((count, 224, 224, 3), np.uint8)))
    with grpc.insecure_channel(f"{container.address}:8500") as channel:
        predict = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            messages.PredictRequest.SerializeToString,
            messages.PredictResponse.FromString,
        )
        predict(requests[0], timeout=60)  # connects
        begun = busiest_ticks(container)
        under_way = predict.future(requests[1], timeout=60)
        wait_until(lambda: busiest_ticks(container) > begun + 10, 60)  # 0.1 s: it works on that, and looks take less
        docker("stop", container.name)
        exit_status = container.inspect("{{.State.ExitCode}}")
        docker("start", container.name)
        running.gateway.wait_until_ready()
        if ENVIRON["SERVING_IMAGE"] == "embedded":
            assert (exit_status, "Draining" in container.logs()) == ("0", True)
            assert to_array(under_way.result().outputs["probabilities"]).shape == (50, 1000)
        else:
            assert exit_status == "143"


def busiest_ticks(of: Container) -> int:
    """Return the processor time, in hundredths of a second, of the process of a container that has taken the most."""
    stats = of.run("bash", "-c", "cat /proc/[0-9]*/stat 2>/dev/null || true").splitlines()
    return max(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats)


def test_the_gateway_image_is_small_and_contains_no_more_than_it_runs(
    added_bytes: Callable[[str], int], ask_python: Callable[[str, str], list[str]]
) -> None:
    """Under 180 MB on top of its base; no TensorFlow, no pip cache, no compiler."""
    assert 50_000_000 < added_bytes("gateway") < 180_000_000
    script = """
import importlib.util, pathlib, shutil
print(importlib.util.find_spec("tensorflow"), importlib.util.find_spec("ai_edge_litert"))
print(any(map(shutil.which, ("gcc", "cc", "g++", "clang"))))
print(any(pathlib.Path(home, ".cache", "pip").exists() for home in ("/root", "/home", "/")))
"""
    assert ask_python("gateway", script) == ["None", "None", "False", "False"]


def test_the_gateway_starts_in_under_two_seconds(running: Stack) -> None:
    """Until it is ready, all its processes together take less of the CPU: the clock says little on a busy machine."""
    container = running.container("gateway")
    container.wait("{{.State.Health.Status}}", "healthy")
    docker("restart", container.name)
    script = """
import glob, os, time, urllib.request
while True:
    try:
        urllib.request.urlopen("http://127.0.0.1:9696/readyz"); break
    except OSError: time.sleep(0.02)
stats = {path: open(path).read().rsplit(")", 1)[1].split() for path in glob.glob("/proc/[0-9]*/stat")}
ticks = sum(sum(map(int, stat[11:15])) for path, stat in stats.items() if str(os.getpid()) not in path)
wall_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stats["/proc/1/stat"][19]) / 100
print(ticks / os.sysconf("SC_CLK_TCK"), wall_s)
"""
    cpu_s, wall_s = map(float, container.run("python", "-c", script).split())
    assert 0.1 < cpu_s < 2
    assert wall_s < 20  # 1.5 at a load of 7 on two cores


def test_the_model_image_needs_no_mount_and_nothing_writable() -> None:
    """On a read-only root without capabilities it serves what it carries, and its health check says so."""
    with container("model", *LOCKED_DOWN) as model:
        model.wait("{{.State.Health.Status}}", "healthy")


@pytest.mark.parametrize("options", [(), ("--user", "root")], ids=["not ours", "read-only"])
def test_an_empty_store_that_cannot_be_written_ends_the_container(tmp_path: Path, options: tuple[str, ...]) -> None:
    """It says what to do about it, in place of a server that waits for ever."""
    tmp_path.chmod(0o555)
    mount = f"{tmp_path}:/models" + (":ro" if options else "")
    with container("model", "--volume", mount, *options) as model:
        model.wait("{{.State.Status}}", "exited")
        assert model.inspect("{{.State.ExitCode}}") == "1"
        assert "/models/imagenet has no version, and user" in model.logs()


def test_a_model_that_nobody_has_ends_the_container(tmp_path: Path) -> None:
    """It says what the image carries, so that a mistyped name is seen."""
    tmp_path.chmod(0o755)
    with container("model", "--volume", f"{tmp_path}:/models", "--env", "MODEL_NAME=imagent") as model:
        model.wait("{{.State.ExitCode}} {{.State.Status}}", "1 exited")
        assert "Expected a version of 'imagent' in /models/imagent. Received: none; this image carries imagenet" in (
            model.logs()
        )


@pytest.mark.parametrize(("last", "number"), [(None, 3), (2, 3), (6, 7)])
def test_a_release_that_the_image_carries_gets_a_number_that_was_not_used(
    tiny_store: Path, tmp_path: Path, last: int | None, number: int
) -> None:
    """Its own, or the next after all that the store has had."""
    tmp_path.chmod(0o755)
    shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "carried" / "tiny" / "3")
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o777)
    if last is not None:
        (store / ".tiny.last-version").write_text(f"{last}\n")
        (store / ".tiny.last-version").chmod(0o666)
    mounts = ("--volume", f"{tmp_path}/carried:/carried", "--volume", f"{store}:/models")
    with container("model", *mounts, "--env", "MODEL_NAME=tiny") as model:
        model.wait("{{.State.Health.Status}}", "healthy")
    assert (store / "tiny" / f"{number}" / "saved_model.pb").is_file()
    assert (store / ".tiny.last-version").read_text() == f"{number}\n"


def test_the_single_container_answers_within_512_mb() -> None:
    """At the port that the host names, under eight clients with photos of 12 megapixels; then it stops cleanly."""
    port = free_port()
    options = ("--memory", "512m", "--memory-swap", "512m", "--env", "PORT=8080", "--publish", f"{port}:8080")
    with container("single", *LOCKED_DOWN, *options) as single:
        Gateway(port, 0).wait(lambda: Gateway(port, 0).get("/readyz")[0] == 200)
        assert ask_clock(port) == "analog_clock"
        statuses = Counter(send_photos(port))
        assert statuses == {200: 80}
        assert peak_bytes(single) < 512 * 1024 * 1024
        docker("stop", "--time", "30", single.name)
        assert single.inspect("{{.State.ExitCode}} {{.State.OOMKilled}}") == "0 false"
        assert "Stopped." in single.logs()


def send_photos(port: int) -> list[int]:
    """Send ten large photos by each of eight clients; return the statuses."""
    large = encode(photo(4000, 3000))
    statuses: list[int] = []

    def send() -> None:
        for _ in range(10):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/predict", large, {"Content-Type": "image/jpeg"})
            statuses.append(connection.getresponse().status)
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def peak_bytes(of: Container) -> int:
    """Return the most memory that a container has taken, by either version of cgroups."""
    script = "cat /sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes 2>/dev/null || true"
    return int(of.run("sh", "-c", script).split()[0])
