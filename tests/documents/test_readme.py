"""README.md and docs/settings.md: their tables are the code's, and their commands exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import fields

import pytest

from benchmarks import report
from gateway import errors
from gateway.settings import PREFIX, Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
] + [".venv/bin/" + command for command in re.findall(r"`(python -m training [^`]+)`", README)]


def error_rows() -> list[str]:
    """Return a table row for each public failure, from the tree in the module's docstring."""
    assert errors.__doc__
    return [
        f"| {status} | `{code}` | {meaning.strip()} |"
        for status, code, meaning in re.findall(r"─ \w+ +(\d{3}) (\w+) +(.+)", errors.__doc__)
    ]


def setting_rows() -> list[str]:
    """Return a table row for each setting."""
    defaults = {each.name: f"`{each.default}`" if each.default != "" else "" for each in fields(Settings)}
    return [
        f"| `{PREFIX}{each.name.upper()}` | {defaults[each.name]} | {each.metadata['help']} |"
        for each in fields(Settings)
    ]


def test_the_tables_are_what_the_code_says() -> None:
    """Each error and each setting has its row, in the code's order, and there is no other."""
    assert [line for line in README.splitlines() if re.match(r"\| \d{3} \| `", line)] == error_rows()
    assert [line for line in SETTINGS.splitlines() if line.startswith(f"| `{PREFIX}")] == setting_rows()


def test_the_benchmark_rows_are_the_stored_measurement() -> None:
    """Each row that begins as the measurement's rows do is one of them."""
    results = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    labels = tuple(f"| {each['label']} |" for each in results["systems"].values())
    rows = [line for line in README.splitlines() if line.startswith(labels)]
    assert len(rows) > 5 and all(row in report.tables(results).splitlines() for row in rows)


def test_the_error_tree_in_the_docstring_is_the_code() -> None:
    """Every class of the tree has the status and code that its docstring line names."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]
    assert errors.__doc__
    listed = {name: (int(status), code) for name, status, code in re.findall(r"─ (\w+) +(\d{3}) (\w+)", errors.__doc__)}
    assert listed == {
        kind.__name__: (kind.status, kind.code)
        for kind in kinds
        if kind not in (errors.GatewayError, errors.VersionGone)
    }


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_verbs_exist(command: str) -> None:
    """Each `make` line of the README is a target that make can plan."""
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


TABLE = re.findall(
    r"^\| `((?:explore|tune|train|evaluate|predict|explain|runs|export)\b[^`]*)` \|", README, re.MULTILINE
)
TRAINING = [".venv/bin/python -m training " + row for row in TABLE]
TRAINING += [command for command in COMMANDS if "-m training" in command]


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_parse(command: str) -> None:
    """Each `python -m training` line of the README, and each row of its table, has arguments that the program takes."""
    from training.__main__ import _parser

    _parser().parse_args(shlex.split(command)[3:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "-m gateway.batch" in command])
def test_batch_commands_parse(command: str) -> None:
    """Each `python -m gateway.batch` line of the README has arguments that the program takes."""
    from gateway.batch import _parser

    _parser().parse_args(shlex.split(command)[3:])


def test_every_command_is_held_by_a_test() -> None:
    """A new kind of command needs a test of its own here."""
    known = ("make", ".venv/bin/python -m training", ".venv/bin/python -m gateway.batch")
    known += ("curl -s http://localhost:8501/",)  # tests/deploy/test_docker.py
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_the_readme_has_commands_and_stays_short() -> None:
    """The tests above have something to hold, and a person reads it in a sitting."""
    assert len(COMMANDS) >= 6 and len(TABLE) >= 10
    assert len(README.splitlines()) < 250
