"""Run folders: what training leaves behind, and what a release is made of.

`runs/NAME/TIME/` holds `model.keras` (pixels 0-255 to probabilities), `contract.json` (without golden examples),
`history.json` (each phase's figures by epoch), `golden/`, held-out photos to make golden examples of, and a report, see
`training.fit.report`. `releases.jsonl` has a line for each export that was made of it: its identity, and where it lies.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from contract.document import Contract, ContractError, Origin
from training.errors import TrainingError


def write_run(
    folder: Path, model: keras.Model, contract: Contract, history: Mapping[str, Any], photos: Sequence[bytes]
) -> Path:
    """Write a run folder below `folder/<contract.model>/` and return it."""
    run = folder / contract.model / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    (run / "golden").mkdir(parents=True)
    model.save(run / "model.keras")
    (run / "history.json").write_text(json.dumps(history, indent=2))
    for position, photo in enumerate(photos):
        (run / "golden" / str(position)).write_bytes(photo)
    (run / "contract.json").write_bytes(contract.to_json())  # last: a run without it is not complete
    return run


def read_run(run: Path) -> tuple[keras.Model, Contract, list[bytes]]:
    """Return a run's model, contract and photos for golden examples.

    Raises:
        TrainingError: The folder is not a complete run.
    """
    if not (run / "contract.json").is_file():
        raise TrainingError(
            f"Expected a run folder that train has finished; `python -m training runs` lists them. Received: {run}"
        )
    try:
        contract = Contract.from_json((run / "contract.json").read_bytes())
        photos = [path.read_bytes() for path in sorted((run / "golden").iterdir())]
        return keras.models.load_model(run / "model.keras", compile=False), contract, photos
    except (OSError, ValueError, ContractError) as exc:
        raise TrainingError(f"Expected a run folder that train has finished. Received {run}: {exc}") from exc


def record_release(run: Path, version: Path, identity: str) -> None:
    """Add an export, and the version's directory, to the run's history: an answer's identity leads back to its run."""
    line = {
        "identity": identity,
        "model": version.parent.name,
        "version": int(version.name),
        "released_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (run / "releases.jsonl").open("a") as history:
        history.write(json.dumps(line) + "\n")


def provenance() -> Origin:
    """Return when, from which source and with which libraries a model is made."""
    return Origin(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source_revision=_source_revision(),
        keras=keras.__version__,
        tensorflow=tf.__version__,
    )


def _source_revision() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
