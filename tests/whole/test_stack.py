"""The programs together, as processes: what a release, a broken one, and mixed replicas do to requests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.programs.origins import Origin
from tests.programs.photos import encode
from tests.programs.stack import Gateway, Load, Reference, embedded_server, gateway, release

pytestmark = pytest.mark.tensorflow

REQUESTS = 10_000


@pytest.fixture
def store(tmp_path: Path, exports: list[Path]) -> Path:
    """A store with version 1."""
    release(tmp_path, 1, exports[0])
    return tmp_path


@pytest.fixture
def stack(store: Path, origin: Origin, urls: dict[str, bytes]) -> Iterator[Gateway]:
    """Model server and gateway on `store`."""
    with embedded_server(store) as address, gateway(address, GATEWAY_FETCH_ALLOW=origin.authority) as client:
        yield client


def test_an_image_unlike_all_training_photos_is_unknown(tmp_path: Path, origin: Origin, exports: list[Path]) -> None:
    """To a model of noise, one colour is, by the real model server; noise is not."""
    release(tmp_path, 1, exports[4])
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8))
    images = {"noise.png": noise, "colour.png": Image.new("RGB", (16, 16), "teal")}
    urls = [origin.add(name, encode(image, "PNG")) for name, image in images.items()]
    with embedded_server(tmp_path) as address, gateway(address, GATEWAY_FETCH_ALLOW=origin.authority) as client:
        assert [client.predict(url)[1]["unknown"] for url in urls] == [False, True]


def test_releases_under_load_lose_nothing_and_mix_nothing(
    stack: Gateway, store: Path, urls: dict[str, bytes], exports: list[Path]
) -> None:
    """Ten thousand requests while two versions are renamed into place: each answer is one version's (F3)."""
    reference = Reference.of(exports[:3], urls)
    with Load(stack, list(urls)) as load:
        for number in (2, 3):
            load.wait_for(REQUESTS * (number - 1) // 3)
            release(store, number, exports[number - 1])
        load.wait_for(REQUESTS)
    assert load.failures == []
    assert all(reference.matches(url, answer) for url, _, answer in load.answers)
    assert {answer["model"]["version"] for _, _, answer in load.answers} == {1, 2, 3}


def test_a_version_that_decodes_otherwise_is_refused_while_the_old_one_answers(
    stack: Gateway, store: Path, urls: dict[str, bytes], exports: list[Path]
) -> None:
    """A contract with another filter than its golden examples: /readyz names the reason, and stays 200 (F4)."""
    skewed = store / "tiny" / "draft"
    shutil.copytree(exports[1], skewed)
    model = skewed / "model.tflite"
    content = model.read_bytes()
    assert content.count(b'"filter":"bicubic"') == 1
    model.write_bytes(content.replace(b'"filter":"bicubic"', b'"filter":"nearest"'))
    skewed.rename(store / "tiny" / "2")
    assert "The gateway decodes images otherwise than training did" in stack.refusal(2)
    assert {stack.predict(url)[1]["model"]["version"] for url in urls} == {1}


def test_a_version_that_does_not_load_leaves_the_old_one_and_is_named(
    stack: Gateway, store: Path, urls: dict[str, bytes], exports: list[Path]
) -> None:
    """Half a file, forced in by hand (F4); it is named until it is removed."""
    draft = store / "tiny" / "draft"
    draft.mkdir()
    content = (exports[1] / "model.tflite").read_bytes()
    (draft / "model.tflite").write_bytes(content[: len(content) // 2])
    draft.rename(store / "tiny" / "2")
    assert "could not load it" in stack.refusal(2)
    assert {stack.predict(url)[:1] for url in urls} == {(200,)}
    shutil.rmtree(store / "tiny" / "2")
    stack.wait(lambda: stack.get("/readyz")[1]["model"]["refused"] == {})


def test_the_gateway_is_small_and_never_loads_tensorflow(stack: Gateway, urls: dict[str, bytes]) -> None:
    """After real requests, no worker has mapped TensorFlow or a model runtime, and each is under 100 MB."""
    for url in urls:
        stack.predict(url)
    pids = stack.worker_pids()
    assert len(pids) == 2
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "grpc" in maps
        assert "tensorflow" not in maps
        assert "litert" not in maps
        status = Path(f"/proc/{pid}/status").read_text()
        resident_kb = int(status.split("VmRSS:")[1].split()[0])
        print(f"a worker of the gateway: {resident_kb / 1000:.0f} MB resident")
        assert resident_kb < 100_000
