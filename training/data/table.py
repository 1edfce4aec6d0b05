"""A CSV of photos: a column for the path, one for the label, and perhaps one for the split."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.splits import several_splits, split_of, splits_in, splits_of
from training.errors import DataError
from training.words import counted

WHOLE = "all"  # a split's name for photos that are not split
COLUMNS = {"path": ("path", "image", "file", "filename"), "label": ("label", "class"), "split": ("split",)}
_MOST_SPLITS = 20  # different values of a column that may be one of splits
_FLAGS = {"", "-1", "0", "1", "0.0", "1.0", "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "x"}
# As spreadsheets write them in the languages in which splits are known.
_FLAGS |= {"wahr", "falsch", "ja", "nein", "vrai", "faux", "oui", "non", "verdadero", "falso", "vero", "verdadeiro"}
_FLAGS |= {"si", "sí", "sì", "sim", "não"}
_SURPLUS = ""  # the key of cells below no name


@dataclass(frozen=True)
class Row:
    """A photo that may lack a file, or a label, which is empty then; the split is empty if none or all is named."""

    path: Path
    label: str
    split: str

    def has_file(self) -> bool:
        """Tell whether there is such a file; a cell may contain more than a path can have."""
        try:
            return self.path.is_file()
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:
                return False
            raise


def real_path(path: Path) -> str:
    """Return a file's path without links to folders above it; links to one file are photos of their own."""
    return str(Path(os.path.realpath(path.parent), path.name))


def is_table(path: Path) -> bool:
    """Tell whether a path is a CSV."""
    return path.is_file() and path.suffix.lower() == ".csv"


def read_table(path: Path) -> list[Row]:
    """Read the rows of a CSV; paths in it are relative to its folder.

    Raises:
        DataError: It is no CSV in UTF-8, has no columns for path and label, two of one name, splits in another
            column than `split`, a cell of these with a line break, or more cells than named columns.
    """
    names, rows, ends = _read_cells(path)
    lower = [name.lower() for name in names]
    columns = {
        column: next((names[lower.index(each)] for each in names_of if each in lower), "")
        for column, names_of in COLUMNS.items()
    }
    if twice := [name for name in columns.values() if lower.count(name.lower()) > 1]:
        raise DataError(
            f"Expected one column of each name in {path}. Received several: {', '.join(twice)}."
            " Rename or remove all but one."
        )
    if not (rows and columns["path"] and columns["label"]):
        received = ", ".join(names) or "an empty first line"
        raise DataError(
            f"Expected columns path and label, and perhaps split, with commas between them, in {path}."
            f" Received: {received if rows else 'no rows'}"
        )
    named = [row[columns["split"]].strip().lower() if columns["split"] else "" for row in rows]
    if not set(named) - {"", WHOLE}:
        known = {*COLUMNS["path"], *COLUMNS["label"]}
        others = {name: name for name in names if name.lower() not in known}
        _check_others(rows, others | {_SURPLUS: f"column {len(names) + 1}"}, path)
    labelled = {split for row, split in zip(rows, named, strict=True) if row[columns["label"]].strip()}
    result, splits = [], splits_of(set(named), set(named) - labelled) | {WHOLE: ""}
    for row, split, end in zip(rows, named, ends, strict=True):
        start = end - sum(cell.count("\n") for cell in row.values())
        # A stray quote swallows rows until the next one.
        if "\n" in "".join(row[name] for name in columns.values() if name):
            raise DataError(
                f"Expected paths, labels and splits without line breaks. Received others in {path}, from line {start}"
                " on. Is there a quote too many, or too few?"
            )
        if row[_SURPLUS].strip():
            raise DataError(
                f"Expected no more cells than columns with a name in {path}. Received more in line {start}."
                ' Each column needs a name, and a cell with a comma needs quotes, such as "crane, bird"'
            )
        photo = path.parent / row[columns["path"]].strip()  # an absolute path stays as it is
        result.append(Row(photo, row[columns["label"]], splits.get(split, split)))
    return result


def _read_cells(path: Path) -> tuple[list[str], list[dict[str, str]], list[int]]:
    """Return the columns' names, each row's cells by them and the surplus, and the line of its end.

    What is below commas at the end of the first line is surplus too.
    """
    rows, ends = list[dict[str, str]](), list[int]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            first = [name.strip() for name in reader.fieldnames or ()]
            while first and not first[-1]:
                first.pop()
            names = [name or f"column {at}" for at, name in enumerate(first, 1)]
            reader.fieldnames, reader.restkey = names, _SURPLUS
            for cells in reader:
                rows.append({name: "".join(cells.get(name) or ()) for name in (*names, _SURPLUS)})
                ends.append(reader.line_num)
    except UnicodeDecodeError as exc:
        raise DataError(f"Expected a CSV in UTF-8. Received {path}: {exc}") from exc
    except csv.Error as exc:
        raise DataError(f"Expected a CSV. Received {path}, from line {reader.line_num + 1} on: {exc}") from exc
    return names, rows, ends


def no_photos(table: Path, left_out: Sequence[Path]) -> DataError:
    """Return the error of a CSV of which every row is left out."""
    return DataError(f"Expected photos with a label in {table}. Received: none. {left_out_rows(left_out)}")


def left_out_rows(paths: Sequence[Path]) -> str:
    """Return a line with how many rows of a CSV are left out; it names the first."""
    rows = f"{counted(len(paths), 'row')} without a file or a label, such as {paths[0]}"
    return f"Left out {rows}; paths start at the CSV's folder"


def _check_others(rows: Sequence[dict[str, str]], columns: Mapping[str, str], path: Path) -> None:
    """Refuse splits in another of the columns, which have what they are called: photos to test would be trained on."""
    for key, column in sorted(columns.items()):
        cells = {row[key].strip() for row in rows}
        values = cells - {""}
        if len(values) > _MOST_SPLITS:
            continue
        are_flags = len(cells) > 1 and all(cell.lower() in _FLAGS or split_of(cell) for cell in cells)
        if (are_flags and splits_in(column)) or several_splits(values):  # `isValid`, of True and False
            raise DataError(
                f"Expected the splits of {path} in a column split. Received them in another: {column}."
                f" Write train, validation or test into the column split, or remove {column} if it says something else."
            )
