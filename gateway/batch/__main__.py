"""Asks a running gateway about many images, and writes a CSV or JSON lines file.

Run it again after an interruption: it skips images that the file already answers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from tqdm import tqdm

from contract.photos import SUFFIXES, photos_in
from gateway.batch.asking import Client, gateway_url
from gateway.batch.table import Row, Table, read_answers

ALL_ANSWERED, SOME_FAILED, NOT_STARTED = 0, 1, 2


class Shard(NamedTuple):
    """One of several parts of the images: the part of an image depends on its name alone."""

    number: int
    of: int

    def has(self, image: str) -> bool:
        """Tell whether an image is in this part."""
        return crc32(os.fsencode(image)) % self.of == self.number


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return 0 if every image was answered, 1 if some failed, 2 if it could not start."""
    options = _parser().parse_args(argv)
    try:
        found = dict.fromkeys(image for source in options.sources for image in _expand(source))
        images = [image for image in found if options.shard.has(image)]
        table, merged = Table(options.out), _read_parts(options.merge, options.out)
        taken = [image for image in images if image in merged and image not in table.answered]
        todo = [image for image in images if image not in table.answered and image not in merged]
        client = Client(options.gateway, options.top_k, options.concurrency, options.timeout) if todo else None
        table.open()
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return NOT_STARTED
    with closing(table):
        for image in taken:
            table.append(merged[image])
        if len(todo) + len(taken) < len(images):
            answered = f"{options.out} already answers {len(images) - len(todo) - len(taken)} of {len(images)} images"
            print(f"{answered}; to ask about all of them, name another file", file=sys.stderr)
        if taken:
            print(f"{len(taken)} taken over", file=sys.stderr)
        return _ask(client, todo, table, options.concurrency) if client else ALL_ANSWERED


def _ask(client: Client, todo: Sequence[str], table: Table, concurrency: int) -> int:
    failed = 0
    with ThreadPoolExecutor(concurrency) as pool:
        answers = client.ask_all(pool, todo)
        try:
            for image, answer in tqdm(answers, total=len(todo), unit="image", disable=not sys.stderr.isatty()):
                table.write(image, answer)
                failed += "error" in answer
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("Stopped; run the same command to go on.", file=sys.stderr)
            return SOME_FAILED
    print(f"{len(todo) - failed} answered, {failed} failed", file=sys.stderr)
    return SOME_FAILED if failed else ALL_ANSWERED


def _expand(source: str) -> list[str]:
    """Return the images that an argument names: a URL, an image, a folder, or a text file with a list."""
    if source.startswith(("http://", "https://")):
        return [source]
    path = Path(source)
    if path.is_dir():
        found = [str(each) for each in photos_in(path)]
        if not found:
            raise ValueError(f"Expected images ({', '.join(SUFFIXES)}) in {path}. Received: a folder without any")
        return found
    if not path.is_file():
        raise ValueError(f"Expected a URL, an image, a folder, or a list of them. Received: {source}")
    if path.suffix.lower() in SUFFIXES:
        return [source]
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_parts(parts: Sequence[Path], out: Path | None) -> dict[str, list[Row]]:
    """Return the rows of each image that some files of other runs answer; the first file with it counts."""
    suffix, rows = out.suffix if out else ".jsonl", dict[str, list[Row]]()
    for part in parts:
        if part.suffix != suffix:
            raise ValueError(f"Expected files of {suffix} for --merge, as --out is. Received: {part}")
        rows = read_answers(part) | rows
    return rows


def _table(text: str) -> Path:
    if not text.endswith((".csv", ".jsonl")):
        raise argparse.ArgumentTypeError(f"Expected a file that ends in .csv or .jsonl. Received: {text!r}")
    return Path(text)


def _shard(text: str) -> Shard:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if shard.number >= shard.of:
        raise argparse.ArgumentTypeError(f"Expected I/N with I from 0 to N - 1, such as 0/4. Received: {text!r}")
    return shard


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected an integer from 1. Received: {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.batch",
        description=__doc__,
        epilog="GATEWAY_KEY is the API key, if the gateway needs one.",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a URL, an image, a folder, or a text file with a list"
    )
    parser.add_argument(
        "--gateway", type=gateway_url, default="http://localhost:9696", help="URL of the gateway (default: %(default)s)"
    )
    parser.add_argument("--out", type=_table, help=".csv or .jsonl file to append to (default: standard output)")
    parser.add_argument(
        "--shard",
        type=_shard,
        default=Shard(0, 1),
        metavar="I/N",
        help="ask about part I of N alone, from 0; each part needs its own --out",
    )
    parser.add_argument(
        "--merge",
        type=_table,
        nargs="+",
        default=[],
        metavar="FILE",
        help="first take over what these files of other runs answer, such as those of shards",
    )
    parser.add_argument("--top-k", type=_positive, default=1, help="predictions per image (default: %(default)s)")
    parser.add_argument("--concurrency", type=_positive, default=8, help="requests at once (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for an answer (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
