"""gateway/stages.py: places are limited, and each image of a list waits for itself."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from contract.document import ImageSpec
from contract.image import DecodedImage
from gateway.errors import GatewayError, Overloaded
from gateway.memory import Held, Room
from gateway.settings import Settings
from gateway.stages import Stage, Stages
from tests.programs.photos import encode, photo


def test_a_long_list_gets_its_places_beside_others() -> None:
    """Each item waits for itself, so that the time of the first does not count against the last."""
    stage = Stage("fetch", 4, wait_s=0.2)

    def work(item: int) -> int:
        time.sleep(0.05)
        return item

    answers: list[list[int | GatewayError]] = []
    deadline = time.monotonic() + 10
    others = [
        threading.Thread(target=lambda: answers.extend(stage.map(work, [1], deadline) for _ in range(6)))
        for _ in range(3)
    ]
    for thread in others:
        thread.start()
    assert stage.map(work, range(20), deadline) == list(range(20))  # half a second
    for thread in others:
        thread.join()
    assert answers == [[1]] * 18


def test_who_finds_no_place_in_time_is_refused() -> None:
    """While slow work takes all places."""
    stage, has_begun, may_end = Stage("fetch", 1, wait_s=0.1), threading.Event(), threading.Event()

    def work(_: int) -> bool:
        has_begun.set()
        return may_end.wait(10)

    slow = threading.Thread(target=lambda: stage.map(work, [0], time.monotonic() + 10))
    slow.start()
    assert has_begun.wait(5)
    started = time.monotonic()
    (refused,) = stage.map(lambda item: item, [1], started + 10)
    assert isinstance(refused, Overloaded) and time.monotonic() - started < 1
    may_end.set()
    slow.join()


def test_a_list_whose_time_is_over_waits_for_no_other() -> None:
    """Its items would stand in line behind slow ones, for as long as to have the process ended."""
    stage, has_begun, may_end = Stage("decode", 1), threading.Event(), threading.Event()

    def work(_: int) -> bool:
        has_begun.set()
        return may_end.wait(5)

    slow = threading.Thread(target=lambda: stage.map(work, [0, 1], time.monotonic() + 10))
    slow.start()
    assert has_begun.wait(5)
    started = time.monotonic()
    refused = stage.map(lambda item: item, [1, 2], started)
    assert [type(each) for each in refused] == [Overloaded] * 2 and time.monotonic() - started < 1
    may_end.set()
    slow.join()


def test_the_errors_of_a_list_keep_no_images() -> None:
    """A traceback's frames hold what a request brought, and the errors themselves, until a collection."""

    def work(item: bytes) -> bytes:
        raise Overloaded("no") from ValueError(item)

    errors = Stage("decode", 2).map(work, [b"a", b"b"], time.monotonic() + 10)
    assert [(each.__traceback__, each.__cause__, each.__context__) for each in errors] == [(None, None, None)] * 2  # type: ignore[union-attr]


def test_a_request_that_has_ended_keeps_nothing() -> None:
    """A fetch may go on in its thread after its request ended by a defect."""
    room = Room(1000)
    held = Held(room)
    held.add(600)
    held.release()
    with pytest.raises(Overloaded, match="already ended"):
        held.add(600)
    assert room.held_bytes == 0


@pytest.fixture
def stages() -> Stages:
    """A request's stages, of a gateway with default settings."""
    return Stages(Settings.from_env({}))


def test_images_of_a_list_whose_time_is_over_are_not_decoded(stages: Stages) -> None:
    """The rest of a list of bombs is work for nothing."""
    images = [encode(photo()), encode(photo())]
    refused = stages.decode(images, ImageSpec(8, 8), time.monotonic() - 1)
    assert all(isinstance(each, Overloaded) and "took too long" in each.detail for each in refused)
    assert all(isinstance(each, DecodedImage) for each in stages.decode(images, ImageSpec(8, 8), time.monotonic() + 9))


def test_odd_metadata_is_no_line_of_the_log(recwarn: pytest.WarningsRecorder, stages: Stages) -> None:
    """Whoever sends images does not write into it."""
    odd = b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x010F, 2, 9000, 26) + b"\0\0\0\0"
    (decoded,) = stages.decode([encode(photo(), exif=odd)], ImageSpec(8, 8), time.monotonic() + 9)
    assert isinstance(decoded, DecodedImage) and not recwarn.list
