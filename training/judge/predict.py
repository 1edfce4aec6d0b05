"""Predictions of a version in the store for files, folders and URLs, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from contract.image import ImageError, decode
from contract.outputs import most_probable
from contract.photos import SUFFIXES, describe_others, files_in
from training.errors import DataError, TrainingError
from training.judge.predictors import StoredVersion
from training.words import counted

MAX_BYTES, TIMEOUT_S = 32 * 1024 * 1024, 20.0  # of a URL


@dataclass(frozen=True)
class Answer:
    """Predictions for one image, the most probable first, and whether it is unknown; or why there are none."""

    source: str
    predictions: list[dict[str, Any]]
    error: str = ""
    unknown: bool | None = None


def expand(sources: Sequence[str], urls: bool = True) -> list[str]:
    """Return the images of some arguments, each once: files, the photos in folders, and URLs if these are allowed.

    What else is in a folder is counted on standard error.

    Raises:
        DataError: A path does not exist, or a folder has no photos.
    """
    found: dict[str, None] = {}
    for source in sources:
        path = Path(source)
        files = files_in(path) if source and path.is_dir() else []
        if (urls and source.startswith(("http://", "https://"))) or path.is_file():
            found[source] = None
        elif photos := [each for each in files if each.suffix.lower() in SUFFIXES]:
            found |= dict.fromkeys(map(str, photos))
            if others := describe_others(files):
                print(f"{path}: {others}", file=sys.stderr)
        else:
            expected = f"{'a URL, ' if urls else ''}an image, or a folder of images ({', '.join(SUFFIXES)})"
            raise DataError(f"Expected {expected}. Received: {source or 'an empty path'}")
    return list(found)


def predict(images: Sequence[str], version: StoredVersion, top_k: int) -> Iterator[Answer]:
    """Yield an answer for each image, decoded as the gateway does."""
    contract = version.contract
    for image in images:
        try:
            pixels = decode(_read(image), contract.image).pixels
        except (ImageError, OSError, urllib3.exceptions.HTTPError) as exc:
            yield Answer(image, [], str(exc))
            continue
        outputs = version.run(pixels[np.newaxis])
        unknown = outputs.unknown(contract)
        predictions = most_probable(contract.classes, outputs.probabilities[0], top_k)
        yield Answer(image, predictions, unknown=None if unknown is None else bool(unknown[0]))


def write(answers: Iterator[Answer], version: StoredVersion, as_json: bool) -> None:
    """Print one line for each answer as it comes: classes in columns and then the image, or JSON.

    Raises:
        TrainingError: An image has no answer; all others were printed.
    """
    line = _json if as_json else _columns
    failed = total = 0
    for answer in answers:
        print(line(answer, version), flush=True)
        failed, total = failed + bool(answer.error), total + 1
    if failed:
        raise TrainingError(f"No answer for {failed} of {counted(total, 'image')}")


def _columns(answer: Answer, version: StoredVersion) -> str:
    if answer.error:
        return f"no answer  {answer.source}: {answer.error}"
    width = max(map(len, version.contract.classes))
    columns = (f"{each['class']:<{width}} {each['probability']:.3f}" for each in answer.predictions)
    return f"{'  '.join(columns)}  {'unknown: ' if answer.unknown else ''}{answer.source}"


def _json(answer: Answer, version: StoredVersion) -> str:
    """Return JSON with the members of a gateway's answer."""
    contract = version.contract
    model = {"name": contract.model, "version": version.number, "identity": contract.identity or None}
    result: dict[str, Any] = {"error": answer.error} if answer.error else {"predictions": answer.predictions}
    if answer.unknown is not None:
        result["unknown"] = answer.unknown
    return json.dumps({"source": answer.source, "model": model, **result}, ensure_ascii=False)


def _read(image: str) -> bytes:
    """Return an image's bytes; any URL is fetched, since the person who types it could fetch it anyway."""
    if not image.startswith(("http://", "https://")):
        return Path(image).read_bytes()
    with urllib3.request("GET", image, timeout=TIMEOUT_S, preload_content=False) as response:
        if response.status != 200:
            raise OSError(f"Expected an image. Received: status {response.status}")
        content = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"Expected at most {MAX_BYTES:,} bytes. Received: more")
    return content
