"""training/__main__.py: what holds for every command."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from training.__main__ import main


def test_a_ctrl_c_that_python_drops_is_pressed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no other way to end what removes an object; anything else is reported as ever."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    assert main(["runs", "--runs", "nowhere"]) == 1
    other = SimpleNamespace(exc_type=ValueError)
    sys.unraisablehook(other)
    assert reported == [other]
    with pytest.raises(KeyboardInterrupt):
        sys.unraisablehook(SimpleNamespace(exc_type=KeyboardInterrupt))
        time.sleep(5)
