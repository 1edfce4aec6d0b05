"""serving/versions.py: which versions are loaded."""

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.versions import choose_versions, default_policy


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
    ],
)
def test_a_policy_chooses(policy, chosen):
    """Each policy of TensorFlow Serving chooses the versions that it names."""
    assert choose_versions([7, 1, 9], text_format.Parse(policy, messages.VersionPolicy())) == chosen


def test_the_default_keeps_the_last_two():
    """Without a policy the newest two versions are loaded."""
    assert choose_versions([3, 1, 2], default_policy()) == {2, 3}
