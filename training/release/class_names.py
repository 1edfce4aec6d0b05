"""Class names from a file, in the order of the model's outputs, in each form that people keep them in."""

from __future__ import annotations

import ast
import csv
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from training.errors import TrainingError
from training.words import counted

_log = logging.getLogger(__name__)

_YAMLS = (".yaml", ".yml")
_FORMS = (
    "one name a line, or one with its number; a list, or a map of name and number, in JSON, Python or YAML; a CSV or"
    " TSV with a column class, label or name, and perhaps index or id"
)
_MEMBERS = ("names", "classes", "class_names", "labels", "id2label")  # of a document with more in it
_NAMES = ("class_name", "classname", "name", "class", "label")  # columns of a CSV, the most telling first
_NUMBERS = ("index", "number", "class_id", "label_id", "id")
_COLUMNS = (*_NAMES, *_NUMBERS)
# `0 cat`, as Teachable Machine writes it, `0: cat`, `0,cat`, `0. cat`; and `cat,0`, where no space alone separates:
# `type 0`.
_NUMBER_FIRST = re.compile(r"(?P<number>\d+)\s*(?:[\s:,;=|]|[.)]\s|[-=]>)\s*(?P<name>\S.*)")
_NUMBER_LAST = re.compile(r"(?P<name>.*\S)\s*(?:[:,;=|\t]|[-=]>)\s*(?P<number>\d+)")
_SURELY_NUMBERED = re.compile(r"\d+\s*[,;|\t].*")  # where names would not begin so
_YAML = re.compile(rf"\A\s*\w+:\s*\n|^(?:{'|'.join(_MEMBERS)}):(?:\s*\n|\s+[\[{{])", re.MULTILINE)
_DECORATION = re.compile(r"""(?:[-*]\s+)?(["']?)(.*?)\1""")  # of a YAML list, and of lines copied from code


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names.

    Raises:
        TrainingError: There is no such file, or it has none of the forms.
    """
    if not path.is_file():
        raise TrainingError(f"Expected a file of class names. Received a path where there is none: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a byte order mark first
    except UnicodeDecodeError as exc:
        raise TrainingError(f"Expected class names in UTF-8. Received {path}: {exc}") from exc
    try:
        names = _read(text, path.suffix.lower())
        if bad := [name for name in names if not name or any(unicodedata.category(each) == "Cc" for each in name)]:
            raise ValueError(f"the name {bad[0]!r}")
        if not names:
            raise ValueError("no name")
    except ValueError as exc:
        raise TrainingError(f"Expected class names as {_FORMS}. Received {path}: {exc}") from exc
    first = ", ".join(f"{number} {name}" for number, name in enumerate(names[:5]))
    _log.info(f"Read {counted(len(names), 'class')} from {path}: {first}{' …' * (len(names) > 5)}")
    return names


def _read(text: str, suffix: str) -> tuple[str, ...]:
    if (document := _parse(text, suffix)) is not None:
        return _of_document(document)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cells = _cells(lines[0]) if lines else []
    if suffix in (".csv", ".tsv") or (len(cells) > 1 and set(cells) <= set(_COLUMNS)):
        return _of_csv(lines)
    lines = [re.sub(r"(?<=\S)\s*[,;]$", "", line) for line in lines]  # as in a list that was copied
    if len(lines) == 1 and len(cells) > 1:
        return _whole(next(csv.reader(lines, delimiter=_delimiter(lines[0]), skipinitialspace=True)))
    return _whole(_of_numbered(lines) or _plain(lines))


def _parse(text: str, suffix: str) -> Any:
    """Return a list or a map in JSON, Python or YAML; None if the text is of another form."""
    if text.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                return parse(text.strip())
        if suffix not in _YAMLS:
            raise ValueError(f"{text[:50]!r}, which is neither JSON nor Python. Is a name without quotes?")
    elif suffix not in _YAMLS and not _YAML.search(text):
        return None
    try:
        document = yaml.load(text, yaml.BaseLoader)  # whose values are all texts: `no` is a name
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        reason = " ".join(str(getattr(exc, "problem", None) or exc).split())
        raise ValueError(f"{text[:50]!r}, which is no YAML: {reason}") from exc
    return None if isinstance(document, str) else document  # lines without marks are one text


def _whole(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that are a part of something else, where a form was guessed."""
    for name in names:
        is_quoted = name[:1] == name[-1:] and name[:1] in ("'", '"')
        is_open = name.count("(") > name.count(")")  # more of the latter are in `a) cat`
        is_member = re.search(r"""["']\s*:""", name)  # of a map without braces
        is_half = is_quoted or is_open or is_member or any(name.count(a) != name.count(b) for a, b in ("[]", "{}"))
        if len(name) > 1 and is_half:
            raise ValueError(f"the name {name!r}")
    return tuple(names)


def _plain(lines: Sequence[str]) -> list[str]:
    """Return lines without the marks of a list or a string, if each has them: `- cat` and `"cat",`."""
    matches = [match for line in lines if (match := _DECORATION.fullmatch(line))]
    plain = [match[2] for match in matches]
    if all(len(name) + 2 <= len(line) for name, line in zip(plain, lines, strict=True)):
        return plain
    return list(lines)


def _of_document(document: Any) -> tuple[str, ...]:
    if isinstance(document, dict):
        members = _MEMBERS if len(document) > 1 else [name for name in document if not str(name).isdecimal()]
        document = next((document[name] for name in members if isinstance(document.get(name), (list, dict))), document)
    if isinstance(document, list) and all(isinstance(name, str) for name in document):
        return tuple(document)
    if isinstance(document, dict) and all(isinstance(each, (str, int, float)) for each in document.values()):
        is_by_number = all(isinstance(name, str) for name in document.values()) and all(
            str(number).isdecimal() for number in document
        )
        pairs = ((name, number) if is_by_number else (number, name) for number, name in document.items())
        return _in_order([(str(name), str(number)) for name, number in pairs])
    raise ValueError("a document with something else")


def _of_csv(lines: Sequence[str]) -> tuple[str, ...]:
    header = _cells(lines[0]) if lines else []
    known = sorted((_COLUMNS.index(cell), position) for position, cell in enumerate(header) if cell in _COLUMNS)
    if not known:
        if numbered := _of_numbered(lines):
            return numbered
        raise ValueError("a CSV that " + (f"begins with {lines[0]!r}" if lines else "is empty"))
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines[1:], delimiter=_delimiter(lines[0]))]
    if any(len(row) != len(header) for row in rows):
        raise ValueError("a row that has another length than the header")
    columns = [[row[position] for row in rows] for _, position in known]
    numbers = [
        column
        for column, (rank, _) in zip(columns, known, strict=True)
        if _COLUMNS[rank] == "index" or all(cell.removesuffix(".0").isdecimal() for cell in column)  # 1.0 of pandas
    ]
    names = [column for column in columns if column not in numbers]
    if not names:  # all are numbers, so only the header tells names from their order
        of_names = sum(_COLUMNS[rank] in _NAMES for rank, _ in known) or len(columns)
        names, numbers = columns[:of_names], columns[of_names:]
    found = _whole(names[0])
    return _in_order(list(zip(found, numbers[0], strict=True))) if numbers else found


def _delimiter(line: str) -> str:
    """Return the mark that is most frequent outside quotes; within a word, as in `5"` and `it's`, these are none."""
    return max(",\t;", key=re.sub(r"""(?<!\w)(["']).*?\1(?!\w)""", "", line).count)


def _cells(line: str) -> list[str]:
    cells = next(csv.reader([line], delimiter=_delimiter(line)))
    return [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]


def _of_numbered(lines: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of lines that number them from 0 or 1; None if the numbers belong to the names: `1 euro`."""
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        if lines and len(matches) == len(lines):
            try:
                names = _in_order([(match["name"], match["number"]) for match in matches])
            except ValueError:
                if all(map(_SURELY_NUMBERED.fullmatch, lines)):
                    raise
                continue
            if 2 * len(set(names)) > len(names):
                return names
    return None


def _in_order(numbered: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return names in the order of their numbers, which go from 0 or 1 without a gap."""
    if other := [number for _, number in numbered if not re.fullmatch(r"-?[0-9]+(\.0)?", number)]:
        raise ValueError(f"{other[0][:50]!r} in the place of a number")
    by_number = {int(number.removesuffix(".0")): name for name, number in numbered}
    first = min(by_number, default=0)
    if first not in (0, 1) or sorted(by_number) != list(range(first, first + len(numbered))):
        raise ValueError(f"numbers that do not go from 0 without a gap: {sorted(by_number)[:5]} …")
    return tuple(by_number[number] for number in sorted(by_number))
