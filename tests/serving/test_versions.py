"""serving/versions.py: which versions are loaded."""

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.versions import choose_versions


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("latest { num_versions: 1 }", {9}),
        ("latest { num_versions: 2 }", {7, 9}),
        ("latest { num_versions: 20 }", {1, 7, 9}),
        ("latest { }", {9}),
        ("all { }", {1, 7, 9}),
        ("specific { versions: 1 versions: 8 }", {1}),
        ("specific { }", set()),
        ("", {7, 9}),
    ],
)
def test_a_policy_chooses(policy, chosen):
    """Each policy of TensorFlow Serving chooses the versions that it names; without one, the newest two are loaded."""
    assert choose_versions([7, 1, 9], text_format.Parse(policy, messages.VersionPolicy())) == chosen
