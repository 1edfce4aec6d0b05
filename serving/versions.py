"""Which of the versions on disk should be loaded. Pure functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from contract import messages_pb2 as messages


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


def choose_versions(found: Collection[int], policy: messages.VersionPolicy) -> set[int]:
    """Return the versions that should be loaded; a specific version that is not on disk is left out."""
    match policy.WhichOneof("policy_choice"):
        case "all":
            return set(found)
        case "specific":
            return set(found) & set(policy.specific.versions)
        case _:
            return set(sorted(found)[-max(1, policy.latest.num_versions) :])
