"""Clients of a gateway, in a Pod that has Python and no more: they ask in closed loops until the file `stop` exists.

The input is the plan, as JSON. Each line of the output is what became of a request; the last one says that it ends.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any


def ask(plan: dict[str, Any], index: int) -> None:
    """Send the bodies in turn; every other client opens a connection for each request."""
    bodies = itertools.cycle(plan["bodies"].items())
    connection = None
    while not Path(plan["stop"]).exists():
        name, (content_type, body) = next(bodies)
        connection = connection or http.client.HTTPConnection(plan["host"], plan["port"], timeout=30)
        sent = time.time()
        try:
            connection.request("POST", "/predict", base64.b64decode(body), {"Content-Type": content_type})
            response = connection.getresponse()
            said = {"status": response.status, "answer": json.loads(response.read())}
            keep = index % 2 and not response.will_close
        except (OSError, ValueError, http.client.HTTPException) as exc:
            said, keep = {"lost": repr(exc)}, False
        print(json.dumps({"image": name, "sent": sent, **said}) + "\n", end="", flush=True)
        if not keep:
            connection.close()
            connection = None


def main() -> None:
    """Start the clients."""
    plan = json.load(sys.stdin)
    clients = [threading.Thread(target=ask, args=(plan, i)) for i in range(plan["clients"])]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(json.dumps({"end": True}), flush=True)


if __name__ == "__main__":
    main()
