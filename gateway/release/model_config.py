"""`models.config`, which keeps the versions of the document loaded in TensorFlow Serving.

It reads the file with `--model_config_file` and `--model_config_file_poll_wait_seconds`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from google.protobuf import text_format

from contract import messages_pb2 as messages
from contract.store import find_versions

FILE_NAME = "models.config"


def compose(text: str, home: Path, versions: Collection[int], serial: int) -> str:
    """Return the file with those versions of a model, and any on disk that have a label; with none, the newest two.

    Other models in it stay, and so does the model's base path, which may be that of another machine.

    Args:
        text: The file as it is; empty if there is none.
        home: The model's folder.
        versions: All on disk.
        serial: That of the release.

    Raises:
        ValueError: The file is not understood; the message says where.
    """
    try:
        config = text_format.Parse(text, messages.ModelServerConfig())
    except text_format.ParseError as exc:
        raise ValueError(str(exc)) from exc
    models = config.model_config_list.config
    model = next((each for each in models if each.name == home.name), None)
    if not model:
        model = models.add(name=home.name, base_path=str(home.resolve()), model_platform="tensorflow")
    model.model_version_policy.Clear()
    if versions:
        labelled = find_versions(home).keys() & set(model.version_labels.values())  # or the file would be refused
        model.model_version_policy.specific.versions.extend(sorted(labelled.union(versions)))
    else:
        model.model_version_policy.latest.num_versions = 2
    return f"# Release {serial}, written by python -m gateway.release. Other models and base_path are kept.\n{config}"
