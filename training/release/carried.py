"""Copies what an image of the model carries: the release document and the versions it names, or else the last two.

A previous version above the stable one was rolled back, so it stays behind: gateways without the document, as in a
cluster without a release component, would take it for the newest.

image-model.dockerfile runs it: `python -m training.release.carried model-store/clothing /carried/clothing`
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from contract import messages_pb2 as messages
from contract.release import FILE_NAME, read_release
from contract.store import find_versions

KEPT_VERSIONS = 2  # the older answers where a gateway refuses the newer


def carry(home: Path, folder: Path) -> None:
    """Copy the versions of a model into a new folder.

    Raises:
        ReleaseError: The document cannot be read.
        ValueError: The version that it names as stable is not there.
    """
    on_disk = {number: path for number, path in find_versions(home).items() if number >= 0}
    release = read_release(home / FILE_NAME)
    if release and release.stable not in on_disk:
        raise ValueError(f"{home / FILE_NAME} names version {release.stable} as stable, which is not on disk.")
    numbers = set(sorted(on_disk)[-KEPT_VERSIONS:])
    if release:
        tried = {release.trial.version} if release.trial else set()
        numbers = {each for each in release.versions & on_disk.keys() if each <= release.stable or each in tried}
    folder.mkdir(parents=True)
    for number in numbers:
        shutil.copytree(on_disk[number], folder / str(number))
    if release:
        (folder / FILE_NAME).write_text(release.to_json())
        config = messages.ModelServerConfig()
        model = config.model_config_list.config.add(name=home.name, base_path=str(home), model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(sorted(numbers))
        (folder / "models.config").write_text(str(config))  # for TensorFlow Serving


if __name__ == "__main__":
    carry(*map(Path, sys.argv[1:]))
