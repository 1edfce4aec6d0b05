"""The file that a batch writes: a CSV with a row for each prediction, or a JSON line for each image."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from contract.disk import lock_now, sync, written_whole
from gateway.batch.asking import Answer

ANY_BYTES = "surrogateescape"  # a file's name need not be UTF-8
COLUMNS = ("source", "version", "rank", "class", "index", "probability", "error", "detail", "unknown")
CUT_WORDS = {None, "t", "tr", "tru", "f", "fa", "fal", "fals"}  # in the last column

Row = dict[str, Any]


class Table:
    """A file that is appended to, or standard output; the suffix `.csv` or `.jsonl` decides on the form."""

    def __init__(self, out: Path | None, top_k: int = 1) -> None:
        """Read what it answers already.

        An answer at its end that may have been cut is none yet, but goes only if its image is asked about again.

        Raises:
            ValueError: No run wrote the file, or its folder does not exist.
            OSError: It cannot be read.
        """
        self.answered, self._unanswered = set[str](), set[str]()
        self._out, self._is_csv = out, out is not None and out.suffix == ".csv"
        self._found = self._kept = b""
        if out and not out.absolute().parent.is_dir():
            raise ValueError(f"Expected --out in a folder that exists. Received: {out}")
        if out and out.is_file():
            self._found = out.read_bytes()
            self._kept, doubtful = _whole(out, self._found, top_k)
            for _, row in _rows_in(out, self._kept):
                is_answer = not row.get("error") and row["source"] != doubtful
                (self.answered if is_answer else self._unanswered).add(row["source"])

    def open(self, asked: Sequence[str]) -> None:
        """Begin to append, and drop the rows of the images that are asked about again.

        Raises:
            ValueError: Another run writes to the file.
            OSError: It cannot be written.
        """
        if self._out is None:
            self._file: BinaryIO = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
            return
        self._file = file = _open_alone(self._out, len(self._found))
        dropped = self._unanswered.intersection(asked)
        kept = _without(dropped, self._out, self._kept) if dropped else self._kept
        if self._found.startswith(kept):
            file.truncate(len(kept))
        else:
            with file, written_whole(self._out.resolve()) as draft:  # a kill must cost no answer
                draft.write_bytes(kept)
                shutil.copymode(self._out, draft)
                sync(draft)
            self._file = _open_alone(self._out, len(kept))
        self._found = self._kept = b""
        if self._is_csv and not kept:
            self.append([dict(zip(COLUMNS, COLUMNS, strict=True))])

    def close(self) -> None:
        """Append no more."""
        self._file.close()

    def write(self, image: str, answer: Answer) -> None:
        """Append an answer."""
        self.append(_rows_of(image, answer) if self._is_csv else [{"source": image, **answer}])

    def append(self, rows: Sequence[Row]) -> None:
        """Append the rows of an image, at once, so that a run that is killed leaves all of them or none."""
        text = io.StringIO(newline="")
        if self._is_csv:
            csv.DictWriter(text, COLUMNS).writerows(rows)
        else:
            text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self._file.write(text.getvalue().encode("utf-8", ANY_BYTES))
            self._file.flush()
        except OSError:  # closed later, the file would try again
            with suppress(OSError):
                self._file.close()
            raise


def read_images(paths: Sequence[Path], top_k: int) -> dict[str, list[Row]]:
    """Return the rows of each image in the files of some runs: its first answer, or its last error if there is none.

    An answer at the end of a file that may have been cut is none, but with a `top_k` of 0 its whole rows are one.

    Raises:
        ValueError: No run wrote one of the files.
        OSError: One cannot be read.
    """
    found: dict[str, list[Row]] = {}
    for path in paths:
        content, doubtful = _whole(path, path.read_bytes(), top_k)
        for image, group in groupby(_rows_in(path, content), key=lambda each: each[1]["source"]):
            if image != doubtful and not is_answered(found.get(image, [])):
                rows = [row for _, row in group]
                found[image] = [row for row in rows if not row.get("error")] or rows[-1:]
    return found


def is_answered(rows: Sequence[Row], by_error: bool = False) -> bool:
    """Tell whether there are rows of an image, and predictions unless an error will do."""
    return bool(rows) and (by_error or not rows[0].get("error"))


def _rows_of(image: str, answer: Answer) -> list[Row]:
    if "error" in answer:
        return [{"source": image, "error": answer["error"], "detail": answer["detail"]}]
    common = {"source": image, "version": answer["model"]["version"], "unknown": str(answer.get("unknown", "")).lower()}
    return [{**common, "rank": rank, **row} for rank, row in enumerate(answer["predictions"], start=1)]


def _rows_in(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file's content, each with its text; the names of a CSV's columns are none.

    Raises:
        ValueError: No run wrote it.
    """
    taken = list[str]()

    def lines() -> Iterator[str]:
        for line in io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", ANY_BYTES, newline=""):  # without a copy
            taken.append(line)
            yield line

    try:
        rows: Iterator[Any] = (json.loads(line) for line in lines() if line.strip())
        if path.suffix == ".csv":
            rows = reader = csv.DictReader(lines())
            if content and (found := tuple(reader.fieldnames or ())) != COLUMNS:
                columns, received = ",".join(COLUMNS), ",".join(found)[:100]
                raise ValueError(f"Expected a file of an earlier run in {path}: {columns}. Received: {received}")
            taken.clear()
        for row in rows:
            if not isinstance(row["source"], str) or None in row:  # a field too many
                raise ValueError(_other(path))
            yield "".join(taken), row
            taken.clear()
    except (csv.Error, json.JSONDecodeError, KeyError, TypeError) as exc:
        raise ValueError(_other(path)) from exc


def _other(path: Path) -> str:
    return f"Expected a file of an earlier run in {path}. Received another"


def _open_alone(path: Path, size_bytes: int) -> BinaryIO:
    """Open a file of a known size to append to it.

    Raises:
        ValueError: Another run writes to it, or has written.
    """
    file = path.open("ab")
    is_same = False
    try:
        with suppress(BlockingIOError):
            lock_now(file)
            is_same = file.tell() == size_bytes and os.path.samestat(os.fstat(file.fileno()), path.stat())
    finally:
        if not is_same:
            file.close()
    if not is_same:
        raise ValueError(f"Another run writes to {path}. Wait for its end, or name another file")
    return file


def _without(images: Set[str], path: Path, content: bytes) -> bytes:
    """Return a file's content without the rows of some images."""
    columns = content[: content.find(b"\n") + 1] if path.suffix == ".csv" else b""
    kept = (text for text, row in _rows_in(path, content) if row["source"] not in images)
    return b"".join((columns, *(text.encode("utf-8", ANY_BYTES) for text in kept)))  # as a text, four times the bytes


def _whole(path: Path, content: bytes, top_k: int) -> tuple[bytes, str | None]:
    """Return a file's content without what a kill cut, and the image then last if it may lack rows.

    It may if the row that was cut can be its own, or if it has fewer rows than `top_k` and, where the last line has its
    end, than the answer before it. It may lack a word if it ends in a comma. With a `top_k` of 0, nothing is missing.

    Raises:
        ValueError: No run wrote it.
    """
    start = b",".join(map(str.encode, COLUMNS)) + b"\r\n" if path.suffix == ".csv" else b'{"source": '
    if b"\n" not in content and content[: len(start)] != start[: len(content)]:
        raise ValueError(_other(path))
    if start.startswith(content):  # it was cut in its first line
        return b"", None
    if path.suffix != ".csv":
        return _whole_lines(path, content), None
    image, count, before, cut, is_own = "", 0, 0, "", False  # of the last image; rows of the answer before; a cut row
    for source, group in groupby(_rows_in(path, content), key=lambda each: each[1]["source"]):
        texts, rows = zip(*group, strict=True)
        if _is_cut(texts[-1]) and rows[-1]["unknown"] in CUT_WORDS:
            is_named = (
                rows[-1]["version"] is not None
            )  # so the name is whole, and all rows are of the image that was cut
            cut, rows = ("".join(texts), ()) if is_named else (texts[-1], rows[:-1])
        if rows:
            image, before, count = source, count or before, sum(not row.get("error") for row in rows)
        is_own = bool(cut) and os.fsencode(image).startswith(os.fsencode(source))
    kept = content[: len(content) - len(cut.encode("utf-8", ANY_BYTES))]
    wanted = min(top_k, before) if content.endswith(b"\n") else top_k
    is_doubtful = top_k and count and (is_own or kept.endswith(b",") or count < wanted)
    return kept if kept.endswith(b"\n") else kept.removesuffix(b"\r") + b"\r\n", image if is_doubtful else None


def _is_cut(text: str) -> bool:
    """Tell whether a row has no end, or a quote is still open there."""
    return not text.endswith("\n") or text.count('"') % 2 == 1


def _whole_lines(path: Path, content: bytes) -> bytes:
    """Return JSON lines without a last one that was cut; one that only lacks its line break gets it."""
    end = content.rfind(b"\n") + 1
    try:
        json.loads(content[end:].decode("utf-8", ANY_BYTES))
    except json.JSONDecodeError as exc:
        if exc.msg == "Extra data":  # several in a line
            raise ValueError(_other(path)) from exc
        return content[:end]
    return content + b"\n"
