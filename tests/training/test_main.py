"""training/__main__.py: what holds for every command."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from training.__main__ import _press_again


def test_a_ctrl_c_that_python_drops_is_pressed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no other way to end what removes an object; anything else is reported as ever."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    other, lost = (SimpleNamespace(exc_type=kind) for kind in (ValueError, KeyboardInterrupt))
    _press_again(other)  # type: ignore[arg-type]
    assert reported == [other]
    with pytest.raises(KeyboardInterrupt):
        _press_again(lost)  # type: ignore[arg-type]
        time.sleep(5)
