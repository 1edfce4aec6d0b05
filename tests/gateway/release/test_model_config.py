"""models.config: what TensorFlow Serving and our own server read."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.settings import Settings
from tests.gateway.release.conftest import Store

OTHERS = """
model_config_list {
  config { name: "shoes" base_path: "/models/shoes" model_type: TENSORFLOW
           logging_config { log_collector_config { type: "file" filename_prefix: "/logs/shoes" }
                            sampling_config { sampling_rate: 0.1 } } }
  config { name: "clothing" base_path: "/models/clothing" model_platform: "tensorflow"
           version_labels { key: "stable" value: 3 }
           model_version_policy { latest { num_versions: 2 } } }
}
"""


@pytest.mark.tensorflow
def test_the_official_messages_read_it(store: Store) -> None:
    """Three versions stay loaded, and of them those that are on disk."""
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    store.do("promote", "1")
    store.do("promote", "2")
    store.do("try", "4", "--shadow")
    text = (store.home / "models.config").read_text()
    (model,) = text_format.Parse(text, ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("clothing", str(store.home), "tensorflow")
    assert list(model.model_version_policy.specific.versions) == [1, 2, 4]


def test_our_own_server_reads_it(store: Store) -> None:
    """It is a flag there too."""
    store.do("promote", "3")
    (model,) = Settings.from_argv([f"--model_config_file={store.home / 'models.config'}"]).models
    assert list(model.model_version_policy.specific.versions) == [3]


def test_other_models_and_the_base_path_stay(store: Store) -> None:
    """A container may see the store at another path."""
    (store.home / "models.config").write_text(OTHERS)
    store.do("promote", "3")
    store.do("promote", "4")
    text = (store.home / "models.config").read_text()
    shoes, clothing = text_format.Parse(text, messages.ModelServerConfig()).model_config_list.config
    assert shoes.base_path == "/models/shoes" and not shoes.HasField("model_version_policy")
    assert shoes.model_type == 1 and shoes.logging_config.log_collector_config.filename_prefix == "/logs/shoes"
    assert clothing.base_path == "/models/clothing" and clothing.version_labels == {"stable": 3}
    assert list(clothing.model_version_policy.specific.versions) == [3, 4]
    store.do("promote", "1")
    assert "versions: 3\n" in (store.home / "models.config").read_text()  # TensorFlow Serving needs what has a label


@pytest.mark.parametrize("content", [b"model_config_list { config { not_known: 1 } }", b"\xff\xfe", b"}"])
def test_what_is_not_understood_stays(store: Store, content: bytes) -> None:
    """The change is made; each command says that, also one that changes nothing, and its status shows it."""
    (store.home / "models.config").write_bytes(content)
    for said in ("Release 1: version 1 answers", "Nothing to change"):
        status, out, err = store.run("promote", "1")
        assert status == 3 and said in out
        assert err.startswith("models.config is not understood, and stays as it is") and len(err.splitlines()) == 1
    assert (store.home / "models.config").read_bytes() == content and len(store.lines) == 1


@pytest.mark.parametrize(
    ("commands", "instead"),
    [
        (["rollback"], "promote 1"),
        (["try 3 --shadow"], "try 3 --shadow"),
        (["try 3 --shadow", "promote"], "promote 3"),
        (["try 3 --shadow", "rollback"], "promote 2"),
    ],
)
def test_what_the_message_advises_writes_it(store: Store, commands: list[str], instead: str) -> None:
    """A repeated rollback would be refused, and so would the promotion of a trial that has ended."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "models.config").write_text("}")
    *_, (status, _, err) = [store.run(*command.split()) for command in commands]
    advised = "repeat the command" if instead == commands[-1] else f"`{instead}`"
    assert status == 3 and err.endswith(f" Mend that, then {advised}.\n")
    (store.home / "models.config").write_text("")
    serial = store.document["serial"]
    store.do(*instead.split())
    assert store.document["serial"] == serial
    assert f"# Release {serial}," in (store.home / "models.config").read_text()


def test_it_is_written_again(store: Store) -> None:
    """Somebody removed it, or a version; the next command mends that."""
    store.do("promote", "1")
    store.do("promote", "2")
    (store.home / "models.config").unlink()
    (store.home / "1").rename(store.home / "gone")
    store.do("promote", "2")
    assert "versions: 2\n" in (store.home / "models.config").read_text()
    assert "versions: 1\n" not in (store.home / "models.config").read_text()
