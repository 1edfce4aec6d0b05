"""serving/versions.py: which versions are loaded."""

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.versions import choose_versions


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        ("model_version_policy { latest { num_versions: 1 } }", {9}),
        ("model_version_policy { latest { num_versions: 2 } }", {7, 9}),
        ("model_version_policy { latest { num_versions: 20 } }", {1, 7, 9}),
        ("model_version_policy { latest { } }", {9}),
        ("model_version_policy { all { } }", {1, 7, 9}),
        ("model_version_policy { specific { versions: 1 versions: 8 } }", {1}),
        ("model_version_policy { specific { } }", set()),
        ("model_version_policy { }", {9}),
        ("", {7, 9}),
    ],
)
def test_a_policy_chooses(model, chosen):
    """Each policy of TensorFlow Serving chooses the versions that it names; without one, the newest two are loaded."""
    assert choose_versions([7, 1, 9], text_format.Parse(model, messages.ModelConfig())) == chosen
