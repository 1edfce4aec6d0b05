"""Asks a running gateway about many images, and writes a CSV or JSON lines file.

Run it again after an interruption: it skips images that the file already answers.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import urllib3
from tqdm import tqdm

from contract.photos import SUFFIXES, photos_in

ANY_BYTES = "surrogateescape"  # a file's name need not be UTF-8
COLUMNS = ("source", "version", "rank", "class", "index", "probability", "error", "detail", "unknown")
ALL_ANSWERED, SOME_FAILED, NOT_STARTED = 0, 1, 2
# A busy gateway says when to try again, and a request that it refused changed nothing.
RETRIES = urllib3.Retry(
    total=8, connect=2, status_forcelist=(503,), allowed_methods=("POST",), backoff_factor=0.2, raise_on_status=False
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return 0 if every image was answered, 1 if some failed, 2 if it could not start."""
    options = _parser().parse_args(argv)
    try:
        http = urllib3.PoolManager(
            headers=key_header(), maxsize=options.concurrency, retries=RETRIES, timeout=options.timeout
        )
        images = list(dict.fromkeys(image for source in options.sources for image in _expand(source)))
        done = _answered(options.out)
        _find_gateway(http, options.gateway)
        output = _open_output(options.out)
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return NOT_STARTED
    todo = [image for image in images if image not in done]
    if len(todo) < len(images):
        answered = f"{options.out} already answers {len(images) - len(todo)} of {len(images)} images"
        print(f"{answered}; to ask about all of them, name another file", file=sys.stderr)
    url, failed = f"{options.gateway}/predict?top_k={options.top_k}", 0
    with output as file, ThreadPoolExecutor(options.concurrency) as pool:
        answers = _ask_all(pool, 2 * options.concurrency, todo, partial(_ask, http, url))
        try:
            for image, answer in tqdm(answers, total=len(todo), unit="image", disable=not sys.stderr.isatty()):
                _write(file, options.out, image, answer)
                failed += "error" in answer
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("Stopped; run the same command to go on.", file=sys.stderr)
            return SOME_FAILED
    print(f"{len(todo) - failed} answered, {failed} failed", file=sys.stderr)
    return SOME_FAILED if failed else ALL_ANSWERED


def key_header() -> dict[str, str]:
    """Return the header with the key in `GATEWAY_KEY`, if there is one.

    Raises:
        ValueError: The key has a control character, such as a line break.
    """
    key = os.environb.get(b"GATEWAY_KEY", b"").strip()
    if re.search(rb"[\x00-\x1f\x7f]", key):
        raise ValueError("Expected a key of one line in GATEWAY_KEY. Received one with a control character")
    return {"Authorization": f"Bearer {key.decode('latin-1')}"} if key else {}  # sent as the bytes that they are


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


def _answered(out: Path | None) -> set[str]:
    """Return the images that the output file answers; those that failed are asked again."""
    if out is None or not out.is_file():
        return set()
    text = out.read_text(encoding="utf-8", errors=ANY_BYTES)
    if text and not text.endswith("\n"):  # a run was killed while it wrote its last line
        text = text[: text.rfind("\n") + 1]
        out.write_text(text, encoding="utf-8", errors=ANY_BYTES)
    rows: list[dict[str, Any]] = (
        list(csv.DictReader(io.StringIO(text, newline="")))
        if out.suffix == ".csv"
        else [json.loads(line) for line in text.split("\n") if line]
    )
    if any("source" not in row for row in rows):
        raise ValueError(f"Expected a file of an earlier run in {out}. Received a file of another kind")
    return {row["source"] for row in rows if not row.get("error")}


def _find_gateway(http: urllib3.PoolManager, gateway: str) -> None:
    """Make sure that a gateway answers, so that its absence is one message and not one for each image."""
    try:
        http.request("GET", f"{gateway}/livez", headers={})  # needs no key
    except urllib3.exceptions.HTTPError as exc:
        raise ValueError(
            f"No gateway answers at {gateway}: {getattr(exc, 'reason', exc)}. `make run` starts one; --gateway names"
            " another."
        ) from exc


def _open_output(out: Path | None) -> TextIO:
    if out is None:
        return open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors=ANY_BYTES)  # noqa: PTH123  # closing it leaves stdout open
    if not out.absolute().parent.is_dir():
        raise ValueError(f"Expected --out in a folder that exists. Received: {out}")
    new = not out.is_file()
    file = out.open("a", encoding="utf-8", errors=ANY_BYTES, newline="")
    if new and out.suffix == ".csv":
        csv.writer(file).writerow(COLUMNS)
    return file


def _ask_all(
    pool: ThreadPoolExecutor, waiting: int, images: Sequence[str], ask: Callable[[str], dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield answers as they arrive, with few requests waiting, however long the list is."""
    queue = iter(images)
    running = {pool.submit(ask, image): image for image in islice(queue, waiting)}
    while running:
        done = next(as_completed(running))
        yield running.pop(done), done.result()
        for image in islice(queue, 1):
            running[pool.submit(ask, image)] = image


def _ask(http: urllib3.PoolManager, url: str, image: str) -> dict[str, Any]:
    """Return the gateway's answer, or `{"error": code, "detail": …}`."""
    try:
        if image.startswith(("http://", "https://")):
            body, kind = json.dumps({"url": image}).encode(), "application/json"
        else:
            body, kind = Path(image).read_bytes(), "application/octet-stream"
        response = http.request("POST", url, body=body, headers={**http.headers, "Content-Type": kind})
        answer: dict[str, Any] = json.loads(response.data)
        if response.status == 200:
            kept = ("model", "predictions", "unknown", "image", "timing_ms")
            return {key: answer[key] for key in kept if key in answer}
        return {"error": answer["code"], "detail": answer["detail"]}
    except OSError as exc:
        return {"error": "unreadable", "detail": str(exc)}
    except urllib3.exceptions.HTTPError as exc:
        return {"error": "unreachable", "detail": f"No gateway answers at {url}: {exc}"}
    except (ValueError, KeyError, TypeError):
        detail = f"Something other than a gateway answers at {url}, with status {response.status}"
        return {"error": "not_a_gateway", "detail": detail}


def _write(file: TextIO, out: Path | None, image: str, answer: dict[str, Any]) -> None:
    """Append an answer, and flush it so that a killed run keeps it: a JSON line, or a CSV row for each prediction."""
    if out is None or out.suffix != ".csv":
        file.write(json.dumps({"source": image, **answer}, ensure_ascii=False) + "\n")
    else:
        writer = csv.DictWriter(file, COLUMNS)
        if "error" in answer:
            writer.writerow({"source": image, "error": answer["error"], "detail": answer["detail"]})
        else:
            common = {
                "source": image,
                "version": answer["model"]["version"],
                "unknown": str(answer.get("unknown", "")).lower(),
            }
            rows = enumerate(answer["predictions"], start=1)
            writer.writerows({**common, "rank": rank, **row} for rank, row in rows)
    file.flush()


def gateway_url(text: str) -> str:
    """Read a gateway's URL from the command line."""
    try:
        url = urllib3.util.parse_url(text)
    except urllib3.exceptions.LocationParseError:
        url = urllib3.util.Url()
    if not text.startswith(("http://", "https://")) or not url.host or text.endswith("/predict"):
        raise argparse.ArgumentTypeError(f"Expected http://HOST:PORT or https://HOST. Received: {text!r}")
    return text.rstrip("/")


def _table(text: str) -> Path:
    if not text.endswith((".csv", ".jsonl")):
        raise argparse.ArgumentTypeError(f"Expected a file that ends in .csv or .jsonl. Received: {text!r}")
    return Path(text)


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
    parser.add_argument("--top-k", type=_positive, default=1, help="predictions per image (default: %(default)s)")
    parser.add_argument("--concurrency", type=_positive, default=8, help="requests at once (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for an answer (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
