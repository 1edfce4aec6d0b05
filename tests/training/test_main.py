"""training/__main__.py: what holds for every command."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.document import Contract, ImageSpec
from tests.conftest import ROOT
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
        time.sleep(60)


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
        (
            ["evaluate", "photos", "--gateway", "localhost:9"],
            "python -m training evaluate: argument --gateway: Expected http://HOST:PORT",
        ),
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


@pytest.mark.parametrize(("arguments", "said"), [(["train", "--help"], "--learning-rate"), (["runs"], "/m/20260101-0")])
def test_what_needs_no_tensorflow_answers_at_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    """Help, and the list of runs."""
    run = tmp_path / "m" / "20260101-000000"
    (run / "golden").mkdir(parents=True)
    (run / "contract.json").write_bytes(Contract("m", ("a", "b"), ImageSpec(8, 8)).to_json())
    code = f"import sys; from training.__main__ import main\ntry: main({[*arguments, '--runs', str(tmp_path)]})\n"
    code += "finally: assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
