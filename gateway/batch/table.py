"""The file that a batch writes: a CSV with a row for each prediction, or a JSON line for each image."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

from gateway.batch.asking import Answer

ANY_BYTES = "surrogateescape"  # a file's name need not be UTF-8
COLUMNS = ("source", "version", "rank", "class", "index", "probability", "error", "detail", "unknown")

Row = dict[str, Any]


class Table:
    """A file that is appended to, or standard output; the suffix `.csv` or `.jsonl` decides on the form."""

    def __init__(self, out: Path | None) -> None:
        """Read what it answers already.

        Raises:
            ValueError: No run wrote the file, or its folder does not exist.
        """
        if out and not out.absolute().parent.is_dir():
            raise ValueError(f"Expected --out in a folder that exists. Received: {out}")
        self._out, self._is_csv = out, out is not None and out.suffix == ".csv"
        self._is_new = out is None or not out.is_file()
        self.answered = set[str]() if out is None or self._is_new else read_answers(out).keys()

    def open(self) -> None:
        """Begin to append."""
        if self._out is None:
            self._file: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors=ANY_BYTES)
            return
        if not self._is_new:
            os.truncate(self._out, len(_whole_lines(self._out)))
        self._file = self._out.open("a", encoding="utf-8", errors=ANY_BYTES, newline="")
        if self._is_csv and not self._file.tell():
            csv.writer(self._file).writerow(COLUMNS)

    def close(self) -> None:
        """Append no more."""
        self._file.close()

    def write(self, image: str, answer: Answer) -> None:
        """Append an answer."""
        self.append(_rows(image, answer) if self._is_csv else [{"source": image, **answer}])

    def append(self, rows: Sequence[Row]) -> None:
        """Append the rows of an image, and flush them so that a killed run keeps them."""
        if self._is_csv:
            csv.DictWriter(self._file, COLUMNS).writerows(rows)
        else:
            self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.flush()


def read_answers(path: Path) -> dict[str, list[Row]]:
    """Return the rows of each image that the file of a run answers; those that failed are asked again.

    Raises:
        ValueError: No run wrote the file.
        OSError: It cannot be read.
    """
    text = _whole_lines(path).decode("utf-8", ANY_BYTES)
    rows: list[Row] = (
        list(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix == ".csv"
        else [json.loads(line) for line in text.split("\n") if line]
    )
    if any("source" not in row for row in rows):
        raise ValueError(f"Expected a file of an earlier run in {path}. Received a file of another kind")
    answers: dict[str, list[Row]] = {}
    for row in rows:
        if not row.get("error"):
            answers.setdefault(row["source"], []).append(row)
    return answers


def _rows(image: str, answer: Answer) -> list[Row]:
    if "error" in answer:
        return [{"source": image, "error": answer["error"], "detail": answer["detail"]}]
    common = {
        "source": image,
        "version": answer["model"]["version"],
        "unknown": str(answer.get("unknown", "")).lower(),
    }
    return [{**common, "rank": rank, **row} for rank, row in enumerate(answer["predictions"], start=1)]


def _whole_lines(path: Path) -> bytes:
    """Return what is in a file, without the image whose last line a run wrote when it was killed."""
    content = path.read_bytes()
    kept = content[: content.rfind(b"\n") + 1]
    if path.suffix == ".csv" and b"\r\n" in content:  # unlike a line break in a name
        kept = content[: content.rfind(b"\r\n") + 2]
    if len(kept) == len(content) or path.suffix != ".csv":
        return kept
    lines = list(io.StringIO(kept.decode("utf-8", ANY_BYTES), newline=""))
    reader, starts, start = csv.reader(lines), list[tuple[str, int]](), 0
    for row in reader:  # may be of several lines
        starts.append((row[0] if row else "", start))
        start = reader.line_num
    last = starts[-1][0] if starts else ""
    *_, start = (0, *(each for source, each in takewhile(lambda each: each[0] == last, reversed(starts))))
    return "".join(lines[: max(start, 1)]).encode("utf-8", ANY_BYTES)  # the first one names the columns
