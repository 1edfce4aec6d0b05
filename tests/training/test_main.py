"""training/__main__.py: what holds for every command."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from training.__main__ import _press_again, main


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "photos", "--name", "m", "--epochz", "3"],
            "python -m training train: unrecognized arguments: --epo",
        ),
        (
            ["train", "photos", "--name", "m", "--epochs", "x"],
            "python -m training train: argument --epochs: invalid in",
        ),
        (["explroe", "photos"], "python -m training: argument COMMAND: invalid choice: 'explroe'"),
        (["train", "", "--name", "m"], "python -m training train: argument folder: Expected a path. Received none"),
        (["runs", "--runs", ""], "python -m training runs: argument --runs: Expected a path. Received none"),
    ],
)
def test_a_mistyped_argument_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what is wrong and which help to read, and lists no other options."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    received = capsys.readouterr().err
    assert received.startswith(said) and received.endswith(f". For help: {said.partition(':')[0]} --help\n")
    assert received.count("\n") == 1
