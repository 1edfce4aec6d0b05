"""What an image carries of a model-store."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.release import read_release
from serving.settings import Settings as ServingSettings
from tests.conftest import make_store
from training.release.carried import carry


def test_an_image_carries_what_the_release_names(tmp_path: Path) -> None:
    """The last two versions; with a document those that it names, itself, and the same for TensorFlow Serving."""
    ledger = make_store(tmp_path / "store", "0", "1", "2", "9", "10", "draft")
    home = ledger.home
    carry(home, tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"9", "10"}
    ledger.promote(0)
    ledger.promote(2)
    ledger.try_version(9, "share", 0.1)
    carry(home, tmp_path / "carried")
    assert {path.name for path in (tmp_path / "carried").iterdir()} == {"0", "2", "9", "release.json", "models.config"}
    assert read_release(tmp_path / "carried" / "release.json") == read_release(home / "release.json")
    (model,) = ServingSettings.from_argv([f"--model_config_file={tmp_path}/carried/models.config"]).models
    assert list(model.model_version_policy.specific.versions) == [0, 2, 9]
    (home / "2").rename(home / "gone")
    with pytest.raises(ValueError, match="names version 2 as stable, which is not on disk"):
        carry(home, tmp_path / "none")


def test_an_image_leaves_out_what_was_rolled_back(tmp_path: Path) -> None:
    """A gateway without the document would take it for the newest; one that is tried is carried."""
    ledger = make_store(tmp_path / "store", "1", "2", "3")
    for number in (1, 2):
        ledger.promote(number)
    ledger.rollback()
    carry(ledger.home, tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"1", "release.json", "models.config"}
    ledger.try_version(3, "shadow")
    carry(ledger.home, tmp_path / "tried")
    assert {path.name for path in (tmp_path / "tried").iterdir()} == {"1", "3", "release.json", "models.config"}
