"""gateway/batch/table.py and its command: what is written, taken up again, divided and merged."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from codecs import BOM_UTF8
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from contract.document import Novelty
from gateway.batch.__main__ import STOPPED, main
from gateway.batch.asking import Asked, Client
from gateway.batch.table import COLUMNS, Table
from tests.conftest import ROOT
from tests.gateway.batch.conftest import read_csv
from tests.programs.model_server import FakeModelServer, FakeVersion
from tests.programs.photos import encode, photo


def test_a_folder_becomes_a_csv_and_a_failure_shows_in_the_status(
    address: str,
    model_server: FakeModelServer,
    golden: list[bytes],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row for each prediction, with what is unknown, and one for each failure; other files are counted."""
    model_server.versions[1] = FakeVersion.of(golden, score=lambda pixels: np.ones(len(pixels)), novelty=Novelty(0.5))
    out = tmp_path / "out.csv"
    assert main([str(folder), "--gateway", address, "--out", str(out), "--top-k", "2"]) == 3
    left_out, done = capsys.readouterr().err.splitlines()
    assert left_out.startswith(f"{folder}: Left out 1 file that cannot be read (.jpg, ") and left_out.endswith(
        ": 1 .txt"
    )
    assert done == "2 answered, 1 failed: 1 bad_image"
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert sorted((Path(row["source"]).name, row["rank"]) for row in rows) == [
        ("a.jpg", "1"),
        ("a.jpg", "2"),
        ("b.png", "1"),
        ("b.png", "2"),
        ("broken.jpg", ""),
    ]
    assert next(row["error"] for row in rows if row["source"].endswith("broken.jpg")) == "bad_image"
    assert sorted(row["unknown"] for row in rows) == ["", "true", "true", "true", "true"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("name", ['a\u2028b\x85c, "d".jpg', os.fsdecode(b"\xff.jpg")])
def test_a_name_of_any_characters_is_found_again(
    address: str, tmp_path: Path, model_server: FakeModelServer, suffix: str, name: str
) -> None:
    """What some call the end of a line does not end one here, and Linux takes any bytes."""
    image, out = tmp_path / name, tmp_path / f"out.{suffix}"
    image.write_bytes(encode(photo()))
    assert main([str(image), "--gateway", address, "--out", str(out)]) == 0
    calls = len(model_server.calls)
    assert main([str(image), "--gateway", address, "--out", str(out)]) == 0
    assert len(model_server.calls) == calls


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_second_run_asks_only_what_was_not_answered(
    address: str, folder: Path, tmp_path: Path, model_server: FakeModelServer, suffix: str
) -> None:
    """Failures are tried again, answers are not; each image stands in the file once, and others keep their error."""
    out, other = tmp_path / f"out{suffix}", tmp_path / "a\nb.jpg"
    other.write_bytes(b"no image")
    ask = ["--gateway", address, "--out", str(out)]
    for _ in range(2):
        assert main([str(folder), str(other), *ask]) == 3
    (folder / "broken.jpg").write_bytes(encode(photo()))
    calls = len(model_server.calls)
    assert main([str(folder), *ask]) == 0
    assert len(model_server.calls) == calls + 1
    rows = read_csv(out) if suffix == ".csv" else [json.loads(line) for line in out.read_text().splitlines()]
    names = ["a\nb.jpg", "a.jpg", "b.png", "broken.jpg"]
    assert sorted(Path(row["source"]).name for row in rows) == names
    assert [row["source"] for row in rows if row.get("error")] == [str(other)]
    assert rows[-1]["source"] == str(folder / "broken.jpg")


def test_a_csv_that_excel_saved_is_taken_up_again(address: str, folder: Path, tmp_path: Path) -> None:
    """With a byte order mark, which stays; an old error goes, and so does an image that was cut."""
    out = tmp_path / "out.csv"
    ask = ["--gateway", address, "--out", str(out), "--top-k", "2"]
    assert main([str(folder), *ask]) == 3
    saved = BOM_UTF8 + out.read_bytes()
    (folder / "broken.jpg").write_bytes(encode(photo()))
    for size in (len(saved), len(saved) - 30):
        out.write_bytes(saved[:size])
        assert main([str(folder), *ask]) == 0
        assert out.read_bytes().startswith(saved[: saved.index(b"\n") + 1])
        assert main(["--merge", str(out), "--out", str(tmp_path / f"{size}.csv")]) == 0
        ranks = sorted((Path(row["source"]).name, row["rank"]) for row in read_csv(tmp_path / f"{size}.csv"))
        assert ranks == [(name, rank) for name in ("a.jpg", "b.png", "broken.jpg") for rank in ("1", "2")]


def test_a_full_disk_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a kill, while old errors are dropped from the file."""
    out = tmp_path / "out.jsonl"
    out.write_text('{"source": "a.jpg", "error": "overloaded"}\n{"source": "b.jpg", "predictions": []}\n')
    whole = out.read_bytes()
    with monkeypatch.context() as full:
        full.setattr("gateway.batch.table.sync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Table(out).open(["a.jpg"])
    assert out.read_bytes() == whole
    table = Table(out)
    table.open(["a.jpg"])
    table.write("a.jpg", {"predictions": []})
    table.close()
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == ["b.jpg", "a.jpg"]


class Full(io.RawIOBase):
    """A file on a disk that takes only its first line."""

    room = 1

    def writable(self) -> bool:
        return True

    def truncate(self, size: int | None = None) -> int:
        return size or 0

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        return len(data)


@pytest.mark.filterwarnings("error")  # a file that tries to write again when it goes is one
def test_a_full_disk_is_one_line(
    address: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, and of a merge; the same command goes on."""
    out, part = tmp_path / "out.csv", tmp_path / "part.csv"
    assert main([str(folder / "a.jpg"), "--gateway", address, "--out", str(part)]) == 0
    for ask in ([str(folder / "b.png"), "--gateway", address], ["--merge", str(part)]):
        with monkeypatch.context() as patch:
            patch.setattr("gateway.batch.table._open_alone", lambda *_: io.BufferedWriter(Full()))
            assert main([*ask, "--out", str(out)]) == 1
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"{out}: No space left on device. Run the same command to go on."
        assert main([*ask, "--out", str(out)]) == 0
        out.unlink()


def test_a_full_disk_ends_what_waits(
    address: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight requests, four of which run, no more is begun; one may be until the first answer is written."""
    begun: list[Sequence[str]] = []
    has_ended = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **options: Any) -> None:
            super().shutdown(*args, **options)
            has_ended.set()

    def ask(_: Client, images: Sequence[str]) -> Asked:
        begun.append(images)
        if len(begun) > 1:
            has_ended.wait(10)
        return Asked({image: {"error": "bad_image", "detail": ""} for image in images}, 1.0, is_too_large=False)

    monkeypatch.setattr(Client, "ask", ask)
    monkeypatch.setattr("gateway.batch.__main__.ThreadPoolExecutor", Pool)
    monkeypatch.setattr("gateway.batch.table._open_alone", lambda *_: io.BufferedWriter(Full()))
    out = str(tmp_path / "out.csv")
    assert main([str(photos), "--gateway", address, "--out", out, "--concurrency", "4"]) == 1
    assert len(begun) < 8


def test_a_line_cut_by_a_kill_is_asked_again(address: str, folder: Path, tmp_path: Path) -> None:
    """Half a line is dropped, and its image answered anew."""
    out = tmp_path / "out.jsonl"
    image = str(folder / "a.jpg")
    assert main([image, "--gateway", address, "--out", str(out)]) == 0
    out.write_text(out.read_text() * 2 + out.read_text()[:30])
    assert main([image, str(folder / "b.png"), "--gateway", address, "--out", str(out)]) == 0
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == [
        image,
        image,
        str(folder / "b.png"),
    ]


def test_shards_are_merged_and_nothing_is_lost_or_repeated(
    address: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merge of all parts asks nobody; of those with a gap, about the gap alone."""
    parts, whole = [tmp_path / f"part-{i}.csv" for i in range(3)], tmp_path / "all.csv"
    for i, part in enumerate(parts):
        assert main([str(photos), "--gateway", address, "--out", str(part), "--shard", f"{i}/3", "--top-k", "2"]) == 0
    sizes = [len(part.read_text().splitlines()) for part in parts]
    assert sum(sizes) == 2 * 40 + 3 and min(sizes) > 1
    one_by_one = [option for part in (*parts, parts[0]) for option in ("--merge", str(part))]
    for sources in ([], [str(photos)]):
        assert main([*sources, "--out", str(whole), *one_by_one, "--gateway", "http://127.0.0.1:1"]) == 0
        assert "40 taken over" in capsys.readouterr().err
        rows = [(row["source"], row["rank"]) for row in read_csv(whole)]
        assert len(rows) == len(set(rows)) == 80
        whole.unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    assert main([str(photos), "--out", str(whole), "--top-k", "2", *one_by_one, "--gateway", address]) == 0
    said = capsys.readouterr().err
    assert "39 taken over" in said and "1 answered" in said
    assert sorted((row["source"], row["rank"]) for row in read_csv(whole)) == sorted(rows)
    assert main([str(photos / "1.png"), "--out", str(whole), *one_by_one]) == 0
    assert "0 taken over; the files answer 38 other images" in capsys.readouterr().err


def test_a_merge_keeps_why_an_image_has_no_answer(address: str, folder: Path, tmp_path: Path) -> None:
    """Unless another part answers it; the status says so, too."""
    parts = [tmp_path / name for name in ("a.csv", "b.csv")]
    assert main([str(folder), "--gateway", address, "--out", str(parts[0])]) == 3
    merge = ["--out", str(tmp_path / "all.csv"), "--merge", *map(str, parts)]
    main([str(folder / "a.jpg"), "--gateway", address, "--out", str(parts[1])])
    assert main(merge) == 3
    assert [row["error"] for row in read_csv(tmp_path / "all.csv")].count("bad_image") == 1
    (folder / "broken.jpg").write_bytes(encode(photo()))
    assert main([str(folder), "--gateway", address, "--out", str(parts[1])]) == main(merge) == 0
    assert [row["error"] for row in read_csv(tmp_path / "all.csv")] == ["", "", ""]


def test_who_reads_may_go(address: str, folder: Path) -> None:
    """As `head` does: the run ends without a traceback."""
    command = [sys.executable, "-m", "gateway.batch", str(folder), "--gateway", address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        assert run.stderr.read().splitlines()[1:] == [STOPPED] and run.wait() == 1


def test_a_csv_that_was_cut_anywhere_becomes_whole(address: str, tmp_path: Path) -> None:
    """Each image has all of its predictions, once, whichever byte was the last; here with a line break in a name."""
    images, out = [tmp_path / "a\nb.jpg", tmp_path / "c.jpg", tmp_path / "d.jpg"], tmp_path / "out.csv"
    for image in images:
        image.write_bytes(encode(photo()))
    ask = [*map(str, images), "--gateway", address, "--out", str(out), "--top-k", "2"]
    assert main(ask) == 0
    whole = out.read_bytes()
    first_of_one = whole.find(b"\r\n", whole.find(b"\r\n") + 1) + 2  # with nothing to compare it with
    ends = {*range(0, len(whole), 13), *(each.end() for each in re.finditer(b"\r\n", whole))} - {first_of_one}
    for size in sorted(ends):
        out.write_bytes(whole[:size])
        assert main(ask) == 0
        rows = [(row["source"], row["rank"]) for row in read_csv(out)]
        assert sorted(rows) == [(str(image), rank) for image in images for rank in ("1", "2")]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_fewer_predictions_than_asked_for_are_an_answer(address: str, folder: Path, tmp_path: Path, name: str) -> None:
    """Where the model has no more classes, and after an answer that has more: nobody is asked again."""
    ask = ["--out", str(tmp_path / name), "--gateway"]
    for image, top_k in (("a.jpg", "99"), ("b.png", "1")):
        for gateway in (address, "http://127.0.0.1:1"):
            assert main([str(folder / image), *ask, gateway, "--top-k", top_k]) == 0


@pytest.mark.parametrize("score", [None, lambda pixels: np.ones(len(pixels))])
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_an_answer_that_nobody_asks_for_again_stays(
    address: str,
    model_server: FakeModelServer,
    golden: list[bytes],
    photos: Path,
    tmp_path: Path,
    name: str,
    score: Any,
) -> None:
    """In a run for another image and in a merge: with fewer predictions, without line break, without last commas."""
    model_server.versions[1] = FakeVersion.of(golden, score=score, novelty=Novelty(0.5) if score else None)
    out, merged = tmp_path / name, tmp_path / f"merged-{name}"
    ask, images = ["--gateway", address, "--out", str(out), "--top-k"], [str(photos / f"{i}.png") for i in range(3)]
    assert main([*images[:2], *ask, "2"]) == main([images[2], *ask, "1"]) == 0
    whole = out.read_bytes()
    without_commas = re.sub(rb",+(?=\r\n)", b"", whole)  # as other programs save them
    for content, left in ((whole, whole), (whole.rstrip(b"\r\n"), whole), (without_commas, without_commas)):
        out.write_bytes(content)
        assert main(["--merge", str(out), "--out", str(merged), "--top-k", "2"]) == 0
        assert main([images[0], *ask, "2"]) == 0
        assert (out.read_bytes(), merged.read_bytes()) == (left, whole)
        merged.unlink()


def test_a_merge_takes_no_answer_that_was_cut(address: str, folder: Path, tmp_path: Path) -> None:
    """Within a second or a last row of an image, which another part has whole."""
    parts, images = [tmp_path / "old.csv", tmp_path / "new.csv"], [str(folder / name) for name in ("a.jpg", "b.png")]
    for part in parts:
        assert main([*images, "--gateway", address, "--out", str(part), "--top-k", "3"]) == 0
    whole = parts[0].read_bytes()
    for row in list(re.finditer(re.escape(images[1].encode()), whole))[1:]:
        parts[0].write_bytes(whole[: row.end() + 2])
        merged = tmp_path / f"{row.end()}.csv"
        assert main(["--merge", *map(str, parts), "--out", str(merged)]) == 0
        assert sorted(row["source"] for row in read_csv(merged)) == sorted(images * 3)


@pytest.mark.parametrize("start", ["", "http", "http://h/1"])
def test_a_row_that_was_cut_costs_no_other(tmp_path: Path, start: str) -> None:
    """It may be of the image before, which is asked about again, but else stays; as here, where it was of another."""
    out, answer = tmp_path / "out.csv", {"model": {"version": 3}, "predictions": [{"class": "a"}] * 2, "unknown": True}
    table = Table(out)
    table.open([])
    table.write("http://h/1", answer)
    table.close()
    whole = out.read_bytes()
    out.write_bytes(whole + start.encode())
    table = Table(out, top_k=2)
    assert table.answered == ({"http://h/1"} if not start else set())
    table.open(["http://h/10"])
    table.close()
    assert out.read_bytes() == whole


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_large_file_is_read_without_copies_of_it(tmp_path: Path, name: str) -> None:
    """A copy as text may take four times its bytes, as one emoji makes it. To drop errors needs what stays, twice."""
    out, detail = tmp_path / name, "x" * 100_000
    table = Table(out)
    table.open([])
    for image in ("😀.jpg", *(f"{number}.jpg" for number in range(19))):
        table.write(image, {"error": "bad_image", "detail": detail})
    table.close()
    size = out.stat().st_size
    tracemalloc.start()
    try:
        table = Table(out)
        assert tracemalloc.get_traced_memory()[1] < 2 * size
        table.open(["0.jpg"])
        assert tracemalloc.get_traced_memory()[1] < 3.5 * size
        table.close()
    finally:
        tracemalloc.stop()


def test_a_file_that_another_run_writes_is_left_alone(
    address: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Pod that was replaced may not have ended yet."""
    out = tmp_path / "out.csv"
    table = Table(out)
    table.open([])
    assert main([str(folder), "--gateway", address, "--out", str(out)]) == 2
    assert f"Another run writes to {out}. Wait for its end" in capsys.readouterr().err
    late = Table(out)
    table.write("a.jpg", {"error": "bad_image", "detail": "It is broken"})
    table.close()
    with pytest.raises(ValueError, match="Another run"):
        late.open([])
    assert len(read_csv(out)) == 1


def test_a_file_system_without_locks_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs could write to one file there."""
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    assert main(["http://localhost/a.jpg", "--gateway", address, "--out", str(tmp_path / "out.csv")]) == 2
    assert f"The file system cannot lock files: '{tmp_path / 'out.csv'}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "source,x\r\na,1\r\n"),
        ("a.csv", f"{','.join(COLUMNS[:-1])}\r\n"),
        ("a.csv", f"{','.join(COLUMNS[::-1])}\r\n"),
        ("a.csv", f"{','.join(COLUMNS)}\r\na.jpg,1,1,red,0,0.9,,,false,\r\n"),
        ("a.csv", "first,second\r\n1,2\r\n"),
        ("a.jsonl", "no JSON\n"),
        ("a.jsonl", "5\n"),
        ("a.jsonl", '{"path": 1}\n'),
        ("a.jsonl", '{"path": 1}'),
        ("a.jsonl", '{"source": ["a.jpg"]}\n'),
        ("a.jsonl", '{"source": "a.jpg"}{"source": "b.jpg"}'),
        ("a.csv", "source,x\ra,1\r"),
        ("a.csv", f"{','.join(COLUMNS)}\ra,1\r"),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their name, as a part and as the file to append to; and nothing is written."""
    file = tmp_path / name
    file.write_bytes(content.encode())
    for options in (["--out", str(file)], ["--out", str(tmp_path / f"b{file.suffix}"), "--merge", str(file)]):
        assert main(["http://example.com/a.jpg", *options]) == 2
        assert f"Expected a file of an earlier run in {file}" in capsys.readouterr().err
    assert file.read_bytes() == content.encode()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "0/0", "a/b", "1/3/4"])
def test_a_shard_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts count from 0, as the indexes of a Kubernetes Job do."""
    with pytest.raises(SystemExit, match="2"):
        main(["photos", f"--shard={text}"])
    assert "Expected I/N with I from 0 to N - 1, such as 0/4" in capsys.readouterr().err


def test_parts_of_another_kind_are_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    (tmp_path / "part.jsonl").touch()
    out = tmp_path / "out.csv"
    assert main([str(folder), "--out", str(out), "--merge", str(tmp_path / "part.jsonl")]) == 2
    assert "Expected files to merge that end in .csv" in capsys.readouterr().err and not out.exists()
    assert main(["--merge", str(tmp_path / "part.jsonl")]) == 2
    assert "Expected --out with --merge" in capsys.readouterr().err
    assert main([str(folder), "--out", str(tmp_path / "none" / "out.csv")]) == 2
    assert "Expected --out in a folder that exists" in capsys.readouterr().err
    assert main([]) == 2
    assert "files to --merge. Received none" in capsys.readouterr().err
