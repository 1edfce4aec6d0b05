"""Clients in a cluster, outside of what is deployed, that send images without pause."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.deploy.cluster import kubectl, outside
from tests.programs.stack import wait_until


def _body(image: bytes | str) -> tuple[str, str]:
    """Return the type and the base64 of a request's body."""
    if isinstance(image, str):
        return "application/json", base64.b64encode(json.dumps({"url": image}).encode()).decode()
    return "image/jpeg", base64.b64encode(image).decode()


@dataclass
class ClusterLoad:
    """Clients outside, which send images to the gateway's Service until the block ends.

    Attributes:
        images: What they send, by name: an image or its URL.
        answers: Name of the image, status and JSON of each answer.
        sent: When the request of each answer was sent, as time.time().
        lost: Why each of the other requests got none.
    """

    images: dict[str, bytes | str]
    clients: int = 4
    answers: list[tuple[str, int, Any]] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        plan = {
            "host": kubectl("get", "service", "gateway", "--output=jsonpath={.spec.clusterIP}"),
            "port": 80,
            "clients": self.clients,
            "stop": "/tmp/stop",
            "bodies": {name: _body(image) for name, image in self.images.items()},
        }
        program = Path(__file__).with_name("closed_loop.py").read_text()
        # It goes on when this command has ended: a connection through the API server may break under load.
        script = 'rm -f /tmp/stop; cat > /tmp/plan; nohup python -c "$0" < /tmp/plan > /tmp/answers 2>&1 &'
        outside("sh", "-c", script, program, stdin=json.dumps(plan).encode())
        self._read_bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        outside("touch", "/tmp/stop")
        wait_until(self._is_over, 60)

    def _is_over(self) -> bool:
        """Read what was written since the last time, and tell whether that was all."""
        written = outside("tail", "-c", f"+{self._read_bytes + 1}", "/tmp/answers")
        lines = written[: written.rfind(b"\n") + 1]
        self._read_bytes += len(lines)
        for each in map(json.loads, lines.splitlines()):
            if "lost" in each:
                self.lost.append(each["lost"])
            elif "end" in each:
                return True
            else:
                self.answers.append((each["image"], each["status"], each["answer"]))
                self.sent.append(each["sent"])
        return False

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until a condition is true of what has been read."""

        def is_true() -> bool:
            time.sleep(0.5)
            self._is_over()
            return condition()

        wait_until(is_true, timeout_s, lambda: (self.lost[-3:], self.answers[-3:]))

    @property
    def identities(self) -> set[str]:
        """The exports that answered."""
        return {answer["model"]["identity"] for _, status, answer in self.answers if status == 200}

    def wait_for(self, more: int) -> None:
        """Wait until so many more requests have ended."""
        self._is_over()
        count = len(self.answers) + len(self.lost) + more
        self.wait(lambda: len(self.answers) + len(self.lost) >= count)

    def wait_for_identity(self, identity: str) -> None:
        """Wait until the fifty latest answers are all of one export."""

        def is_alone() -> bool:
            latest = [answer["model"]["identity"] for _, status, answer in self.answers[-50:] if status == 200]
            return latest == [identity] * 50

        self.wait(is_alone)
