"""serving/versions.py: discovery and policy."""

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.versions import choose_versions, default_policy, find_versions


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["1", "2", "10"], [1, 2, 10]),
        (["v2", "2.tmp", "best", ".in", "tmp-3", "1e3", "+4", " 5", "٣"], []),
        (["0011"], [11]),
        (["-3"], [-3]),
        (["9223372036854775807", "9223372036854775808"], [2**63 - 1]),
    ],
)
def test_only_int64_names_are_versions(tmp_path, names, numbers):
    """A directory is a version if its whole name is a signed 64-bit integer."""
    for name in names:
        (tmp_path / name).mkdir()
    assert sorted(find_versions(tmp_path)) == numbers


def test_the_last_spelling_in_byte_order_wins(tmp_path):
    """Of 011 and 11, version 11 is the directory that sorts last."""
    (tmp_path / "011").mkdir()
    (tmp_path / "11").mkdir()
    assert find_versions(tmp_path) == {11: tmp_path / "11"}


def test_files_are_not_versions(tmp_path):
    """A file with a number for a name is ignored."""
    (tmp_path / "7").write_text("notes")
    assert find_versions(tmp_path) == {}


def test_a_missing_base_path_is_an_error(tmp_path):
    """Missing is told apart from empty."""
    with pytest.raises(OSError):
        find_versions(tmp_path / "nowhere")


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
