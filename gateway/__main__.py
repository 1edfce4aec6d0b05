"""`python -m gateway`: the gateway under gunicorn, configured by `GATEWAY_…` variables; docs/settings.md lists them."""

from __future__ import annotations

import logging.config
import os
import sys

from contract.arguments import Arguments
from gateway.server.process import Gateway
from gateway.settings import Settings, SettingsError
from gateway.telemetry import logs


def main() -> int:
    """Run until a signal; return the exit status."""
    Arguments("python -m gateway", description=__doc__.partition(": ")[2]).parse_args()
    logging.config.dictConfig(logs.CONFIG)
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return 2
    Gateway(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
