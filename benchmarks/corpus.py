"""`make corpus`: sends Pillow's test images, crash and bomb files included, to the running gateway in every form.

Each must give predictions or a 4xx within 5 s, never a 500, and every form the same answer. The images are in Pillow's
source package, which pip downloads (47 MB).
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faults import ask, quiet, resident_mb, stack
from tests.programs.stack import Gateway

PILLOW = "pillow==13.0.0"
BOUNDARY = "3d6b6a416f9b5"


def main() -> None:
    """Download, send, and print what came back."""
    images = download()
    slowest, statuses, codes, differing = ("", 0.0), Counter[int](), Counter[str](), []
    with quiet(), stack(GATEWAY_REQUEST_TIMEOUT_S="20") as (client, _, _):
        for _ in range(50):
            ask(client, images["Tests/images/hopper.jpg"], "image/jpeg")
        before = peak = resident_mb(client)
        for name, image in images.items():
            started = time.monotonic()
            status, body = ask(client, image, "application/octet-stream")
            slowest = max(slowest, (name, time.monotonic() - started), key=lambda each: each[1])
            statuses[status] += 1
            codes[json.loads(body).get("code", "answered")] += 1
            peak = max(peak, resident_mb(client))
            if status == 200 and any(each != result(body) for each in other_forms(client, image)):
                differing.append(name)
    print(f"{len(images)} files: {dict(sorted(statuses.items()))}; {dict(codes.most_common())}")
    print(f"slowest {slowest[1]:.2f} s ({slowest[0]}); memory of the workers grew by at most {peak - before:.0f} MB")
    print(f"answered otherwise by another form: {differing or 'none'}")


def download() -> dict[str, bytes]:
    """Return the files of Pillow's Tests/images, by name."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow"]
        subprocess.run([*pip, "--dest", folder, PILLOW], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            files = [each for each in tar if each.isfile() and "/Tests/images/" in each.name]
            return {each.name.split("/", 1)[1]: tar.extractfile(each).read() for each in files}  # type: ignore[union-attr]


def other_forms(client: Gateway, image: bytes) -> list[Any]:
    """Return the result for an image as JSON, as a data: URL, in a list, and as a file."""
    text = base64.b64encode(image).decode()
    form = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode()
    bodies = [
        (json.dumps({"image": text}).encode(), "application/json"),
        (json.dumps({"image": f"data:;base64,{text}"}).encode(), "application/json"),
        (json.dumps({"images": [text]}).encode(), "application/json"),
        (form + image + f"\r\n--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"),
    ]
    return [result(ask(client, *body)[1]) for body in bodies]


def result(body: bytes) -> Any:
    """Return the part of an answer that does not depend on time."""
    answer = json.loads(body)
    one = answer["results"][0] if "results" in answer else answer
    return {key: one.get(key) for key in ("predictions", "image", "code")}


if __name__ == "__main__":
    main()
