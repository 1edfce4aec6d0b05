"""A version that is tried under load, and the way back, with the real programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.release.__main__ import main
from tests.programs.origins import Origin
from tests.programs.photos import encode, photo
from tests.programs.stack import Gateway, Load, Reference, embedded_server, gateway, release

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

STABLE, TRIED = 1, 2


@pytest.fixture
def store(tmp_path: Path, exports: list[Path]) -> Path:
    """A store with a stable version, and the same network with its class names permuted."""
    release(tmp_path, STABLE, exports[0])
    release(tmp_path, TRIED, exports[5])
    return tmp_path


@contextmanager
def gateways(store: Path, count: int, origin: Origin) -> Iterator[list[Gateway]]:
    """Run gateways in front of one model server; all follow the store's document."""
    settings = {
        "GATEWAY_FETCH_ALLOW": origin.authority,
        "GATEWAY_RELEASE_FILE": str(store / "tiny" / "release.json"),
    }
    with ExitStack() as stack:
        address = stack.enter_context(embedded_server(store))
        yield [stack.enter_context(gateway(address, **settings)) for _ in range(count)]


def test_a_permuted_version_is_taken_back_and_a_promoted_one_within_2_s(store: Path, origin: Origin) -> None:
    """Two gateways lose and mix no answer: not while half of the users try it, and not on the way back."""
    images = [encode(photo(seed=seed)) for seed in range(30)]
    urls = {origin.add(f"{number}.jpg", image): image for number, image in enumerate(images)}

    def run(command: str) -> int:
        return main(["tiny", "--store", str(store), *command.split()])

    with gateways(store, 2, origin) as running, ExitStack() as stack:
        follow = " ".join(f"--gateway http://127.0.0.1:{each.port}" for each in running)
        assert run(f"promote {STABLE} {follow}") == 0
        loads = [stack.enter_context(Load(each, list(urls), threads=2)) for each in running]
        assert run(f"try {TRIED} --share 50% --watch --within 60s {follow}") == 4
        assert all(versions(load) == {STABLE, TRIED} for load in loads)
        assert run(f"promote {TRIED} {follow}") == 0

        began = time.monotonic()
        assert run("rollback") == 0
        time.sleep(max(0.0, began + 2 - time.monotonic()))
        counts = [len(load.answers) for load in loads]
        for load, count in zip(loads, counts, strict=True):
            load.wait_for(count + 100)
    assert [load.failures for load in loads] == [[], []]
    assert [versions(load, count) for load, count in zip(loads, counts, strict=True)] == [{STABLE}, {STABLE}]
    reference = Reference.of([store / "tiny" / str(number) for number in (STABLE, TRIED)], urls)
    assert all(reference.matches(url, answer) for load in loads for url, _, answer in load.answers)


def versions(load: Load, after: int = 0) -> set[int]:
    """Return which versions answered, after so many answers."""
    return {answer["model"]["version"] for _, status, answer in load.answers[after:] if status == 200}
