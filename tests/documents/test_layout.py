"""The rooms of a program, which are its folders."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("program", ["training", "gateway"])
def test_rooms_import_in_one_direction(program: str) -> None:
    """No two folders import from each other, and none do so by way of others."""
    rooms = {file.parent.name for file in ROOT.glob(f"{program}/*/__init__.py")}
    imports = re.compile(rf"^ *from {program}(?:\.| import )(\w+)", re.MULTILINE)
    used = {
        room: {each for file in ROOT.glob(f"{program}/{room}/*.py") for each in imports.findall(file.read_text())}
        for room in rooms
    }
    assert len(rooms) > 5
    TopologicalSorter({room: (used[room] & rooms) - {room} for room in rooms}).prepare()  # a circle is an error
