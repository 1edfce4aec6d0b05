"""Different exports under one number, the programs as processes: each answer is its own export's, or a 503."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs.name_server import NameServer
from tests.programs.origins import Origin
from tests.programs.stack import (
    QUICK,
    Load,
    Reference,
    free_port,
    gateway,
    release,
    replica,
    wait_until,
    wait_until_open,
)

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

REQUESTS = 2_000
OLD = ROOT / "tests" / "programs" / "exported_by_a47d7fa" / "tiny" / "1"


def check(load: Load, exports: list[Path], urls: dict[str, bytes]) -> set[str]:
    """Check that nothing was lost, and each answer is right or a 503; return the identities that answered."""
    reference = Reference.of(exports, urls)
    print(Counter(status for _, status, _ in load.answers))
    assert load.lost == []
    answered = [(url, answer) for url, status, answer in load.answers if status == 200]
    refused = {(status, answer.get("code")) for _, status, answer in load.answers if status != 200}
    assert refused <= {(503, "model_unavailable"), (503, "overloaded")}
    assert all(reference.matches(url, answer) for url, answer in answered)
    return {answer["model"]["identity"] for _, answer in answered}


def test_a_roll_out_of_another_model_under_one_number_mixes_nothing(
    exports: list[Path], tmp_path: Path, origin: Origin, urls: dict[str, bytes], name_server: NameServer
) -> None:
    """Two replicas are replaced one by one, without a gap, by those of the next export; it answers alone after that."""
    exports, port = exports[:4], free_port()
    age = "--grpc_channel_arguments=grpc.max_connection_age_ms=1000"
    with ExitStack() as stack:
        running: list[tuple[str, ExitStack]] = []

        def start(index: int, turn: int) -> None:
            host, process = f"127.0.0.{10 + 2 * index + turn}", ExitStack()
            process.enter_context(replica(tmp_path / f"{index}", f"{host}:{port}", age))
            stack.push(process)
            wait_until_open(f"{host}:{port}")
            running.append((host, process))
            name_server.addresses = [host for host, _ in running]

        for index, export in enumerate(exports):
            release(tmp_path / f"{index}", 1, export)
        for turn in range(2):
            start(0, turn)
        client = stack.enter_context(gateway(name_server.target(port), GATEWAY_FETCH_ALLOW=origin.authority))
        with Load(client, list(urls)) as load:
            for index in range(1, len(exports)):
                begun = load.count
                for turn in range(2):
                    start(index, turn)
                    load.wait_for(load.count + REQUESTS // 4)
                    time.sleep(3)  # until each worker has looked the name up again
                    running.pop(0)[1].close()
                load.wait_for(max(begun + REQUESTS, load.count + 200))
        (last,) = {answer["model"]["identity"] for _, status, answer in load.answers[-100:] if status == 200}
        # A worker that was not asked since finds the export by itself, as it looks now and then.
        wait_until(lambda: client.get("/model")[1]["identity"] == last)
    assert len(check(load, exports, urls)) == len(exports)


def test_a_version_replaced_and_a_store_begun_again_mix_nothing(
    exports: list[Path], tmp_path: Path, origin: Origin, urls: dict[str, bytes]
) -> None:
    """A version without an identity and one with it are replaced at a restart, and the store is filled anew."""
    address, version = f"127.0.0.1:{free_port()}", tmp_path / "tiny" / "1"
    with ExitStack() as stack, ExitStack() as server:
        release(tmp_path, 1, OLD)
        server.enter_context(replica(tmp_path, address, QUICK))
        client = stack.enter_context(gateway(address, GATEWAY_FETCH_ALLOW=origin.authority))
        load = stack.enter_context(Load(client, list(urls)))
        load.wait_for(REQUESTS)
        for index in (0, 1):
            server.close()
            version.rename(tmp_path / f"{index}")
            release(tmp_path, 1, exports[index])
            server.enter_context(replica(tmp_path, address, QUICK))
            client.wait(lambda: client.predict(next(iter(urls)))[0] == 200)
            load.wait_for(load.count + REQUESTS)
        shutil.rmtree(version)
        client.wait(lambda: client.get("/readyz")[0] == 503)
        release(tmp_path, 1, exports[3])
        client.wait(lambda: client.predict(next(iter(urls)))[0] == 200)
        load.wait_for(load.count + REQUESTS)
    answered = check(load, [OLD, exports[0], exports[1], exports[3]], urls)
    assert None in answered and len(answered) == 4
