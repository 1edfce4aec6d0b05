"""The tables of the documents are what the code, the alerts and the stored measurements say."""

from __future__ import annotations

import re
from dataclasses import fields

from benchmarks import report
from gateway import errors
from gateway.settings import PREFIX, Settings
from tests.conftest import ROOT
from tests.documents.pages import PAGES

README = PAGES["README.md"].splitlines()


def test_each_error_has_its_row() -> None:
    """In the order of the tree in the module's docstring; there is no other row."""
    assert errors.__doc__
    rows = [
        f"| {status} | `{code}` | {meaning.strip()} |"
        for status, code, meaning in re.findall(r"─ \w+ +(\d{3}) (\w+) +(.+)", errors.__doc__)
    ]
    assert [line for line in README if re.match(r"\| \d{3} \| `", line)] == rows


def test_each_setting_has_its_row() -> None:
    """In the order of the fields; there is no other row."""
    defaults = {each.name: f"`{each.default}`" if each.default != "" else "" for each in fields(Settings)}
    rows = [
        f"| `{PREFIX}{each.name.upper()}` | {defaults[each.name]} | {each.metadata['help']} |"
        for each in fields(Settings)
    ]
    assert [line for line in PAGES["docs/settings.md"].splitlines() if line.startswith(f"| `{PREFIX}")] == rows


def test_each_alert_has_its_row() -> None:
    """In the order of the file; there is no other row."""
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "monitoring/alerts.yaml").read_text())
    assert re.findall(r"^\| `(\w+)` \|", PAGES["docs/operate.md"], re.MULTILINE) == alerts


def test_the_benchmark_rows_are_the_stored_measurements() -> None:
    """Each row that begins as the rows of a processor with VNNI and of one without do is one of them."""
    stored = report.stored()
    assert list(stored) == ["vnni", "without-vnni"] == [report.name(each) for each in stored.values()]
    labels = tuple(f"| {each['label']} |" for each in stored["vnni"]["systems"].values())
    rows = [line for line in README if line.startswith(labels)]
    assert len(rows) > 5 and all(row in report.medians(stored).splitlines() for row in rows)


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
