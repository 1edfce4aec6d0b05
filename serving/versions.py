"""Which of the versions on disk should be loaded."""

from __future__ import annotations

from collections.abc import Collection

from contract import messages_pb2 as messages

# For a model that states no policy. TensorFlow Serving keeps one; with two, a gateway that refuses the newest version
# still has one to ask.
KEPT_VERSIONS = 2


def choose_versions(found: Collection[int], model: messages.ModelConfig) -> set[int]:
    """Return a model's versions that should be loaded; a specific version that is not on disk is left out."""
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return set(found)
        case "specific":
            return set(found) & set(policy.specific.versions)
    kept = policy.latest.num_versions if model.HasField("model_version_policy") else KEPT_VERSIONS
    return set(sorted(found)[-max(1, kept) :])
