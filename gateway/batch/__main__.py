"""Asks a running gateway about many images, and writes a CSV or JSON lines file.

Run it again after an interruption: it skips images that the file already answers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from zlib import crc32

from tqdm import tqdm

from contract.arguments import Arguments
from contract.client import gateway_url
from contract.photos import SUFFIXES, describe_others, files_in
from contract.settings import number
from gateway.batch.asking import NO_GATEWAY, Client, may_pass
from gateway.batch.table import Table, is_answered, read_images

ALL_ANSWERED, SOME_LEFT, NOT_STARTED, SOME_UNUSABLE = 0, 1, 2, 3
STOPPED = "Stopped; run the same command to go on."
LOST_AFTER = 50  # images in a row for which there was no gateway, or the key was wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status; the help says what each means."""
    options = _parser().parse_args(argv)
    try:
        if not options.sources and not options.merge:
            raise ValueError("Expected a URL, an image, a folder, a list of them, or files to --merge. Received none")
        _check_parts(options.merge, options.out)
        most = options.top_k if options.sources else 0  # without, nobody is asked
        merged = read_images(options.merge, most)
        expanded = [_expand(source) for source in options.sources]
        named = (image for images, _ in expanded for image in images)
        found = dict.fromkeys(named if options.sources else merged)
        part, parts = options.shard
        images = [image for image in found if crc32(os.fsencode(image)) % parts == part]  # by its name alone
        table = Table(options.out, most)
        left = [image for image in images if image not in table.answered]
        may_fail = not options.sources  # with sources, what failed is asked about
        taken = {image: merged[image] for image in left if is_answered(merged.get(image, []), may_fail)}
        todo = [image for image in left if image not in taken]
        client = Client(options.gateway, options.top_k, options.concurrency, options.timeout) if todo else None
        table.open(left)
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return NOT_STARTED
    try:
        with closing(table):
            for left_out in (line for _, line in expanded if line):
                print(left_out, file=sys.stderr)
            if len(left) < len(images):
                answered = f"{options.out} already answers {len(images) - len(left)} of {len(images)} images"
                print(f"{answered}; to ask about all of them, name another file", file=sys.stderr)
            if merged:
                others = sum(is_answered(merged[image]) for image in merged.keys() - found.keys())
                also = f"; the files answer {others} other images" if others else ""
                print(f"{len(taken)} taken over{also}", file=sys.stderr)
            for rows in taken.values():
                table.append(rows)
            if client:
                return _ask(client, todo, table, options.concurrency)
            failed = [rows[0] for rows in taken.values() if not is_answered(rows)]
            errors = Counter(each["error"] for each in failed)
            if errors:
                print(f"Of them, {_described(errors)}", file=sys.stderr)
            return _status(errors, any(map(may_pass, failed)))
    except OSError as exc:  # of the table, such as a full disk
        print(f"{options.out or 'Standard output'}: {exc.strerror}. Run the same command to go on.", file=sys.stderr)
        return SOME_LEFT


def _ask(client: Client, todo: Sequence[str], table: Table, concurrency: int) -> int:
    errors, is_left, lost = Counter[str](), False, 0
    with ThreadPoolExecutor(concurrency) as pool:
        answers = client.ask_all(pool, todo)
        try:
            for image, answer in tqdm(answers, total=len(todo), unit="image", disable=not sys.stderr.isatty()):
                table.write(image, answer)
                if "error" in answer:
                    errors[answer["error"]] += 1
                    is_left = is_left or may_pass(answer)
                lost = lost + 1 if answer.get("error") in NO_GATEWAY else 0
                if lost >= LOST_AFTER:
                    print(f"{STOPPED} {answer['detail']}", file=sys.stderr)
                    return SOME_LEFT
        except (KeyboardInterrupt, BrokenPipeError):  # or who reads the answers has enough
            print(STOPPED, file=sys.stderr)
            return SOME_LEFT
        finally:  # on a full disk too
            pool.shutdown(wait=False, cancel_futures=True)
    print(f"{len(todo) - errors.total()} answered, {_described(errors)}", file=sys.stderr)
    return _status(errors, is_left)


def _described(errors: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {code}" for code, count in errors.most_common())
    return f"{errors.total()} failed" + (f": {kinds}" if errors else "")


def _status(errors: Counter[str], is_left: bool) -> int:
    """Return the exit status, by what failed, and whether some of it may be answered in another run."""
    if not errors:
        return ALL_ANSWERED
    return SOME_LEFT if is_left else SOME_UNUSABLE


def _expand(source: str) -> tuple[list[str], str]:
    """Return the images that a URL, an image, a folder or a list names, and a line on what else is in the folder."""
    if source.startswith(("http://", "https://")):
        return [source], ""
    path = Path(source)
    if source and path.is_dir():
        files = files_in(path)
        found, others = [str(each) for each in files if each.suffix.lower() in SUFFIXES], describe_others(files)
        if not found:
            received = f"a folder without any. {others}".rstrip(". ")
            raise ValueError(f"Expected images ({', '.join(SUFFIXES)}) in {path}. Received: {received}")
        return found, f"{path}: {others}" if others else ""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return [source], ""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as exc:
        expected = f"a URL, an image ({', '.join(SUFFIXES)}), a folder, or a text file with a list of them"
        raise ValueError(f"Expected {expected}. Received: {source or 'an empty path'}") from exc
    return [line.strip() for line in lines if line.strip()], ""


def _check_parts(parts: Sequence[Path], out: Path | None) -> None:
    """Refuse files to merge that are not of the kind of the one that is written."""
    if parts and not out:
        raise ValueError("Expected --out with --merge, of the files' kind. Received none")
    if missing := [str(part) for part in parts if not part.is_file()]:
        raise ValueError(f"Expected files of earlier runs to merge. Received what is no file: {', '.join(missing)}")
    if out and (other := [part for part in parts if part.suffix != out.suffix]):
        raise ValueError(f"Expected files to merge that end in {out.suffix}, as --out does. Received: {other[0]}")


def _table(text: str) -> Path:
    if not text.endswith((".csv", ".jsonl")):
        raise argparse.ArgumentTypeError(f"Expected a file that ends in .csv or .jsonl. Received: {text!r}")
    return Path(text)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= parts:
        raise argparse.ArgumentTypeError(f"Expected I/N with I from 0 to N - 1, such as 0/4. Received: {text!r}")
    return part, parts


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m gateway.batch",
        description=__doc__,
        epilog="""GATEWAY_KEY is the API key, if the gateway needs one.

exit status:
  0   every image was answered
  1   some were not, and may be if you run it again
  2   it could not start; the message says why
  3   some have no prediction, and would not get one: the table says why""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a URL, an image, a folder, or a text file with a URL or an image on each line that is not blank;"
        " without any, what is merged",
    )
    add(
        "--gateway", type=gateway_url, default="http://localhost:9696", help="URL of the gateway (default: %(default)s)"
    )
    add("--out", type=_table, help=".csv or .jsonl file to append to (default: standard output)")
    add(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="ask about part I of N alone, from 0; each part needs its own --out",
    )
    add(
        "--merge",
        type=_table,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="first take over what these files of other runs answer, such as those of shards",
    )
    add("--top-k", type=number(int, 1), default=1, help="predictions per image (default: %(default)s)")
    add("--concurrency", type=number(int, 1), default=8, help="requests at once (default: %(default)s)")
    add(
        "--timeout",
        type=number(float, 0.01, 86_400),
        default=60.0,
        help="seconds to wait for an answer (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first request, or again: then without waiting for those that run
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(SOME_LEFT)
