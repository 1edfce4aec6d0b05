"""`handle`, which Lambda imports by name: the function with the settings and the model of its environment.

Lambda gives this import the most processor time, before the first request. So here, and nowhere else, importing reads
the environment and a file.
"""

import logging.config
import os
from pathlib import Path

from gateway.settings import Settings
from gateway.telemetry import logs
from serverless.events import create_handler
from serverless.model import OwnModel

logging.config.dictConfig(logs.CONFIG)
_settings = Settings.from_env(os.environ)
_store = Path(os.environ.get("MODEL_STORE", "model-store"))
handle = create_handler(_settings, OwnModel(_store, _settings.model_name))
