"""Different exports under one number, the programs as processes: each answer is its own export's, or a 503."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT, Origin, run_export
from tests.programs.name_server import NameServer
from tests.programs.photos import encode, photo
from tests.programs.stack import Load, Reference, free_port, gateway, model_server, running
from tests.whole.test_replicas import wait_until_open
from tests.whole.test_stack import release

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

REQUESTS = 2_000
HOSTS = ("127.0.0.2", "127.0.0.3")
OLD = ROOT / "tests" / "programs" / "exported_by_a47d7fa" / "tiny" / "1"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four exports that are all version 1: others have other weights, another count of classes, another size."""
    stores = [tmp_path_factory.mktemp(name) for name in ("first", "weights", "count", "size")]
    run_export(stores[0], "tiny")
    run_export(stores[1], "tiny", 1, classes=("ant", "bee", "fly"))
    run_export(stores[2], "tiny", 2, classes=("a", "b", "c", "d", "e"))
    run_export(stores[3], "tiny", 3, size=24)
    return [store / "tiny" / "1" for store in stores]


@pytest.fixture
def urls(origin: Origin) -> dict[str, bytes]:
    """Three images by URL."""
    return {origin.add(f"{seed}.jpg", image): image for seed in range(3) for image in [encode(photo(seed=seed))]}


def check(load: Load, exports: list[Path], urls: dict[str, bytes]) -> set[str]:
    """Check that nothing was lost, and each answer is right or a 503; return the identities that answered."""
    reference = Reference.of(exports, urls)
    print(Counter(status for _, status, _ in load.answers))
    assert load.lost == []
    assert {(status, answer.get("code")) for _, status, answer in load.answers} <= {
        (200, None), (503, "model_unavailable"), (503, "overloaded")
    }  # fmt: skip
    answered = [(url, answer) for url, status, answer in load.answers if status == 200]
    assert all(reference.matches(url, answer) for url, answer in answered)
    return {answer["model"]["identity"] for _, answer in answered}


def test_a_roll_out_of_another_model_under_one_number_mixes_nothing(
    exports: list[Path], tmp_path: Path, origin: Origin, urls: dict[str, bytes]
) -> None:
    """Two replicas are replaced one by one, without a gap, by those of the next export; it answers alone after that."""
    port = free_port()
    with ExitStack() as stack:
        replicas = []
        for index, export in enumerate(exports):
            (tmp_path / f"{index}" / "tiny").mkdir(parents=True)
            release(tmp_path / f"{index}", 1, export)
        names = stack.enter_context(NameServer())

        def start(index: int, turn: int) -> tuple[str, ExitStack]:
            host, replica = f"127.0.0.{10 + 2 * index + turn}", ExitStack()
            options = ("--model_name=tiny", f"--model_base_path={tmp_path / f'{index}' / 'tiny'}", f"--host={host}")
            age = "--grpc_channel_arguments=grpc.max_connection_age_ms=1000"
            replica.enter_context(running("-m", "serving", *options, f"--port={port}", "--grpc_max_threads=64", age))
            stack.push(replica)
            wait_until_open(host, port)
            return host, replica

        replicas = [start(0, turn) for turn in range(2)]
        names.addresses = [host for host, _ in replicas]
        client = stack.enter_context(gateway(names.target(port), GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, list(urls)) as load:
            for index in range(1, len(exports)):
                begun = len(load.answers)
                for turn in range(2):
                    replicas.append(start(index, turn))
                    names.addresses = [host for host, _ in replicas]
                    load.wait_for(len(load.answers) + REQUESTS // 4)
                    time.sleep(3)  # so long a look-up holds
                    replicas.pop(0)[1].close()
                load.wait_for(max(begun + REQUESTS, len(load.answers) + 200))
            last = client.get("/model")[1]["identity"]
    assert last in check(load, exports, urls)
    assert len(check(load, exports, urls)) == len(exports)
    assert {answer["model"]["identity"] for _, status, answer in load.answers[-100:] if status == 200} == {last}


def test_replicas_with_different_models_under_one_number_mix_nothing(
    exports: list[Path], tmp_path: Path, origin: Origin, urls: dict[str, bytes]
) -> None:
    """Each keeps answering, with its own pixels and labels."""
    port, pair = free_port(), [exports[0], exports[3]]
    with ExitStack() as stack:
        for index, host in enumerate(HOSTS):
            (tmp_path / f"{index}" / "tiny").mkdir(parents=True)
            release(tmp_path / f"{index}", 1, pair[index])
            options = ("--model_name=tiny", f"--model_base_path={tmp_path / f'{index}' / 'tiny'}", f"--host={host}")
            stack.enter_context(running("-m", "serving", *options, f"--port={port}", "--grpc_max_threads=64"))
            wait_until_open(host, port)
        address = "ipv4:" + ",".join(f"{host}:{port}" for host in HOSTS)
        client = stack.enter_context(gateway(address, GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, list(urls)) as load:
            load.wait_for(REQUESTS)
    assert len(check(load, pair, urls)) == 2


@pytest.mark.parametrize("first", ["with an identity", "of a47d7fa"])
def test_a_version_replaced_and_a_store_begun_again_mix_nothing(
    exports: list[Path], tmp_path: Path, origin: Origin, urls: dict[str, bytes], first: str
) -> None:
    """The directory is replaced while the model server restarts, and the store is emptied and filled again."""
    used = [exports[0] if first == "with an identity" else OLD, exports[1], exports[3]]
    (tmp_path / "tiny").mkdir()
    release(tmp_path, 1, used[0])
    port = free_port()
    options = ("--model_name=tiny", f"--model_base_path={tmp_path / 'tiny'}", f"--port={port}", "--grpc_max_threads=64")
    serving = ("-m", "serving", *options, "--file_system_poll_wait_seconds=0.1")
    with ExitStack() as stack, ExitStack() as server:
        server.enter_context(running(*serving))
        client = stack.enter_context(gateway(f"127.0.0.1:{port}", GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, list(urls)) as load:
            load.wait_for(REQUESTS)
            server.close()
            (tmp_path / "tiny" / "1").rename(tmp_path / "away")
            release(tmp_path, 1, used[1])
            server.enter_context(running(*serving))
            client.wait(lambda: client.predict(next(iter(urls)))[0] == 200)
            load.wait_for(len(load.answers) + REQUESTS)
            shutil.rmtree(tmp_path / "tiny" / "1")
            client.wait(lambda: client.get("/readyz")[0] == 503)
            release(tmp_path, 1, used[2])
            client.wait(lambda: client.predict(next(iter(urls)))[0] == 200)
            load.wait_for(len(load.answers) + REQUESTS)
    assert len(check(load, used, urls)) == 3


def test_a_version_exported_before_there_were_identities_answers(
    tmp_path: Path, origin: Origin, urls: dict[str, bytes]
) -> None:
    """It loads, passes the gate, and answers right, with no identity."""
    (tmp_path / "tiny").mkdir()
    release(tmp_path, 1, OLD)
    with model_server(tmp_path) as address, gateway(address, GATEWAY_FETCH_ALLOW=origin.authority) as client:
        answers = {url: client.predict(url) for url in urls}
    reference = Reference.of([OLD], urls)
    assert all(status == 200 and answer["model"]["identity"] is None for status, answer in answers.values())
    assert all(reference.matches(url, answer) for url, (_, answer) in answers.items())
