"""Which versions of a model lie on disk, and which of them should be loaded. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from contract import messages_pb2 as messages

_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve: its versions are the numbered directories below `base_path`."""

    name: str
    base_path: Path
    policy: messages.VersionPolicy


def default_policy() -> messages.VersionPolicy:
    """Return the policy of a model that states none: the last two versions.

    TensorFlow Serving keeps one. With two, a gateway that refuses the newest version still has one to ask.
    """
    return messages.VersionPolicy(latest=messages.VersionPolicy.Latest(num_versions=2))


def find_versions(base_path: Path) -> dict[int, Path]:
    """Return the directories below a base path whose names are signed 64-bit integers.

    Leading zeros count, so `0011` is version 11; if both spellings exist, the last in byte order is taken. Whether a
    directory holds a model is not looked at here.

    Raises:
        OSError: The base path is missing or not a readable directory.
    """
    numbered = sorted(path for path in base_path.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir())
    return {int(path.name): path for path in numbered if int(path.name) in _INT64}


def choose_versions(found: Collection[int], policy: messages.VersionPolicy) -> set[int]:
    """Return the versions that should be loaded; a specific version that is not on disk is left out."""
    match policy.WhichOneof("policy_choice"):
        case "all":
            return set(found)
        case "specific":
            return set(found) & set(policy.specific.versions)
        case _:
            return set(sorted(found)[-max(1, policy.latest.num_versions) :])
