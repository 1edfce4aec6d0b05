"""What the tests of training share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.document import Contract
from contract.outputs import describe
from serving.engines import Engine


def places(work: Path) -> list[str]:
    """Return the options of `train` by which it writes only below a folder."""
    return [part for name in ("runs", "cache", "store") for part in (f"--{name}", str(work / name))]


def contract_of(engine: Engine) -> Contract:
    """Return the contract inside a version's file."""
    return Contract.from_json(describe(engine.run))


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """The name of a small architecture, known as long as the tests of a file run."""
    from tests.programs.small_training import SMALL
    from training.models.catalogue import ARCHITECTURES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", SMALL)
        yield "small"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What training logs, a message each."""
    logger, handler = logging.getLogger("training"), _Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
