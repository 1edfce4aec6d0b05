"""Run folders: what training leaves behind, and what a release is made of. Only models need TensorFlow.

`runs/NAME/TIME/`, or `runs/NAME/TIME-first/` for a first version, contains:
    model.keras     pixels 0-255 to probabilities
    contract.json   the contract, without golden examples
    history.json    each phase's figures by epoch; a first version has none
    golden/         held-out photos for golden examples
    novelty.npy     directions of the score, see `training.models.novelty`
    report.html     and its plots, see `training.fit.report`
    made-of.txt     a digest of the photos and of all else that it was made of, once it is complete
    releases.jsonl  the identity and the place of each version that was made of the run
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.disk import sync_all
from contract.document import Contract, ContractError, Origin
from training.errors import TrainingError

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray


RELEASES, MADE_OF = "releases.jsonl", "made-of.txt"


@dataclass(frozen=True)
class Run:
    """A run folder, which a training may have left unfinished."""

    path: Path

    @property
    def releases(self) -> list[dict[str, Any]]:
        """The identity, model and number of each version that was made of it, the newest last."""
        file = self.path / RELEASES
        found = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            with suppress(ValueError):  # a kill may leave half of one
                found.append(json.loads(line))
        return found

    @property
    def name(self) -> str:
        """The model's name and the time, as the folders are named."""
        path = self.path.resolve()  # that of "." has no name
        return f"{path.parent.name}/{path.name}"

    @cached_property
    def contract(self) -> Contract:
        """The contract, without golden examples.

        Raises:
            TrainingError: There is no such folder, training did not finish it, or its contract cannot be read.
        """
        try:
            return Contract.from_json((self.path / "contract.json").read_bytes())
        except ContractError as exc:
            raise TrainingError(
                f"The contract of {self.path} cannot be read, as it is damaged or of another release: {exc}."
                " Use the release that trained it, or train again."
            ) from exc
        except OSError as exc:
            raise TrainingError(
                "Expected a run folder that train has finished; `python -m training runs` lists them."
                f" Received: {self.path} ({exc})"
            ) from exc


def run_of(path: Path) -> Run | None:
    """Return the run of its folder or of the model in it; None if it is neither."""
    folder = path.parent if path.name == "model.keras" else path
    return Run(folder.resolve()) if (folder / "contract.json").is_file() else None


def find_runs(folder: Path) -> list[Run]:
    """Return the runs in `folder/MODEL/TIME`, the newest first.

    Raises:
        TrainingError: There are none.
    """
    found = [Run(path.parent) for path in folder.glob("[!.]*/*/golden")]  # which each begins with
    if not found:
        raise TrainingError(f"Expected runs in {folder}/NAME/TIME, where train leaves them. Received: none")
    return sorted(found, key=lambda run: run.path.name, reverse=True)


def find_same(folder: Path, digest: str, since: Path | None) -> Path | None:
    """Return the newest run in a model's folder that was made of the same; None if there is none.

    It ended after a file was written, if there is that file: what an interrupted training began with is newer than runs
    that have ended before.
    """
    begun_ns = since.stat().st_mtime_ns if since and since.is_file() else 0
    for made_of in sorted(folder.glob(f"*/{MADE_OF}"), reverse=True):
        if made_of.read_text() == digest and made_of.stat().st_mtime_ns >= begun_ns:
            return made_of.parent
    return None


def write_run(
    folder: Path,
    model: keras.Model,
    contract: Contract,
    history: Mapping[str, Any],
    photos: Sequence[bytes],
    *,
    directions: NDArray[np.float32] | None = None,
) -> Path:
    """Write a run folder below `folder/<contract.model>/` and return it."""
    import keras

    run = _begin_run(folder / contract.model, "" if history else "-first")
    of_layers = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # without the optimizer, twice as large
    of_layers.save(run / "model.keras")
    (run / "history.json").write_text(json.dumps(history, indent=2))
    for position, photo in enumerate(photos):
        (run / "golden" / str(position)).write_bytes(photo)
    if directions is not None:
        import numpy as np

        np.save(run / "novelty.npy", directions)
    sync_all(run)
    (run / "contract.json").write_bytes(contract.to_json())  # last: a run without it is not complete
    return run


def finish_run(run: Path, digest: str) -> None:
    """Write what a run was made of, once all else is on the disk; the state of its training may go then."""
    sync_all(run)
    (run / MADE_OF).write_text(digest)
    sync_all(run)


def _begin_run(folder: Path, suffix: str) -> Path:
    """Make the folder of a run, named after this second; wait if another training has it."""
    while True:
        run = folder / (datetime.now(UTC).strftime("%Y%m%d-%H%M%S") + suffix)
        try:
            (run / "golden").mkdir(parents=True)
            return run
        except FileExistsError:
            if not run.exists():  # something above it is in the way
                raise
        time.sleep(0.1)


def read_run(run: Path) -> tuple[keras.Model, Contract, list[bytes], NDArray[np.float32] | None]:
    """Return a run's model, contract, photos for golden examples, and directions (c, d); None if it has no score.

    Raises:
        TrainingError: The folder is not a complete run.
    """
    import keras
    import numpy as np

    contract = Run(run).contract
    try:
        directions = np.load(run / "novelty.npy").astype(np.float32) if contract.novelty else None
        photos = [path.read_bytes() for path in sorted((run / "golden").iterdir())]
        return keras.models.load_model(run / "model.keras", compile=False), contract, photos, directions
    except Exception as exc:  # Keras and NumPy have many kinds for a damaged file
        raise TrainingError(f"Expected a run folder that train has finished. Received {run}: {exc}") from exc


def record_release(run: Path, version: Path, identity: str) -> None:
    """Add an export to the list of the run's releases, so that the identity in an answer leads back to the run."""
    line = {
        "identity": identity,
        "model": version.parent.name,
        "version": int(version.name),
        "released_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file = run / RELEASES
    is_torn = file.is_file() and not file.read_text().endswith("\n")
    with file.open("a") as history:
        history.write("\n" * is_torn + json.dumps(line) + "\n")


def provenance() -> Origin:
    """Return when, from which source and with which libraries a model is made."""
    import keras
    import tensorflow as tf

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


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested members by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat(value) if isinstance(value, Mapping) else {}
        found |= {f"{name}.{each}": inner[each] for each in inner} or {name: value}
    return found
