"""How a client asks a gateway: with a key, about several images in a request, and again where that fails."""

from __future__ import annotations

import errno
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import urllib3

from contract.client import key_header

Answer = dict[str, Any]
"""Model, predictions, unknown and image; or `{"error": code, "detail": …}`."""

# A busy gateway says when to try again, and a request that it refused changed nothing. No redirect is followed: to
# another host, the key would not go with it.
RETRIES = urllib3.Retry(
    total=8,
    connect=2,
    read=1,  # each may take the whole time limit
    redirect=False,
    status_forcelist=(503,),
    allowed_methods=("POST",),
    backoff_factor=0.2,
    raise_on_status=False,
)
KEPT = ("model", "predictions", "unknown", "image")
NO_GATEWAY = {"unreachable", "not_a_gateway", "unauthorized", "not_found", "method_not_allowed"}
PASSING = NO_GATEWAY | {
    *("request_timeout", "fetch_timeout", "overloaded", "model_unavailable", "model_timeout", "internal_error"),
    "read_failed",
}
# Why a file cannot be read, now or later; None is of a path that can be none, such as one with a NUL. Anything else, as
# of a disk or of too many open files, may pass.
UNREADABLE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    None,
}
# The details of `fetch_failed` where the host, or the way to it, fails for the moment.
_PASSING_FETCH = re.compile(
    r"not resolve now|refused the connection|not connect|no complete|status (408|425|429|5\d\d)\."
)
# In a request, as many as the gateway sends to the model at once: 113 photos/s in place of 86 with one, and the
# benchmark's load reached 90 requests/s. TFLite fp32, 224 px, two cores without AVX-512.
MOST_IMAGES = 16
MOST_URLS = 6  # as the gateway fetches at once for a request: images of slow hosts keep no others waiting
MOST_BYTES = 8 * 1024 * 1024  # of the files in a request
# A request of several images must end long before the gateway's limit of 5 s for a call of the model server.
QUICK_S, SLOW_S = 0.5, 1.5


class Pace:
    """How many images a request carries: twice as many after a quick one, half as many after a slow one."""

    def __init__(self) -> None:
        self.size = 1
        self._most = MOST_IMAGES

    def note(self, asked: Asked) -> None:
        """Learn from a request that has ended."""
        count = len(asked.answers)
        if asked.is_too_large or asked.seconds > SLOW_S:
            self.size = max(1, min(self.size, count // 2))
            self._most = self.size if asked.is_too_large else self._most
        elif asked.seconds < QUICK_S and count >= self.size:
            self.size = min(self._most, 2 * count)


@dataclass(frozen=True)
class Asked:
    """A request that has ended.

    Attributes:
        answers: By image, in order.
        seconds: How long it took.
        is_too_large: Whether the gateway takes only fewer images, or bytes, in a request.
    """

    answers: Mapping[str, Answer]
    seconds: float
    is_too_large: bool


class Client:
    """Asks one gateway; safe for threads."""

    def __init__(self, gateway: str, top_k: int, concurrency: int, timeout_s: float) -> None:
        """Make sure that a gateway answers, so that its absence is one message and not one for each image.

        Raises:
            ValueError: None does, the address redirects to another, or the key in `GATEWAY_KEY` is none.
        """
        self._url, self._concurrency = f"{gateway}/predict?top_k={top_k}", concurrency
        self._http = urllib3.PoolManager(headers=key_header(), maxsize=concurrency, retries=RETRIES, timeout=timeout_s)
        try:
            live = self._http.request("GET", f"{gateway}/livez", headers={})  # needs no key
        except urllib3.exceptions.HTTPError as exc:
            raise ValueError(
                f"No gateway answers at {gateway}: {getattr(exc, 'reason', exc)}. `make run` starts one; --gateway"
                " names another."
            ) from exc
        if location := live.get_redirect_location():
            target = urljoin(f"{gateway}/livez", location).removesuffix("/livez")
            raise ValueError(f"{gateway} redirects to {target}. If the gateway is there, name that with --gateway.")

    def ask_all(self, pool: Executor, images: Sequence[str]) -> Iterator[tuple[str, Answer]]:
        """Yield each image and its answer as they arrive, with few requests waiting, however many images there are."""
        left, pace, running = deque(images), Pace(), set[Future[Asked]]()
        while left or running:
            while left and len(running) < 2 * self._concurrency:
                running.add(pool.submit(self.ask, _take(left, pace.size)))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                pace.note(each.result())
                yield from each.result().answers.items()

    def ask(self, images: Sequence[str]) -> Asked:
        """Ask about URLs, or about files, in one request; about those alone that it does not answer."""
        started, answers, bodies = time.perf_counter(), dict[str, Answer](), dict[str, bytes]()
        for image in images:
            try:
                bodies[image] = b"" if _is_url(image) else Path(image).read_bytes()
            except (OSError, ValueError) as exc:
                code = "unreadable" if getattr(exc, "errno", None) in UNREADABLE else "read_failed"
                answers[image] = {"error": code, "detail": str(exc)}
        together, is_too_large = self._ask_together(bodies) if len(bodies) > 1 else ({}, False)
        answers |= together
        for image in bodies.keys() - answers.keys():
            answers[image] = self._ask_alone(image, bodies[image])
        return Asked({image: answers[image] for image in images}, time.perf_counter() - started, is_too_large)

    def _ask_together(self, bodies: Mapping[str, bytes]) -> tuple[dict[str, Answer], bool]:
        """Return the answers; one image may have failed them all, and the gateway may be busy with some of them."""
        sent: dict[str, Any] = {"fields": [("image", ("image", each, "image/*")) for each in bodies.values()]}
        if all(map(_is_url, bodies)):
            sent = {"json": {"urls": list(bodies)}}
        try:
            response = self._http.request("POST", self._url, **sent)
            if response.status != 200:
                return {}, response.status == 413
            answer = json.loads(response.data)
            results = [_kept({"model": answer["model"], **each}) for each in answer["results"]]
            asked = dict(zip(bodies, results, strict=True))
            return {image: each for image, each in asked.items() if _was_tried(each)}, False
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError):
            return {}, False

    def _ask_alone(self, image: str, body: bytes) -> Answer:
        kind = "application/json" if _is_url(image) else "application/octet-stream"
        body = json.dumps({"url": image}).encode() if _is_url(image) else body
        try:
            headers = {**self._http.headers, "Content-Type": kind}
            response = self._http.request("POST", self._url, body=body, headers=headers)
            answer = json.loads(response.data)
            return _kept(answer if response.status == 200 else {"error": answer})
        except urllib3.exceptions.HTTPError as exc:
            return {"error": "unreachable", "detail": f"No gateway answers at {self._url}: {exc}"}
        except (ValueError, KeyError, TypeError):
            detail = f"Something other than a gateway answers at {self._url}, with status {response.status}"
            return {"error": "not_a_gateway", "detail": detail}


def _was_tried(answer: Answer) -> bool:
    """Tell whether a gateway got to an image of a list, for which it may be too busy, or have no time left."""
    return answer.get("error") != "overloaded" and "no time was left to fetch" not in str(answer.get("detail"))


def _take(left: deque[str], size: int) -> list[str]:
    """Take the images of the next request: URLs, or files of not too many bytes."""
    taken = [left.popleft()]
    total = _size_bytes(taken[0])
    most = min(size, MOST_URLS) if _is_url(taken[0]) else size
    while left and len(taken) < most and _is_url(left[0]) == _is_url(taken[0]):
        total += _size_bytes(left[0])
        if total > MOST_BYTES:
            break
        taken.append(left.popleft())
    return taken


def _kept(answer: Mapping[str, Any]) -> Answer:
    """Return what is written of an answer.

    Raises:
        KeyError, TypeError: It is none of a gateway.
    """
    if "error" in answer:
        return {"error": answer["error"]["code"], "detail": answer["error"]["detail"]}
    answer["model"]["version"]
    answer["predictions"]
    return {key: answer[key] for key in KEPT if key in answer}


def _is_url(image: str) -> bool:
    return image.startswith(("http://", "https://"))


def _size_bytes(image: str) -> int:
    try:
        return 0 if _is_url(image) else Path(image).stat().st_size
    except (OSError, ValueError):
        return 0


def may_pass(error: Mapping[str, Any]) -> bool:
    """Tell whether another run may not meet an answer's error; the others are an image's own."""
    is_of_host = error["error"] == "fetch_failed" and _PASSING_FETCH.search(str(error.get("detail")))
    return error["error"] in PASSING or bool(is_of_host)
